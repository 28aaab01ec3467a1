"""The memory through which a body is copied to its child: a ring of bytes, and a counter each way.

Through a pipe it cost three times as much: the kernel takes a new page for each 4 KiB, and copies twice. Here the
supervisor copies once, to memory that the child has too and writes from.

A counter (`eventfd`) holds how many bytes were added since it was last read, and wakes who waits for it.
"""

import ctypes
import fcntl
import mmap
import os
import struct
from typing import Final

RING_BYTES: Final = 1 << 20
"""What is in it when a child stops has never been acknowledged."""
_START: Final = struct.Struct("<Q")
_create: Final = getattr(ctypes.CDLL(None, use_errno=True), "memfd_create", None)
"""Of the C library that is here. `os` has it only where Python was built with one that had it, and the builds that are
to run everywhere were not, for years."""
_CLOEXEC: Final = 1
_ALLOW_SEALING: Final = 2
_ADD_SEALS: Final = 1033
_SEALS: Final = 1 | 2 | 4
"""Not to be shorter, nor longer, nor to have other seals. Linux's numbers, which such a Python does not know either."""


def works() -> bool:
    """Whether there can be such memory."""
    return _create is not None


def new_memory() -> int:
    """A descriptor of it. Its size is sealed: where a child had cut it, the supervisor's next byte would be SIGBUS."""
    fd: int = -1 if _create is None else _create(b"body", _CLOEXEC | _ALLOW_SEALING)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.ftruncate(fd, RING_BYTES + _START.size)
    fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
    return fd


def new_counter() -> int:
    """A descriptor of it, at 0; to read it never waits."""
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def counted(counter: int) -> int:
    """What was added to a counter since this was asked last."""
    try:
        return os.eventfd_read(counter)
    except BlockingIOError:
        return 0


class Ring:
    """The bytes, numbered as they come. Whatever a child writes here, nothing is ever looked for outside of it."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, RING_BYTES + _START.size)
        self.memory = memoryview(self._map)[:RING_BYTES]

    def restart(self, number: int) -> None:
        """Have the byte of this number be the first in memory.

        When all before it are taken: what comes slowly stays in the same few pages, and in the cache.
        """
        _START.pack_into(self._map, RING_BYTES, number)

    def at(self, number: int, most: int) -> memoryview:
        """Where the byte of this number is, and those behind it; fewer than ``most`` at the end of the memory."""
        (start,) = _START.unpack_from(self._map, RING_BYTES)
        place = (number - start) % RING_BYTES
        return self.memory[place : place + most]

    def close(self) -> None:
        """Give the memory back."""
        self.memory.release()
        self._map.close()
