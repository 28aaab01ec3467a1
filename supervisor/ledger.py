"""Changes of status as the supervisor makes them: committed by the store, then announced to those who wait."""

from intermission.state.models import Change, Task, Tombstone
from intermission.state.store import Store
from intermission.supervisor.watch import Watchers


class Ledger:
    """The one way to change a task. Nothing is announced before its commit."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.watchers = Watchers()

    async def advance(self, change: Change) -> Task | None:
        """See `Store.advance`."""
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
