"""A machine that does to the store whatever anybody may, stale writers above all, beside a model of plain dicts.

Every task that the store ever returned may come back later and try to advance, as a late child's report or a slow
client's request does. The model knows who is still current; everybody else must get None and change nothing.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from samples import end, ids, new, pages, point, tombstone

from intermission.state.models import KEEP, Change, Kind, Query, Task, Tombstone, Usage
from intermission.state.sqlite import SqliteStore
from intermission.state.status import RESTING, TABLE, WITH_CHILD, Event, Status, after

T = TypeVar("T")

USERS: Final = ("anna", "berta")
SERVICES: Final = ("counter", "extract")
MOVING: Final = set(Status) - RESTING - {Status.GONE}
services = st.sampled_from(SERVICES)
times = st.integers(0, 20).map(float)
sequences = st.integers(1, 6)
sizes = st.integers(0, 50)


class StoreMachine(RuleBasedStateMachine):
    """See the module. ``rows`` is the model: what each stored task must be."""

    copies = Bundle("copies")

    @initialize()
    def open(self) -> None:
        """A store on a file of its own."""
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.store = SqliteStore(Path(self.folder.name) / "intermission.db")
        self.run(self.store.open())
        self.rows: dict[str, dict[str, Any]] = {}
        self.gone: dict[str, Tombstone] = {}
        self.counter = 0

    def teardown(self) -> None:
        """The whole history at the end, then away with it."""
        try:
            for task_id in self.rows:
                self.check_history(task_id)
        finally:
            self.run(self.store.close())
            self.runner.close()
            self.folder.cleanup()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On the machine's own loop, which lives as long as its store."""
        return self.runner.run(work)

    # What may happen.

    @rule(
        target=copies,
        service=services,
        user=st.sampled_from(USERS),
        priority=st.integers(-1, 1),
        size=st.none() | sizes,
    )
    def add(self, service: str, user: str, priority: int, size: int | None) -> Task:
        """A start."""
        self.counter += 1
        fresh = new(id=f"{self.counter:08}", service=service, user=user, priority=priority, errors_left=3, bytes=size)
        task = self.run(self.store.add(fresh))
        self.rows[task.id] = {
            "status": Status.PENDING,
            "attempt": 0,
            "service": service,
            "user": user,
            "priority": priority,
            "losses": 0,
            "due_at": None,
            "sequence": 0,
            "bytes": size,
            "begun": [],
            "events": [None],
        }
        self.agrees(task)
        return task

    @rule(target=copies, limit=st.integers(1, 3), some=st.sets(services, min_size=1), at=times, wary=st.booleans())
    def claim(self, limit: int, some: set[str], at: float, *, wary: bool) -> Any:
        """The supervisor has places free."""
        for row in self.rows.values():
            if row["status"] is Status.PENDING and row["due_at"] is not None and row["due_at"] <= at:
                row["due_at"] = None
        waiting = [
            (-row["priority"], task_id)
            for task_id, row in self.rows.items()
            if row["status"] is Status.PENDING
            and row["service"] in some
            and row["due_at"] is None
            and (row["losses"] >= 3) is wary
        ]
        expected = [task_id for _, task_id in sorted(waiting)[:limit]]
        claimed = self.run(self.store.claim(limit, some, at, wary=wary))
        assert ids(claimed) == expected
        for task in claimed:
            row = self.rows[task.id]
            row["attempt"] += 1
            row |= {"status": Status.RUNNING, "begun": [*row["begun"], (row["attempt"], Kind.RUN)]}
            row["events"].append(Event.CLAIMED)
            self.agrees(task)
        return multiple(*claimed)

    @rule(
        target=copies,
        copy=copies,
        pick=st.integers(0, 20),
        raised=st.booleans(),
        losses=st.integers(0, 4),
        due_at=st.none() | times,
        saved=st.none() | sequences,
        size=st.none() | sizes,
        ends=st.booleans(),
    )
    def advance(
        self,
        copy: Task,
        pick: int,
        losses: int,
        due_at: float | None,
        *,
        saved: int | None,
        size: int | None,
        raised: bool,
        ends: bool,
    ) -> Any:
        """Somebody who read the task at some time takes a step that was possible then."""
        event, target = self.possible(copy, pick)
        if event is None or target is None or target is Status.GONE:
            return multiple()
        kind = Kind.CLEAN if raised and target is Status.TERMINATING and event is Event.CLAIMED else None
        change = Change(
            task=copy,
            event=event,
            at=30.0,
            losses=losses,
            due_at=(due_at or 5.0) if target is Status.RETRYING else due_at if target is Status.PENDING else None,
            checkpoint=None if saved is None else point(saved, copy.attempt),
            end=end(event, copy.attempt) if ends else None,
            bytes=KEEP if size is None or copy.bytes is None else size,
            **{"attempt": copy.attempt + 1, "kind": kind} if raised else {},  # type: ignore[arg-type]
        )
        task = self.run(self.store.advance(change))
        if not self.is_current(copy):
            assert task is None
            return multiple()
        assert task is not None
        self.stepped(change, target)
        self.agrees(task)
        return task

    @rule(copy=copies, pick=st.integers(0, 20), other=st.integers(0, 20))
    def two_at_once(self, copy: Task, pick: int, other: int) -> None:
        """Two who read the same task, in one instant: one commit, one winner at most, and it is the first."""
        changes = []
        for number in (pick, other):
            event, target = self.possible(copy, number)
            if event is None or target is None or target in {Status.GONE, copy.status}:
                return
            due_at = 7.0 if target is Status.RETRYING else None
            changes.append((Change(task=copy, event=event, at=30.0, due_at=due_at), target))

        async def both() -> list[Task | None]:
            return await asyncio.gather(*(self.store.advance(change) for change, _ in changes))

        first, second = self.run(both())
        assert (first is not None) is self.is_current(copy)
        assert second is None
        if first is not None:
            self.stepped(*changes[0])
            self.agrees(first)

    @rule(copy=copies, sequence=sequences)
    def save(self, copy: Task, sequence: int) -> None:
        """A child's checkpoint arrives, perhaps late."""
        saved = self.run(self.store.save(copy.id, copy.attempt, point(sequence, copy.attempt)))
        row = self.rows.get(copy.id)
        writes = (
            row is not None
            and row["attempt"] == copy.attempt
            and row["status"] in {Status.RUNNING, Status.PAUSING}
            and sequence > row["sequence"]
        )
        assert saved is writes
        if writes and row is not None:
            row["sequence"] = sequence

    @rule(copy=copies, size=sizes, most=st.none() | st.integers(0, 200))
    def reserve(self, copy: Task, size: int, most: int | None) -> None:
        """More bytes of an upload are about to come; who says so may be late."""
        row = self.rows.get(copy.id)
        writes = (
            row is not None
            and self.is_current(copy)
            and row["bytes"] is not None
            and row["bytes"] < size
            and (most is None or self.usage(copy.user).bytes - row["bytes"] + size <= most)
        )
        assert self.run(self.store.reserve(copy, size, most)) is writes
        if writes and row is not None:
            row["bytes"] = size

    @rule(at=times)
    def wake_due(self, at: float) -> None:
        """Time goes by."""
        due = [row for row in self.rows.values() if row["status"] is Status.RETRYING and row["due_at"] <= at]
        assert self.run(self.store.wake_due(at)) == len(due)
        for row in due:
            row |= {"status": Status.PENDING, "due_at": None}
            row["events"].append(Event.DUE)

    @rule(copy=copies)
    def bury(self, copy: Task) -> None:
        """A task is deleted, or its `clean` is done; whoever asks may be late."""
        event = Event.DELETE if copy.status is Status.COMPLETED else Event.CLEANED
        left, change = tombstone(copy), Change(task=copy, event=event, at=30.0)
        if after(copy.status, event) is not Status.GONE:
            with contextlib.suppress(ValueError):
                self.run(self.store.bury(change, left))
                raise AssertionError
            return
        assert self.run(self.store.bury(change, left)) is self.is_current(copy)
        if self.is_current(copy):
            del self.rows[copy.id]
            self.gone[copy.id] = left

    @precondition(lambda self: self.counter > 2)
    @rule()
    def restart(self) -> None:
        """The server goes and comes again."""
        self.run(self.store.close())
        self.run(self.store.open())

    # What must be so after each step.

    @invariant()
    def lists_and_counts_agree(self) -> None:
        """What each view of the store shows is what the model holds."""

        async def views() -> tuple[Any, ...]:
            found = await pages(self.store, Query(limit=3))
            mine = await pages(self.store, Query(user="anna", statuses=frozenset({Status.PENDING, Status.PAUSED})))
            due = await self.store.next_due(9.0)
            return found, mine, due, await self.store.with_child(), await self.store.counts()

        found, mine, due, with_child, counts = self.run(views())
        assert ids(found) == sorted(self.rows, reverse=True)
        for page in found:
            for item in page.items:
                self.agrees(item)
        wanted = {Status.PENDING, Status.PAUSED}
        chosen = [key for key, row in self.rows.items() if row["user"] == "anna" and row["status"] in wanted]
        assert ids(mine) == sorted(chosen, reverse=True)
        assert sorted(ids(with_child)) == sorted(key for key, row in self.rows.items() if row["status"] in WITH_CHILD)
        statuses = [row["status"] for row in self.rows.values()]
        assert counts == {status: statuses.count(status) for status in MOVING}
        retrying = [row["due_at"] for row in self.rows.values() if row["status"] is Status.RETRYING]
        delayed = [row["due_at"] for row in self.rows.values() if row["status"] is Status.PENDING]
        assert due == min([*retrying, *(at for at in delayed if at is not None and at > 9.0)], default=None)

    @invariant()
    def usages_are_the_sums(self) -> None:
        """Of what is stored of each user, whatever has become of it."""
        for user in USERS:
            assert self.run(self.store.usage(user)) == self.usage(user)

    @invariant()
    def what_is_gone_leaves_its_tombstone(self) -> None:
        """To its user, and to nobody else."""
        for task_id, left in self.gone.items():
            assert self.run(self.store.get(task_id, left.user)) == left
            assert self.run(self.store.get(task_id, "somebody")) is None

    def check_history(self, task_id: str) -> None:
        """Its events and attempts are the steps that were taken, in their order, and no others."""
        row = self.rows[task_id]
        assert [record.event for record in self.run(self.store.events(task_id))] == row["events"]
        attempts = self.run(self.store.attempts(task_id))
        assert [(attempt.attempt, attempt.kind) for attempt in attempts] == row["begun"]

    # The model.

    def usage(self, user: str) -> Usage:
        """What the counted tasks of a user come to."""
        rows = [row for row in self.rows.values() if row["user"] == user and row["bytes"] is not None]
        unfinished = sum(row["status"] is not Status.COMPLETED for row in rows)
        return Usage(bytes=sum(row["bytes"] for row in rows), uploads=len(rows), unfinished=unfinished)

    def possible(self, copy: Task, pick: int) -> tuple[Event | None, Status | None]:
        """One of the steps that the table has from where the copy stands; a claim from pending is the claim's."""
        events = [event for status, event in TABLE if status is copy.status and copy.status is not Status.PENDING]
        events += [Event.PAUSE, Event.TERMINATE] if copy.status is Status.PENDING else []
        if not events:
            return None, None
        event = events[pick % len(events)]
        return event, after(copy.status, event)

    def is_current(self, copy: Task) -> bool:
        """Whether its status and attempt are still those that are stored."""
        row = self.rows.get(copy.id)
        return row is not None and (row["status"], row["attempt"]) == (copy.status, copy.attempt)

    def stepped(self, change: Change, target: Status) -> None:
        """What a change that was made does to the model."""
        row = self.rows[change.task.id]
        row |= {"status": target, "due_at": change.due_at}
        if isinstance(change.bytes, int):
            row["bytes"] = change.bytes
        if isinstance(change.losses, int):
            row["losses"] = change.losses
        if isinstance(change.attempt, int):
            row["attempt"] = change.attempt
        if change.kind is not None:
            row["begun"].append((change.attempt, change.kind))
        if change.checkpoint is not None:
            row["sequence"] = max(row["sequence"], change.checkpoint.sequence)
        row["events"].append(change.event)

    def agrees(self, task: Task) -> None:
        """Whether a task that the store gave out is what the model holds."""
        row = self.rows[task.id]
        sequence = task.checkpoint.sequence if task.checkpoint else 0
        names = ("status", "attempt", "service", "user", "priority", "losses", "due_at", "bytes")
        assert (*(getattr(task, name) for name in names), sequence) == (*(row[name] for name in names), row["sequence"])


TestStoreMachine = StoreMachine.TestCase
# The same examples each time: a check that fails must fail again. `derandomize=False` searches further, by hand.
TestStoreMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
