"""What the service ``team`` has beside the routes of every service: the list of the caller's teams."""

import asyncio
import sqlite3
from typing import Final

import structlog
from aiohttp import web

from intermission.handlers import directory
from intermission.supervisor.routes import lists, requests, shapes, views
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.operation import Operation
from intermission.supervisor.routes.problems import Problem

_READS: Final = web.AppKey("directory reads", asyncio.Semaphore)
_READS_AT_ONCE: Final = 2
"""A locked directory may hold up so many threads, and none that save checkpoints."""
_log = structlog.get_logger()


def add(app: web.Application) -> None:
    """Add the route."""
    app[_READS] = asyncio.Semaphore(_READS_AT_ONCE)
    app.router.add_get("/team/teams", teams)


@Operation(query=(lists.Limit, lists.Before), answers={200: shapes.TeamPage}, problems=(422, 503))
async def teams(request: web.Request) -> web.StreamResponse:
    """List one's own teams, newest first."""
    values = requests.query(request, "limit", "cursor")
    limit, before = lists.limit(values), lists.before(values)
    path, user = request.app[SUPERVISOR].places.directory, request[CALLER].user
    try:
        async with request.app[_READS]:
            found = await asyncio.to_thread(directory.teams, path, user, before, limit + 1)
    except sqlite3.Error as error:
        _log.warning("the directory did not answer", error=str(error))
        raise Problem(503, "directory", "the directory does not answer; try again") from None
    following = str(found[limit - 1].id) if len(found) > limit else None
    page: shapes.TeamPage = {"items": [_team(one) for one in found[:limit]], "next": following}
    return requests.answer(request, page)


def _team(of: directory.Team) -> shapes.Team:
    return {"name": of.name, "members": of.members, "task": of.task, "created_at": views.time(of.created_at)}
