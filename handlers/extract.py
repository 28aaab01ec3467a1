"""The service ``extract``: writes the wanted rows and columns of a source to a file, and can stop after any batch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from intermission.handlers.base import Fatal, Task, handler
from intermission.handlers.filters import Condition, last_moment, moment
from intermission.handlers.inputs import Inputs, upload_id
from intermission.handlers.records import Broken, Records
from intermission.handlers.schema import Fault, Invalid, pointer
from intermission.handlers.sources import OpenSource, SourceError, open_source, quoted, suggestion
from intermission.handlers.tables import CsvTable, CsvWriter, JsonTable, JsonWriter, Table, Writer

_MAX_HINTS: Final = 10
_UPLOADED: Final = "extract"
"""What the file of an extract from an upload is called: the upload's own name is a client's, and may be anything."""


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
    """Which rows of which source: the name of one that the operator configured, or ``upload:<id>``.

    ``columns`` None means all, as they are. ``where`` names columns, each with a condition that its cell must meet.
    ``from_date`` and ``to_date``, both included, look at the column ``date``, or else at the first whose cell in the
    first row is a date or date-time of ISO 8601; a time without an offset is UTC.

    The columns of JSON Lines are the keys of its first 100 rows. As CSV, a row without a key has an empty cell, null
    is empty, and what is no string is its JSON; a key that is not among the columns fails the task, unless ``columns``
    says which are wanted. As JSON Lines, rows of JSON Lines are copied as they are, and cells of CSV are strings.
    """

    source: str
    columns: Annotated[list[str], Field(min_length=1, max_length=10_000)] | None = None
    where: Annotated[dict[str, Condition], Field(min_length=1, max_length=100)] | None = None
    from_date: Moment | None = None
    to_date: Moment | None = None
    format: Literal["csv", "jsonl"] = "csv"
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
        with open_source(task.inputs, name) as source:
            return _extract(task, source)
    except SourceError as error:
        raise Fatal(str(error)) from None
    except Broken as error:
        raise Fatal(f"line {error.line} of {name}: {error.reason}") from None
    except Invalid as error:
        raise Fatal(f"the source {name} is not what it was when this task was started: {error}") from None


@extract.uploads
def _(params: Params) -> Mapping[str, str]:
    return {"/source": params.source}


@extract.check
def _(params: Params, inputs: Inputs) -> None:
    faults = _own_faults(params)
    try:
        with open_source(inputs, params.source) as source:
            faults += _faults(params, _table(source))
    except (SourceError, Broken) as error:
        faults.append(Fault("/source", str(error)))
    if faults:
        raise Invalid(faults)


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


def _faults(params: Params, table: Table[Any]) -> list[Fault]:
    """What does not fit the source."""
    wanted = [(pointer(["columns", at]), name) for at, name in enumerate(params.columns or ())]
    wanted += [(pointer(["where", name]), name) for name in params.where or ()]
    known = Counter(table.columns)
    faults: list[Fault] = []
    for where, name in wanted:
        if known[name] == 0:
            hint = suggestion(name, table.columns) if len(faults) < _MAX_HINTS else ""
            faults.append(Fault(where, f"the source {params.source} has no column {quoted(name)}{hint}"))
        elif known[name] > 1:
            faults.append(Fault(where, f"the source {params.source} has {known[name]} columns {quoted(name)}"))
    if not table.dated:
        message = f"the source {params.source} has no column 'date', and no date in its first row"
        dates = {"/from_date": params.from_date, "/to_date": params.to_date}
        faults += [Fault(where, message) for where, value in dates.items() if value]
    if (
        params.format == "jsonl"
        and params.columns is None
        and (twice := [n for n, count in known.items() if count > 1])
    ):
        message = f"the source {params.source} has several columns {quoted(twice[0])}, and an object has no key twice"
        faults.append(Fault("/format", message))
    return faults


def _table(source: OpenSource) -> Table[Any]:
    return CsvTable(source.csv_rows()) if source.format == "csv" else JsonTable(source.json_rows())


def _extract(task: Task[Params, State], source: OpenSource) -> Result:
    params, state = task.params, task.state
    source.require_unchanged(since=state.fingerprint)
    try:
        table = _table(source)
        if faults := _faults(params, table):  # the source was another when `check` looked at it
            raise Invalid(faults)
        table.want(params.columns, params.where or {}, (params.from_date, params.to_date))
        name = f"{_UPLOADED if upload_id(source.name) else source.name}.{params.format}"
        out = task.output(name)
        writer = CsvWriter(table, out) if params.format == "csv" else JsonWriter(table, out)
        if state.fingerprint is None:
            writer.header(params.columns or table.columns)
            state.offset, state.line, state.fingerprint = table.offset, table.line, source.fingerprint
            task.checkpoint(done=state.offset, total=source.size_bytes, unit="bytes")
        table.rows.seek(state.offset, state.line)
        _copy_rows(task, source, table.rows, writer)
    except Broken:
        source.require_unchanged()
        raise
    return Result(name, state.rows_written, out.length(), state.rows_read)


def _copy_rows(task: Task[Params, State], source: OpenSource, rows: Records[Any], writer: Writer) -> None:
    state = task.state
    read, size = state.rows_read, source.size_bytes
    while rows.offset < size:
        written = writer.batch()
        if rows.offset == state.offset:
            continue  # not one record was whole, and the next batch is larger
        state.offset, state.line = rows.offset, rows.line
        state.rows_read, state.rows_written = read + rows.rows, state.rows_written + written
        source.require_unchanged()  # so what is saved was read from one and the same source
        task.checkpoint(done=state.offset, total=size, unit="bytes")
