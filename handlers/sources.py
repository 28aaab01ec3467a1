"""The sources of extracts: the CSV files that the operator put into one folder, known to clients by their names."""

import difflib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from intermission.handlers.csvrows import Broken, CsvRows
from intermission.handlers.filters import guess_type

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}", re.ASCII)
_SUFFIX: Final = ".csv"
_SAMPLE_ROWS: Final = 100
_SHOWN_CHARS: Final = 100
_SHOWN_NAMES: Final = 20


class SourceError(LookupError):
    """There is no such source, or it cannot be read; the message says which and is fit for a client."""


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source, open for reading. While the fingerprint is the same, so are its bytes."""

    name: str
    descriptor: int
    size_bytes: int
    fingerprint: str

    def rows(self) -> CsvRows:
        """Its records, from the first."""
        return CsvRows(self.descriptor, self.size_bytes)

    def changed(self) -> bool:
        """Whether it was written to since it was opened."""
        return _fingerprint(os.fstat(self.descriptor)) != self.fingerprint


@dataclass(frozen=True, slots=True)
class Column:
    """A column and what it seems to hold: ``integer``, ``number``, ``date``, ``datetime`` or ``text``."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Source:
    """What clients are told of a source. ``error`` says why its columns cannot be read."""

    name: str
    size_bytes: int
    columns: tuple[Column, ...] = ()
    error: str | None = None


@contextmanager
def open_source(folder: Path, name: str) -> Iterator[OpenSource]:
    """Open a source by name. Raises `SourceError`.

    A name cannot hold a slash or a dot and a link is not followed, so nothing outside the folder can be read.
    """
    if not _NAME.fullmatch(name):
        raise SourceError(f"{quoted(name)} cannot be a source's name, which has letters, digits, '_' and '-'")
    descriptor = _open(folder, name)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"the source {name} is not a regular file")
        yield OpenSource(name, descriptor, status.st_size, _fingerprint(status))
    finally:
        os.close(descriptor)


def list_sources(folder: Path) -> list[Source]:
    """Every source by name, with its columns as the first rows show them."""
    return [_describe(folder, name) for name in sorted(_names(folder))]


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


def _names(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.removesuffix(_SUFFIX)
            if name != entry.name and _NAME.fullmatch(name) and entry.is_file(follow_symlinks=False):
                yield name


def _open(folder: Path, name: str) -> int:
    try:
        # Without O_NONBLOCK the open of a named pipe would wait for somebody to write to it.
        return os.open(folder / (name + _SUFFIX), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        message = f"no source is named {name!r}" + suggestion(name, sorted(_names(folder)))
        raise SourceError(message) from None
    except OSError as error:
        link = error.errno == errno.ELOOP
        reason = "it is a symbolic link, which is not followed" if link else os.strerror(error.errno or 0)
        raise SourceError(f"the source {name} cannot be read: {reason}") from None


def _describe(folder: Path, name: str) -> Source:
    try:
        with open_source(folder, name) as source:
            return _described(source)
    except SourceError as error:
        return Source(name, 0, error=str(error))


def _described(source: OpenSource) -> Source:
    try:
        rows = source.rows()
        header = rows.record() or []
        sample = list(islice(rows.batch(None), _SAMPLE_ROWS)) if rows.offset < rows.end else []
    except Broken as error:
        return Source(source.name, source.size_bytes, error=str(error))
    cells = ([row[at] for row in sample if at < len(row)] for at in range(len(header)))
    columns = tuple(Column(name, guess_type(column)) for name, column in zip(header, cells, strict=True))
    return Source(source.name, source.size_bytes, columns)


def _fingerprint(status: os.stat_result) -> str:
    return f"{status.st_size} bytes, modified at {status.st_mtime_ns} ns"
