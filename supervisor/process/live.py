"""The task as its handler sees it: state in memory, slots and outputs on disk, the supervisor at the pipe."""

import contextlib
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NoReturn, assert_never

from intermission.handlers.base import Output, Paused, Task, output_path
from intermission.handlers.digest import CHECKSUM_MISMATCH, Checksum
from intermission.handlers.inputs import Inputs, Upload
from intermission.handlers.registry import AnyHandler
from intermission.handlers.schema import Unencodable
from intermission.supervisor.process import wire
from intermission.supervisor.process.incoming import Incoming
from intermission.supervisor.process.slot import SlotWriter

FILES_NAME: Final = "files"
"""The folder of the outputs, in the task's."""


class LiveTask(Task[Any, Any]):
    """See the module."""

    def __init__(self, handler: AnyHandler, begin: wire.Begin, pipe: Connection, body: Incoming | None = None) -> None:
        self.id = begin.task_id
        self.user = begin.user
        self.attempt = begin.attempt
        self.resumed = begin.state is not None
        self.params = handler.params.load(begin.params)
        self.state = handler.state.type() if begin.state is None else handler.restore(begin.state, begin.version)
        self._service = handler.service
        self.stopped = False
        self._pipe = pipe
        self._poll = _poller(pipe)
        self._encode: Callable[[Any], bytes] = handler.state.encode
        self._encode_result: Callable[[Any], bytes] = handler.result.encode
        self._main: int | None = threading.get_ident()
        """The thread that runs the handler; none of a process that it has forked."""
        # To compare pids would cost each checkpoint a system call.
        os.register_at_fork(after_in_child=self._disown)
        self._folder = begin.folder
        self._find_inputs = partial(_inputs, begin.sources, begin.directory, begin.uploads)
        self._files = f"{begin.folder}/{FILES_NAME}"
        self._lengths = dict(begin.outputs)
        self._open: dict[str, Output] = {}
        self._progress = (begin.done, begin.total, begin.unit)
        self._dirty = False
        self._pausing = False
        self._body = body
        self._body_end: wire.BodyEnd | None = None
        self._direct: wire.Direct | None = None
        self._unverified = None if begin.checksum is None else Checksum(*begin.checksum)
        """Of a body that counts as a whole or not at all: nothing is saved until all of it is there and fits."""
        self._committed = begin.sequence
        self._confirms = begin.kind == "run"
        if begin.kind == "run":
            self._cut_outputs()
        self._slot = SlotWriter(begin.folder, attempt=begin.attempt, version=handler.version, base=begin.sequence)

    # What the handler calls.

    @cached_property
    def inputs(self) -> Inputs:  # type: ignore[override]  # made when asked for, as most never do
        """See `Task.inputs`."""
        return self._find_inputs()

    @cached_property
    def log(self) -> logging.Logger:  # type: ignore[override]  # made when asked for: it costs 300 KB of private memory
        """See `Task.log`."""
        return _logger(self._service)

    def checkpoint(self, *, done: float | None = None, total: float | None = None, unit: str | None = None) -> None:
        """See `Task.checkpoint`."""
        self._save(done, total, unit)
        if not self._dirty and self._unverified is None:
            self._dirty = True
            self._tell(_DIRTY)
        # After the slot is written, never before: the supervisor looks at the slots once more after each `Committed`,
        # so either it sees this checkpoint or we see its message here.
        while self._poll(0):  # all that there is: a pause may stand behind the answer to an earlier checkpoint
            self._hear()
        if self._pausing:
            self._stop()

    def commit(self, *, done: float | None = None, total: float | None = None, unit: str | None = None) -> None:
        """See `Task.commit`."""
        self._save(done, total, unit)
        self.sync()
        if self._confirms:  # the store keeps nothing that `clean` saves: the row is about to go
            self._confirm(wire.CommitRequest(self._slot.sequence))
        if self._pausing:
            self._stop()

    def output(self, name: str) -> Output:
        """See `Task.output`."""
        self._refuse_copies()
        if self.stopped:
            raise Paused
        if name not in self._open or self._open[name].closed:
            folder = Path(self._folder)
            path = output_path(folder / FILES_NAME, name)
            path.parent.mkdir(exist_ok=True)
            self._open[name] = Output(path, folder.parent)
        return self._open[name]

    def sleep(self, seconds: float) -> None:
        """See `Task.sleep`."""
        self._refuse_copies()
        if self.stopped:
            raise Paused
        deadline = _now() + seconds
        while not self._pausing:
            left = deadline - _now()
            if left <= 0:
                return
            if self._poll(min(left * 1000 + 1, 86_400_000)):
                self._hear()
        self._save(None, None, None)
        self._stop()

    @property
    def blocks(self) -> Iterator[memoryview]:
        """See `Task.blocks`."""
        return super().blocks if self._body is None else self._blocks(self._body)

    def _blocks(self, body: Incoming) -> Iterator[memoryview]:
        while not self._pausing:
            self._refuse_copies()
            if self.stopped:
                raise Paused
            if self._direct is not None and body.copied >= self._direct.after:
                yield from self._directly(body, self._direct)
                continue
            if self._body_end is not None and body.copied >= self._body_end.after:
                if self._is_whole(self._body_end):
                    return
                break
            if body.wait_for_ring():
                self._hear()
            else:
                yield self._counted(body.from_ring())
        self._save(None, None, None)
        self._stop()

    def _directly(self, body: Incoming, asked: wire.Direct) -> Iterator[memoryview]:
        """Each block that comes on the client's connection; then the supervisor is told how much that was."""
        self._direct = None
        taken, waited_s, over = 0, 0.0, False
        try:
            while taken < asked.count and not over:
                if body.wait_for_connection(asked.count - taken, asked.patience_s):
                    self._hear()
                    over = self._pausing or self._body_end is not None  # with what has come by now: it need not again
                    if not over:
                        continue
                block = body.from_connection(asked.count - taken)
                taken += len(block)
                slow = not over and len(block) < min(asked.least, asked.count - taken)
                if block:
                    yield self._counted(block)
                if slow or self.stopped:
                    waited_s = asked.patience_s
                    break
        finally:
            body.leave_connection()
            with contextlib.suppress(ConnectionError):
                self._pipe.send_bytes(wire.encode(wire.Took(taken, waited_s)))

    def _counted(self, block: memoryview) -> memoryview:
        if self._unverified is not None:
            self._unverified.update(block)
        return block

    def _is_whole(self, end: wire.BodyEnd) -> bool:
        """Whether the data ends with the body that has just ended."""
        if self._unverified is not None and not end.cut:
            self._verify(self._unverified)
        return end.complete

    # What the runtime calls.

    @property
    def copied(self) -> bool:
        """Whether this is a process that the handler has forked, and not the one that runs it."""
        return self._main is None

    def sync(self) -> None:
        """Make every output durable, whole as it is now."""
        for name, out in self._open.items():
            if out.closed:
                fd = os.open(f"{self._files}/{name}", os.O_RDONLY | os.O_CLOEXEC)
                os.fdatasync(fd)
                os.close(fd)
            else:
                out.flush()
                os.fdatasync(out.fileno())
        if self._open:
            _sync_folder(self._files)

    def complete(self, result: object) -> wire.Completed:
        """The handler's result, once the last state and the outputs are durable. Raises `Unencodable`."""
        try:
            text = self._encode_result(result)
        except Unencodable as error:
            message = f"the handler returned {type(result).__name__}, which is not the result that it declares: {error}"
            raise Unencodable(message) from None
        if len(text) > wire.MAX_RESULT_BYTES:
            message = (
                f"the result has {len(text)} bytes; at most {wire.MAX_RESULT_BYTES} are kept: write it to an output"
            )
            raise Unencodable(message)
        self._save(None, None, None)
        self.sync()
        return wire.Completed(text.decode(), self._slot.sequence)

    # Inside.

    def _disown(self) -> None:
        self._main = None

    def _refuse_copies(self) -> None:
        """Raise in a process that the handler has forked: it has our slots, and reads and writes at our pipe."""
        if self.copied:
            message = (
                "the task was used in a process that the handler has forked: only the handler's own process may. "
                "Let the other one hand over what it has done, and save that here"
            )
            raise RuntimeError(message)

    def _save(self, done: float | None, total: float | None, unit: str | None) -> None:
        if self.stopped:
            raise Paused
        if threading.get_ident() != self._main:
            self._refuse_copies()
            message = (
                "checkpoint() was called off the main thread: only the thread that runs the handler may save its place"
            )
            raise RuntimeError(message)
        if done is not None:
            known = self._progress
            # As the slot's reader expects them: an integer of another kind, a Decimal, would make it unreadable.
            self._progress = (
                float(done),
                known[1] if total is None else float(total),
                known[2] if unit is None else str(unit),
            )
        if self._unverified is not None:
            return
        state = self._encode(self.state)
        if len(state) > wire.MAX_STATE_BYTES:
            most = wire.MAX_STATE_BYTES
            message = f"the state has {len(state)} bytes; at most {most} can be saved: keep bulk data in outputs"
            raise ValueError(message)
        lengths = self._lengths
        for name, out in self._open.items():
            lengths[name] = out.length()
        self._slot.write(state, lengths, *self._progress)

    def _hear(self) -> None:
        """Take one message from the supervisor."""
        try:
            message = wire.decode_request(self._pipe.recv_bytes(wire.MAX_REQUEST_BYTES))
        except (EOFError, ConnectionError):
            self._leave()
        match message:
            case wire.PauseRequest():
                self._pausing = True
            case wire.BodyEnd():
                self._body_end = message
            case wire.Direct():
                self._direct = message
            case wire.Committed(sequence):
                self._committed = max(self._committed, sequence)
                self._dirty = False
                if sequence < self._slot.sequence:
                    self._dirty = True
                    self._tell(_DIRTY)
            case wire.Begin():
                raise TypeError(message)
            case never:
                assert_never(never)

    def _tell(self, report: bytes) -> None:
        try:
            self._pipe.send_bytes(report)
        except ConnectionError:
            self._leave()

    def _leave(self) -> NoReturn:
        """There is no supervisor any more, so the fork server is about to kill us: no error of the handler's."""
        self.stopped = True
        raise Paused from None

    def _confirm(self, request: wire.CommitRequest | wire.Stopping) -> None:
        """Ask the supervisor to commit the newest checkpoint, and wait until it is."""
        self._tell(wire.encode(request))
        while self._committed < request.sequence:
            self._hear()

    def _verify(self, checksum: Checksum) -> None:
        """Have what the body brought count from here on, if it is what was announced; else leave without it."""
        if not checksum.fits():
            self._take_back()
            message = "the body does not give the checksum that was announced"
            self._pipe.send_bytes(wire.encode(wire.Errored("exception", CHECKSUM_MISMATCH, message)))
            self.stopped = True
            raise Paused
        self._unverified = None

    def _take_back(self) -> None:
        """Cut off what was written since the last checkpoint: it cannot be verified any more."""
        for name, out in self._open.items():
            if not out.closed:
                out.flush()
            os.truncate(f"{self._files}/{name}", self._lengths.get(name, 0))

    def _stop(self) -> NoReturn:
        if self._unverified is not None:
            self._take_back()
        self.sync()
        self._confirm(wire.Stopping(self._slot.sequence))
        self.stopped = True
        raise Paused

    def _cut_outputs(self) -> None:
        """Cut every output back to its length at the checkpoint; one that the checkpoint does not know is removed.

        But not if nothing is in it: there may be room reserved for it.
        """
        with contextlib.suppress(FileNotFoundError), os.scandir(self._files) as outputs:
            for output in outputs:
                length = self._lengths.get(output.name)
                if output.stat().st_size <= (length or 0):
                    continue
                if length is None:
                    os.unlink(output)
                else:
                    os.truncate(output, length)


def _inputs(sources: str, directory: str, files: Sequence[wire.UploadFile]) -> Inputs:
    uploads = (Upload(u.id, Path(u.path), u.filename, u.media_type, u.size_bytes, u.sha256, u.crc32c) for u in files)
    return Inputs(Path(sources), Path(directory), {upload.id: upload for upload in uploads})


_DIRTY: Final = wire.encode(wire.Dirty())


def _now() -> float:
    """A clock that goes on while the machine sleeps, as people expect of a wait."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _poller(pipe: Connection) -> Callable[[float], list[tuple[int, int]]]:
    """A registered `select.poll`: 0.25 µs a look, where ``Connection.poll(0)`` costs 2.3."""
    poll = select.poll()
    poll.register(pipe.fileno(), select.POLLIN)
    return poll.poll


def _logger(service: str) -> logging.Logger:
    logger = logging.getLogger(service)
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers = [output]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
