"""Records of a CSV file. Quoted newlines are the parser's business alone."""

import csv
import io
from collections.abc import Generator
from itertools import islice
from typing import Final

from intermission.handlers.records import MAX_RECORD_BYTES, Broken, Records, not_utf8

_REASONS: Final = {
    "unexpected end of data": "a quote that is never closed",
    "',' expected after '\"'": "text between a closing quote and the next comma",
    "new-line character seen in unquoted field": "a carriage return that is neither quoted nor followed by a line feed",
}


class CsvRows(Records[list[str]]):
    """See `Records`. Comma-separated, quoted as in RFC 4180."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(descriptor, size)
        self.lone_returns = False
        """Whether this batch has a carriage return that ends no line (a cell may have it)."""
        # The module's default of 128 KiB a cell is the process's, and no handler may depend on who set it last.
        csv.field_size_limit(MAX_RECORD_BYTES)

    def batch(self, width: int | None = None) -> Generator[list[str], None, None]:
        """See `Records.batch`. Raises `Broken` also for a record that has not ``width`` cells."""
        raw = self._read()
        nul = raw.find(b"\0")  # the lines before it are good; what it is in comes next, and does not get through
        final = self.offset + len(raw) >= self.end and nul < 0
        data = raw if final else raw[: raw.rfind(b"\n", 0, nul if nul >= 0 else len(raw)) + 1]
        self.lone_returns = b"\r" in data and data.count(b"\r") != data.count(b"\r\n")
        return self._records(raw, data, final, width)

    def _records(self, raw: bytes, data: bytes, final: bool, width: int | None) -> Generator[list[str], None, None]:
        reader = csv.reader(map(bytes.decode, io.BytesIO(data)), strict=True)
        first, rows, lines, used = self.line, 0, 0, 0
        try:
            for row in reader:
                if len(row) != width:
                    if not row:
                        lines = reader.line_num
                        continue
                    if width is not None:
                        raise Broken(first + lines, ragged(len(row), width))
                self.at = first + lines
                lines = reader.line_num
                rows += 1
                yield row
            lines, used = reader.line_num, len(data)
        except csv.Error as error:
            # An error in the last line is the end of the batch in the middle of a record, as far as one can see here.
            if final or reader.line_num < data.count(b"\n"):
                raise Broken(first + lines, _reason(error)) from None
        except UnicodeDecodeError as error:
            raise Broken(first + reader.line_num, not_utf8(error)) from None
        finally:
            if lines:
                # The length of the lines that were used, where those are not all.
                self._used(used or sum(map(len, islice(io.BytesIO(data), lines))), lines, rows)
        if not lines:
            self._refuse_nul(raw)
            self._grow(": is a closing quote missing?")

    def _refuse_nul(self, raw: bytes) -> None:
        nul = raw.find(b"\0")
        if nul >= 0:
            raise Broken(self.line + raw.count(b"\n", 0, nul), "a NUL character")


def ragged(cells: int, width: int) -> str:
    """What is wrong with a record of so many cells."""
    return f"{'1 cell' if cells == 1 else f'{cells} cells'} where the header has {width}"


def _reason(error: csv.Error) -> str:
    text = str(error)
    return next((reason for said, reason in _REASONS.items() if text.startswith(said)), text)
