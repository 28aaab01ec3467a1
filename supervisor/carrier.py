"""Carries attempts: claims what is next, launches it, and settles what follows from each ending.

It is woken, it does not look: by a start, a resume, a freed place, or the earliest time at which something is due.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Final

import structlog

from intermission.handlers.base import Retry
from intermission.handlers.registry import Registry
from intermission.state.models import Change, Checkpoint, ErrorInfo, Kind, Query, Task, Tombstone
from intermission.state.status import Event, Reason, Status
from intermission.state.store import StoreError, UnreadableError
from intermission.supervisor import inputs, restore, schedule
from intermission.supervisor.apart import Apart
from intermission.supervisor.attempt import COMMIT_WITHIN_S, Attempt, Ending
from intermission.supervisor.cleaner import Cleaner
from intermission.supervisor.crowd import Crowd
from intermission.supervisor.errors import HandlerError, UnavailableError
from intermission.supervisor.ledger import Ledger
from intermission.supervisor.places import Places
from intermission.supervisor.process.body import Body
from intermission.supervisor.process.fault import errored
from intermission.supervisor.process.launcher import Child, Exit, Launcher
from intermission.supervisor.retry import STORE_RETRY_S, policy
from intermission.supervisor.stream import Delivery
from intermission.supervisor.verdict import Moment, verdict

_COMMIT_EACH_S: Final = 0.01
"""Of many uploads at once, each is made durable so much less often: each time costs a sync.

