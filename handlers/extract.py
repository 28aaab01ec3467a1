"""The service ``extract``: writes the wanted rows and columns of a source to a file, and can stop after any batch."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from intermission.handlers.base import Fatal, Output, Task, handler
from intermission.handlers.csvrows import Broken, CsvRows
from intermission.handlers.filters import Condition, Test, compile_condition, compile_dates, last_moment, moment, sift
from intermission.handlers.inputs import Inputs
from intermission.handlers.schema import Fault, Invalid, pointer
from intermission.handlers.sources import OpenSource, SourceError, open_source, quoted, suggestion

Row = Sequence[str]

_MAX_HINTS: Final = 10


def _moment(text: str) -> str:
    if moment(text) is None:
        raise PydanticCustomError("moment", "Input should be a date or date-time of ISO 8601, as 2013-01-31 is one")
    return text


Moment = Annotated[
    str,
    AfterValidator(_moment),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]}),
]


@dataclass
class Params:
    """Which rows of which source.

    ``columns`` None means all, as they are. ``where`` names columns, each with a condition that its cell must meet.
    ``from_date`` and ``to_date``, both included, look at the column ``date``, or else at the first whose cell in the
    first row is a date or date-time of ISO 8601; a time without an offset is UTC.
    """

    source: str
    columns: Annotated[list[str], Field(min_length=1, max_length=10_000)] | None = None
    where: Annotated[dict[str, Condition], Field(min_length=1, max_length=100)] | None = None
    from_date: Moment | None = None
    to_date: Moment | None = None
    format: Literal["csv"] = "csv"
    compression: Literal["none"] = "none"


@dataclass
class State:
    """The byte of the source where the next record begins, the number of that line, and what was done before."""

    offset: int = 0
    line: int = 1
    rows_read: int = 0
    rows_written: int = 0
    fingerprint: str | None = None
    """Of the source when this task first opened it; None before that."""


@dataclass
class Result:
    """The file, the rows in it without the header, its size, and how many rows of the source were looked at."""

    file: str
    rows: int
    size_bytes: int
    rows_read: int


@handler("extract")
def extract(task: Task[Params, State]) -> Result:
    """Copy what matches, batch by batch, with a checkpoint after each."""
    name = task.params.source
    try:
        with open_source(task.inputs.sources, name) as source:
            return _extract(task, source)
    except SourceError as error:
        raise Fatal(str(error)) from None
    except Broken as error:
        raise Fatal(f"line {error.line} of {name}: {error.reason}") from None
    except Invalid as error:
        raise Fatal(f"the source {name} is not what it was when this task was started: {error}") from None


@extract.check
def _(params: Params, inputs: Inputs) -> None:
    faults = _own_faults(params)
    try:
        with open_source(inputs.sources, params.source) as source:
            faults += _faults(params, _head(source.rows()))
    except (SourceError, Broken) as error:
        faults.append(Fault("/source", str(error)))
    if faults:
        raise Invalid(faults)


@dataclass(frozen=True, slots=True)
class _Head:
    """The source's header, its first row (both empty if there is none), and the place between them."""

    header: list[str]
    first: list[str]
    offset: int
    line: int


def _head(rows: CsvRows) -> _Head:
    header = rows.record() or []
    offset, line = rows.offset, rows.line
    return _Head(header, rows.record() or [], offset, line)


def _own_faults(params: Params) -> list[Fault]:
    """What is wrong whatever the source."""
    faults = []
    seen: set[str] = set()
    for at, name in enumerate(params.columns or ()):
        if name in seen:
            faults.append(Fault(pointer(["columns", at]), f"the column {quoted(name)} is asked for twice"))
        seen.add(name)
    if params.from_date and params.to_date:
        start, end = moment(params.from_date), last_moment(params.to_date)
        if start and end and start > end:
            faults.append(Fault("/from_date", f"{params.from_date} is after to_date, {params.to_date}"))
    return faults


def _faults(params: Params, head: _Head) -> list[Fault]:
    """What does not fit the source."""
    wanted = [(pointer(["columns", at]), name) for at, name in enumerate(params.columns or ())]
    wanted += [(pointer(["where", name]), name) for name in params.where or ()]
    known = Counter(head.header)
    faults: list[Fault] = []
    for where, name in wanted:
        if known[name] == 0:
            hint = suggestion(name, head.header) if len(faults) < _MAX_HINTS else ""
            faults.append(Fault(where, f"the source {params.source} has no column {quoted(name)}{hint}"))
        elif known[name] > 1:
            faults.append(Fault(where, f"the source {params.source} has {known[name]} columns {quoted(name)}"))
    if _date_column(head) is None:
        message = f"the source {params.source} has no column 'date', and no date in its first row"
        dates = {"/from_date": params.from_date, "/to_date": params.to_date}
        faults += [Fault(where, message) for where, value in dates.items() if value]
    return faults


