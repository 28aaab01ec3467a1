"""The API's description: for programs the OpenAPI document, for people a page that shows it.

The page is Swagger UI, whose files a package carries; that package is never imported.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from intermission.handlers.registry import AnyHandler
from intermission.supervisor.routes import requests
from intermission.supervisor.routes.openapi import document
from intermission.supervisor.routes.operation import Operation
from intermission.supervisor.routes.ops import VERSION
from intermission.supervisor.routes.pages import OURS, Page

_SWAGGER_UI: Final = Path(str(distribution("flask-swagger-ui").locate_file("flask_swagger_ui/dist")))
PAGE: Final = Page(
    path="/docs",
    below="/docs/",
    text="docs.html",
    files={
        **dict.fromkeys(("page.css", "docs.js", "icon.svg"), OURS),
        **dict.fromkeys(("swagger-ui.css", "swagger-ui-bundle.js"), _SWAGGER_UI),
    },
    about="Show this document to people.",
    images="'self' data:",  # the icons that Swagger UI's style sheet carries
)


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


def add(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/openapi.json", openapi)
    PAGE.add(app)


@Operation(answers={200: "application/json"}, problems=(422,))
async def openapi(request: web.Request) -> web.StreamResponse:
    """Show this document."""
    requests.query(request)
    text = await asyncio.to_thread(lambda: request.app[DOCUMENT].text)
    return web.Response(body=text, content_type="application/json", headers={"Cache-Control": "no-cache"})
