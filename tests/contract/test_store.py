"""The contract of the store, sentence by sentence, held against every implementation."""

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import pytest
from samples import (
    STORED,
    MakeStore,
    end,
    error,
    ids,
    launched_clean,
    new,
    now,
    pages,
    point,
    reach,
    running,
    step,
    tombstone,
)

from intermission.state.models import (
    Attempt,
    Change,
    Earlier,
    Key,
    Kind,
    NewTask,
    Query,
    Quota,
    RetryPolicy,
    Task,
    Usage,
)
from intermission.state.status import WITH_CHILD, Event, Reason, Status
from intermission.state.store import KEYS_KEPT_S, Store, StoreError

COUNTER = ["counter"]
LATER = 1e12


async def current(store: Store, task: Task | NewTask) -> Task:
    """The task as it is stored now."""
    found = await store.get(task.id)
    assert isinstance(found, Task)
    return found


async def history(store: Store, task: Task | NewTask) -> list[tuple[Event | None, Status]]:
    """Its events in short."""
    return [(record.event, record.status) for record in await store.events(task.id)]


class TestAdd:
    """Insert a pending task; the promise behind a 2xx."""

    async def test_every_field_is_kept(self, store: Store) -> None:
        """What comes back is what was asked for, to the last bit of a time."""
        labels = {"team": "größe", "a.b": 'quo"ted', "odd": "\ud800"}
        fresh = new(params='{"limit": 3, "name": "Zoë"}', priority=-7, labels=labels, errors_left=9)
        added = await store.add(fresh)
        assert added == await current(store, fresh)
        assert (added.id, added.service, added.user, added.params) == (fresh.id, "counter", "anna", fresh.params)
        assert (added.priority, added.labels, added.errors_left, added.created_at) == (-7, labels, 9, fresh.created_at)

    async def test_it_begins_pending_and_never_run(self, store: Store) -> None:
        """The row begins as pending, attempt 0."""
        added = await store.add(new())
        assert (added.status, added.reason, added.attempt, added.losses, added.lost_sequence) == (
            Status.PENDING,
            None,
            0,
            0,
            -1,
        )
        assert (added.checkpoint, added.result, added.error, added.started_at, added.finished_at, added.due_at) == (
            None,
        ) * 6
        assert await store.attempts(added.id) == []

    async def test_with_a_retry_policy_and_a_time_of_its_own(self, store: Store) -> None:
        """The policy is kept through every step, the time through those that say so."""
        policy = RetryPolicy(errors=2, base_s=0.1234567, cap_s=3e9)
        added = await store.add(new(retry=policy, due_at=now() + 0.1234567))
        assert added == await current(store, added)
        assert added.retry == policy
        paused = await step(store, added, Event.PAUSE)
        assert (paused.retry, paused.due_at) == (policy, None)
        later = await step(store, await store.add(new(due_at=LATER)), Event.PAUSE, due_at=LATER)
        assert (later.status, later.due_at) == (Status.PAUSED, LATER)
        resumed = await step(store, later, Event.RESUME, due_at=LATER)
        assert await store.claim(1, COUNTER, now()) == []
        assert (resumed.status, await store.next_due(now())) == (Status.PENDING, LATER)

    async def test_its_creation_is_its_first_event(self, store: Store) -> None:
        """Asked for by its user, at its time."""
        added = await store.add(new(user="berta"))
        (record,) = await store.events(added.id)
        assert (record.task_id, record.user, record.by, record.at) == (added.id, "berta", "berta", added.created_at)
        assert (record.event, record.status, record.reason, record.attempt) == (None, Status.PENDING, None, 0)

    async def test_an_id_that_exists_is_an_error_and_changes_nothing(self, store: Store) -> None:
        """The first one stays as it is."""
        first = await store.add(new(params='"first"'))
        with pytest.raises(StoreError):
            await store.add(new(id=first.id, params='"second"'))
        assert await current(store, first) == first
        assert len(await store.events(first.id)) == 1


