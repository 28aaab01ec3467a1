"""A source as a table whose wanted rows can be had as cells or as JSON, and the two ways to write them to a file."""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Final, Generic, TypeVar

import msgspec

from intermission.handlers.base import Output
from intermission.handlers.csvrows import CsvRows
from intermission.handlers.filters import (
    Condition,
    Test,
    Value,
    ValueTest,
    compile_condition,
    compile_dates,
    compile_value_condition,
    moment,
)
from intermission.handlers.jsonrows import JsonRows, Object, keys
from intermission.handlers.records import Broken, Records
from intermission.handlers.sources import SAMPLE_ROWS, quoted

Cells = Sequence[str]
Dates = tuple[str | None, str | None]
Where = Mapping[str, Condition]
Source = TypeVar("Source", bound=Records[str] | Records[list[str]])

_encode: Final = msgspec.json.encode


class Table(ABC, Generic[Source]):
    """Columns, and the rows of which some are wanted; `offset` and `line` are where the first one begins."""

    columns: list[str]
    dated: bool
    """Whether there is a column to which dates can apply."""
    returns: bool
    """Whether the cells of this batch may hold carriage returns."""

    def __init__(self, rows: Source) -> None:
        self.rows = rows
        self.offset = self.line = 0

    @abstractmethod
    def want(self, columns: list[str] | None, where: Where, dates: Dates) -> None:
        """Say once what `cells` and `lines` are to give. Every column that is named must be there."""

    @abstractmethod
    def cells(self) -> Iterable[Cells]:
        """What is wanted of the next batch, as text."""

    @abstractmethod
    def lines(self) -> Iterable[str]:
        """What is wanted of the next batch, as JSON objects."""


class CsvTable(Table[CsvRows]):
    """The table in a CSV file. Raises `Broken` for one whose header or first row cannot be read."""

    def __init__(self, rows: CsvRows) -> None:
        super().__init__(rows)
        self.columns = next(iter(rows.take(1)), [])
        self.offset, self.line = rows.offset, rows.line
        self._date = self._date_column(next(iter(rows.take(1)), []))
        self.dated = self._date is not None
        self._wanted: list[str] = []
        self._tests: list[tuple[int, Test]] = []
        self._pick: Callable[[Cells], Cells] | None = None

    def want(self, columns: list[str] | None, where: Where, dates: Dates) -> None:
        """See `Table.want`."""
        index = self.columns.index
        self._wanted = columns or self.columns
        self._pick = _picker([index(name) for name in columns]) if columns else None
        self._tests = [(index(name), test) for name, one in where.items() for test in compile_condition(one)]
        if self._date is not None and any(dates):
            self._tests.insert(0, (self._date, compile_dates(*dates)))

    def cells(self) -> Iterable[Cells]:
        """See `Table.cells`."""
        found: Iterable[Cells] = self.rows.batch(len(self.columns))
        self.returns = self.rows.lone_returns
        for at, test in self._tests:
            found = _sifted(found, at, test)
        return found if self._pick is None else map(self._pick, found)

    def lines(self) -> Iterable[str]:
        """See `Table.lines`."""
        return (_encode(dict(zip(self._wanted, row, strict=True))).decode() for row in self.cells())

    def _date_column(self, first: Cells) -> int | None:
        if "date" in self.columns:
            return self.columns.index("date")
        return next((at for at, cell in enumerate(first[: len(self.columns)]) if moment(cell)), None)


