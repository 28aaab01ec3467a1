"""Turns an attempt into a child and ends it: the contract, and our end of a child's pipe.

The core knows only what is here; that there is a fork server is `intermission.supervisor.process.local`'s business.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Final, Protocol

import msgspec

from intermission.supervisor.process import wire

_READ_BYTES: Final = 64 << 10
_FLOOD_MESSAGES_PER_S: Final = 10_000
_FLOOD_BYTES_PER_S: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a child ended. It and everything descended from it is dead when this exists."""

    exit_code: int | None = None
    signal: int | None = None
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    killed: tuple[wire.Killed, ...] = ()
    lost: str | None = None
    """Why nobody can say how it ended (the fork server died)."""
    fault: str | None = None
    """What it did wrong on its pipe; it was ended for that."""


class LaunchError(Exception):
    """Children cannot be launched; the message says why."""


class Launcher(Protocol):
    """Where children come from."""

    async def open(self) -> wire.Hello:
        """Be ready to launch; what became of the handler modules. Raises `LaunchError`."""

    async def launch(self, service: str, body: Sequence[int] = ()) -> "Child":
        """A new child for a service, which waits to be told what to do. Waits itself while the launcher recovers.

        ``body`` are the descriptors that it reads its body from; the caller keeps its own, and closes them.

        May be cancelled: then nothing runs. Raises `LaunchError` when the launcher is closing.
        """

    async def close(self) -> None:
        """End every child and leave no process. Safe to call twice."""


class Child:
    """The supervisor's end of one child: its reports, what it is told, and its end.

    Past asyncio's transports: those close the pipe when a write to it fails, and throw away what nobody has read yet. A
    task that had completed, and was told of a checkpoint in the instant of its exit, would have ended without a word.
    """

    def __init__(self, pipe: Connection, end: Callable[[], None]) -> None:
        """``pipe``: our end, which is closed with the child."""
        self.pid: int | None = None
        self.ticks: int | None = None
        self.started_at: float | None = None
        self._ask_end = end
        self._frames = wire.Frames(wire.MAX_REPORT_BYTES)
        self._reports: asyncio.Queue[wire.Report | None] = asyncio.Queue()
        self._exit: Exit | None = None
        self._refusal: OSError | None = None
        self._forked = asyncio.Event()
        self._fault: str | None = None
        self._window = (0.0, 0, 0)
        self._loop = asyncio.get_running_loop()
        self._pipe = pipe
        self._untold = bytearray()
        os.set_blocking(pipe.fileno(), False)
        self._loop.add_reader(pipe.fileno(), self._read)

    def send(self, request: wire.Request) -> None:
        """Tell the child something; nothing happens if it is gone."""
        if not self._pipe.closed:
            self._untold += wire.frame(wire.encode(request))
            self._write()

    def end(self) -> None:
        """Have its whole tree ended. Returns at once; `exit` is set, and `reports` over, when it is so."""
        self._ask_end()

    async def forked(self) -> None:
        """Return when there is a process, or was one. Raises OSError if the system has refused it."""
        await self._forked.wait()
        if self._refusal is not None:
            raise self._refusal

    async def reports(self) -> AsyncIterator[wire.Report]:
        """Each report in order, ending when the tree is dead and the pipe is drained."""
        while (report := await self._reports.get()) is not None:
            yield report

    @property
    def exit(self) -> Exit:
        """How it ended; only to be asked when `reports` is over."""
        if self._exit is None:
            message = "the child has not ended"
            raise RuntimeError(message)
        return self._exit if self._fault is None else replace(self._exit, fault=self._fault)

    # What the launcher tells.

    def launched(self, news: wire.Launched) -> None:
        """The process exists."""
        self.pid, self.ticks, self.started_at = news.pid, news.ticks, news.started_at
        self._forked.set()

    def refused(self, error: OSError) -> None:
        """There is no process, and will be none."""
        self._refusal = error
        self._forked.set()
        self.hang_up()

    def over(self, end: Exit) -> None:
        """Its tree is dead; the reports end when the pipe is drained too."""
        if self._exit is None:
            self._exit = end
            self._forked.set()
            self._finish()

    def hang_up(self) -> None:
        """Nothing more is read, or told. Safe to call twice."""
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())
            self._loop.remove_writer(self._pipe.fileno())
            self._pipe.close()
            self._finish()

    # The pipe.

    def _read(self) -> None:
        try:
            data = os.read(self._pipe.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # it has gone without reading what it was told last
            data = b""
        if data:
            self._hear(data)
        else:  # nobody holds the far end any more
            self.hang_up()

    def _hear(self, data: bytes) -> None:
        """Cut and check what came; a child that breaks the rules is ended for it."""
        self._forked.set()  # of many launches at once, the news comes with that of the last
        try:
            count = 0
            for payload in self._frames.feed(data):
                count += 1
                self._reports.put_nowait(wire.decode_report(payload))
            self._refuse_flood(count, len(data))
        except (wire.FrameError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fault = f"the child broke the protocol of its pipe: {error}"
            self.end()
            self.hang_up()  # if its death is known already, this was the end

    def _refuse_flood(self, messages: int, size: int) -> None:
        started, count, total = self._window
        now = time.monotonic()
        if now - started > 1:
            started, count, total = now, 0, 0
        count, total = count + messages, total + size
        self._window = (started, count, total)
        if count > _FLOOD_MESSAGES_PER_S or total > _FLOOD_BYTES_PER_S:
            message = f"more than {_FLOOD_MESSAGES_PER_S} messages or {_FLOOD_BYTES_PER_S} bytes in a second"
            raise wire.FrameError(message)

    def _write(self) -> None:
        """Hand over what the child takes now, and the rest as soon as it does."""
        fd = self._pipe.fileno()
        try:
            while self._untold:
                del self._untold[: os.write(fd, self._untold)]
        except BlockingIOError:
            self._loop.add_writer(fd, self._write)
            return
        except OSError:  # it is gone, and its death is told elsewhere
            self._untold.clear()
        self._loop.remove_writer(fd)

    def _finish(self) -> None:
        if self._exit is not None and self._pipe.closed:
            self._reports.put_nowait(None)
