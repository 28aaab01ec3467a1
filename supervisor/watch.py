"""Who waits for a task to change: woken by each commit, never by a clock."""

import asyncio
from collections import defaultdict


class Watchers:
    """Futures by task id; an id without anybody waiting costs nothing."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self.closed = False
        """Nothing will change any more: waiting is pointless."""

    def announce(self, task_id: str) -> None:
        """A change of this task has been committed."""
        for future in self._waiting.pop(task_id, ()):
            if not future.done():
                future.set_result(None)

    def next_change(self, task_id: str) -> asyncio.Future[None]:
        """Done at the next change. Take it *before* reading the task, or a change in between is missed."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[task_id].add(future)
        return future

    def forget(self, task_id: str, future: asyncio.Future[None]) -> None:
        """Nobody waits for this one any more."""
        if (waiting := self._waiting.get(task_id)) is not None:
            waiting.discard(future)
            if not waiting:
                del self._waiting[task_id]

    def close(self) -> None:
        """Let everybody go with what is true now: a server that stops must not keep its clients waiting."""
        self.closed = True
        for task_id in list(self._waiting):
            self.announce(task_id)