class JsonTable(Table[JsonRows]):
    """The table in a JSON Lines file. Raises `Broken` for one of whose first rows one cannot be read."""

    def __init__(self, rows: JsonRows) -> None:
        super().__init__(rows)
        self.offset, self.line = rows.offset, rows.line
        self.returns = True  # it costs little beside reading JSON
        sample = rows.sample(SAMPLE_ROWS)
        self.columns = keys(sample)
        self._date = self._date_column(sample)
        self.dated = self._date is not None
        self._wanted: list[str] | None = None
        self._tests: list[tuple[str, ValueTest]] = []
        self._keys: list[tuple[str, str]] = []

    def want(self, columns: list[str] | None, where: Where, dates: Dates) -> None:
        """See `Table.want`."""
        self._wanted = columns
        self._keys = [(name, json.dumps(name, ensure_ascii=False) + ":") for name in columns or ()]
        self._tests = [(name, test) for name, one in where.items() for test in compile_value_condition(one)]
        if self._date is not None and any(dates):
            self._tests.insert(0, (self._date, _value_dates(dates)))

    def cells(self) -> Iterable[Cells]:
        """See `Table.cells`."""
        text, columns = self.rows.text, self._wanted or self.columns
        for _, row in self._found():
            if self._wanted is None:
                self._refuse_unknown(row)
            yield [text(row[name]) if name in row else "" for name in columns]

    def lines(self) -> Iterable[str]:
        """See `Table.lines`."""
        for text, row in self._found():
            if self._wanted is None:
                yield text
            else:
                yield "{" + ",".join(key + bytes(row[name]).decode() for name, key in self._keys if name in row) + "}"

    def _found(self) -> Iterator[tuple[str, Object]]:
        rows, tests = self.rows, self._tests
        for text in rows.batch():
            row = rows.parse(text)
            if all(test(rows.value(row.get(name))) for name, test in tests):
                yield text, row

    def _refuse_unknown(self, row: Object) -> None:
        unknown = row.keys() - self.columns
        if unknown:
            raise Broken(
                self.rows.at,
                f"the key {quoted(min(unknown))} is in none of the first {SAMPLE_ROWS} rows: name the columns you want",
            )

    def _date_column(self, sample: Sequence[Object]) -> str | None:
        if "date" in self.columns:
            return "date"
        values = ((key, self.rows.value(raw)) for row in sample[:1] for key, raw in row.items())
        return next((key for key, value in values if isinstance(value, str) and moment(value)), None)


class Writer(ABC):
    """Writes a table's wanted rows to an output."""

    def __init__(self, table: Table[CsvRows] | Table[JsonRows], out: Output) -> None:
        self._table = table
        self._out = out

    @abstractmethod
    def header(self, columns: list[str]) -> None:
        """Write what stands before the first row."""

    @abstractmethod
    def batch(self) -> int:
        """Write the next batch; how many rows that are."""


class CsvWriter(Writer):
    """Writes CSV: lines ended by LF, cells quoted where they must be."""

    def __init__(self, table: Table[CsvRows] | Table[JsonRows], out: Output) -> None:
        super().__init__(table, out)
        self._lines: list[str] = []
        self._write = csv.writer(_Lines(self._lines), lineterminator="\n").writerows
        # Before 3.13, csv.writer quotes a carriage return only where the line's end has one.
        self._write_returns = csv.writer(_Lines(self._lines), lineterminator="\r\n").writerows

    def header(self, columns: list[str]) -> None:
        """Write the names of the columns, if there are any."""
        if columns:
            self._put([columns], returns=True)

    def batch(self) -> int:
        """See `Writer.batch`."""
        cells = self._table.cells()
        return self._put(cells, returns=self._table.returns)

    def _put(self, rows: Iterable[Cells], *, returns: bool) -> int:
        lines = self._lines
        if returns:
            self._write_returns(rows)
            lines[:] = [line.removesuffix("\r\n") + "\n" for line in lines]
        else:
            self._write(rows)
        self._out.write("".join(lines))
        count = len(lines)
        lines.clear()
        return count


class JsonWriter(Writer):
    """Writes JSON Lines."""

    def header(self, columns: list[str]) -> None:
        """Write nothing: every row names its own keys."""

    def batch(self) -> int:
        """See `Writer.batch`."""
        lines = list(self._table.lines())
        self._out.write("".join(line + "\n" for line in lines))
        return len(lines)


class _Lines:
    """What csv.writer takes for a file: a list that gets its lines, which costs less than a file and counts them."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def _sifted(rows: Iterable[Cells], at: int, test: Test) -> Iterator[Cells]:
    return (row for row in rows if test(row[at]))


def _value_dates(dates: Dates) -> ValueTest:
    test = compile_dates(*dates)

    def meets(value: Value) -> bool:
        return isinstance(value, str) and test(value)

    return meets


def _picker(columns: Sequence[int]) -> Callable[[Cells], Cells]:
    """A function of a row to its cells in these columns."""
    if len(columns) == 1:  # of one index itemgetter makes no tuple, of a slice it does
        return itemgetter(slice(columns[0], columns[0] + 1))
    return itemgetter(*columns)
