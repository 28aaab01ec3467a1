"""A clock of the day that is ahead by what a file says, for a server that must not believe it. No other clock jumps."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from intermission.handlers import Task, handler

_time = time.time


def _jumping() -> float:
    jump = Path(os.environ["TOYS_CLOCK_JUMP"])
    return _time() + (float(jump.read_text() or 0) if jump.exists() else 0.0)


time.time = _jumping


@dataclass
class Nothing:
    """No params, no state."""


@handler("timeless")
def timeless(task: Task[Nothing, Nothing]) -> None:
    """Nothing; without a handler nobody would import this module."""