def _date_column(head: _Head) -> int | None:
    if "date" in head.header:
        return head.header.index("date")
    return next((at for at, cell in enumerate(head.first[: len(head.header)]) if moment(cell)), None)


def _extract(task: Task[Params, State], source: OpenSource) -> Result:
    state, rows = task.state, source.rows()
    if state.fingerprint not in {None, source.fingerprint}:
        raise Fatal(_changed(source))
    try:
        head = _head(rows)
        copy = _Copy(task.params, head, task.output(f"{source.name}.csv"))
        if state.fingerprint is None:
            copy.header()
            state.offset, state.line, state.fingerprint = head.offset, head.line, source.fingerprint
            task.checkpoint(done=state.offset, total=source.size_bytes, unit="bytes")
        rows.seek(state.offset, state.line)
        _copy_rows(task, source, rows, copy)
    except Broken:
        if source.changed():
            raise Fatal(_changed(source)) from None
        raise
    return Result(f"{source.name}.csv", state.rows_written, copy.out.length(), state.rows_read)


def _copy_rows(task: Task[Params, State], source: OpenSource, rows: CsvRows, copy: "_Copy") -> None:
    state = task.state
    read, size = state.rows_read, source.size_bytes
    while rows.offset < size:
        written = copy.batch(rows)
        if rows.offset == state.offset:
            continue  # not one record was whole, and the next batch is larger
        state.offset, state.line = rows.offset, rows.line
        state.rows_read, state.rows_written = read + rows.rows, state.rows_written + written
        if source.changed():  # so what is saved was read from one and the same source
            raise Fatal(_changed(source))
        task.checkpoint(done=state.offset, total=size, unit="bytes")


class _Copy:
    """The params, compiled for one header: takes records, writes what is wanted of them."""

    def __init__(self, params: Params, head: _Head, out: Output) -> None:
        faults = _faults(params, head)
        if faults:  # the source was another when `check` looked at it
            raise Invalid(faults)
        self.out = out
        self._names = params.columns or head.header
        self._width = len(head.header)
        self._pick = _picker([head.header.index(name) for name in params.columns]) if params.columns else None
        self._tests = list(_tests(params, head))
        self._lines: list[str] = []
        self._write = csv.writer(_Lines(self._lines), lineterminator="\n").writerows
        # Before 3.13, csv.writer quotes a carriage return only where the line's end has one.
        self._write_returns = csv.writer(_Lines(self._lines), lineterminator="\r\n").writerows

    def header(self) -> None:
        """Write the header, if the source has one."""
        if self._names:
            self._put([self._names], returns=True)

    def batch(self, rows: CsvRows) -> int:
        """Write what is wanted of the next records; how many rows that are."""
        found: Iterable[Row] = rows.batch(self._width)
        for at, test in self._tests:
            found = sift(found, at, test)
        if self._pick is not None:
            found = map(self._pick, found)
        return self._put(found, returns=rows.lone_returns)

    def _put(self, rows: Iterable[Row], *, returns: bool) -> int:
        lines = self._lines
        if returns:
            self._write_returns(rows)
            lines[:] = [line.removesuffix("\r\n") + "\n" for line in lines]
        else:
            self._write(rows)
        self.out.write("".join(lines))
        count = len(lines)
        lines.clear()
        return count


class _Lines:
    """What csv.writer takes for a file: a list that gets its lines, which costs less than a file and counts them."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def _tests(params: Params, head: _Head) -> Iterator[tuple[int, Test]]:
    at = _date_column(head)
    if at is not None and (params.from_date or params.to_date):
        yield at, compile_dates(params.from_date, params.to_date)
    for name, condition in (params.where or {}).items():
        for test in compile_condition(condition):
            yield head.header.index(name), test


def _picker(columns: Sequence[int]) -> Callable[[Row], Row]:
    """A function of a row to its cells in these columns."""
    if len(columns) == 1:  # of one index itemgetter makes no tuple, of a slice it does
        return itemgetter(slice(columns[0], columns[0] + 1))
    return itemgetter(*columns)


def _changed(source: OpenSource) -> str:
    return f"the source {source.name} changed since this task began to read it; terminate this task and start it again"
