"""Tasks, checkpoints and ends as the store's tests need them, and a way into every status."""

import itertools
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Final

from intermission.state.ids import new_id
from intermission.state.models import (
    AttemptEnd,
    Change,
    Checkpoint,
    ErrorInfo,
    Kind,
    NewTask,
    Page,
    Progress,
    Query,
    Receipt,
    Task,
    Tombstone,
)
from intermission.state.status import Event, Reason, Status
from intermission.state.store import Store

MakeStore = Callable[[], Store]
"""A store on the same data each time; not yet open."""

_clock = itertools.count(1_790_000_000)
_services = (f"service_{n}" for n in itertools.count())


def now() -> float:
    """A time after every earlier one, with a fraction that only an exact float survives."""
    return next(_clock) + 0.1234567


def new(**values: Any) -> NewTask:
    """A start; what matters to a test is given."""
    least: dict[str, Any] = {"id": new_id(), "service": "counter", "user": "anna", "params": "{}", "created_at": now()}
    return NewTask(**least | values)


def point(sequence: int, attempt: int = 1, **values: Any) -> Checkpoint:
    """A checkpoint with something in every field."""
    full: dict[str, Any] = {
        "sequence": sequence,
        "attempt": attempt,
        "version": 2,
        "state": f'{{"next": {sequence}}}',
        "outputs": {"rows.csv": sequence * 10, "größe": 1},
        "progress": Progress(done=sequence, total=1500.5, unit="rows", per_second=0.1),
        "saved_at": now(),
    }
    return Checkpoint(**full | values)


def end(outcome: Event, attempt: int = 1) -> AttemptEnd:
    """An attempt's end with something in every field."""
    return AttemptEnd(
        ended_at=now(),
        outcome=outcome,
        exit_code=1,
        signal="SIGSEGV",
        cpu_s=0.1234567,
        peak_memory_bytes=15_000_000,
        error=error(attempt),
    )


def error(attempt: int = 1) -> ErrorInfo:
    """An error with something in every field; a child's message may be no proper text."""
    return ErrorInfo(
        kind="exit",
        type="ValueError",
        message="nicht gefunden: größe \udcff",
        traceback="Traceback …\n  line 1",
        exit_code=1,
        signal="SIGSEGV",
        attempt=attempt,
    )


def tombstone(task: Task | NewTask, **values: Any) -> Tombstone:
    """What is left of a task, with something in every field."""
    killed = {"pid": 4242, "name": "python", "started_at": 1.5}
    receipt = Receipt(processes=(killed, killed), survivors=0, cleaned=True, files_deleted=2)
    full = {"id": task.id, "service": task.service, "user": task.user, "gone_at": now(), "by": "root"}
    return Tombstone(**{**full, "receipt": receipt, **values})


async def step(store: Store, task: Task, event: Event, **values: Any) -> Task:
    """One step along the table that must succeed."""
    advanced = await store.advance(Change(task=task, event=event, at=now(), **values))
    assert advanced is not None
    return advanced


async def running(store: Store, **values: Any) -> Task:
    """A task at its first attempt; of a service of its own, so that no other is claimed."""
    added = await store.add(new(**{"service": next(_services)} | values))
    (claimed,) = await store.claim(1, [added.service], now())
    assert claimed.id == added.id
    return claimed


async def reach(store: Store, status: Status, **values: Any) -> Task:
    """A task with this status, by the shortest way there."""
    if status is Status.PENDING:
        return await store.add(new(**values))
    task = await running(store, **values)
    if status is Status.RUNNING:
        return task
    ways: dict[Status, tuple[Event, dict[str, Any]]] = {
        Status.PAUSING: (Event.PAUSE, {"reason": Reason.REQUESTED}),
        Status.PAUSED: (Event.STOPPED, {"reason": Reason.NO_SPACE}),
        Status.RETRYING: (Event.ERRORED, {"reason": Reason.ERRORED, "due_at": now() + 60}),
        Status.TERMINATING: (Event.TERMINATE, {}),
        Status.COMPLETED: (Event.COMPLETED, {"result": '{"counted": 3}'}),
        Status.FAILED: (Event.EXHAUSTED, {"reason": Reason.EXHAUSTED}),
    }
    event, along = ways[status]
    return await step(store, task, event, **along)


async def launched_clean(store: Store, task: Task) -> Task:
    """The attempt that cleans up a terminating task, begun."""
    return await step(store, task, Event.CLAIMED, attempt=task.attempt + 1, kind=Kind.CLEAN)


async def pages(store: Store, query: Query) -> list[Page]:
    """Every page of a list, the cursor followed to its end."""
    found = [await store.find(query)]
    while found[-1].next is not None:
        found.append(await store.find(replace(query, before=found[-1].next)))
    return found


def ids(tasks: Collection[Task] | Collection[Page]) -> list[str]:
    """Of tasks or of pages of them, in order."""
    return [task.id for item in tasks for task in (item.items if isinstance(item, Page) else (item,))]


STORED: Final = tuple(status for status in Status if status is not Status.GONE)