class TestAdvance:
    """Take one step along the table, guarded by the task's id, status *and* attempt."""

    async def test_the_step_is_written_and_returned(self, store: Store) -> None:
        """With its reason and an event that says who asked."""
        task = await running(store)
        change = Change(task=task, event=Event.PAUSE, at=now(), by="anna", reason=Reason.REQUESTED)
        advanced = await store.advance(change)
        assert advanced == await current(store, task)
        assert advanced == replace(task, status=Status.PAUSING, reason=Reason.REQUESTED)
        record = (await store.events(task.id))[-1]
        assert (record.event, record.status, record.reason, record.attempt, record.by, record.at, record.user) == (
            Event.PAUSE,
            Status.PAUSING,
            Reason.REQUESTED,
            1,
            "anna",
            change.at,
            task.user,
        )

    @pytest.mark.parametrize("status", STORED)
    async def test_a_status_that_is_past_writes_nothing(self, store: Store, status: Status) -> None:
        """None: somebody was first; checkpoint, attempt and event of the change are left out too."""
        task = await reach(store, status)
        stale = replace(task, status=Status.RUNNING if status is not Status.RUNNING else Status.PAUSING)
        before = await self._everything(store, task)
        assert await store.advance(self._full_change(stale)) is None
        assert await self._everything(store, task) == before

    async def test_an_attempt_that_is_past_writes_nothing(self, store: Store) -> None:
        """A late attempt 1 must not overwrite attempt 2, though the status is the same."""
        first = await running(store)
        drained = await step(store, first, Event.DRAINED)
        (second,) = await store.claim(1, [first.service], now())
        assert (drained.status, second.status, second.attempt) == (Status.PENDING, first.status, 2)
        before = await self._everything(store, second)
        assert await store.advance(self._full_change(first)) is None
        assert await self._everything(store, second) == before

    async def test_a_task_that_never_was_writes_nothing(self, store: Store) -> None:
        """Nor is an event of it kept."""
        task = await running(store)
        unknown = replace(task, id=new().id)
        assert await store.advance(self._full_change(unknown)) is None
        assert await self._everything(store, unknown) == (None, [], [])

    @staticmethod
    def _full_change(task: Task) -> Change:
        completed = {"result": "7", "error": None, "checkpoint": point(9), "end": end(Event.COMPLETED)}
        return Change(task=task, event=Event.COMPLETED, at=now(), **completed)  # type: ignore[arg-type]

    @staticmethod
    async def _everything(store: Store, task: Task) -> tuple[Any, ...]:
        return await store.get(task.id), await store.attempts(task.id), await store.events(task.id)

    async def test_of_two_steps_from_one_reading_the_first_wins(self, store: Store) -> None:
        """Even when both are asked for in the same instant: order is kept within a commit."""
        task = await running(store)
        terminated, completed, paused = await asyncio.gather(
            *(
                store.advance(Change(task=task, event=event, at=now()))
                for event in (Event.TERMINATE, Event.COMPLETED, Event.PAUSE)
            )
        )
        assert terminated is not None
        assert (terminated.status, completed, paused) == (Status.TERMINATING, None, None)
        assert (await current(store, task)).status is Status.TERMINATING

    @pytest.mark.parametrize("event", [Event.RESUME, Event.DELETE, Event.CLEANED, Event.DUE])
    async def test_what_the_table_does_not_allow_is_a_mistake_of_the_caller(self, store: Store, event: Event) -> None:
        """A ValueError, and nothing is written."""
        task = await running(store)
        with pytest.raises(ValueError, match=event):
            await store.advance(Change(task=task, event=event, at=now()))
        assert await current(store, task) == task

    async def test_gone_is_not_reached_by_a_step(self, store: Store) -> None:
        """That is what bury is for."""
        task = await reach(store, Status.COMPLETED)
        with pytest.raises(ValueError, match="is stored"):
            await store.advance(Change(task=task, event=Event.DELETE, at=now()))

    async def test_only_what_a_change_names_is_changed(self, store: Store) -> None:
        """KEEP leaves a column as it is, None clears it."""
        task = await running(store)
        names: dict[str, Any] = {"errors_left": 2, "losses": 3, "lost_sequence": 4, "error": error(), "result": "1"}
        full = await step(store, task, Event.PAUSE, **names)
        assert {name: getattr(full, name) for name in names} == names
        kept = await step(store, full, Event.STOPPED)
        assert {name: getattr(kept, name) for name in names} == names
        cleared = await step(store, kept, Event.RESUME, error=None)
        assert cleared.error is None
        assert cleared.result == "1"

    async def test_reason_and_due_at_are_of_this_step_alone(self, store: Store) -> None:
        """A step that gives none clears them."""
        task = await running(store)
        due_at = now() + 5
        waiting = await step(store, task, Event.ERRORED, reason=Reason.ERRORED, due_at=due_at)
        assert (waiting.reason, waiting.due_at) == (Reason.ERRORED, due_at)
        resumed = await step(store, waiting, Event.RESUME)
        assert (resumed.reason, resumed.due_at) == (None, None)

    async def test_a_retrying_task_must_have_a_time(self, store: Store) -> None:
        """Without one it would never be woken: a mistake of the caller."""
        task = await running(store)
        with pytest.raises(ValueError, match="due_at"):
            await store.advance(Change(task=task, event=Event.ERRORED, at=now()))

    async def test_finished_at_is_when_it_completed_or_failed(self, store: Store) -> None:
        """And none again once a failed task goes on."""
        completed = await reach(store, Status.COMPLETED)
        assert completed.finished_at == (await store.events(completed.id))[-1].at
        failed = await reach(store, Status.FAILED)
        assert failed.finished_at == (await store.events(failed.id))[-1].at
        assert (await step(store, failed, Event.RESUME)).finished_at is None

    async def test_a_checkpoint_goes_along_if_it_is_newer(self, store: Store) -> None:
        """An older or equal one does not replace the one that is stored; the step is taken all the same."""
        task = await running(store)
        newest = point(5)
        pausing = await step(store, task, Event.PAUSE, checkpoint=newest)
        assert pausing.checkpoint == newest
        paused = await step(store, pausing, Event.STOPPED, checkpoint=point(5, version=3))
        assert (paused.status, paused.checkpoint) == (Status.PAUSED, newest)
        assert await current(store, task) == paused

    async def test_a_raised_fence_begins_an_attempt_of_its_kind(self, store: Store) -> None:
        """The row of the attempt stands before its process exists, and the last one's end is written with it."""
        task = await reach(store, Status.TERMINATING)
        ended = end(Event.ERRORED)
        clean = await step(store, task, Event.CLAIMED, attempt=2, kind=Kind.CLEAN, end=ended)
        assert (clean.status, clean.attempt) == (Status.TERMINATING, 2)
        first, second = await store.attempts(task.id)
        assert first.end == ended
        at = (await store.events(task.id))[-1].at
        assert second == Attempt(task_id=task.id, attempt=2, kind=Kind.CLEAN, started_at=at, end=None)

    async def test_a_raised_fence_without_a_kind_begins_none(self, store: Store) -> None:
        """It only shuts out who is still writing."""
        task = await running(store)
        fenced = await step(store, task, Event.TERMINATE, attempt=2)
        assert fenced.attempt == 2
        assert [attempt.attempt for attempt in await store.attempts(task.id)] == [1]
        assert await store.save(task.id, 1, point(1)) is False

    @pytest.mark.parametrize("values", [{"attempt": 1}, {"attempt": 0}, {"kind": Kind.RUN}])
    async def test_a_fence_is_only_ever_raised(self, store: Store, values: dict[str, Any]) -> None:
        """Numbers are never used again, and an attempt needs one of its own: a mistake of the caller."""
        task = await running(store)
        with pytest.raises(ValueError, match="attempt"):
            await store.advance(Change(task=task, event=Event.TERMINATE, at=now(), **values))

    async def test_it_starts_with_its_first_run_not_with_a_clean(self, store: Store) -> None:
        """A task that was terminated before it ran has no start."""
        task = await step(store, await store.add(new()), Event.TERMINATE)
        clean = await launched_clean(store, task)
        assert clean.started_at is None


