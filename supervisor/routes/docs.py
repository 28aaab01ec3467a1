"""The API's description: for programs the OpenAPI document, for people a page that shows it, from this server alone.

The page is Swagger UI, whose files a package carries; that package is never imported. With a secret set, the page and
its files are still served to everybody: they are the same everywhere and tell nothing of this server, and a browser
sends no token with an address. What does tell, the document, needs a token, and so the page asks for one.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import distribution
from pathlib import Path
from typing import Annotated, Final

import msgspec
from aiohttp import web
from pydantic import WithJsonSchema
from typing_extensions import TypedDict

from intermission.handlers.registry import AnyHandler
from intermission.supervisor.routes import requests
from intermission.supervisor.routes.openapi import document
from intermission.supervisor.routes.operation import Operation
from intermission.supervisor.routes.ops import VERSION

_OURS: Final = Path(__file__).with_name("page")
_SWAGGER_UI: Final = Path(str(distribution("flask-swagger-ui").locate_file("flask_swagger_ui/dist")))
_FILES: Final = {
    "docs.css": _OURS,
    "docs.js": _OURS,
    "swagger-ui.css": _SWAGGER_UI,
    "swagger-ui-bundle.js": _SWAGGER_UI,
    "favicon-32x32.png": _SWAGGER_UI,
}
PUBLIC: Final = frozenset({"/docs", "/docs/{file}", *(f"/docs/{name}" for name in _FILES)})
_HEADERS: Final = {
    # All that Swagger UI needs beyond 'self' are the icons that its style sheet carries as data. No form is ever sent.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass
class Document:
    """The document of an application. It is written when it is first asked for: that takes a tenth of a second."""

    app: web.Application
    handlers: Mapping[str, AnyHandler]
    public: Collection[str] | None
    """See `openapi.document`."""

    @cached_property
    def text(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(document(self.app.router.routes(), self.handlers, VERSION, self.public))


DOCUMENT: Final = web.AppKey("document", Document)


class OfFile(TypedDict):
    """In the address of a file of the page."""

    file: Annotated[str, WithJsonSchema({"type": "string", "enum": list(_FILES)})]


def add(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/openapi.json", openapi)
    app.router.add_get("/docs", page)
    app.router.add_get("/docs/{file}", file)


@Operation(answers={200: "application/json"}, problems=(422,))
async def openapi(request: web.Request) -> web.StreamResponse:
    """Show this document."""
    requests.query(request)
    text = await asyncio.to_thread(lambda: request.app[DOCUMENT].text)
    return web.Response(body=text, content_type="application/json", headers={"Cache-Control": "no-cache"})


@Operation(answers={200: "text/html"}, problems=(422,))
async def page(request: web.Request) -> web.StreamResponse:
    """Show this document to people."""
    requests.query(request)
    return web.FileResponse(_OURS / "docs.html", headers=_HEADERS)


@Operation(path=(OfFile,), answers={200: "*/*"}, problems=(404, 422))
async def file(request: web.Request) -> web.StreamResponse:
    """Download a file of the page."""
    requests.query(request)
    name = request.match_info["file"]
    if name not in _FILES:
        raise web.HTTPNotFound
    return web.FileResponse(_FILES[name] / name, headers=_HEADERS)
