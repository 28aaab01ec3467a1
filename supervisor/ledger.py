"""Changes of status as the supervisor makes them: committed by the store, then announced to those who wait."""

import json
from dataclasses import replace

from intermission.state.models import Change, Task, Tombstone
from intermission.state.status import RESTING, Status
from intermission.state.store import Store
from intermission.supervisor.watch import Watchers


class Ledger:
    """The one way to change a task. Nothing is announced before its commit.

    A stream task that is paused waits for a client, who may never come: each time it is paused, it is for
    ``uploads_s`` at most.
    """

    def __init__(self, store: Store, uploads_s: float) -> None:
        self.store = store
        self.uploads_s = uploads_s
        self.watchers = Watchers()

    async def advance(self, change: Change) -> Task | None:
        """See `Store.advance`."""
        target = change.task.after(change.event)
        if change.task.stream and target is Status.PAUSED:
            change = replace(change, due_at=change.at + self.uploads_s)
        if change.task.bytes is not None and change.end is not None and target in RESTING:
            change = replace(change, bytes=_counted(change))
        task = await self.store.advance(change)
        if task is not None:
            self.watchers.announce(task.id)
        return task

    async def bury(self, change: Change, tombstone: Tombstone) -> bool:
        """See `Store.bury`."""
        buried = await self.store.bury(change, tombstone)
        if buried:
            self.watchers.announce(tombstone.id)
        return buried


def _counted(change: Change) -> int:
    """What an upload counts with whose attempt has ended: what it was announced with, or else what is there of it."""
    checkpoint = change.checkpoint or change.task.checkpoint
    there = 0 if checkpoint is None else sum(checkpoint.outputs.values())
    return max(json.loads(change.task.params)["size_bytes"] or 0, there)
