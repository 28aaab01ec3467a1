"""One attempt, from launch to the death of its tree: hears its child, keeps its checkpoints, enforces its deadlines.

It decides nothing about the task. It ends with an `Ending`, and `intermission.supervisor.verdict` says what follows.
"""

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, assert_never

import structlog

from intermission.handlers.inputs import Inputs
from intermission.handlers.registry import AnyHandler
from intermission.state.models import Checkpoint, Kind, Task
from intermission.state.status import Reason
from intermission.state.store import StoreError
from intermission.supervisor import restore
from intermission.supervisor.intake import Intake
from intermission.supervisor.ledger import Ledger
from intermission.supervisor.limits import Limits
from intermission.supervisor.places import Places
from intermission.supervisor.process import wire
from intermission.supervisor.process.body import Body
from intermission.supervisor.process.launcher import Child, Exit, Launcher, LaunchError
from intermission.supervisor.process.slot import newest_sequence
from intermission.supervisor.timers import Timers

COMMIT_WITHIN_S: Final = 0.25
"""The most that a power cut may take: how long a checkpoint may wait for the store."""
_WAIT_S: Final = 1.0
"""How long a launch that the system had no descriptor, process or memory for waits for the next try."""
_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})
"""The errors that say so; they are no fault of the handler's."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended. Its tree is dead."""

    exit: Exit
    report: wire.Completed | wire.Errored | None = None
    stopped: bool = False
    """It said that it pauses: whatever came after, it has paused."""
    forced: bool = False
    """It did not pause in time and was ended."""
    limit: Reason | None = None
    """It was ended for breaking this limit."""
    disconnected: Reason | None = None
    """The request that brought its body ended before the data did: why."""
    checkpoint: Checkpoint | None = None
    unreadable: str | None = None


