"""What the readers of CSV and of JSON Lines share: batches of bounded memory, and the byte offsets between records.

Every batch begins with a `pread` at a record's first byte, the first as the thousandth: going on after a pause is no
special case. A batch ends at the last record that it holds whole.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Generator
from itertools import islice
from typing import Final, Generic, TypeVar

Record = TypeVar("Record")

BATCH_BYTES = 1 << 15
"""330 rows of 100 bytes: half a millisecond between two checkpoints, of which they take 3 %."""

MAX_RECORD_BYTES: Final = 1 << 20
"""More than this in one record is a quote that nobody closed, and must not pull the rest of the file into memory."""

_BOM: Final = b"\xef\xbb\xbf"


class Broken(ValueError):  # noqa: N818 -- it says what the file is
    """The file is not what can be read: in which line (from 1; of a record, its first), and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class Records(ABC, Generic[Record]):
    """An open file and the place in it: `offset` is where the next record begins, `line` the number of that line.

    UTF-8 with or without a byte order mark, lines ended by LF or CRLF. Blank lines are skipped.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.offset = len(_BOM) if os.pread(descriptor, len(_BOM), 0) == _BOM else 0
        self.line = 1
        self.end = size
        self.rows = 0
        """Records that were read since the last `seek`."""
        self.at = 1
        """The line in which the record that a batch gave last begins."""
        self._file = descriptor
        self._size = BATCH_BYTES

    def seek(self, offset: int, line: int) -> None:
        """Go on at a place that `offset` and `line` had, and count from there."""
        self.offset, self.line, self.rows = offset, line, 0

    @abstractmethod
    def batch(self) -> Generator[Record, None, None]:
        """Some of the next records, perhaps none: at the end of the file only if `offset` says so.

        Raises `Broken`. The place is right when the iterator has ended or is closed, and then just after the last
        record that it gave.
        """

    def take(self, count: int) -> list[Record]:
        """The next records; fewer at the end, or where so many are more than `MAX_RECORD_BYTES`. Raises `Broken`."""
        found: list[Record] = []
        most = self.offset + MAX_RECORD_BYTES
        while len(found) < count and self.offset < self.end and not (found and self.offset > most):
            batch = self.batch()
            found += islice(batch, count - len(found))
            batch.close()
        return found

    def _read(self) -> bytes:
        raw = os.pread(self._file, min(self._size, self.end - self.offset), self.offset)
        if not raw:
            raise Broken(self.line, "the file became shorter while it was read")
        return raw

    def _used(self, size: int, lines: int, rows: int) -> None:
        """The place is behind so many bytes and lines now."""
        self.offset += size
        self.line += lines
        self.rows += rows
        self._size = BATCH_BYTES

    def _grow(self, hint: str = "") -> None:
        """Read more next time, for this time not one record was whole."""
        if self._size >= MAX_RECORD_BYTES:
            raise Broken(self.line, f"a record of more than 1 MiB begins here{hint}")
        self._size = min(self._size * 2, MAX_RECORD_BYTES)


def not_utf8(error: UnicodeDecodeError) -> str:
    """Why one line's bytes are no text."""
    byte = error.object[error.start]
    return f"not UTF-8: {error.reason} (0x{byte:02x}, byte {error.start + 1} of the line)"
