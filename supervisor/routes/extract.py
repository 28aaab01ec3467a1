"""What the service ``extract`` has beside the routes of every service: the list of its sources."""

from aiohttp import web
from pydantic import with_config
from typing_extensions import TypedDict

from intermission.handlers.inputs import Inputs
from intermission.handlers.sources import Source, list_sources
from intermission.supervisor.routes import lists, requests, shapes
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.operation import Operation


@with_config(use_attribute_docstrings=True)
class After(TypedDict, total=False):
    """Where the page before ended."""

    cursor: shapes.Text
    """The `next` of the page before."""


def add(app: web.Application) -> None:
    """Add the route."""
    app.router.add_get("/extract/sources", sources)


@Operation(query=(lists.Limit, After), answers={200: shapes.SourcePage}, problems=(422, 503))
async def sources(request: web.Request) -> web.StreamResponse:
    """List the sources by name, each with its columns; the first rows of each are read for that."""
    values = requests.query(request, "limit", "cursor")
    limit, after = lists.limit(values), values.get("cursor", [""])[0]
    supervisor = request.app[SUPERVISOR]
    given = Inputs(supervisor.places.sources, supervisor.places.directory)
    found = await supervisor.apart.run("extract", list_sources, given, after, limit + 1)
    following = found[limit - 1].name if len(found) > limit else None
    page: shapes.SourcePage = {"items": [_source(one) for one in found[:limit]], "next": following}
    return requests.answer(request, page)


def _source(of: Source) -> shapes.Source:
    columns: list[shapes.Column] = [{"name": column.name, "type": column.type} for column in of.columns]
    return {"name": of.name, "format": of.format, "size_bytes": of.size_bytes, "columns": columns, "error": of.error}