class TestClaim:
    """Take up to ``limit`` pending tasks of these services to running, attempt raised by one."""

    async def test_higher_priority_first_then_first_come(self, store: Store) -> None:
        """Whatever the services, one after the other and several at once."""
        low, first, second, high = [
            await store.add(new(priority=priority, service=service))
            for priority, service in ((-1, "a"), (0, "b"), (0, "a"), (5, "b"))
        ]
        (one,) = await store.claim(1, ["a", "b"], now())
        assert one.id == high.id
        assert ids(await store.claim(9, ["b", "a"], now())) == [first.id, second.id, low.id]
        assert await store.claim(9, ["a", "b"], now()) == []

    async def test_no_more_than_the_limit_and_only_these_services(self, store: Store) -> None:
        """None asked for is none taken."""
        added = [await store.add(new()) for _ in range(3)]
        await store.add(new(service="other"))
        assert await store.claim(0, COUNTER, now()) == []
        assert await store.claim(9, [], now()) == []
        assert await store.claim(9, ["unknown"], now()) == []
        assert ids(await store.claim(2, COUNTER, now())) == ids(added[:2])
        assert (await store.counts())[Status.PENDING] == 2

    async def test_the_attempt_is_raised_begun_and_told(self, store: Store) -> None:
        """Kind run; the event is the supervisor's own."""
        added, at = await store.add(new()), now()
        (claimed,) = await store.claim(1, COUNTER, at)
        assert claimed == replace(added, status=Status.RUNNING, attempt=1, started_at=at)
        assert await current(store, added) == claimed
        assert await store.attempts(added.id) == [
            Attempt(task_id=added.id, attempt=1, kind=Kind.RUN, started_at=at, end=None)
        ]
        record = (await store.events(added.id))[-1]
        assert (record.event, record.status, record.attempt, record.by, record.at) == (
            Event.CLAIMED,
            Status.RUNNING,
            1,
            None,
            at,
        )

    async def test_started_at_is_the_first_start(self, store: Store) -> None:
        """Later attempts leave it; the reason of the stop before them is gone."""
        first = await running(store)
        await step(store, first, Event.DRAINED, reason=Reason.ERRORED)
        (second,) = await store.claim(1, [first.service], now())
        assert (second.attempt, second.started_at, second.reason) == (2, first.started_at, None)

    async def test_an_add_and_a_claim_of_the_same_instant(self, store: Store) -> None:
        """Writes apply in the order in which they were asked for: the claim gets what was just added."""
        added, claimed, nothing = await asyncio.gather(
            store.add(new()), store.claim(5, COUNTER, now()), store.claim(5, COUNTER, now())
        )
        assert ids(claimed) == [added.id]
        assert nothing == []

    async def test_a_claim_gets_the_checkpoint_that_was_written_just_before(self, store: Store) -> None:
        """In the same commit, too: the next attempt must go on from there."""
        task = await running(store)
        newest = point(7)
        drained = Change(task=task, event=Event.DRAINED, at=now(), checkpoint=newest)
        _, (claimed,) = await asyncio.gather(store.advance(drained), store.claim(1, [task.service], now()))
        assert (claimed.attempt, claimed.checkpoint) == (2, newest)

    async def test_no_task_is_given_twice(self, store: Store) -> None:
        """However many ask at once."""
        added = await asyncio.gather(*(store.add(new()) for _ in range(50)))
        claims = await asyncio.gather(*(store.claim(3, COUNTER, now()) for _ in range(30)))
        assert sorted(task_id for claim in claims for task_id in ids(claim)) == sorted(ids(added))

    async def test_what_is_due_later_is_left(self, store: Store) -> None:
        """Until it is due; then it takes its place by priority and coming, as if it had always been there."""
        task = await running(store)
        later = await step(store, task, Event.LOST, due_at=1000.5)
        younger = await store.add(new(service=task.service))
        assert await store.claim(9, [task.service], 1000.4) == [
            replace(younger, status=Status.RUNNING, attempt=1, started_at=1000.4)
        ]
        third = await store.add(new(service=task.service))
        claimed = await store.claim(9, [task.service], 1000.5)
        assert ids(claimed) == [later.id, third.id]
        assert claimed[0].due_at is None

    async def test_only_a_wary_claim_takes_what_was_lost_three_times(self, store: Store) -> None:
        """And it takes nothing else."""
        plain, suspect = await running(store, service="s"), await running(store, service="s")
        await step(store, plain, Event.LOST, losses=2)
        await step(store, suspect, Event.LOST, losses=3)
        assert ids(await store.claim(9, ["s"], now())) == [plain.id]
        assert ids(await store.claim(9, ["s"], now(), wary=True)) == [suspect.id]

    async def test_a_wary_claim_waits_for_the_backoff_too(self, store: Store) -> None:
        """The third loss at one place comes with a time."""
        task = await running(store)
        await step(store, task, Event.LOST, losses=3, due_at=LATER)
        assert await store.claim(9, [task.service], LATER - 1, wary=True) == []
        assert ids(await store.claim(9, [task.service], LATER, wary=True)) == [task.id]


class TestSave:
    """Keep a running or pausing task's checkpoint."""

    async def test_every_field_is_kept(self, store: Store) -> None:
        """With progress and without."""
        task = await running(store)
        first, second = point(1), point(2, progress=None, outputs={}, state='"größe"')
        assert await store.save(task.id, 1, first) is True
        assert (await current(store, task)).checkpoint == first
        assert await store.save(task.id, 1, second) is True
        assert (await current(store, task)).checkpoint == second

    async def test_only_a_newer_one_replaces_it(self, store: Store) -> None:
        """False: it is not newer."""
        task = await running(store)
        newest = point(5)
        assert await store.save(task.id, 1, newest) is True
        assert await store.save(task.id, 1, point(4)) is False
        assert await store.save(task.id, 1, point(5, version=9)) is False
        assert (await current(store, task)).checkpoint == newest

    async def test_several_of_one_task_in_one_instant(self, store: Store) -> None:
        """Each is judged by what came before it."""
        task = await running(store)
        saved = await asyncio.gather(*(store.save(task.id, 1, point(n)) for n in (1, 3, 2, 3, 4)))
        assert saved == [True, True, False, False, True]

    async def test_a_stale_attempt_saves_nothing(self, store: Store) -> None:
        """However new its checkpoint: the fence counts."""
        task = await running(store)
        await step(store, task, Event.DRAINED)
        (second,) = await store.claim(1, [task.service], now())
        assert await store.save(task.id, 1, point(99)) is False
        assert await store.save(task.id, 3, point(99)) is False
        assert await store.save(task.id, second.attempt, point(1, attempt=2)) is True

    @pytest.mark.parametrize("status", STORED)
    async def test_only_while_running_or_pausing(self, store: Store, status: Status) -> None:
        """A task that has stopped keeps the checkpoint it stopped with."""
        task = await reach(store, status)
        saved = await store.save(task.id, task.attempt, point(1))
        assert saved is (status in {Status.RUNNING, Status.PAUSING})

    async def test_an_unknown_task_is_no_error(self, store: Store) -> None:
        """It may have been deleted a moment ago."""
        assert await store.save(new().id, 1, point(1)) is False


class TestDue:
    """`wake_due` and `next_due`: a retry is a row with a time."""

    async def test_what_is_due_goes_to_pending(self, store: Store) -> None:
        """The rest stays; the event is the supervisor's own."""
        early, late = await running(store), await running(store)
        await step(store, early, Event.ERRORED, due_at=100.0, reason=Reason.ERRORED)
        await step(store, late, Event.ERRORED, due_at=200.0)
        assert await store.wake_due(99.9) == 0
        assert await store.wake_due(100.0) == 1
        woken = await current(store, early)
        assert (woken.status, woken.reason, woken.due_at, woken.attempt) == (Status.PENDING, None, None, 1)
        assert (await current(store, late)).status is Status.RETRYING
        record = (await store.events(early.id))[-1]
        assert (record.event, record.status, record.by, record.at) == (Event.DUE, Status.PENDING, None, 100.0)
        assert await store.wake_due(1e9) == 1

    async def test_the_earliest_time_of_all(self, store: Store) -> None:
        """Of retrying tasks any time, of pending ones only a later one than asked; None without any."""
        assert await store.next_due(0) is None
        retrying, delayed = await running(store), await running(store)
        await step(store, delayed, Event.LOST, due_at=50.0)
        assert await store.next_due(49.9) == 50.0
        assert await store.next_due(50.0) is None
        await step(store, retrying, Event.ERRORED, due_at=70.0)
        assert await store.next_due(49.9) == 50.0
        assert await store.next_due(50.0) == 70.0
        assert await store.next_due(1e9) == 70.0

    async def test_what_has_stopped_is_not_due(self, store: Store) -> None:
        """A paused task's time is gone with its step."""
        task = await reach(store, Status.RETRYING)
        await step(store, task, Event.PAUSE)
        assert await store.next_due(0) is None
        assert await store.wake_due(LATER) == 0


