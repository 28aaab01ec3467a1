"""A server none of whose files may go past the transport, as if something had to be encrypted or sent before them."""

from dataclasses import dataclass

from intermission.handlers import Task, handler
from intermission.supervisor.routes import sendfile

sendfile.can = lambda _: False


@dataclass
class Nothing:
    """No params, no state."""


@handler("past")
def past(task: Task[Nothing, Nothing]) -> None:
    """Nothing; without a handler nobody would import this module."""
