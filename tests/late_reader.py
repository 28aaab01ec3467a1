"""A child that is not run for a while just before it reads from a connection, as on a machine with too much to do."""

import time
from dataclasses import dataclass
from typing import Final

from intermission.handlers import Task, handler
from intermission.supervisor.process.incoming import Incoming

LATE_S: Final = 4.5
"""Longer than it is waited for once its client has gone, and shorter than it then has until it is ended."""
_from_connection = Incoming.from_connection
_was_late = False


def _late(self: Incoming, left: int) -> bytes:
    global _was_late  # noqa: PLW0603 -- once in each child
    if not _was_late:
        _was_late = True
        time.sleep(LATE_S)
    return _from_connection(self, left)


Incoming.from_connection = _late  # type: ignore[method-assign]


@dataclass
class Nothing:
    """No params, no state."""


@handler("late")
def late(task: Task[Nothing, Nothing]) -> None:
    """Nothing; without a handler nobody would import this module."""