class TestBury:
    """Delete the row, its checkpoint, attempts and events and leave the tombstone, in one transaction."""

    async def test_nothing_is_left_but_the_tombstone(self, store: Store) -> None:
        """And a neighbour keeps everything."""
        task, neighbour = await running(store), await running(store)
        for each in (task, neighbour):
            assert await store.save(each.id, 1, point(1))
        cleaning = await launched_clean(store, await step(store, task, Event.TERMINATE))
        left = tombstone(task)
        assert await store.bury(Change(task=cleaning, event=Event.CLEANED, at=now(), end=end(Event.CLEANED)), left)
        assert await store.get(task.id) == left
        assert (await store.attempts(task.id), await store.events(task.id)) == ([], [])
        assert ids((await store.find(Query())).items) == [neighbour.id]
        assert len(await store.events(neighbour.id)) == 2
        assert (await current(store, neighbour)).checkpoint is not None

    async def test_its_checkpoint_does_not_come_back(self, store: Store) -> None:
        """A task with the same id (there is none, but for this test) starts from nothing."""
        task = await reach(store, Status.RUNNING)
        await store.save(task.id, 1, point(1))
        completed = await step(store, task, Event.COMPLETED)
        assert await store.bury(Change(task=completed, event=Event.DELETE, at=now()), tombstone(task))
        again = await store.add(new(id=task.id))
        assert await current(store, again) == again

    async def test_somebody_was_first(self, store: Store) -> None:
        """False; everything is still there, and no tombstone."""
        task = await reach(store, Status.TERMINATING)
        cleaning = await launched_clean(store, task)
        assert await store.bury(Change(task=task, event=Event.CLEANED, at=now()), tombstone(task)) is False
        assert await store.get(task.id) == cleaning

    async def test_twice(self, store: Store) -> None:
        """In one instant: once."""
        task = await reach(store, Status.COMPLETED)
        change, left = Change(task=task, event=Event.DELETE, at=now()), tombstone(task, receipt=None)
        first, second = await asyncio.gather(store.bury(change, left), store.bury(change, left))
        assert (first, second) == (True, False)
        assert await store.get(task.id) == left

    async def test_what_was_written_in_the_same_instant_goes_too(self, store: Store) -> None:
        """A commit that holds a step and the burial leaves no event of the step."""
        task = await reach(store, Status.TERMINATING)
        again = Change(task=task, event=Event.LOST, at=now(), checkpoint=point(3))
        change = Change(task=task, event=Event.CLEANED, at=now())
        advanced, buried = await asyncio.gather(store.advance(again), store.bury(change, tombstone(task)))
        assert advanced is not None
        assert buried is True
        assert await store.events(task.id) == []

    @pytest.mark.parametrize("status", sorted(set(STORED) - {Status.COMPLETED, Status.TERMINATING}))
    async def test_only_a_step_to_gone_buries(self, store: Store, status: Status) -> None:
        """Anything else is a mistake of the caller."""
        task = await reach(store, status)
        with pytest.raises(ValueError, match="gone"):
            await store.bury(Change(task=task, event=Event.DELETE, at=now()), tombstone(task))

    async def test_a_tombstone_of_another_task(self, store: Store) -> None:
        """A mistake of the caller."""
        task = await reach(store, Status.COMPLETED)
        with pytest.raises(ValueError, match="another"):
            await store.bury(Change(task=task, event=Event.DELETE, at=now()), tombstone(new()))


class TestKeys:
    """A start that is known by its key."""

    async def test_the_first_is_the_answer_to_the_others(self, store: Store) -> None:
        """Whatever the others ask for, and in whatever status the first one's task is; another user's is another."""
        first = await store.add(new(key=Key("k", "digest")))
        assert isinstance(first, Task)
        for digest in ("digest", "another"):
            assert await store.add(new(key=Key("k", digest))) == Earlier(first.id, "digest")
        gone = await step(store, first, Event.TERMINATE)
        assert await store.bury(Change(task=gone, event=Event.CLEANED, at=now()), tombstone(gone))
        assert await store.add(new(key=Key("k", "digest"))) == Earlier(first.id, "digest")
        assert isinstance(await store.add(new(key=Key("k", "digest"), user="bert")), Task)
        assert len(ids(await pages(store, Query(user="anna")))) == 0

    async def test_together(self, store: Store) -> None:
        """Of several in one commit, one is the first."""
        added = await asyncio.gather(*(store.add(new(key=Key("k", "digest"))) for _ in range(5)))
        [task] = [one for one in added if isinstance(one, Task)]
        assert [one for one in added if not isinstance(one, Task)] == [Earlier(task.id, "digest")] * 4
        assert ids(await pages(store, Query())) == [task.id]

    async def test_for_a_day(self, store: Store) -> None:
        """Then the name is free again."""
        at = now()
        first = await store.add(new(key=Key("k", "digest"), created_at=at))
        assert isinstance(first, Task)
        within = new(key=Key("k", "digest"), created_at=at + KEYS_KEPT_S - 1)
        assert await store.add(within) == Earlier(first.id, "digest")
        assert isinstance(await store.add(new(key=Key("k", "digest"), created_at=at + KEYS_KEPT_S)), Task)


