"""A disk that takes half a megabyte of each upload, for as long as a file in the data folder names the fault."""

import errno
import os
from dataclasses import dataclass

from intermission.handlers import Task, handler
from intermission.handlers.base import Output

FAILS_AFTER_BYTES = 1 << 19
_write_bytes = Output.write_bytes


def write_bytes(self: Output, data: bytes) -> int:
    """As ever, until it is too much."""
    folder = self.path.parents[3]
    fault = next((name for name in ("EIO", "EFBIG", "EROFS", "EDQUOT") if (folder / name).exists()), None)
    if fault is not None and self.length() + len(data) > FAILS_AFTER_BYTES:
        number = getattr(errno, fault)
        raise OSError(number, os.strerror(number))
    return _write_bytes(self, data)


Output.write_bytes = write_bytes  # type: ignore[method-assign]


@dataclass
class Nothing:
    """No params, no state."""


@handler("bad")
def bad(task: Task[Nothing, Nothing]) -> None:
    """Nothing; without a handler nobody would import this module."""
