"""A system that cannot do it, for a server whose uploads have to be copied."""

from dataclasses import dataclass

from intermission.handlers import Task, handler
from intermission.supervisor.routes import direct

direct.works = lambda: False


@dataclass
class Nothing:
    """No params, no state."""


@handler("copying")
def copying(task: Task[Nothing, Nothing]) -> None:
    """Nothing; without a handler nobody would import this module."""
