"""Two of Linux's calls that Python does not have: room for a file before it is written, and writing before a sync."""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 512
"""What `st_blocks` counts, whatever the blocks of the file system are."""
_LEFT_BYTES: Final = 1 << 20
"""For checkpoints: with the last byte taken, the upload would stop at its first one, and so would all others."""
_WINDOW_BYTES: Final = 8 << 20
_KEEP_SIZE: Final = 1
_START: Final = 2
_FINISH: Final = 7
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _of_libc(name: str, *types: type) -> Callable[..., int]:
    """The error that a call ends with, or 0; a libc without it has not implemented it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        return lambda *_: errno.ENOSYS
    function.argtypes = types
    return lambda *arguments: ctypes.get_errno() if function(*arguments) else 0


_fallocate: Final = _of_libc("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range: Final = _of_libc("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def reserve(fd: int, size: int, folder: Path) -> None:
    """Have the disk keep room for so many bytes of a file, whose length stays as it is.

    ``folder``: the same one for all who reserve on this disk. Raises OSError where there is no room. A file system that
    cannot keep any is written to as the bytes come.
    """
    turn = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One at a time: three at once each took a third of what would have held one of them, and all failed. What
        # cannot fit is not even tried: until it fails it would hold what the checkpoints of others need.
        fcntl.flock(turn, fcntl.LOCK_EX)
        file, disk = os.fstat(fd), os.fstatvfs(fd)
        error = errno.ENOSPC
        if size - file.st_blocks * _BLOCK_BYTES <= max(disk.f_bavail * disk.f_frsize - _LEFT_BYTES, 0):
            error = _fallocate(fd, _KEEP_SIZE, 0, size)
        if error in _NO_ROOM:
            os.ftruncate(fd, file.st_size)  # some file systems keep as much of it as there was
            raise OSError(error, os.strerror(error))
    finally:
        os.close(turn)


class WriteBehind:
    """Has the kernel write out a file that grows, a window at a time, and waits for the window before.

    So no more than two windows are left for a sync, however fast the file grows: 6 ms instead of 240 for that of
    512 MiB. And a disk that is too slow for what comes is felt at once, not when memory is full of it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before = self._begun = os.fstat(fd).st_size

    def grown(self, length: int) -> None:
        """The file has this length now. What cannot be done, or fails, is for the sync to say."""
        if length - self._begun < _WINDOW_BYTES:
            return
        if self._before < self._begun:
            _sync_file_range(self._fd, self._before, self._begun - self._before, _FINISH)
        _sync_file_range(self._fd, self._begun, length - self._begun, _START)
        self._before, self._begun = self._begun, length
