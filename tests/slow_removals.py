"""Loaded into a server, lets the removal of a folder stop in its middle while there is a file ``hold`` beside it."""

import time
from pathlib import Path

from toys import Count, Nothing

from intermission.handlers import Task, handler
from intermission.supervisor import cleaner
from intermission.supervisor.removal import remove_folder


def _slow(folder: Path) -> int:
    count = remove_folder(folder / "tmp")
    while (folder.parent / "hold").exists():
        time.sleep(0.01)
    return count + remove_folder(folder)


cleaner.remove_folder = _slow


@handler("unremoved")
def unremoved(task: Task[Nothing, Count]) -> Count:
    """Be there, for a module without a handler is refused."""
    return task.state
