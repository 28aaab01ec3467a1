"""What the service ``extract`` has beside the routes of every service: the list of its sources."""

import asyncio

from aiohttp import web

from intermission.handlers.inputs import Inputs
from intermission.handlers.sources import Source, list_sources
from intermission.supervisor.routes import lists, requests, views
from intermission.supervisor.routes.answers import SUPERVISOR


def add(app: web.Application) -> None:
    """Add the route."""
    app.router.add_get("/extract/sources", sources)


async def sources(request: web.Request) -> web.StreamResponse:
    """One page of the sources, by name, with their columns; the first rows of each are read for that."""
    values = requests.query(request, "limit", "cursor")
    limit, after = lists.limit(values), values.get("cursor", [""])[0]
    places = request.app[SUPERVISOR].places
    given = Inputs(places.sources, places.directory)
    found = await asyncio.to_thread(list_sources, given, after, limit + 1)
    following = found[limit - 1].name if len(found) > limit else None
    return requests.answer(request, {"items": [_source(one) for one in found[:limit]], "next": following})


def _source(of: Source) -> views.Json:
    columns = [{"name": column.name, "type": column.type} for column in of.columns]
    return {"name": of.name, "format": of.format, "size_bytes": of.size_bytes, "columns": columns, "error": of.error}
