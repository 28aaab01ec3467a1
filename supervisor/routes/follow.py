"""A log as it is written: its lines as server-sent events, until the task rests.

The id of an event is the offset behind its line. When the task rests there is a last event, ``end``, with its status;
a stream that stops without it was cut off (the server stops, say), and goes on where the client's last event was.
"""

import asyncio
import contextlib
import os
import re
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from intermission.state.models import Task, Tombstone
from intermission.state.status import RESTING
from intermission.state.store import StoreError
from intermission.supervisor.core import Supervisor
from intermission.supervisor.routes import sse
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.problems import misfit

_BLOCK_BYTES: Final = 16 << 10
_PACE_S: Final = 0.05
"""From one look at a log to the next: of a task that prints without pause the lines come in bundles."""
_CUT_CHARACTER: Final = re.compile(rb"[\xc0-\xff][\x80-\xbf]{0,2}\Z")
"""What may be the first bytes of a character whose last ones are in the next block."""
_ID: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_log = structlog.get_logger()


Reached = TypedDict(
    "Reached",
    {"Last-Event-ID": Annotated[str, Field(pattern=f"^{_ID.pattern}$", description="Followed: the last event so far")]},
    total=False,
)


def last_event(request: web.Request) -> int | None:
    """The offset that the client has reached, if this is not its first connection. Raises `Problem` (422)."""
    text = request.headers.get("Last-Event-ID")
    if text is not None and not _ID.fullmatch(text):
        raise misfit([{"parameter": "Last-Event-ID", "detail": "Must be the id of an event"}], "the headers do not fit")
    return None if text is None else int(text)


async def follow(request: web.Request, task_id: str, offset: int) -> web.StreamResponse:
    """Send the log from this offset on, as long as it may grow."""
    stream = sse.Stream(request)
    try:
        await stream.open()
        if request.method != "HEAD":
            supervisor = request.app[SUPERVISOR]
            await _Follower(supervisor, stream, task_id, _Lines(supervisor.places.log(task_id), offset)).run()
    except ConnectionError:
        pass  # the client has gone
    except (OSError, StoreError) as error:  # its head is sent: all that can be done is to break off, to be asked again
        _log.error("a log could not be followed", task=task_id, error=str(error))
    return stream.response


class _Lines:
    """The lines of a file behind an offset. What reads is to be run in a thread."""

    def __init__(self, path: Path, offset: int) -> None:
        self.path = path
        self.offset = offset

    def read(self, *, rest: bool) -> bytes:
        """The next complete lines as events, a block of them at most; with ``rest`` also one without its end.

        A line that is longer than a block comes in pieces.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # it has not run yet, or is gone
            return b""
        try:
            block = os.pread(fd, _BLOCK_BYTES, self.offset)
        finally:
            os.close(fd)
        whole = block[: block.rfind(b"\n") + 1]
        if not whole and len(block) == _BLOCK_BYTES:
            whole = _CUT_CHARACTER.sub(b"", block)
        elif not whole and rest:
            whole = block
        frames = []
        for line in re.findall(rb"[^\n]*\n|[^\n]+", whole):
            self.offset += len(line)
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="replace")
            frames.append(sse.frame(text, number=self.offset))
        return b"".join(frames)


class _Follower:
    """One client's way along a log."""

    def __init__(self, supervisor: Supervisor, stream: sse.Stream, task_id: str, lines: _Lines) -> None:
        self._supervisor = supervisor
        self._stream = stream
        self._task_id = task_id
        self._lines = lines
        self._looked_at = 0.0

    async def run(self) -> None:
        """Send what there is, wait for more, until there will be none."""
        watchers = self._supervisor.watchers
        while not watchers.closed:
            # Both before what they tell of is read, or a change in between is missed.
            change = watchers.next_change(self._task_id)
            try:
                found = await self._supervisor.store.get(self._task_id)
                if found is None or isinstance(found, Tombstone) or found.status in RESTING:
                    await self._send(rest=True)
                    await self._stream.send(self._end(found))
                    return
                while not change.done():
                    await self._send_and_wait(change)
            finally:
                watchers.forget(self._task_id, change)

    async def _send_and_wait(self, change: asyncio.Future[None]) -> None:
        written = self._next_write()
        try:
            await self._send(rest=False)
            await self._stream.until(*filter(None, (change, written)))
        finally:
            if written is not None:
                written.cancel()
        await asyncio.sleep(self._looked_at + _PACE_S - asyncio.get_running_loop().time())

    def _next_write(self) -> asyncio.Future[None] | None:
        """None while there is no log: the task's first launch, or its end, is a change."""
        with contextlib.suppress(FileNotFoundError):
            return self._supervisor.inotify.next_write(self._lines.path)
        return None

    async def _send(self, *, rest: bool) -> None:
        self._looked_at = asyncio.get_running_loop().time()
        while frames := await asyncio.to_thread(self._lines.read, rest=rest):
            await self._stream.send(frames)
            if self._supervisor.watchers.closed:
                return

    def _end(self, found: Task | Tombstone | None) -> bytes:
        status, reason = (found.status, found.reason) if isinstance(found, Task) else ("terminated", None)
        data = msgspec.json.encode({"status": status, "reason": reason}).decode()
        return sse.frame(data, number=self._lines.offset, event="end")
