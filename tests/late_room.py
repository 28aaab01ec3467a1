"""Loaded into a server, keeps room for uploads half a second late."""

import time

from toys import Count, Nothing

from intermission.handlers import Task, handler
from intermission.supervisor.places import Places

_on_time = Places.reserve


def _late(self: Places, task_id: str, name: str, size: int) -> None:
    time.sleep(0.5)
    _on_time(self, task_id, name, size)


Places.reserve = _late  # type: ignore[method-assign]


@handler("unused")
def unused(task: Task[Nothing, Count]) -> Count:
    """Be there, for a module without a handler is refused."""
    return task.state
