"""Pages for people: a text and the files that it needs, from this server alone, under a policy that allows no more.

With a secret set they are still served to everybody: they are the same everywhere and tell nothing of this server, and
a browser sends no token with an address. What does tell needs a token, and so a page asks for one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from aiohttp import web
from pydantic import WithJsonSchema
from typing_extensions import TypedDict

from intermission.supervisor.routes import requests
from intermission.supervisor.routes.operation import Operation

OURS: Final = Path(__file__).with_name("page")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page and its files."""

    path: str
    """Its address."""
    below: str
    """The address of its files, with a slash at its end."""
    text: str
    """The name of its HTML, which is ours."""
    files: Mapping[str, Path]
    """Each by its name, and the folder that it is in: no path leads to any other."""
    about: str
    """What the route does, for the document."""
    images: str = "'self'"
    """Where images may come from."""

    @property
    def public(self) -> frozenset[str]:
        """All of its addresses, those of its routes too."""
        return frozenset({self.path, f"{self.below}{{file}}", *(f"{self.below}{name}" for name in self.files)})

    def add(self, app: web.Application) -> None:
        """Add the routes."""
        headers = {
            # No form is ever sent: scripts read them.
            "Content-Security-Policy": f"default-src 'self'; img-src {self.images}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

        class OfFile(TypedDict):
            """In the address of a file of the page."""

            file: Annotated[str, WithJsonSchema({"type": "string", "enum": list(self.files)})]

        @Operation(answers={200: "text/html"}, problems=(422,))
        async def page(request: web.Request) -> web.StreamResponse:
            requests.query(request)
            return web.FileResponse(OURS / self.text, headers=headers)

        @Operation(path=(OfFile,), answers={200: "*/*"}, problems=(404, 422))
        async def file(request: web.Request) -> web.StreamResponse:
            """Download a file of the page."""
            requests.query(request)
            name = request.match_info["file"]
            if name not in self.files:
                raise web.HTTPNotFound
            return web.FileResponse(self.files[name] / name, headers=headers)

        page.__doc__ = self.about
        app.router.add_get(self.path, page)
        app.router.add_get(f"{self.below}{{file}}", file)
