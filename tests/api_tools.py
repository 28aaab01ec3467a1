"""Every route that the server has, read off the application: what is asked of each cannot miss a new one."""

from typing import Any, Final

from aiohttp import web

from intermission.supervisor.routes.application import ROOMS
from intermission.supervisor.routes.operation import Operation

PUBLIC: Final = {"/health", "/health/ready", "/docs", "/docs/{file}", "/upload", "/upload/page/{file}"}
"""The addresses of the routes that need no token."""
NEVER: Final = "01936d3e-7b1c-7def-8abc-0123456789ab"


def bare() -> web.Application:
    """The routes, with nothing behind them."""
    app = web.Application()
    for room in ROOMS:
        room.add(app)
    return app


def address(route: web.AbstractRoute) -> str:
    """As it was added, with its parts in braces."""
    assert route.resource is not None
    return route.resource.canonical


def described(route: web.AbstractRoute) -> Operation:
    """What stands at a route for the document."""
    operation: Any = route.handler
    assert isinstance(operation.operation, Operation)
    return operation.operation


def filled(path: str, task_id: str, service: str, name: str = "lines.txt") -> str:
    """An address of which each part is somebody's; KeyError for a part that is not known here."""
    return path.format_map({"id": task_id, "service": service, "name": name, "file": "page.css"})


def lines_of(task_id: str, service: str) -> list[str]:
    """Every way to name a task, as request lines."""
    lines = []
    for route in bare().router.routes():
        path = filled(address(route), task_id, service)
        if "{id}" in address(route):
            lines.append(f"{route.method} {path}")
        elif any("task" in query.__annotations__ for query in described(route).query):
            lines.append(f"{route.method} {path}?task={task_id}")
    return lines
