"""Who waits for a file to be written to: woken by the kernel (inotify(7)), never by a clock.

Children write their logs themselves, so nobody else can tell. One instance serves all who wait, for a user may have
only 128 of them. Each watch is good for one event: a task that prints a million lines wakes nobody more often than they
look.
"""

import asyncio
import ctypes
import os
import struct
from pathlib import Path
from typing import Final

_IN_MODIFY: Final = 0x2
_IN_ONESHOT: Final = 0x80000000
_IN_Q_OVERFLOW: Final = 0x4000
_EVENT: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name behind it
_READ_BYTES: Final = 1 << 14
_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Futures by watch; without anybody waiting there is not even an open file."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._waiting: dict[int, set[asyncio.Future[None]]] = {}

    def next_write(self, path: Path) -> asyncio.Future[None]:
        """Done when the file is next written to, or removed. Take it *before* reading the file, and cancel it after.

        Raises OSError.
        """
        watch = _libc.inotify_add_watch(self._opened(), os.fsencode(path), ctypes.c_uint32(_IN_MODIFY | _IN_ONESHOT))
        if watch < 0:
            raise _error(str(path))
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(watch, set()).add(future)
        future.add_done_callback(lambda done: self._forget(watch, done))
        return future

    def close(self) -> None:
        """Let everybody go."""
        self._wake(list(self._waiting))
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _opened(self) -> int:
        if self._fd is None:
            fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if fd < 0:
                raise _error("inotify")
            asyncio.get_running_loop().add_reader(fd, self._read)
            self._fd = fd
        return self._fd

    def _read(self) -> None:
        if self._fd is None:
            return
        events, at = os.read(self._fd, _READ_BYTES), 0
        while at < len(events):
            watch, mask, _, name_bytes = _EVENT.unpack_from(events, at)
            at += _EVENT.size + name_bytes
            self._wake(list(self._waiting) if mask & _IN_Q_OVERFLOW else [watch])

    def _wake(self, watches: list[int]) -> None:
        for watch in watches:
            for future in self._waiting.pop(watch, ()):
                if not future.done():
                    future.set_result(None)

    def _forget(self, watch: int, future: asyncio.Future[None]) -> None:
        """Nobody waits for this one any more; its watch goes with the last of them."""
        if (waiting := self._waiting.get(watch)) is not None:
            waiting.discard(future)
            if not waiting:
                del self._waiting[watch]
                if self._fd is not None:
                    _libc.inotify_rm_watch(self._fd, watch)  # it may have fired already: then there is none


def _error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), what)