class Attempt:
    """See the module."""

    def __init__(
        self,
        task: Task,
        kind: Kind,
        handler: AnyHandler,
        places: Places,
        ledger: Ledger,
        *,
        syncs: Executor,
        body: Body | None = None,
        checksum: tuple[str, bytes] | None = None,
        commit_within_s: Callable[[], float] = lambda: COMMIT_WITHIN_S,
        kept: Callable[[Checkpoint], None] = lambda _: None,
    ) -> None:
        """``syncs``: the threads in which to wait for the disk. ``commit_within_s``: how long a checkpoint may wait.

        ``kept`` is called with each checkpoint as soon as the store has it.
        """
        self.task = task
        self.handler = handler
        self.child: Child | None = None
        self.done = asyncio.Event()
        """Its tree is dead."""
        self.settled = asyncio.Event()
        """What follows for the task is committed, or left to the next start."""
        self.outcome: Task | None = None
        """What followed for the task, once it is settled; None if that is not for the attempt to say."""
        self.saved = asyncio.Event()
        """The store has a newer checkpoint. Who waits for that, which is one at most, clears it."""
        self.intake = Intake(body, self._grant_grace)
        """Where what the client of a stream service sends goes in."""
        self._has_body = body is not None
        self._commit_within_s = commit_within_s
        self._kept = kept
        self._checksum = checksum
        self._kind = kind
        self._folder = places.folder(task.id)
        self._ledger = ledger
        self._store = ledger.store
        self._syncs = syncs
        self._synced = 0
        self._loop = asyncio.get_running_loop()
        self._saving = asyncio.Lock()
        self._row = task.checkpoint
        self._rate = _Rate()
        self._timers = Timers()
        self._limits = Limits(handler, kind, self._folder, self._timers, self._break)
        self._flushes: set[asyncio.Task[None]] = set()
        self._launching: asyncio.Future[Child] | None = None
        self._pause_wanted = False
        self._end_wanted = False
        self._stopped = False
        self._forced = False
        self._limit: Reason | None = None
        self._final: wire.Completed | wire.Errored | None = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest that the store has: nothing that it says is ever taken back."""
        return self._row

    # What the supervisor asks.

    def request_pause(self, *, insist: bool = True) -> None:
        """Have it stop at its next checkpoint, or before its launch; to insist is to end it when its grace is over."""
        if not self._pause_wanted:
            self._pause_wanted = True
            if self.child is not None:
                self.child.send(wire.PauseRequest())
            elif self._launching is not None:
                self._launching.cancel()
        if insist:
            self._grant_grace()

    def end(self) -> None:
        """End its tree now; one that waits for its launch is not launched any more."""
        self._end_wanted = True
        if self.child is not None:
            self.child.end()
        elif self._launching is not None:
            self._launching.cancel()

    async def run(self, launcher: Launcher, inputs: Inputs) -> Ending:
        """Launch the child and attend to it until its tree is dead."""
        try:
            child = await self._start(launcher, inputs)
            async for report in child.reports():
                await self._take(report)
            return await self._conclude(child.exit)
        except LaunchError as error:
            return Ending(exit=Exit(lost=str(error)), stopped=self._pause_wanted)
        except restore.UnreadableError as error:
            return Ending(exit=Exit(), unreadable=str(error))
        except OSError as error:  # the folder cannot be made or read: a full or broken disk
            report = wire.Errored("exception", type(error).__name__, str(error), no_space=error.errno in wire.NO_SPACE)
            return Ending(exit=Exit(), report=report)
        finally:
            self._timers.close()
            self.intake.close()
            self.done.set()

    # Launching.

    async def _start(self, launcher: Launcher, inputs: Inputs) -> Child:
        """The child, which has been told what to do. Where the system has nothing left for one it waits until it has.

        Not so with a client that waits: that one is told.
        """
        while True:
            try:
                base = await asyncio.to_thread(self._prepare)
                self.child = child = await self._launch(launcher)
                self._begin(child, base, inputs)
                await child.forked()
            except OSError as error:
                self.child = None
                if error.errno not in _NONE_LEFT or self._has_body:
                    raise
                _log.warning("a task waits until it can be launched", task=self.task.id, error=str(error))
                await asyncio.sleep(_WAIT_S)
            else:
                self._limits.watch(child, base.sequence if base else 0)
                return child

    def _prepare(self) -> Checkpoint | None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._limits.allow_for_log()
        if self._has_body:  # exactly where the client was told to go on, though a slot might say more
            return restore.fitting(self._folder, [self._row] if self._row else [])
        restored = restore.last if self._kind is Kind.CLEAN else restore.newest
        return restored(self._folder, self._row)

    async def _launch(self, launcher: Launcher) -> Child:
        """The child. Waits for as long as none can be launched, but not when the attempt is to pause or end."""
        message = "it was stopped before it was launched"
        if self._unwanted():
            raise LaunchError(message)
        self._launching = asyncio.ensure_future(launcher.launch(self.handler.service, self.intake.ends))
        try:
            child = await self._launching
        except asyncio.CancelledError:
            if self._unwanted():
                raise LaunchError(message) from None
            raise
        self.intake.passed_on()
        return child

    def _unwanted(self) -> bool:
        return self._end_wanted or self._pause_wanted

    def _begin(self, child: Child, base: Checkpoint | None, inputs: Inputs) -> None:
        task, progress = self.task, base.progress if base else None
        child.send(
            wire.Begin(
                task_id=task.id,
                service=task.service,
                user=task.user,
                kind=self._kind,
                attempt=task.attempt,
                folder=str(self._folder),
                sources=str(inputs.sources),
                directory=str(inputs.directory),
                uploads=[
                    wire.UploadFile(u.id, str(u.path), u.filename, u.media_type, u.size_bytes, u.sha256, u.crc32c)
                    for u in inputs.uploads.values()
                ],
                params=task.params,
                state=base.state if base else None,
                version=base.version if base else self.handler.version,
                sequence=base.sequence if base else 0,
                outputs=dict(base.outputs) if base else {},
                done=progress.done if progress else None,
                total=progress.total if progress else None,
                unit=progress.unit if progress else None,
                checksum=self._checksum,
            )
        )
        self.intake.begin(child.send)
        if self._pause_wanted:
            child.send(wire.PauseRequest())
        if self._end_wanted:
            child.end()

    # Hearing.

    async def _take(self, report: wire.Report) -> None:
        match report:
            case wire.Ready():
                self._ledger.watchers.announce(self.task.id)  # who follows its log finds one now
            case wire.Dirty():
                if "flush" not in self._timers:
                    self._flush_in_time()
            case wire.Took():
                self.intake.took(report)
            case wire.CommitRequest(sequence):
                self._synced = sequence
                await self._confirm(sequence)
            case wire.Stopping(sequence):
                self._stopped, self._synced = True, sequence
                await self._confirm(sequence)
                # It has said its last word; `finally` blocks may take as long as the pause itself might have.
                self._timers.arm("grace", self.handler.pause_grace_s, self.end)
            case wire.Completed() | wire.Errored():
                self._final = report
                self._synced = max(self._synced, report.sequence if isinstance(report, wire.Completed) else 0)
                self._timers.arm("grace", self.handler.pause_grace_s, self.end)
            case never:
                assert_never(never)

    async def _confirm(self, sequence: int) -> None:
        """Have the store keep the checkpoint, then tell the child so; it waits for as long as the store cannot."""
        await self._save()
        if self.child is not None and self._row is not None and self._row.sequence >= sequence:
            self.child.send(wire.Committed(sequence))
        else:
            self._flush_in_time()

    def _flush_in_time(self) -> None:
        self._timers.arm_together("flush", self._commit_within_s(), self._flush)

    def _flush(self) -> None:
        self._timers.forget("flush")
        flush = self._loop.create_task(self._flush_now())
        self._flushes.add(flush)
        flush.add_done_callback(self._flushes.discard)

    async def _flush_now(self) -> None:
        await self._save()
        if self.child is None:
            return
        saved = self._row.sequence if self._row is not None else 0
        self.child.send(wire.Committed(saved))
        # Once more, after the message has gone: a checkpoint saved before the child saw it would never be announced.
        if newest_sequence(self._folder) > saved and not self.done.is_set():
            self._flush_in_time()

    async def _save(self) -> None:
        """Bring the newest checkpoint from the slots into the store, its outputs first."""
        async with self._saving:
            try:
                checkpoint = await self._durable()
                if checkpoint is None or (self._row is not None and checkpoint.sequence <= self._row.sequence):
                    return
                checkpoint = self._rate.measured(checkpoint)
                if await self._store.save(self.task.id, self.task.attempt, checkpoint):
                    self._row = checkpoint
                    self.saved.set()
                    self._kept(checkpoint)
            except (restore.UnreadableError, OSError, StoreError) as error:
                # The slot keeps it meanwhile; the next flush, or the end of the attempt, tries again.
                _log.warning("a checkpoint could not be committed", task=self.task.id, error=str(error))

    async def _durable(self) -> Checkpoint | None:
        """The newest checkpoint, once it is so. Only what the child has not synced itself waits for its turn."""
        waits = newest_sequence(self._folder) > self._synced
        return await self._loop.run_in_executor(
            self._syncs if waits else None, restore.durable, self._folder, self._row, self._synced
        )

    # Deadlines.

    def _grant_grace(self) -> None:
        if "grace" not in self._timers:
            self._timers.arm("grace", self.handler.pause_grace_s, self._force)

    def _force(self) -> None:
        """The grace is over."""
        self._forced = True
        _log.warning(
            "no checkpoint within the grace: call checkpoint() more often",
            task=self.task.id,
            service=self.task.service,
            grace_s=self.handler.pause_grace_s,
        )
        self.end()

    def _break(self, limit: Reason) -> None:
        if self._stopped or self._final is not None:
            return  # it has said how it ends; what it may still take to leave is limited by its grace
        self._limit = self._limit or limit
        self.end()

    # The end.

    async def _conclude(self, end: Exit) -> Ending:
        for flush in list(self._flushes):
            await flush
        ending = Ending(
            exit=end,
            report=self._final,
            stopped=self._stopped,
            forced=self._forced,
            limit=self._limit,
            disconnected=self.intake.disconnected,
        )
        async with self._saving:
            try:
                checkpoint = await self._durable()
            except restore.UnreadableError as error:
                return replace(ending, unreadable=str(error))
            except OSError as error:
                _log.warning("the last checkpoint could not be read", task=self.task.id, error=str(error))
                return ending
        return replace(ending, checkpoint=self._rate.measured(checkpoint) if checkpoint is not None else None)


class _Rate:
    """How fast a task goes: measured between the checkpoints that reach the store."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def measured(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with ``progress.per_second``, once there is an earlier one to compare with."""
        progress = checkpoint.progress
        if progress is None:
            return checkpoint
        last, self._last = self._last, (checkpoint.saved_at, progress.done)
        if last is None or checkpoint.saved_at <= last[0]:
            return checkpoint
        per_second = (progress.done - last[1]) / (checkpoint.saved_at - last[0])
        return replace(checkpoint, progress=replace(progress, per_second=round(per_second, 3)))