class TestUses:
    """Which unfinished tasks read an upload."""

    async def test_from_the_start_until_it_is_completed(self, store: Store) -> None:
        """A use begins with the task and ends with its completion; failing or pausing does not end it."""
        for event, used in (
            (Event.COMPLETED, False),
            (Event.EXHAUSTED, True),
            (Event.PAUSE, True),
            (Event.LOST, True),
        ):
            fresh = new(uploads=(f"upload of {event}", "other"))
            await store.add(fresh)
            assert fresh.id in await store.users_of("other", 200)
            [task] = await store.claim(1, COUNTER, now())
            await step(store, task, event)
            assert await store.users_of(f"upload of {event}", 200) == ([fresh.id] if used else [])
            if event is Event.LOST:
                [task] = await store.claim(1, COUNTER, now())
                await step(store, task, Event.COMPLETED)

    async def test_until_it_is_gone(self, store: Store) -> None:
        """A task that is buried uses nothing any more."""
        fresh = new(uploads=("upload",))
        task = await step(store, await store.add(fresh), Event.TERMINATE)
        assert await store.users_of("upload", 200) == [fresh.id]
        assert await store.bury(Change(task=task, event=Event.CLEANED, at=now()), tombstone(task))
        assert await store.users_of("upload", 200) == []

    async def test_the_oldest_first_and_no_more_than_asked_for(self, store: Store) -> None:
        """However many use it, the list has an end."""
        tasks = [await store.add(new(uploads=("upload", "other"))) for _ in range(5)]
        assert await store.users_of("upload", 3) == [task.id for task in tasks[:3]]
        assert await store.users_of("nobody's", 3) == []


class TestGet:
    """The task, what is left of it, or None; with ``user``, None also for somebody else's."""

    async def test_unknown(self, store: Store) -> None:
        """None, whatever the text."""
        for task_id in (new().id, "", "' OR 1=1 --", "\x00", "ü"):
            assert await store.get(task_id) is None

    async def test_yours_only(self, store: Store) -> None:
        """A task and a tombstone alike."""
        task = await reach(store, Status.COMPLETED, user="anna")
        assert await store.get(task.id, "anna") == task
        assert await store.get(task.id, "berta") is None
        left = tombstone(task)
        await store.bury(Change(task=task, event=Event.DELETE, at=now()), left)
        assert await store.get(task.id, "anna") == left
        assert await store.get(task.id, "berta") is None

    async def test_it_sees_every_write_that_has_returned(self, store: Store) -> None:
        """At once, for many callers."""

        async def caller() -> None:
            added = await store.add(new())
            assert await store.get(added.id) == added
            assert ids((await store.find(Query(limit=100))).items).count(added.id) == 1

        await asyncio.gather(*(caller() for _ in range(40)))


class TestFind:
    """One page of tasks, newest first."""

    async def test_the_filters_and_all_of_them_together(self, store: Store) -> None:
        """User, service, statuses and labels narrow; none of them finds everything."""
        for user in ("anna", "berta"):
            for status in (Status.RUNNING, Status.PAUSED, Status.FAILED):
                for labels in ({}, {"k": "v", "n": "1"}, {"k": "w"}):
                    task = await reach(store, status, user=user, labels=labels)
                    assert task.service.startswith("service_")
        await store.add(new(user="anna"))
        paused, active = frozenset({Status.PAUSED}), frozenset({Status.RUNNING, Status.PENDING})
        for query, size in (
            (Query(), 19),
            (Query(user="anna"), 10),
            (Query(user="nobody"), 0),
            (Query(service="counter"), 1),
            (Query(user="anna", service="counter"), 1),
            (Query(user="berta", service="counter"), 0),
            (Query(statuses=paused), 6),
            (Query(statuses=active), 7),
            (Query(statuses=paused | active), 13),
            (Query(user="anna", statuses=active), 4),
            (Query(user="anna", service="counter", statuses=active), 1),
            (Query(user="anna", service="counter", statuses=paused), 0),
            (Query(labels={"k": "v"}), 6),
            (Query(labels={"k": "v", "n": "1"}, statuses=paused), 2),
            (Query(labels={"k": "v", "n": "2"}), 0),
            (Query(labels={"v": "k"}), 0),
        ):
            assert len((await store.find(query)).items) == size, query

    @pytest.mark.parametrize("limit", [1, 3, 200])
    async def test_pages_join_without_a_gap_or_a_repeat(self, store: Store, limit: int) -> None:
        """Newest first, with every filter that has an index of its own and with those that have none."""
        starts = [new(user=f"u{n % 2}", service=f"s{n % 3}", labels={"n": str(n % 4)}) for n in range(25)]
        tasks = [await store.add(start) for start in starts]
        for task in tasks[::2]:
            await step(store, task, Event.PAUSE)
        queries: list[tuple[Query, Any]] = [
            (Query(limit=limit), lambda _: True),
            (Query(limit=limit, user="u1"), lambda n: n % 2 == 1),
            (Query(limit=limit, service="s1"), lambda n: n % 3 == 1),
            (Query(limit=limit, user="u1", service="s1"), lambda n: n % 2 == 1 and n % 3 == 1),
            (Query(limit=limit, statuses=frozenset({Status.PENDING})), lambda n: n % 2 == 1),
            (Query(limit=limit, statuses=frozenset({Status.PAUSED})), lambda n: n % 2 == 0),
            (Query(limit=limit, user="u0", statuses=frozenset({Status.PENDING})), lambda _: False),
            (Query(limit=limit, labels={"n": "2"}), lambda n: n % 4 == 2),
            (Query(limit=limit, service="s1", statuses=frozenset({Status.PENDING})), lambda n: n % 6 == 1),
        ]
        for query, wanted in queries:
            found = await pages(store, query)
            assert ids(found) == [task.id for n, task in reversed(list(enumerate(tasks))) if wanted(n)]
            assert all(len(page.items) <= limit for page in found)

    async def test_a_last_page_that_is_just_full_has_no_next(self, store: Store) -> None:
        """Nothing more is announced where nothing is."""
        for _ in range(4):
            await store.add(new())
        assert (await store.find(Query(limit=4))).next is None
        assert (await store.find(Query(limit=3))).next is not None

    async def test_paging_is_stable_while_tasks_come_in(self, store: Store) -> None:
        """What is added after the first page shows on none of the others, and moves nothing."""
        tasks = [await store.add(new()) for _ in range(9)]
        seen, before = list[str](), None
        while True:
            page = await store.find(Query(limit=2, before=before))
            seen += ids(page.items)
            await store.add(new())
            if (before := page.next) is None:
                break
        assert seen == ids(tasks[::-1])

    async def test_items_leave_out_what_is_wide(self, store: Store) -> None:
        """``params`` and ``checkpoint.state`` are empty, ``result`` is None; all else is as it is."""
        task = await running(store, params='{"x": 1}', labels={"k": "v"})
        completed = await step(store, task, Event.COMPLETED, result="7", checkpoint=point(3), error=error())
        (item,) = (await store.find(Query())).items
        assert completed.checkpoint is not None
        narrow = replace(completed.checkpoint, state="")
        assert item == replace(completed, params="", result=None, checkpoint=narrow)

    async def test_a_page_examines_no_more_than_its_bound(self, store: Store) -> None:
        """It may come back empty and still have a next; the pages together find everything."""
        newest_first = [new() for _ in range(6001)][::-1]
        at_the_bound = newest_first[4998:5002] + newest_first[-1:]
        rare = {task.id for task in at_the_bound}
        fresh = (replace(task, labels={"rare": "yes"}) if task.id in rare else task for task in newest_first[::-1])
        await asyncio.gather(*(store.add(task) for task in fresh))
        query = Query(user="anna", labels={"rare": "yes"})
        first = await store.find(query)
        assert len(first.items) < len(rare)
        assert first.next is not None
        assert ids(await pages(store, query)) == [task.id for task in at_the_bound]
        unlike = Query(user="anna", labels={"no": "such"})
        assert [len(page.items) for page in await pages(store, unlike)] == [0, 0]


