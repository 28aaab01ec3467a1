"""The service ``team``: creates teams and their members in the directory, each exactly once."""

import csv
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Annotated, Final, Generic, Literal

from pydantic import Field

from intermission.handlers.base import Fatal, Task, handler
from intermission.handlers.csvrows import ragged
from intermission.handlers.directory import Directory, Entry, Position, RejectedError, Rejection
from intermission.handlers.inputs import Inputs, UploadRef
from intermission.handlers.records import Broken, Record, Records
from intermission.handlers.schema import Fault, Invalid, Schema
from intermission.handlers.sources import OpenSource, SourceError, open_source, quoted

MAX_DOCUMENT_BYTES: Final = 8 << 20
"""A JSON document is read whole, and costs ten times its size in memory."""
BATCH_ROWS: Final = 100
"""Rows in one transaction: 2 ms and what the disk takes to sync, in which nobody else writes and no pause is heard."""
_MAX_CHARS: Final = 200
_MAX_EMAIL_CHARS: Final = 254  # RFC 5321, section 4.5.3.1.3, without the angle brackets
_SHOWN_REJECTIONS: Final = 20
_REPORTED_AT_ONCE: Final = 500
_REQUIRED: Final = ("team", "email")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_EMAIL: Final = re.compile(r"[^\s@\x00-\x1f\x7f-\x9f]+@[^\s@\x00-\x1f\x7f-\x9f]+")
_COLUMNS: Final = (*_REQUIRED, "name", "role")


@dataclass
class Member:
    """A member of a team."""

    email: str
    name: str | None = None
    role: str | None = None


@dataclass
class Team:
    """A team, which may be there already: then the members are added to it."""

    name: str
    members: list[Member] = field(default_factory=list)


@dataclass
class Params:
    """The teams, or ``upload:<id>`` of a file with them; exactly one of both.

    A file is CSV with the columns ``team`` and ``email`` and perhaps ``name`` and ``role``, in any order; JSON Lines
    whose objects have these keys; or, up to 8 MiB, a JSON document with ``teams`` as here. ``on_error`` says what
    follows a row that cannot be added: it is skipped and listed, or the task fails there and keeps what came before it.
    """

    teams: Annotated[list[Team], Field(min_length=1)] | None = None
    file: UploadRef | None = None
    on_error: Literal["skip", "stop"] = "skip"


@dataclass
class State:
    """How far the directory is, which is what counts; how many rejected rows are in ``rejected.csv``, and the first."""

    offset: int = 0
    line: int = 0
    teams: int = 0
    members: int = 0
    rejected: int = 0
    reported: int = 0
    first: list[Rejection] = field(default_factory=list)
    finished: bool = False
    """Everything is added and reported, and this the last that the directory has to know of the task."""


@dataclass
class Result:
    """How many were created, and the rows that were not: the first here, all of them in ``rejected.csv``."""

    teams: int
    members: int
    rejected: int
    rejected_rows: list[Rejection]


@dataclass
class _Document:
    """A file that is one JSON document."""

    teams: list[Team]


@dataclass
class _Row:
    """A row of a JSON Lines file."""

    team: str
    email: str
    name: str | None = None
    role: str | None = None


_ROW: Final = Schema(_Row)


@handler("team", body="file")
def team(task: Task[Params, State]) -> Result:
    """Add what is asked for, batch by batch; report what could not be; then let the directory forget the task."""
    state = task.state
    with closing(_directory(task)) as directory:
        if not state.finished:
            _add(task, directory)
            _report(task, directory)
            state.finished = True
            task.commit()  # before the directory forgets: else a power cut could have it all added once more
        directory.forget()
    return Result(state.teams, state.members, state.rejected, state.first)


@team.uploads
def _(params: Params) -> Mapping[str, str]:
    return {"/file": params.file} if params.file else {}


@team.check
def _(params: Params, inputs: Inputs) -> None:
    if (params.teams is None) == (params.file is None):
        raise Invalid([Fault("", "give either teams or file")])
    if params.file is not None:
        try:
            with open_source(inputs, params.file) as source:
                _check(source)
        except (SourceError, Broken) as error:
            raise Invalid([Fault("/file", str(error))]) from None


@team.clean
def _(task: Task[Params, State]) -> None:
    with closing(_directory(task)) as directory:
        directory.remove()


