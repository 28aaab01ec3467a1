"""What operators and load balancers ask."""

from importlib.metadata import version
from typing import Final

from aiohttp import web

from intermission.state.status import Status
from intermission.supervisor.errors import UnavailableError
from intermission.supervisor.routes import requests, shapes
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.operation import Operation

VERSION: Final = version("intermission")
PUBLIC: Final = frozenset({"/health", "/health/ready"})
"""Load balancers have no tokens."""


def add(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/health", health)
    app.router.add_get("/health/ready", ready)


@Operation(answers={200: shapes.Health}, problems=(503,))
async def health(request: web.Request) -> web.StreamResponse:
    """Say that the server runs, and how much it has to do."""
    supervisor = request.app[SUPERVISOR]
    counts = await supervisor.store.counts()
    now: shapes.Health = {
        "status": supervisor.phase,
        "version": VERSION,
        "running": supervisor.running,
        "pending": counts.get(Status.PENDING, 0),
        "max_running": supervisor.max_running,
    }
    return requests.answer(request, now)


@Operation(answers={200: shapes.Ready}, problems=(503,))
async def ready(request: web.Request) -> web.StreamResponse:
    """Say whether starts are accepted: 503 while starting or stopping."""
    if not request.app[SUPERVISOR].ready:
        message = "the server is starting or stopping"
        raise UnavailableError(message)
    return requests.answer(request, {"status": "ready"})
