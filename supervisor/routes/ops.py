"""What operators and load balancers ask."""

from importlib.metadata import version
from typing import Final

from aiohttp import web

from intermission.state.status import Status
from intermission.supervisor.errors import UnavailableError
from intermission.supervisor.routes import requests
from intermission.supervisor.routes.answers import SUPERVISOR

_VERSION: Final = version("intermission")


def add(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/health", health)
    app.router.add_get("/health/ready", ready)


async def health(request: web.Request) -> web.StreamResponse:
    """That it runs, and how much it has to do."""
    supervisor = request.app[SUPERVISOR]
    counts = await supervisor.store.counts()
    return requests.answer(
        request,
        {
            "status": "ok" if supervisor.ready else "draining",
            "version": _VERSION,
            "running": supervisor.running,
            "pending": counts.get(Status.PENDING, 0),
            "max_running": supervisor.max_running,
        },
    )


async def ready(request: web.Request) -> web.StreamResponse:
    """Whether starts are accepted. Raises `UnavailableError` while starting or draining."""
    if not request.app[SUPERVISOR].ready:
        message = "the server is starting or stopping"
        raise UnavailableError(message)
    return requests.answer(request, {"status": "ready"})
