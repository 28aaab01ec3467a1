"""What a user's uploads come to, and what they may."""

from aiohttp import web

from intermission.supervisor.routes import requests, shapes, views
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.operation import Operation


def add(app: web.Application) -> None:
    """Add the route."""
    app.router.add_get("/upload/usage", usage)


@Operation(answers={200: shapes.Usage}, problems=(422, 503))
async def usage(request: web.Request) -> web.StreamResponse:
    """Say what one's own uploads come to, and what they may."""
    requests.query(request)
    supervisor = request.app[SUPERVISOR]
    found = await supervisor.store.usage(request[CALLER].user)
    return requests.answer(request, views.usage(found, supervisor.quota))
