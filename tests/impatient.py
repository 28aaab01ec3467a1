"""Loaded into a server, has it wait less for the heads of requests and for their bodies."""

from toys import Count, Nothing

from intermission.handlers import Task, handler
from intermission.supervisor.routes import connection, requests

connection.HEAD_WITHIN_S = 1.0  # type: ignore[misc]
requests.BODY_WITHIN_S = 1.0  # type: ignore[misc]


@handler("impatient")
def impatient(task: Task[Nothing, Count]) -> Count:
    """Be there, for a module without a handler is refused."""
    return task.state
