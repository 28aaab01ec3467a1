"""A disk that takes half a second for every sync of a file, for a server that must not wait for it with everything."""

import os
import time
from dataclasses import dataclass
from typing import Final

from intermission.handlers import Task, handler

SYNC_S: Final = 0.5
_fdatasync = os.fdatasync


def _slow(fd: int) -> None:
    time.sleep(SYNC_S)
    _fdatasync(fd)


os.fdatasync = _slow  # type: ignore[assignment]


@dataclass
class Nothing:
    """No params, no state."""


@handler("quick")
def quick(task: Task[Nothing, Nothing]) -> int:
    """Something that needs no disk but to begin and to end; without a handler nobody would import this module."""
    return task.attempt