def _directory(task: Task[Params, State]) -> Directory:
    return Directory(task.inputs.directory, task.id, task.user)


def _add(task: Task[Params, State], directory: Directory) -> None:
    try:
        with _opened(task.inputs, task.params) as entries:
            _add_all(task, directory, entries)
    except (SourceError, Invalid) as error:
        raise Fatal(f"{task.params.file}: {error}") from None
    except (Broken, RejectedError) as error:
        raise Fatal(str(error)) from None


def _add_all(task: Task[Params, State], directory: Directory, entries: "_Entries") -> None:
    position = directory.position() or Position()
    if position.offset < task.state.offset:  # which is saved after it
        raise Fatal("the directory does not know what this task has added: it is another one, or an older copy")
    if position.offset:  # perhaps ahead of the state: the process was killed between the two
        entries.seek(position.offset, position.line)
        _follow(task.state, position)
    strict = task.params.on_error == "stop"
    while True:
        begin = entries.place
        batch = entries.take(BATCH_ROWS)
        if not batch:
            return
        try:
            position = directory.add(batch, position, entries.place, strict=strict)
        except RejectedError as error:
            entries.seek(*begin)
            good = entries.take(error.index) if error.index else []
            position = directory.add(good, position, entries.place, strict=strict)
            _save(task, position, entries)
            raise
        _save(task, position, entries)


def _save(task: Task[Params, State], position: Position, entries: "_Entries") -> None:
    _follow(task.state, position)
    task.checkpoint(done=position.offset, total=entries.end, unit=entries.unit)


def _follow(state: State, position: Position) -> None:
    state.offset, state.line = position.offset, position.line
    state.teams, state.members, state.rejected = position.teams, position.members, position.rejected


def _report(task: Task[Params, State], directory: Directory) -> None:
    """Copy the rejected rows from the directory to an output."""
    state = task.state
    while found := directory.rejected(state.reported, _REPORTED_AT_ONCE):
        out = task.output("rejected.csv")
        write = csv.writer(out, lineterminator="\n").writerows
        if state.reported == 0:
            write([("line", "pointer", "team", "email", "reason")])
        write((one.line, one.pointer, one.team, one.email, one.reason) for one in found)
        state.reported += len(found)
        state.first += found[: max(_SHOWN_REJECTIONS - len(state.first), 0)]
        task.checkpoint()


# What is to be added: entries of which some can be had, and then the next.


class _Entries(ABC):
    """Entries in order, and a place among them."""

    unit: str
    end: int
    """The offset behind the last one."""

    @property
    @abstractmethod
    def place(self) -> tuple[int, int]:
        """Where the next entry begins: at which byte and line of a file, or at how many entries."""

    @abstractmethod
    def seek(self, offset: int, line: int) -> None:
        """Go on at a place that there was."""

    @abstractmethod
    def take(self, count: int) -> list[Entry]:
        """Some of the next entries, at most so many; none only at the end. Raises `Broken`."""


class _Listed(_Entries):
    """Teams that are in memory."""

    unit = "rows"

    def __init__(self, teams: Sequence[Team]) -> None:
        self._entries = list(_listed(teams))
        self._next = 0
        self.end = len(self._entries)

    @property
    def place(self) -> tuple[int, int]:
        return self._next, 0

    def seek(self, offset: int, line: int) -> None:  # noqa: ARG002 -- there are no lines
        self._next = offset

    def take(self, count: int) -> list[Entry]:
        found = self._entries[self._next : self._next + count]
        self._next += len(found)
        return found


class _Lines(_Entries, Generic[Record]):
    """The records of a file."""

    unit = "bytes"

    def __init__(self, rows: Records[Record], read: Callable[[Record, int], Entry]) -> None:
        self._rows = rows
        self._read = read
        self.end = rows.end

    @property
    def place(self) -> tuple[int, int]:
        return self._rows.offset, self._rows.line

    def seek(self, offset: int, line: int) -> None:
        self._rows.seek(offset, line)

    def take(self, count: int) -> list[Entry]:
        found: list[Entry] = []
        while not found and self._rows.offset < self.end:
            batch = self._rows.batch()
            try:
                for record in islice(batch, count):
                    found.append(self._read(record, self._rows.at))  # noqa: PERF401 -- kept where the next one breaks
            except Broken:
                if not found:  # those before it come first, and then it is met again
                    raise
            batch.close()
        return found


