"""What the C library does with memory that has been freed."""

import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 8 << 20
_MAPPED_BYTES: Final = 4 << 20
"""More than one read of a body comes to: a mapping of its own for each is what this is to avoid."""


def keep_freed() -> None:
    """Have glibc keep what a block of a body was in for the next block; other libraries do as they do.

    Else it gives the end of its heap back to the kernel whenever 128 KiB of that are free, and takes it again for the
    next block, whose pages are then zeroed once more: that was a seventh of the cost of a body that is copied.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
