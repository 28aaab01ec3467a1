"""Records of a CSV file with the byte offsets between them, read in batches of bounded memory.

Every batch begins with a `pread` at a record's first byte, the first as the thousandth: going on after a pause is no
special case. A batch ends at the last record that it holds whole; quoted newlines are the parser's business alone.
"""

import csv
import io
import os
from collections.abc import Generator
from itertools import islice
from typing import Final

BATCH_BYTES = 1 << 15
"""330 rows of 100 bytes: half a millisecond between two checkpoints, of which they take 3 %."""

MAX_RECORD_BYTES: Final = 1 << 20
"""More than this in one record is a quote that nobody closed, and must not pull the rest of the file into memory."""

_BOM: Final = b"\xef\xbb\xbf"
_REASONS: Final = {
    "unexpected end of data": "a quote that is never closed",
    "',' expected after '\"'": "text between a closing quote and the next comma",
    "new-line character seen in unquoted field": "a carriage return that is neither quoted nor followed by a line feed",
}


class Broken(ValueError):  # noqa: N818 -- it says what the file is
    """The file is not what can be read as CSV: in which line (from 1; of a record, its first), and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class CsvRows:
    """An open CSV file and the place in it: `offset` is where the next record begins, `line` the number of that line.

    Comma-separated, UTF-8 with or without a byte order mark, lines ended by LF or CRLF, quoted as in RFC 4180. Blank
    lines are skipped.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.offset = len(_BOM) if os.pread(descriptor, len(_BOM), 0) == _BOM else 0
        self.line = 1
        self.end = size
        self.rows = 0
        """Records that were read since the last `seek`."""
        self.lone_returns = False
        """Whether this batch has a carriage return that ends no line (a cell may have it)."""
        self._file = descriptor
        self._size = BATCH_BYTES
        # The module's default of 128 KiB a cell is the process's, and no handler may depend on who set it last.
        csv.field_size_limit(MAX_RECORD_BYTES)

    def seek(self, offset: int, line: int) -> None:
        """Go on at a place that `offset` and `line` had, and count from there."""
        self.offset, self.line, self.rows = offset, line, 0

    def record(self) -> list[str] | None:
        """The next record, whatever its width; None at the end. Raises `Broken`."""
        while self.offset < self.end:
            batch = self.batch(None)
            row = next(batch, None)
            batch.close()
            if row is not None:
                return row
        return None

    def batch(self, width: int | None) -> Generator[list[str], None, None]:
        """Some of the next records, perhaps none: at the end of the file only if `offset` says so.

        Raises `Broken`, also for a record that has not ``width`` cells. The place is right when the iterator has ended
        or is closed, and then just after the last record that it gave.
        """
        raw = os.pread(self._file, min(self._size, self.end - self.offset), self.offset)
        if not raw:
            raise Broken(self.line, "the file became shorter while it was read")
        nul = raw.find(b"\0")  # the lines before it are good; what it is in comes next, and does not get through
        final = self.offset + len(raw) >= self.end and nul < 0
        data = raw if final else raw[: raw.rfind(b"\n", 0, nul if nul >= 0 else len(raw)) + 1]
        self.lone_returns = b"\r" in data and data.count(b"\r") != data.count(b"\r\n")
        return self._records(raw, data, final, width)

    def _records(self, raw: bytes, data: bytes, final: bool, width: int | None) -> Generator[list[str], None, None]:
        reader = csv.reader(map(bytes.decode, io.BytesIO(data)), strict=True)
        rows = lines = used = 0
        try:
            for row in reader:
                if len(row) != width:
                    if not row:
                        lines = reader.line_num
                        continue
                    if width is not None:
                        raise Broken(self.line + lines, f"{_cells(len(row))} where the header has {width}")
                lines = reader.line_num
                rows += 1
                yield row
            lines, used = reader.line_num, len(data)
        except csv.Error as error:
            # An error in the last line is the end of the batch in the middle of a record, as far as one can see here.
            if final or reader.line_num < data.count(b"\n"):
                raise Broken(self.line + lines, _reason(error)) from None
        except UnicodeDecodeError as error:
            reason = (
                f"not UTF-8: {error.reason} (0x{error.object[error.start]:02x}, byte {error.start + 1} of the line)"
            )
            raise Broken(self.line + reader.line_num, reason) from None
        finally:
            if lines:
                # The length of the lines that were used, where those are not all.
                self.offset += used or sum(map(len, islice(io.BytesIO(data), lines)))
                self.line += lines
                self.rows += rows
                self._size = BATCH_BYTES
        if not lines:
            self._grow(raw)

    def _grow(self, raw: bytes) -> None:
        """Read more next time, for this time not one record was whole."""
        nul = raw.find(b"\0")
        if nul >= 0:
            raise Broken(self.line + raw.count(b"\n", 0, nul), "a NUL character")
        if self._size >= MAX_RECORD_BYTES:
            raise Broken(self.line, "a record of more than 1 MiB begins here: is a closing quote missing?")
        self._size = min(self._size * 2, MAX_RECORD_BYTES)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _reason(error: csv.Error) -> str:
    text = str(error)
    return next((reason for said, reason in _REASONS.items() if text.startswith(said)), text)