@contextmanager
def _opened(inputs: Inputs, params: Params) -> Iterator[_Entries]:
    if params.file is None:
        yield _Listed(params.teams or [])
    else:
        with open_source(inputs, params.file) as source:
            yield _document(source) if source.format == "json" else _lines(source)


def _check(source: OpenSource) -> None:
    """Look at what can be seen at once. Raises `SourceError` and `Broken`."""
    if source.size_bytes == 0:
        raise SourceError("the file is empty")
    if source.format != "json":
        _lines(source)
    elif source.size_bytes > MAX_DOCUMENT_BYTES:
        most = f"{MAX_DOCUMENT_BYTES >> 20} MiB"
        raise SourceError(f"a JSON document may have {most}; send a larger one as JSON Lines or CSV, of any size")


def _document(source: OpenSource) -> _Listed:
    return _Listed(Schema(_Document).decode(os.pread(source.descriptor, MAX_DOCUMENT_BYTES, 0)).teams)


def _lines(source: OpenSource) -> _Entries:
    if source.format == "jsonl":
        return _Lines(source.json_rows(), _of_json)
    rows = source.csv_rows()
    header = [name.strip().lower() for name in next(iter(rows.take(1)), [])]
    known = ", ".join(_COLUMNS)
    if missing := [name for name in _REQUIRED if name not in header]:
        raise SourceError(f"the header has no column {missing[0]!r}: there may be {known}")
    for name in header:
        if name not in _COLUMNS:
            raise SourceError(f"the header has a column {quoted(name)}: there may be {known}")
        if header.count(name) > 1:
            raise SourceError(f"the header has {header.count(name)} columns {name!r}")
    return _Lines(rows, partial(_of_csv, header))


def _listed(teams: Sequence[Team]) -> Iterator[Entry]:
    for at, one in enumerate(teams):
        yield _entry(one.name, None, pointer=f"/teams/{at}")
        for number, member in enumerate(one.members):
            yield _entry(one.name, member.email, member.name, member.role, pointer=f"/teams/{at}/members/{number}")


def _of_csv(header: Sequence[str], row: Sequence[str], line: int) -> Entry:
    if len(row) != len(header):
        return _faulty(line, ragged(len(row), len(header)))
    cells = dict(zip(header, row, strict=True))
    return _entry(cells["team"], cells["email"], cells.get("name"), cells.get("role"), line=line)


def _of_json(text: str, line: int) -> Entry:
    try:
        row = _ROW.decode(text)
    except Invalid as error:
        where, what = error.faults[0].pointer.removeprefix("/"), error.faults[0].message
        return _faulty(line, f"{quoted(where)}: {what}" if where else what)
    return _entry(row.team, row.email, row.name, row.role, line=line)


def _faulty(line: int, fault: str) -> Entry:
    return Entry(line, None, "", "", fault=fault)


def _entry(
    team: str,
    email: str | None,
    name: str | None = None,
    role: str | None = None,
    *,
    line: int | None = None,
    pointer: str | None = None,
) -> Entry:
    """One row with the blanks around its values taken off, and what is wrong with it."""
    team, name, role = team.strip(), (name or "").strip(), (role or "").strip()
    email = None if email is None else email.strip()
    fault = _text_fault("team", team) or _text_fault("name", name) or _text_fault("role", role)
    if not team:
        fault = "no team"
    elif email is not None and not fault:
        fault = _email_fault(email)
    if fault:  # what is only to be shown need not be whole
        team, email = team[:_MAX_CHARS], email and email[:_MAX_EMAIL_CHARS]
    return Entry(line, pointer, team, email, name or None, role or None, fault)


def _text_fault(what: str, text: str) -> str | None:
    if len(text) > _MAX_CHARS:
        return f"the {what} has more than {_MAX_CHARS} characters"
    return f"the {what} has a control character" if _CONTROL.search(text) else None


def _email_fault(email: str) -> str | None:
    if not email:
        return "no e-mail"
    if len(email) > _MAX_EMAIL_CHARS:
        return f"the e-mail has more than {_MAX_EMAIL_CHARS} characters"
    return None if _EMAIL.fullmatch(email) else "not an e-mail address"
