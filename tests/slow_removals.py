"""Loaded into a server, lets the removal of a folder take as long as there is a file ``hold`` beside it."""

import os
import shutil
import time
from typing import Any

from toys import Count, Nothing

from intermission.handlers import Task, handler

_rmtree: Any = shutil.rmtree


def _slow(path: Any, *args: Any, **options: Any) -> None:
    while os.path.exists(os.path.join(os.path.dirname(path), "hold")):
        time.sleep(0.01)
    _rmtree(path, *args, **options)


shutil.rmtree = _slow  # type: ignore[assignment]


@handler("unremoved")
def unremoved(task: Task[Nothing, Count]) -> Count:
    """Be there, for a module without a handler is refused."""
    return task.state
