"""Children that are not run for a while just before they read from a connection, as on a machine with too much to do.

Once, and for long; with ``SLOW_READERS`` in the server's environment each time, but for a shorter while.
"""

import os
import time
from dataclasses import dataclass
from typing import Final

from intermission.handlers import Task, handler
from intermission.supervisor.process.incoming import Incoming

LATE_S: Final = 4.5
"""Longer than it is waited for once its client has gone, and shorter than it then has until it is ended."""
SLOW_S: Final = 2.0
"""Shorter than it is waited for."""
_EACH_TIME: Final = "SLOW_READERS" in os.environ
_from_connection = Incoming.from_connection
_was_late = False


def _late(self: Incoming, left: int) -> bytes:
    global _was_late  # noqa: PLW0603 -- in each child by itself
    if _EACH_TIME or not _was_late:
        _was_late = True
        time.sleep(SLOW_S if _EACH_TIME else LATE_S)
    return _from_connection(self, left)


Incoming.from_connection = _late  # type: ignore[method-assign]


@dataclass
class Nothing:
    """No params, no state."""


@handler("late")
def late(task: Task[Nothing, Nothing]) -> None:
    """Nothing; without a handler nobody would import this module."""
