"""A Python that was built without splice(2), for a server whose uploads have to be copied."""

import contextlib
import os
from dataclasses import dataclass

from intermission.handlers import Task, handler

with contextlib.suppress(AttributeError):
    del os.splice


@dataclass
class Nothing:
    """No params, no state."""


@handler("built")
def built(task: Task[Nothing, Nothing]) -> bool:  # noqa: ARG001 -- nothing is asked for
    """Whether there is one; without a handler nobody would import this module."""
    return hasattr(os, "splice")