class TestOverviews:
    """`with_child`, `counts`, `attempts`, `events`."""

    async def test_those_that_may_have_a_process(self, store: Store) -> None:
        """For recovery: whole tasks, with what lists leave out."""
        tasks: dict[Status, Task] = {status: await reach(store, status, params='{"x": 1}') for status in STORED}
        await store.save(tasks[Status.RUNNING].id, 1, point(1))
        found = {task.status: task for task in await store.with_child()}
        assert set(found) == WITH_CHILD
        assert found == {status: await current(store, tasks[status]) for status in WITH_CHILD}

    async def test_counts_of_what_moves(self, store: Store) -> None:
        """Zero where there is none; never the resting ones."""
        moving = (Status.PENDING, Status.RUNNING, Status.PAUSING, Status.RETRYING, Status.TERMINATING)
        assert await store.counts() == dict.fromkeys(moving, 0)
        for status in STORED:
            await reach(store, status)
        await reach(store, Status.RETRYING)
        assert await store.counts() == dict.fromkeys(moving, 1) | {Status.RETRYING: 2}

    async def test_attempts_oldest_first_each_with_its_end(self, store: Store) -> None:
        """Every field of an end is kept."""
        task, ends = await running(store), []
        for number in (1, 2, 3):
            ends.append(end(Event.LOST, number))
            await step(store, task, Event.LOST, end=ends[-1])
            (task,) = await store.claim(1, [task.service], now())
        attempts = await store.attempts(task.id)
        assert [attempt.attempt for attempt in attempts] == [1, 2, 3, 4]
        assert [attempt.end for attempt in attempts] == [*ends, None]
        assert await store.attempts(new().id) == []
        assert await store.attempts(task.id, 1, 2) == attempts[1:3]
        assert await store.attempts(task.id, 3, 2) == attempts[3:]
        assert await store.attempts(task.id, 4) == []

    async def test_events_oldest_first_numbered_across_tasks(self, store: Store) -> None:
        """Each id is greater than that of everything that happened before, whichever task it happened to."""
        one, two = await running(store), await running(store)
        pausing = await step(store, one, Event.PAUSE)
        await step(store, two, Event.COMPLETED)
        await step(store, pausing, Event.STOPPED)
        assert await history(store, one) == [
            (None, Status.PENDING),
            (Event.CLAIMED, Status.RUNNING),
            (Event.PAUSE, Status.PAUSING),
            (Event.STOPPED, Status.PAUSED),
        ]
        first, second = await store.events(one.id), await store.events(two.id)
        numbers = [record.id for record in (*first[:2], *second[:2], first[2], second[2], first[3])]
        assert numbers == sorted(set(numbers))
        assert await store.events(new().id) == []
        assert await store.events(one.id, first[0].id, 2) == first[1:3]
        assert await store.events(one.id, first[2].id, 2) == first[3:]
        assert await store.events(one.id, first[3].id) == []


class TestFindEvents:
    """One page of the history of all of a user's tasks, or everybody's for None."""

    async def test_newest_first_and_yours_only(self, store: Store) -> None:
        """Across tasks, in pages whose cursors lead through all of them once."""
        for user in ("anna", "berta", "anna"):
            await reach(store, Status.PAUSED, user=user)
        found, before = list[tuple[int, str]](), None
        while True:
            page = await store.find_events("anna", before, 3)
            found += [(record.id, record.user) for record in page.items]
            assert len(page.items) == 3 or page.next is None
            if (before := page.next) is None:
                break
        assert [user for _, user in found] == ["anna"] * 6
        assert found == sorted(found, reverse=True)
        everything = await store.find_events(None, None, 200)
        assert (len(everything.items), everything.next) == (9, None)
        assert everything.items[0] == (await store.events(everything.items[0].task_id))[-1]

    async def test_nothing(self, store: Store) -> None:
        """Of somebody who never asked for anything, and before the first."""
        await store.add(new(user="anna"))
        assert (await store.find_events("berta", None, 5)).items == ()
        assert (await store.find_events("anna", 1, 5)).items == ()

    async def test_a_full_last_page_has_no_next(self, store: Store) -> None:
        """A cursor that leads to nothing is none."""
        task = await running(store)
        page = await store.find_events(task.user, None, 2)
        assert (len(page.items), page.next) == (2, None)


class TestExpired:
    """Up to ``limit`` tasks that completed or failed before then, the first first."""

    async def test_only_what_has_finished_and_before_then(self, store: Store) -> None:
        """What is paused stays for ever; so does what failed and goes on."""
        for status in STORED:
            if status not in {Status.COMPLETED, Status.FAILED}:
                await reach(store, status)
        failed, completed, again = [
            await reach(store, status) for status in (Status.FAILED, Status.COMPLETED, Status.FAILED)
        ]
        assert failed.finished_at is not None
        assert completed.finished_at is not None
        await step(store, again, Event.RESUME)
        assert ids(await store.expired(LATER, 9)) == [failed.id, completed.id]
        assert ids(await store.expired(completed.finished_at, 9)) == [failed.id]
        assert await store.expired(failed.finished_at, 9) == []

    async def test_in_batches(self, store: Store) -> None:
        """Each begins behind the last of the one before, also among those that finished in the same instant."""
        tasks, at = [await running(store) for _ in range(7)], now()
        done = [await store.advance(Change(task=task, event=Event.COMPLETED, at=at)) for task in tasks]
        assert None not in done
        first = await store.expired(LATER, 3)
        second = await store.expired(LATER, 3, after=first[-1])
        third = await store.expired(LATER, 3, after=second[-1])
        assert [len(first), len(second), len(third)] == [3, 3, 1]
        assert sorted(ids([*first, *second, *third])) == sorted(ids(tasks))
        assert await store.expired(LATER, 3, after=third[-1]) == []

    async def test_without_what_lists_leave_out(self, store: Store) -> None:
        """As in find."""
        task = await reach(
            store, Status.COMPLETED, params='{"large": 1}', retry=RetryPolicy(errors=1, base_s=1, cap_s=1)
        )
        (listed,) = await store.expired(LATER, 1)
        assert listed == replace(task, params="", result=None, retry=None)

    async def test_an_upload_that_is_read_stays(self, store: Store) -> None:
        """Until the last of the unfinished tasks that read it is completed or gone."""
        upload = await reach(store, Status.COMPLETED)
        reading, waiting = await running(store, uploads=(upload.id,)), await running(store, uploads=(upload.id,))
        assert (await store.expired(LATER, 9), await store.oldest()) == ([], None)
        completed = await step(store, reading, Event.COMPLETED)
        assert (ids(await store.expired(LATER, 9)), await store.oldest()) == ([completed.id], completed.finished_at)
        await step(store, waiting, Event.COMPLETED)
        assert (await store.expired(LATER, 9))[0].id == upload.id
        assert await store.oldest() == upload.finished_at


