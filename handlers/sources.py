"""The sources of extracts: files that the operator put into one folder, known to clients by their names, and uploads.

A name is that of one file: ``flights`` is ``flights.csv`` or ``flights.jsonl``, and never both.
"""

import difflib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from intermission.handlers.csvrows import CsvRows
from intermission.handlers.filters import guess_type, guess_value_type
from intermission.handlers.inputs import Format, Inputs, upload_id
from intermission.handlers.jsonrows import JsonRows, is_null, keys
from intermission.handlers.records import Broken

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}", re.ASCII)
_FORMATS: Final[dict[Format, str]] = {"csv": "CSV", "jsonl": "JSON Lines", "json": "a JSON document"}
_ENDINGS: Final[tuple[Format, ...]] = ("csv", "jsonl")
SAMPLE_ROWS: Final = 100
"""How many of its first records say which columns a JSON Lines source has, and what is in those of any source."""
_UPLOADS: Final = "upload:"
_SHOWN_CHARS: Final = 100
_SHOWN_NAMES: Final = 20


class SourceError(LookupError):
    """There is no such source, or it cannot be read; the message says which and is fit for a client."""


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source, open for reading. While the fingerprint is the same, so are its bytes."""

    name: str
    format: Format
    descriptor: int
    size_bytes: int
    fingerprint: str

    def csv_rows(self) -> CsvRows:
        """Its records, from the first. Raises `SourceError` for one that is not CSV."""
        if self.format != "csv":
            raise SourceError(f"{self.name} is {_FORMATS[self.format]}, and this service reads CSV")
        return CsvRows(self.descriptor, self.size_bytes)

    def json_rows(self) -> JsonRows:
        """Its records, from the first. Raises `SourceError` for one that is a document."""
        if self.format != "jsonl":
            raise SourceError(
                f"{self.name} is {_FORMATS[self.format]}: send its rows as JSON Lines, an object on each line"
            )
        return JsonRows(self.descriptor, self.size_bytes)

    def require_unchanged(self, since: str | None = None) -> None:
        """Raise `SourceError` if it was written to since it was opened, or since it had this fingerprint."""
        if _fingerprint(os.fstat(self.descriptor)) != self.fingerprint or since not in {None, self.fingerprint}:
            message = "changed since this task began to read it; terminate this task and start it again"
            raise SourceError(f"the source {self.name} {message}")


@dataclass(frozen=True, slots=True)
class Column:
    """A column and what it seems to hold: ``integer``, ``number``, ``date``, ``datetime``, ``text`` or ``json``."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Source:
    """What clients are told of a source. ``error`` says why its columns cannot be read."""

    name: str
    format: Format | None
    size_bytes: int
    columns: tuple[Column, ...] = ()
    error: str | None = None


@contextmanager
def open_source(inputs: Inputs, name: str) -> Iterator[OpenSource]:
    """Open a source by its name, or an upload as ``upload:<id>``. Raises `SourceError`.

    A name cannot hold a slash or a dot and a link is not followed, so nothing outside the folder can be read.
    """
    path, form = _find_upload(inputs, name) if name.startswith(_UPLOADS) else _find(inputs.sources, name)
    descriptor = _open(path, name)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"the source {name} is not a regular file")
        yield OpenSource(name, form, descriptor, status.st_size, _fingerprint(status))
    finally:
        os.close(descriptor)


def list_sources(inputs: Inputs, after: str, limit: int) -> list[Source]:
    """So many sources whose names come after this one, by name, with their columns as the first rows show them."""
    names = sorted(name for name in _names(inputs.sources) if name > after)
    return [_describe(inputs, name) for name in names[:limit]]


def quoted(name: str) -> str:
    """A client's word, fit to stand in a message."""
    return repr(name if len(name) <= _SHOWN_CHARS else name[:_SHOWN_CHARS] + "…")


def suggestion(wanted: str, known: Sequence[str]) -> str:
    """The end of a sentence that says that something is not known: what may have been meant, or what there is.

    Bounded whatever the client sent and the source has: it runs before a start is answered.
    """
    candidates = [name for name in known[:1000] if len(name) <= _SHOWN_CHARS]
    close = difflib.get_close_matches(wanted[:_SHOWN_CHARS], candidates, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(map(repr, candidates[:_SHOWN_NAMES])) + (", …" if len(known) > _SHOWN_NAMES else "")
    return f"; there is {shown}" if candidates else ""


def _names(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {
            name
            for entry in entries
            for name, dot, ending in [entry.name.rpartition(".")]
            if ending in _ENDINGS and _NAME.fullmatch(name) and entry.is_file(follow_symlinks=False)
        }


def _find(folder: Path, name: str) -> tuple[Path, Format]:
    if not _NAME.fullmatch(name):
        raise SourceError(f"{quoted(name)} cannot be a source's name, which has letters, digits, '_' and '-'")
    found = [(path, form) for form in _ENDINGS if os.path.lexists(path := folder / f"{name}.{form}")]
    match found:
        case []:
            raise SourceError(f"no source is named {name!r}" + suggestion(name, sorted(_names(folder))))
        case [one]:
            return one
        case _:
            files = " and ".join(path.name for path, _ in found)
            raise SourceError(f"the source {name} is two files, {files}: the operator has to take one of them away")


def _find_upload(inputs: Inputs, name: str) -> tuple[Path, Format]:
    if upload_id(name) is None:
        raise SourceError(f"{quoted(name)} names no upload: write upload: and the id of a completed upload")
    try:
        upload = inputs.upload(name)
    except LookupError as error:
        raise SourceError(str(error)) from None
    return upload.path, upload.format


def _open(path: Path, name: str) -> int:
    try:
        # Without O_NONBLOCK the open of a named pipe would wait for somebody to write to it.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        link = error.errno == errno.ELOOP
        reason = "it is a symbolic link, which is not followed" if link else os.strerror(error.errno or 0)
        raise SourceError(f"the source {name} cannot be read: {reason}") from None


def _describe(inputs: Inputs, name: str) -> Source:
    try:
        with open_source(inputs, name) as source:
            return _described(source)
    except SourceError as error:
        return Source(name, None, 0, error=str(error))


def _described(source: OpenSource) -> Source:
    try:
        columns = _csv_columns(source.csv_rows()) if source.format == "csv" else _json_columns(source.json_rows())
        return Source(source.name, source.format, source.size_bytes, tuple(columns))
    except Broken as error:
        return Source(source.name, source.format, source.size_bytes, error=str(error))


def _csv_columns(rows: CsvRows) -> Iterator[Column]:
    header = rows.take(1)
    sample = rows.take(SAMPLE_ROWS)
    for at, name in enumerate(header[0] if header else []):
        yield Column(name, guess_type(row[at] for row in sample if at < len(row)))


def _json_columns(rows: JsonRows) -> Iterator[Column]:
    sample = rows.sample(SAMPLE_ROWS)
    for name in keys(sample):
        yield Column(
            name, guess_value_type(rows.value(row[name]) for row in sample if name in row and not is_null(row[name]))
        )


def _fingerprint(status: os.stat_result) -> str:
    return f"{status.st_size} bytes, modified at {status.st_mtime_ns} ns"
