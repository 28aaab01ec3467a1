"""The service ``csv``: logs each row of a CSV file, and goes on after a pause at the byte where it was.

The rows go to the output ``rows.log``, not to the task's log: an output repeats nothing after a crash and may have any
size, where the log keeps what was printed before the crash and ends a task at 64 MiB.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from intermission.handlers.base import Fatal, Task, handler
from intermission.handlers.csvrows import CsvRows
from intermission.handlers.inputs import Inputs
from intermission.handlers.records import Broken
from intermission.handlers.schema import Fault, Invalid
from intermission.handlers.sources import OpenSource, SourceError, open_source

_encode: Final = msgspec.json.encode


@dataclass
class Params:
    """Which CSV file with a header: the name of a source that the operator configured, or ``upload:<id>``."""

    source: str


@dataclass
class State:
    """The byte where the next row begins, the number of that line, and how many rows are logged."""

    offset: int = 0
    line: int = 1
    rows: int = 0
    fingerprint: str | None = None
    """Of the source when this task first opened it; None before that."""


@dataclass
class Result:
    """How many rows are in ``rows.log``; the header is not counted."""

    rows: int


@handler("csv", body="source", body_types=("text/csv",))
def csv_log(task: Task[Params, State]) -> Result:
    """Log each row as its line's number and its cells, with a checkpoint after each batch."""
    name = task.params.source
    try:
        with open_source(task.inputs, name) as source:
            return _log(task, source)
    except SourceError as error:
        raise Fatal(str(error)) from None
    except Broken as error:
        raise Fatal(f"line {error.line} of {name}: {error.reason}") from None


@csv_log.uploads
def _(params: Params) -> Mapping[str, str]:
    return {"/source": params.source}


@csv_log.check
def _(params: Params, inputs: Inputs) -> None:
    try:
        with open_source(inputs, params.source) as source:
            _header(source.csv_rows())
    except (SourceError, Broken) as error:
        raise Invalid([Fault("/source", str(error))]) from None


def _header(rows: CsvRows) -> list[str]:
    return next(iter(rows.take(1)), [])


def _log(task: Task[Params, State], source: OpenSource) -> Result:
    state, rows = task.state, source.csv_rows()
    source.require_unchanged(since=state.fingerprint)
    width = len(_header(rows))
    if state.fingerprint is None:
        state.offset, state.line, state.fingerprint = rows.offset, rows.line, source.fingerprint
    rows.seek(state.offset, state.line)
    before, out = state.rows, task.output("rows.log")
    task.log.info("logging the rows of %s from line %d", source.name, rows.line)
    while rows.offset < rows.end:
        out.write("".join(f"line {rows.at}: {_encode(row).decode()}\n" for row in rows.batch(width)))
        source.require_unchanged()  # so what is saved was read from one and the same source
        if rows.offset > state.offset:  # else not one row was whole, and the next batch is larger
            state.offset, state.line, state.rows = rows.offset, rows.line, before + rows.rows
            task.checkpoint(done=state.offset, total=rows.end, unit="bytes")
    return Result(state.rows)