class TestAbandoned:
    """Up to ``limit`` paused stream tasks that expire before then, the first first."""

    async def test_only_what_is_paused_and_expires(self, store: Store) -> None:
        """Not what is retried or started later, and not what somebody has gone on with."""
        for status in STORED:
            await reach(store, status)
        await store.add(new(due_at=now() + 5))
        held = await store.advance(
            Change(task=await store.add(new(due_at=5.0)), event=Event.PAUSE, at=now(), due_at=5.0)
        )
        assert held is not None
        assert held.due_at == 5.0
        assert (await store.abandoned(LATER, 9), await store.next_abandoned()) == ([], None)
        made = [await store.add(new(stream=True, due_at=due_at)) for due_at in (30.0, 10.0, 20.0)]
        assert [task.due_at for task in made] == [30.0, 10.0, 20.0]
        assert ids(await store.abandoned(30.0, 9)) == [made[1].id, made[2].id]
        assert await store.next_abandoned() == 10.0
        await store.advance(
            Change(task=made[1], event=Event.CONNECTED, at=now(), attempt=made[1].attempt + 1, kind=Kind.RUN)
        )
        assert ids(await store.abandoned(LATER, 9)) == [made[2].id, made[0].id]
        later = await store.advance(Change(task=made[2], event=Event.RESUME, at=now(), due_at=40.0))
        assert later is not None
        assert ids(await store.abandoned(LATER, 9)) == [made[0].id, made[2].id]
        assert await store.next_abandoned() == 30.0

    async def test_in_batches(self, store: Store) -> None:
        """Each begins behind the last of the one before, also among those that expire in the same instant."""
        made = [await store.add(new(stream=True, due_at=10.0)) for _ in range(5)]
        first = await store.abandoned(LATER, 3)
        second = await store.abandoned(LATER, 3, after=first[-1])
        assert ids([*first, *second]) == ids(made)
        assert await store.abandoned(LATER, 3, after=second[-1]) == []


class TestGone:
    """Those of some ids of which a tombstone is left."""

    async def test_neither_those_that_are_there_nor_those_that_never_were(self, store: Store) -> None:
        """Whatever else is among them."""
        task, other = [await reach(store, Status.COMPLETED) for _ in range(2)]
        assert await store.gone([task.id, other.id]) == []
        assert await store.bury(Change(task=task, event=Event.DELETE, at=now()), tombstone(task))
        assert await store.gone([other.id, task.id, new().id, "", "\udcff"]) == [task.id]
        assert await store.gone([]) == []


class TestForget:
    """Delete up to ``limit`` of the tombstones that are older, the oldest first."""

    async def test_the_oldest_first_and_no_younger_one(self, store: Store) -> None:
        """How many; afterwards it is as if they had never been."""
        tasks = [await reach(store, Status.COMPLETED) for _ in range(4)]
        for task, gone_at in zip(tasks, (20.0, 10.0, 30.0, 40.0), strict=True):
            change = Change(task=task, event=Event.DELETE, at=now())
            assert await store.bury(change, tombstone(task, gone_at=gone_at, by=None))
        assert await store.forget(40.0, 2) == 2
        assert [await store.get(task.id) is None for task in tasks] == [True, True, False, False]
        assert await store.forget(40.0, 2) == 1
        assert await store.forget(40.0, 2) == 0
        assert await store.get(tasks[3].id) == tombstone(tasks[3], gone_at=40.0, by=None)


class TestOldest:
    """When the first of the completed and failed tasks and of the tombstones became that."""

    async def test_the_first_of_both(self, store: Store) -> None:
        """None without any."""
        for status in STORED:
            if status not in {Status.COMPLETED, Status.FAILED}:
                await reach(store, status)
        assert await store.oldest() is None
        failed = await reach(store, Status.FAILED)
        completed = await reach(store, Status.COMPLETED)
        assert await store.oldest() == failed.finished_at
        await store.bury(Change(task=completed, event=Event.DELETE, at=now()), tombstone(completed, gone_at=1.5))
        assert await store.oldest() == 1.5
        await store.forget(LATER, 1)
        assert await store.oldest() == failed.finished_at
        await step(store, failed, Event.RESUME)
        assert await store.oldest() is None


class TestTogether:
    """Writes that are asked for together are committed together, and fail alone."""

    async def test_one_that_fails_takes_no_other_along(self, store: Store) -> None:
        """Nor does it disturb their order."""
        task = await running(store)
        there = await store.add(new())
        results = await asyncio.gather(
            store.add(new(service="x")),
            store.add(new(id=there.id)),
            store.save(task.id, 1, point(1)),
            store.add(new(params="\ud800")),
            store.advance(Change(task=task, event=Event.COMPLETED, at=now(), result="7")),
            store.claim(5, ["x"], now()),
            store.add(new(priority=2**63)),
            return_exceptions=True,
        )
        added, twice, saved, not_text, completed, claimed, too_great = results
        assert isinstance(added, Task)
        assert isinstance(twice, StoreError)
        assert saved is True
        assert isinstance(not_text, ValueError)
        assert isinstance(too_great, OverflowError)
        assert isinstance(completed, Task)
        assert isinstance(claimed, list)
        assert ids(claimed) == [added.id]
        assert await current(store, task) == completed

    async def test_a_caller_that_goes_away_disturbs_nobody(self, store: Store) -> None:
        """What it asked for is done all the same: it had been accepted."""
        tasks = [new() for _ in range(30)]
        asking = [asyncio.create_task(store.add(task)) for task in tasks]
        await asyncio.sleep(0)
        for caller in asking[::3]:
            caller.cancel()
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [n % 3 == 0 for n in range(30)]
        await store.add(new())  # a commit later
        assert [isinstance(await store.get(task.id), Task) for task in tasks] == [True] * 30

    async def test_a_caller_that_goes_away_during_the_commit(self, store: Store) -> None:
        """At whatever moment."""
        for turns in range(12):
            task = new()
            asking = asyncio.create_task(store.add(task))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            follower = await store.add(new())
            assert await store.get(follower.id) == follower
            assert turns == 0 or isinstance(await store.get(task.id), Task)

    async def test_many_at_once(self, store: Store) -> None:
        """Every kind of write from many callers: each one's own view is consistent."""

        async def life(n: int) -> None:
            service = f"many_{n}"
            await store.add(new(service=service))
            (task,) = await store.claim(1, [service], now())
            for sequence in range(1, 6):
                assert await store.save(task.id, 1, point(sequence))
            completed = await step(store, task, Event.COMPLETED, result=str(n))
            assert completed.checkpoint is not None
            assert (completed.checkpoint.sequence, completed.result) == (5, str(n))
            assert await store.bury(Change(task=completed, event=Event.DELETE, at=now()), tombstone(task))

        await asyncio.gather(*(life(n) for n in range(60)))
        assert (await store.find(Query())).items == ()


