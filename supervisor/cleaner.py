"""The end of a terminated task: `clean` in a fresh child, then its files, then its row; a receipt is what remains."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
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
from intermission.supervisor.retry import GIVE_UP_AFTER, STORE_RETRY_S
from intermission.supervisor.verdict import attempt_end, error_of, was_lost

P = ParamSpec("P")
T = TypeVar("T")
_TRIES: Final = 3
_log = structlog.get_logger()


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
        self._closing = False

    def finish(self, task: Task, killed: Iterable[wire.Killed] = (), end: AttemptEnd | None = None) -> None:
        """Carry a terminating task to its end in the background. Its tree is dead; ``end`` is its last attempt's."""
        if task.id not in self._under_way and not self._closing:
            finishing = asyncio.create_task(self._finish(task, list(killed), end))
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
        self._closing = True
        for attempt in self._attempts.values():
            attempt.end()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _finish(self, task: Task, killed: list[wire.Killed], end: AttemptEnd | None) -> None:
        cleaned: Task | None = task
        try:
            if task.attempt > 0:  # one that never ran has nothing to undo
                cleaned, end = await self._insist(task, self._clean, task, killed, end)
            if cleaned is not None:
                await self._remove(cleaned, killed, end)
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
                if self._closing:
                    raise
                _log.error("a terminated task cannot be finished yet", task=task.id, error=str(error))
            await asyncio.sleep(STORE_RETRY_S)

    async def _clean(
        self, task: Task, killed: list[wire.Killed], end: AttemptEnd | None
    ) -> tuple[Task | None, AttemptEnd | None]:
        """Run `clean` until it succeeds; the task and its last attempt's end, or None if it is not to be removed."""
        now = await self._ledger.store.get(task.id)  # an earlier try may have raised the fence
        if not isinstance(now, Task) or now.status is not Status.TERMINATING:
            return None, None
        task, end = now, end if now.attempt == task.attempt else None
        handler = self._registry.handlers.get(task.service)
        if handler is None:
            error = ErrorInfo(kind="exception", type=None, message="its handler is gone", attempt=task.attempt)
            await self._park(task, error, end)
            return None, None
        if not handler.cleans:
            return task, end
        tries, losses = _TRIES, 0
        while tries and losses < GIVE_UP_AFTER:
            launched = await self._ledger.advance(
                Change(
                    task=task, event=Event.CLAIMED, at=time.time(), attempt=task.attempt + 1, kind=Kind.CLEAN, end=end
                )
            )
            if launched is None:
                return None, None
            task = launched
            ending = await self._attempt(task, handler)
            killed += ending.exit.killed
            if isinstance(ending.report, wire.Completed):
                return task, attempt_end(ending, Change(task=task, event=Event.CLEANED, at=time.time()), time.time())
            if self._closing:
                break
            lost = ending.report is None and ending.limit is None and was_lost(ending.exit)
            tries -= not lost
            losses += lost
            failed = Change(task=task, event=Event.ERRORED, at=time.time(), error=error_of(ending, task.attempt))
            end = attempt_end(ending, failed, failed.at)
            _log.warning("clean did not succeed", task=task.id, service=task.service, tries_left=tries)
        else:
            # Insisted on by itself: `clean` must not run again because the database was locked for a moment.
            await self._insist(task, self._park, task, end.error if end else None, end)
        return None, None

    async def _attempt(self, task: Task, handler: AnyHandler) -> Ending:
        attempt = Attempt(task, Kind.CLEAN, handler, self._places, self._ledger, syncs=self._syncs)
        self._attempts[task.id] = attempt
        if self._closing:  # since `close` has ended those that there were
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

    async def _park(self, task: Task, error: ErrorInfo | None, end: AttemptEnd | None) -> None:
        """`clean` failed for good: everything is kept for a person to look at."""
        await self._ledger.advance(
            Change(
                task=task,
                event=Event.CLEAN_FAILED,
                at=time.time(),
                reason=Reason.CLEAN_FAILED,
                error=error,
                end=end,
            )
        )

    async def _remove(self, task: Task, killed: list[wire.Killed], end: AttemptEnd | None) -> None:
        by = await self._insist(task, self._asked_by, task)
        files = await self._insist(task, self.remove_files, task.id)
        now = time.time()
        receipt = Receipt(
            processes=tuple({"pid": k.pid, "name": k.name, "started_at": k.started_at} for k in killed),
            survivors=0,
            cleaned=True,
            files_deleted=files,
        )
        tombstone = Tombstone(id=task.id, service=task.service, user=task.user, gone_at=now, by=by, receipt=receipt)
        change = Change(task=task, event=Event.CLEANED, at=now, by=by, end=end)
        await self._insist(task, self._ledger.bury, change, tombstone)

    async def _asked_by(self, task: Task) -> str | None:
        """The user who terminated it, be it before the server was started; None: its time was over."""
        history = await self._ledger.store.events(task.id)
        return next((event.by for event in reversed(history) if event.event is Event.TERMINATE), None)
