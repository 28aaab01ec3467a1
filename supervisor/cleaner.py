"""The end of a terminated task: `clean` in a fresh child, then its files, then its row; a receipt is what remains."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, ParamSpec, TypeVar

import structlog

from intermission.handlers.inputs import Inputs
from intermission.handlers.registry import AnyHandler, Registry
from intermission.state.models import AttemptEnd, Change, ErrorInfo, Kind, Receipt, Task, Tombstone
from intermission.state.status import Event, Reason, Status
from intermission.state.store import StoreError
from intermission.supervisor import inputs
from intermission.supervisor.apart import Apart
from intermission.supervisor.attempt import Attempt, Ending
from intermission.supervisor.errors import HandlerError, UnavailableError
from intermission.supervisor.ledger import Ledger
from intermission.supervisor.places import Places
from intermission.supervisor.process import wire
from intermission.supervisor.process.launcher import Launcher
from intermission.supervisor.removal import remove_folder
from intermission.supervisor.retry import GIVE_UP_AFTER, STORE_RETRY_S, loss_wait_s
from intermission.supervisor.verdict import attempt_end, error_of, was_lost

P = ParamSpec("P")
T = TypeVar("T")
_TRIES: Final = 3
_log = structlog.get_logger()


@dataclass(slots=True)
class _Course:
    """How far a task is on the way to its end."""

    task: Task
    killed: list[wire.Killed]
    end: AttemptEnd | None
    """Of its last attempt, until it is written."""
    tries: int = _TRIES
    losses: int = 0
    """Of `clean`: they use up no try."""


class Cleaner:
    """Takes tasks from terminating to gone. Each step may be repeated after a crash."""

    def __init__(
        self,
        ledger: Ledger,
        launcher: Launcher,
        registry: Registry,
        places: Places,
        *,
        apart: Apart,
        syncs: Executor,
        removals: Executor,
    ) -> None:
        """``removals`` are the threads in which folders are removed: a large one takes seconds."""
        self._ledger = ledger
        self._launcher = launcher
        self._registry = registry
        self._places = places
        self._apart = apart
        self._syncs = syncs
        self._removals = removals
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._attempts: dict[str, Attempt] = {}
        self._closing = asyncio.Event()

    def finish(self, task: Task, killed: Iterable[wire.Killed] = (), end: AttemptEnd | None = None) -> None:
        """Carry a terminating task to its end in the background. Its tree is dead; ``end`` is its last attempt's."""
        if task.id not in self._under_way and not self._closing.is_set():
            finishing = asyncio.create_task(self._finish(_Course(task, list(killed), end)))
            self._under_way[task.id] = finishing
            finishing.add_done_callback(lambda _: self._under_way.pop(task.id, None))

    async def finished(self, task_id: str, within_s: float) -> None:
        """Return when nothing is under way for this task any more, or time is over."""
        if (finishing := self._under_way.get(task_id)) is not None:
            await asyncio.wait((finishing,), timeout=within_s)

    async def remove_files(self, task_id: str) -> int:
        """Delete a task's folder; how many files were in it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._removals, remove_folder, self._places.folder(task_id))

    async def close(self) -> None:
        """Stop: what is not gone by now stays terminating, and the next start goes on with it."""
        self._closing.set()
        for attempt in self._attempts.values():
            attempt.end()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _finish(self, course: "_Course") -> None:
        task = course.task
        try:
            # One that never ran has nothing to undo.
            if task.attempt == 0 or await self._insist(task, self._clean, course):
                await self._remove(course)
        except (StoreError, OSError, UnavailableError) as error:
            _log.error(
                "a terminated task could not be finished; the next start goes on", task=task.id, error=str(error)
            )
        except Exception:  # noqa: BLE001 -- one task's fault must not take the others along; it is logged whole
            _log.exception("a terminated task could not be finished; ask again to try again", task=task.id)

    async def _insist(self, task: Task, step: Callable[P, Awaitable[T]], *args: P.args, **options: P.kwargs) -> T:
        """Try a step until the database and the disk let us: nobody else would ever finish the task."""
        while True:
            try:
                return await step(*args, **options)
            except (StoreError, OSError, UnavailableError) as error:
                if self._closing.is_set():
                    raise
                _log.error("a terminated task cannot be finished yet", task=task.id, error=str(error))
            await self._wait(STORE_RETRY_S)

    async def _wait(self, seconds: float) -> None:
        """Wait so long, or until we close."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _clean(self, course: "_Course") -> bool:
        """Run `clean` until it succeeds; whether the task is to be removed now."""
        now = await self._ledger.store.get(course.task.id)  # an earlier try may have raised the fence
        if not isinstance(now, Task) or now.status is not Status.TERMINATING:
            return False
        if now.attempt != course.task.attempt:
            course.end = None  # written with the fence
        course.task = now
        handler = self._registry.handlers.get(now.service)
        if handler is None:
            error = ErrorInfo(kind="exception", type=None, message="its handler is gone", attempt=now.attempt)
            await self._park(course, error)
            return False
        if not handler.cleans:
            return True
        while course.tries and course.losses < GIVE_UP_AFTER:
            await self._wait(loss_wait_s(course.losses))
            ending = await self._try(course, handler)
            if ending is not None and isinstance(ending.report, wire.Completed):
                return True
            if ending is None or self._closing.is_set():
                return False
            if ending.report is None and ending.limit is None and was_lost(ending.exit):
                course.losses += 1
            else:
                course.tries -= 1
            _log.warning("clean did not succeed", task=now.id, service=now.service, tries_left=course.tries)
        # Insisted on by itself: `clean` must not run again because the database was locked for a moment.
        await self._insist(course.task, self._park, course, course.end.error if course.end else None)
        return False

    async def _try(self, course: "_Course", handler: AnyHandler) -> Ending | None:
        """Run `clean` once; None if the task is somebody else's now."""
        task = course.task
        claimed = Change(
            task=task, event=Event.CLAIMED, at=time.time(), attempt=task.attempt + 1, kind=Kind.CLEAN, end=course.end
        )
        launched = await self._ledger.advance(claimed)
        if launched is None:
            return None
        course.task, course.end = launched, None
        ending = await self._attempt(launched, handler)
        course.killed += ending.exit.killed
        ended = Change(task=launched, event=Event.CLEANED, at=time.time())
        if not isinstance(ending.report, wire.Completed):
            ended = replace(ended, event=Event.ERRORED, error=error_of(ending, launched.attempt))
        course.end = attempt_end(ending, ended, ended.at)
        return ending

    async def _attempt(self, task: Task, handler: AnyHandler) -> Ending:
        attempt = Attempt(task, Kind.CLEAN, handler, self._places, self._ledger, syncs=self._syncs)
        self._attempts[task.id] = attempt
        if self._closing.is_set():  # since `close` has ended those that there were
            attempt.end()
        try:
            return await attempt.run(self._launcher, await self._inputs(task, handler))
        finally:
            del self._attempts[task.id]

    async def _inputs(self, task: Task, handler: AnyHandler) -> Inputs:
        """What `clean` may use; where the handler cannot say any more what that is, it has to do without uploads."""
        try:
            return await inputs.of(task, handler, self._ledger.store, self._places, self._apart)
        except HandlerError:
            return inputs.none(self._places)

    async def _park(self, course: "_Course", error: ErrorInfo | None) -> None:
        """`clean` failed for good: everything is kept for a person to look at."""
        await self._ledger.advance(
            Change(
                task=course.task,
                event=Event.CLEAN_FAILED,
                at=time.time(),
                reason=Reason.CLEAN_FAILED,
                error=error,
                end=course.end,
            )
        )

    async def _remove(self, course: "_Course") -> None:
        task = course.task
        by = await self._insist(task, self._asked_by, task)
        files = await self._insist(task, self.remove_files, task.id)
        now = time.time()
        receipt = Receipt(
            processes=tuple({"pid": k.pid, "name": k.name, "started_at": k.started_at} for k in course.killed),
            survivors=0,
            cleaned=True,
            files_deleted=files,
        )
        tombstone = Tombstone(id=task.id, service=task.service, user=task.user, gone_at=now, by=by, receipt=receipt)
        change = Change(task=task, event=Event.CLEANED, at=now, by=by, end=course.end)
        await self._insist(task, self._ledger.bury, change, tombstone)

    async def _asked_by(self, task: Task) -> str | None:
        """The user who terminated it, be it before the server was started; None: its time was over."""
        history = await self._ledger.store.events(task.id)
        return next((event.by for event in reversed(history) if event.event is Event.TERMINATE), None)