class TestOpening:
    """Open and close."""

    async def test_everything_is_there_after_reopening(self, make_store: MakeStore) -> None:
        """Tasks, attempts, events and tombstones, as they were."""
        store = make_store()
        await store.open()
        tasks = [await reach(store, status) for status in STORED]
        completed = tasks[STORED.index(Status.COMPLETED)]
        left = tombstone(completed)
        await store.bury(Change(task=completed, event=Event.DELETE, at=now()), left)
        kept = [
            (await store.get(task.id), await store.attempts(task.id), await store.events(task.id)) for task in tasks
        ]
        await store.close()
        again = make_store()
        await again.open()
        try:
            assert kept == [
                (await again.get(task.id), await again.attempts(task.id), await again.events(task.id)) for task in tasks
            ]
        finally:
            await again.close()

    async def test_event_numbers_go_on_after_reopening(self, make_store: MakeStore) -> None:
        """Also when the newest were deleted: a client's Last-Event-ID must not come back."""
        store = make_store()
        await store.open()
        task = await reach(store, Status.COMPLETED)
        newest = (await store.events(task.id))[-1].id
        await store.bury(Change(task=task, event=Event.DELETE, at=now()), tombstone(task))
        await store.close()
        await store.open()
        try:
            added = await store.add(new())
            assert (await store.events(added.id))[0].id > newest
        finally:
            await store.close()

    async def test_closing_commits_what_was_asked_for(self, make_store: MakeStore) -> None:
        """And answers those who wait."""
        store = make_store()
        await store.open()
        tasks = [new() for _ in range(2500)]
        asking = [asyncio.create_task(store.add(task)) for task in tasks]
        await asyncio.sleep(0)
        await store.close()
        assert ids(await asyncio.gather(*asking)) == [task.id for task in tasks]
        again = make_store()
        await again.open()
        assert (await again.counts())[Status.PENDING] == 2500
        await again.close()

    async def test_closing_twice_and_never_opened(self, make_store: MakeStore) -> None:
        """Safe."""
        store = make_store()
        await store.close()
        await store.open()
        await store.close()
        await store.close()

    async def test_a_closed_store_says_so(self, make_store: MakeStore) -> None:
        """Reads and writes alike; a store that was never opened too."""
        store = make_store()
        with pytest.raises(StoreError, match="not open"):
            await store.add(new())
        await store.open()
        await store.close()
        with pytest.raises(StoreError, match="not open"):
            await store.add(new())
        with pytest.raises(StoreError, match="not open"):
            await store.get("x")


class TestUsage:
    """What a user's tasks that are counted come to, as of the last commit."""

    async def test_what_is_counted(self, store: Store) -> None:
        """What says so, and only to its user; with what it says now, until it is gone."""
        assert await store.usage("anna") == Usage()
        await store.add(new())
        await store.add(new(bytes=1000, user="berta"))
        small, large = await store.add(new(bytes=0)), await running(store, bytes=70)
        assert isinstance(small, Task)
        assert (small.bytes, large.bytes) == (0, 70)
        assert await store.usage("anna") == Usage(bytes=70, uploads=2, unfinished=2)

        large = await step(store, large, Event.STOPPED, reason=Reason.NO_SPACE, bytes=80)
        assert large.bytes == (await current(store, large)).bytes == 80
        large = await step(store, large, Event.RESUME)
        (large,) = await store.claim(1, [large.service], now())
        large = await step(store, large, Event.COMPLETED, bytes=75)
        assert await store.usage("anna") == Usage(bytes=75, uploads=2, unfinished=1)

        assert await store.bury(Change(task=large, event=Event.DELETE, at=now()), tombstone(large))
        assert await store.usage("anna") == Usage(uploads=1, unfinished=1)
        assert await store.usage("berta") == Usage(bytes=1000, uploads=1, unfinished=1)

    async def test_who_is_late_changes_nothing(self, store: Store) -> None:
        """Neither a step nor a burial that comes after another."""
        task = await running(store, bytes=5)
        done = await step(store, task, Event.COMPLETED)
        assert await store.advance(Change(task=task, event=Event.PAUSE, at=now(), bytes=9)) is None
        assert await store.bury(Change(task=done, event=Event.DELETE, at=now()), tombstone(done))
        assert not await store.bury(Change(task=done, event=Event.DELETE, at=now()), tombstone(done))
        assert await store.usage("anna") == Usage()

    @pytest.mark.parametrize("quota", [Quota(bytes=100, unfinished=9), Quota(bytes=None, unfinished=1)])
    async def test_more_than_the_quota_is_not_inserted(self, store: Store, quota: Quota) -> None:
        """Of two in one instant one is; the answer to the other is the usage, and its key stays free."""
        wanted = [new(bytes=60, quota=quota, key=Key(f"k{n}", "d")) for n in range(2)]
        first, second = await asyncio.gather(*map(store.add, wanted))
        usage = Usage(bytes=60, uploads=1, unfinished=1)
        assert isinstance(first, Task)
        assert second == await store.usage("anna") == usage
        assert await store.get(wanted[1].id) is None
        assert isinstance(await store.add(new(key=Key("k1", "d"))), Task)
        assert isinstance(await store.add(new(bytes=60, quota=quota, user="berta")), Task)
        assert await store.add(new(quota=quota, bytes=1, key=Key("k0", "d"))) == Earlier(first.id, "d")

    async def test_reserve(self, store: Store) -> None:
        """Only more, only within the most, only for a task as it is."""
        await store.add(new(bytes=30))
        task = await running(store, bytes=10)
        assert await store.reserve(task, 70, 100)
        assert not await store.reserve(task, 70, 100)
        assert not await store.reserve(task, 60, 100)
        assert not await store.reserve(task, 71, 100)
        assert await store.usage("anna") == Usage(bytes=100, uploads=2, unfinished=2)
        assert await store.reserve(task, 2**40, None)
        await step(store, task, Event.PAUSE)
        assert not await store.reserve(task, 2**41, None)
        assert not await store.reserve(await running(store), 5, None), "one that is not counted"
        assert (await current(store, task)).bytes == 2**40