What a power cut takes of them their clients still have, for only what is durable is ever told.
"""
_COMMIT_MOST_S: Final = 2.0
"""But as often as this. With 1.0, two hundred slow uploads took a tenth of a core of the server alone."""
_CLOCK_CHECK_S: Final = 60.0
"""The longest sleep towards a wall-clock time: a corrected system clock is noticed by then."""
_log = structlog.get_logger()


class Carrier:
    """See the module."""

    def __init__(
        self,
        ledger: Ledger,
        launcher: Launcher,
        registry: Registry,
        places: Places,
        cleaner: Cleaner,
        *,
        apart: Apart,
        syncs: Executor,
        max_running: int,
        crowd: Crowd,
    ) -> None:
        self._crowd = crowd
        self._ledger = ledger
        self._store = ledger.store
        self._launcher = launcher
        self._registry = registry
        self._places = places
        self._cleaner = cleaner
        self._apart = apart
        self._syncs = syncs
        self._max_running = max_running
        self._attempts: dict[str, Attempt] = {}
        self._carrying: set[asyncio.Task[None]] = set()
        self._dispatching: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._due_changed = asyncio.Event()
        self._alone: str | None = None
        """The task beside which nothing is launched."""
        self.connected = 0
        """Attempts under way of stream services, which are counted apart."""
        self._draining = False

    # What the supervisor asks.

    @property
    def running(self) -> int:
        """Attempts under way that take one of the places of `max_running`."""
        return len(self._attempts) - self.connected

    def child(self, task_id: str) -> Child | None:
        """The child of a task, if it has one."""
        attempt = self._attempts.get(task_id)
        return attempt.child if attempt else None

    def attempt(self, task_id: str) -> Attempt | None:
        """The attempt of a task that is under way."""
        return self._attempts.get(task_id)

    def wake(self) -> None:
        """Something may be pending."""
        self._wake.set()

    def watch(self) -> None:
        """Something will be due, perhaps before what is waited for."""
        self._due_changed.set()

    def pause(self, task_id: str) -> None:
        """Pass a pause on to the child. An attempt that is not there yet reads the status before it launches."""
        if (attempt := self._attempts.get(task_id)) is not None:
            attempt.request_pause()

    def end(self, task_id: str) -> bool:
        """End the attempt of a task that is terminating; `clean` follows when its tree is dead. False without one."""
        if (attempt := self._attempts.get(task_id)) is None:
            return False
        attempt.end()
        return True

    async def connect(
        self,
        task: Task,
        by: str | None,
        params: str,
        delivery: Delivery | None = None,
        reserve: Callable[[], Awaitable[None]] | None = None,
    ) -> Attempt | None:
        """Launch a stream service's task, whose body is about to come. None: somebody was first.

        ``reserve`` has its bytes count, and may refuse them: only
        once nothing else stands in the way, or what is refused would count too.

        Raises `CrowdedError`, `UnavailableError` where there is nothing to bring it through, and as ``reserve``.
        """
        change = Change(
            task=task,
            event=Event.CONNECTED,
            at=time.time(),
            by=by,
            attempt=task.attempt + 1,
            kind=Kind.RUN,
            error=None,
            params=params,
        )
        attempt = body = None
        self._crowd.enter(task.user)
        try:
            body = Body(delivery.connection if delivery else None)
            if reserve is not None:
                await reserve()
            if (connected := await self._ledger.advance(change)) is not None:
                attempt = self._carry(connected, body, delivery.checksum if delivery else None)
        except OSError as error:
            message = f"nothing more can be opened for a body now ({error.strerror}); try again in a moment"
            raise UnavailableError(message) from error
        finally:
            if attempt is None:
                self._crowd.leave(task.user)
                if body is not None:
                    body.close()
        return attempt

    async def open(self) -> list[str]:
        """Carry on what an earlier generation left, then claim; the ids of the uploads among it."""
        left = await self._recover()
        self._dispatching = asyncio.create_task(self._dispatch())
        self._watching = asyncio.create_task(self._watch_due())
        self._wake.set()
        return left

    async def drain(self, within_s: float) -> None:
        """Have every child save its place and exit, and wait for that; `close` is for those that have not."""
        self._draining = True
        if self._watching is not None:
            self._watching.cancel()
        if self._dispatching is not None:
            self._wake.set()  # not cancelled: what it is about to claim must be carried, to be pending again
            await self._dispatching
        for attempt in self._attempts.values():
            # Nobody waits for a status here, so the time is the drain's, not the handler's grace.
            attempt.request_pause(insist=False)
        if self._carrying:
            await asyncio.wait(self._carrying, timeout=within_s)

    async def close(self) -> None:
        """End what still runs; returns when every ending is settled."""
        for attempt in self._attempts.values():
            attempt.end()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    # Recovery.

    async def _recover(self) -> list[str]:
        """Every task that may have had a child has none now: it is lost, and goes on from its last checkpoint."""
        left = await self._store.with_child()
        await asyncio.gather(*(self._recover_one(task) for task in left))
        if left:
            _log.info("carrying on with what was running", tasks=len(left))
        await self._refuse_without_handler()
        return [task.id for task in left if task.stream]

    async def _recover_one(self, task: Task) -> None:
        if task.status is Status.TERMINATING:
            self._cleaner.finish(task)
            return
        try:
            checkpoint = await asyncio.to_thread(restore.durable, self._places.folder(task.id), task.checkpoint)
        except (restore.UnreadableError, OSError) as error:
            # The next attempt meets the same fault, and parks the task with the reason.
            _log.warning("a checkpoint could not be read", task=task.id, error=str(error))
            checkpoint = task.checkpoint
        await self._settle(task, Ending(exit=Exit(lost="the server was lost"), checkpoint=checkpoint))

    async def _refuse_without_handler(self) -> None:
        """Fail the pending tasks of services that are not there, so that their owners learn of it."""
        before: str | None = None
        while True:
            page = await self._store.find(Query(statuses=frozenset({Status.PENDING}), before=before, limit=200))
            for task in page.items:
                if task.service not in self._registry.handlers:
                    message = f"there is no handler for {task.service!r}; add its module and resume the task"
                    error = ErrorInfo(kind="exception", type=None, message=message, attempt=task.attempt)
                    change = Change(
                        task=task, event=Event.REFUSED, at=time.time(), reason=Reason.NO_HANDLER, error=error
                    )
                    await self._ledger.advance(change)
            if page.next is None:
                return
            before = page.next

    # Claiming.

    async def _dispatch(self) -> None:
        """Claim whenever something may be pending, until the drain. What is claimed is carried in any case."""
        while not self._draining:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._claim()
            except StoreError as error:
                _log.error("nothing could be claimed", error=str(error))
            except Exception:  # noqa: BLE001 -- this must not have been the last claim; it is logged whole
                _log.exception("nothing could be claimed")
            else:
                continue
            asyncio.get_running_loop().call_later(STORE_RETRY_S, self._wake.set)

    async def _claim(self) -> None:
        """Carry what each claim has taken before the next one: if that fails, this is running all the same."""
        if self._alone is not None or self._draining:
            return
        now = time.time()
        running = Counter(attempt.task.service for attempt in self._attempts.values())
        free = self._max_running - self.running
        for room, services in schedule.rooms(free, self._registry.handlers.values(), running):
            if (limit := min(room, self._max_running - self.running)) > 0:
                for task in await self._store.claim(limit, services, now):
                    self._carry(task)
        if not self.running:  # who was lost that often may be what kills the others: it runs with nothing beside it
            for task in await self._store.claim(1, list(self._registry.handlers), now, wary=True):
                self._alone = task.id
                self._carry(task)

    async def _watch_due(self) -> None:
        """Wake what is due: one timer for the earliest, whatever is stored."""
        while True:
            self._due_changed.clear()
            now = time.time()
            due = None
            try:
                if await self._store.wake_due(now):
                    self._wake.set()
                due = await self._store.next_due(now)
            except StoreError as error:
                _log.error("what is due could not be read", error=str(error))
                due = now + STORE_RETRY_S
            except Exception:  # noqa: BLE001 -- as above
                _log.exception("what is due could not be read")
                due = now + STORE_RETRY_S
            try:
                async with asyncio.timeout(None if due is None else min(max(due - time.time(), 0), _CLOCK_CHECK_S)):
                    await self._due_changed.wait()
            except TimeoutError:
                self._wake.set()

    # Carrying.

    def _carry(self, task: Task, body: Body | None = None, checksum: tuple[str, bytes] | None = None) -> Attempt:
        handler = self._registry.handlers[task.service]
        attempt = Attempt(
            task,
            Kind.RUN,
            handler,
            self._places,
            self._ledger,
            syncs=self._syncs,
            body=body,
            checksum=checksum,
            commit_within_s=(lambda: COMMIT_WITHIN_S) if body is None else self._commit_within_s,
            kept=lambda checkpoint: self._get_over(task, checkpoint),
        )
        self._attempts[task.id] = attempt
        self.connected += task.stream
        carrying = asyncio.create_task(self._run(attempt))
        self._carrying.add(carrying)
        carrying.add_done_callback(self._carrying.discard)
        return attempt

    def _commit_within_s(self) -> float:
        """How long a checkpoint of an upload may wait."""
        return max(COMMIT_WITHIN_S, min(self.connected * _COMMIT_EACH_S, _COMMIT_MOST_S))

    def _get_over(self, task: Task, checkpoint: Checkpoint) -> None:
        """A task that ran alone has come beyond the place at which it was lost: others may run beside it."""
        if self._alone == task.id and checkpoint.sequence > task.lost_sequence:
            self._alone = None
            self._wake.set()

    async def _run(self, attempt: Attempt) -> None:
        task_id = attempt.task.id
        try:
            attempt.outcome = await self._settle(attempt.task, await self._ending(attempt))
        except Exception:  # noqa: BLE001 -- see below
            # No fault in one attempt may take the others down; the row says running, and the next start carries on.
            _log.exception("an attempt could not be carried to its end", task=task_id)
        finally:
            del self._attempts[task_id]
            attempt.intake.close()
            if attempt.task.stream:
                self.connected -= 1
                self._crowd.leave(attempt.task.user)
            attempt.settled.set()
            if self._alone == task_id:
                self._alone = None
            self._wake.set()

    async def _ending(self, attempt: Attempt) -> Ending:
        try:
            given = await inputs.of(attempt.task, attempt.handler, self._store, self._places, self._apart)
        except HandlerError as error:
            return Ending(exit=Exit(), report=errored(error.fault, stream=attempt.handler.stream))
        except (StoreError, UnavailableError) as error:
            return Ending(exit=Exit(lost=f"it was not launched: {error}"))
        return await attempt.run(self._launcher, given)

    async def _settle(self, task: Task, ending: Ending) -> Task | None:
        """Commit what follows from an ending, reading the task anew for as long as somebody else is first; it then.

        None: the cleaner has it now, or the next start will settle it.
        """
        known: Task | Tombstone | None = task
        while isinstance(known, Task):
            try:
                moment = Moment(time.time(), self._draining, random.uniform)
                handler = self._registry.handlers.get(known.service)
                retry = policy(handler.retry if handler else Retry(), known.retry)
                change = verdict(known, ending, retry, moment)
                if known.status is Status.TERMINATING:
                    self._cleaner.finish(known, ending.exit.killed, change.end)
                    return None
                if (settled := await self._ledger.advance(change)) is not None:
                    if change.due_at is not None:
                        self._due_changed.set()
                    return settled
                known = await self._store.get(task.id)
            except UnreadableError as error:
                _log.error("an ending could not be committed", task=task.id, error=str(error), again=False)
                return None
            except StoreError as error:
                _log.error("an ending could not be committed", task=task.id, error=str(error), again=not self._draining)
                if self._draining:
                    return None
                await asyncio.sleep(STORE_RETRY_S)
        return None
