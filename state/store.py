"""The contract of the store. Its docstrings are the contract; ``tests/contract/`` holds every implementation to it.

Every write is durable (power-loss safe) when its coroutine returns, and nobody sees it earlier. Writes that are asked
for while a commit is under way go into the next one together, in the order in which they were asked for.
"""

from collections.abc import Collection, Sequence
from typing import Final, Protocol

from intermission.state.models import (
    Attempt,
    Change,
    Checkpoint,
    Earlier,
    EventPage,
    EventRecord,
    NewTask,
    Page,
    Query,
    Task,
    Tombstone,
    Usage,
)
from intermission.state.status import Status

WARY_AFTER: Final = 3
"""The losses at one checkpoint that a wary claim is for. The indexes of what is pending have this number too."""
KEYS_KEPT_S: Final = 86_400.0
"""How long a start is known by its key."""


class StoreError(Exception):
    """The store cannot do what was asked; its message says what is wrong and what to do."""


class StoreFullError(StoreError):
    """No space is left for the store; nothing was written."""


class UnreadableError(StoreError):
    """The row of a task is not as we write them: somebody else has changed it, or the file is damaged."""

    def __init__(self, task_id: str, why: Exception) -> None:
        super().__init__(f"the row of task {task_id} cannot be read ({why}): mend it while the server is down")


class SchemaError(StoreError):
    """The database is newer than this code, or not ours."""


class Store(Protocol):
    """Where tasks, attempts, checkpoints, events and tombstones are kept."""

    async def open(self) -> None:
        """Create or migrate the schema. Raises `SchemaError` and changes nothing on a database from newer code."""

    async def close(self) -> None:
        """Commit what was asked for, then close. Safe to call twice."""

    async def add(self, task: NewTask) -> Task | Earlier | Usage:
        """Insert a new task; the promise behind a 2xx. An id that exists is a `StoreError`.

        With ``due_at`` it is left by every claim before. With a ``key`` whose name the user has given within
        `KEYS_KEPT_S` nothing is inserted: the answer is that earlier start, whatever has become of its task. Nor is it
        where that would take its user over its ``quota``: the answer is the usage as it is.
        """

    async def advance(self, change: Change) -> Task | None:
        """Take one step along the table, guarded by the task's id, status *and* attempt.

        None: somebody was first; nothing of the change was written. Read again and decide again. The attempt's begin
        or end, the checkpoint and the event become true in the same transaction. An event that the table does not
        allow for ``change.task.status``, or whose target is ``gone``, is a ValueError: a mistake of the caller. So is
        a step to retrying without ``due_at``, and an attempt that does not raise the fence.

        ``finished_at`` becomes ``change.at`` with completed and failed, and None with any other status; ``started_at``
        is the begin of the first run.
        """

    async def claim(self, limit: int, services: Collection[str], at: float, *, wary: bool = False) -> list[Task]:
        """Take up to ``limit`` pending tasks of these services to running, attempt raised by one (kind run, begun).

        Higher priority first, then first come first served. Tasks whose ``due_at`` is later than ``at`` are left; that
        of the others is cleared. One whose row cannot be read is failed for it, and left out.
        With ``wary``, only tasks with `WARY_AFTER` losses or more are taken; without, only the others.
        """

    async def save(self, task_id: str, attempt: int, checkpoint: Checkpoint) -> bool:
        """Keep a running or pausing task's checkpoint. False: it is not newer, or the attempt is not current."""

    async def reserve(self, task: Task, size: int, most: int | None) -> bool:
        """Count a task that counts with fewer bytes with ``size``, guarded as in `advance`.

        False: its user's usage would come to more than ``most`` bytes, or it counts with as many, or somebody was
        first; nothing was written.
        """

    async def usage(self, user: str) -> Usage:
        """What the user's tasks that are counted come to, as of the last commit. It costs the same however many."""

    async def wake_due(self, at: float) -> int:
        """Take every retrying task that is due at ``at`` to pending; how many there were."""

    async def bury(self, change: Change, tombstone: Tombstone) -> bool:
        """Delete the row, its checkpoint, attempts, events and uses and leave the tombstone, in one transaction.

        ``change`` is guarded as in `advance`; its target must be ``gone``. False: somebody was first.
        """

    async def users_of(self, upload_id: str, limit: int) -> list[str]:
        """The ids of unfinished tasks that read this upload, oldest first, ``limit`` at most."""

    async def gone(self, ids: Sequence[str]) -> list[str]:
        """Those of these that are tasks of which a tombstone is left."""

    async def forget(self, before: float, limit: int) -> int:
        """Delete up to ``limit`` of the tombstones that are older than ``before``, the oldest first; how many."""

    async def get(self, task_id: str, user: str | None = None) -> Task | Tombstone | None:
        """The task, what is left of it, or None; with ``user``, None also for somebody else's."""

    async def find(self, query: Query) -> Page:
        """One page of tasks. Examines at most 5,000 rows whatever is stored.

        ``params`` and ``checkpoint.state`` of the items are empty strings, ``result`` and ``retry`` are None: lists
        leave them out, and reading them would cost.
        """

    async def with_child(self) -> list[Task]:
        """The tasks whose status says that they may have a process; for recovery at start."""

    async def attempts(self, task_id: str, after: int = 0, limit: int | None = None) -> list[Attempt]:
        """The attempts of a task, oldest first: those after this one, ``limit`` at most."""

    async def events(self, task_id: str, after: int = 0, limit: int | None = None) -> list[EventRecord]:
        """The history of a task, oldest first: ids greater than ``after``, ``limit`` at most."""

    async def find_events(self, user: str | None, before: int | None, limit: int) -> EventPage:
        """One page of the history of all of a user's tasks, or everybody's for None; ids smaller than ``before``."""

    async def expired(self, before: float, limit: int, after: Task | None = None) -> list[Task]:
        """Up to ``limit`` tasks that completed or failed before then, the first first; as in `find`.

        Without uploads that an unfinished task reads. ``after`` is the last one of the batch before.
        """

    async def oldest(self) -> float | None:
        """When the first of what expires (a task of `expired`, a tombstone) was finished or gone; None without any."""

    async def abandoned(self, at: float, limit: int, after: Task | None = None) -> list[Task]:
        """Up to ``limit`` paused stream tasks with a ``due_at`` before then, the first first; as `expired`."""

    async def next_abandoned(self) -> float | None:
        """The earliest ``due_at`` of paused stream tasks; None without any."""

    async def next_due(self, after: float) -> float | None:
        """The earliest ``due_at`` of retrying tasks, and of pending ones if later than ``after``; None without any."""

    async def counts(self) -> dict[Status, int]:
        """How many tasks are in each of pending, running, pausing, retrying and terminating.

        Never the resting ones: counting what is merely stored would grow with it.
        """
