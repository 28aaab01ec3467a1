"""Connections to the database file: one that writes, others that only read, each on a thread of its own.

Two connections that write, or checkpoint the WAL, at the same instant can corrupt it in SQLite before 3.51.3
(https://sqlite.org/wal.html#walresetbug). With one connection that may write there is no such instant.
"""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeVar

import aiosqlite
import structlog

from intermission.state.migrate import migrate, refuse
from intermission.state.store import StoreError, StoreFullError

T = TypeVar("T")
_log = structlog.get_logger()

_SWITCH_S: Final = 0.0001
"""How long one of our threads waits before it insists on the interpreter's lock.

A loop that is never idle gives the lock away only for the instant of each poll. With the default of 5 ms a thread that
waits beside turns of 2 ms never gets to insist: a list of 50 took up to 87 s; with this, 16 ms (2 cores, Python 3.11).
"""
_OLDEST: Final = (3, 37, 0)  # STRICT tables, RETURNING
_WRITING: Final = (
    "journal_mode = WAL",
    "synchronous = FULL",  # a commit is on the disk when it returns, not merely with the operating system
    "journal_size_limit = 67108864",  # after a burst the WAL gives its room back
)
_RESERVED_BYTES: Final = 8 << 20
"""Twice what the log holds when SQLite takes it for long enough to be put away (1,000 pages), which needs room too."""
_EITHER: Final = (
    "busy_timeout = 5000",  # an operator's shell may hold a lock for a moment
    "temp_store = MEMORY",  # no need of room in /tmp
)


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that takes whole functions: a transaction costs one way to its thread, not one a line."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=1)
        # aiosqlite waits for its threads when the process exits, for ever if a failure skipped the closing.
        self._thread.daemon = True

    async def opened(self) -> Self:
        """Itself, connected. Raises what the connector raises."""
        try:
            _ = await self
        except BaseException:
            await asyncio.to_thread(self._thread.join)  # aiosqlite stops its thread, but does not wait for it
            raise
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        return self

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What the function returns for the connection. It must leave no transaction and no cursor open."""
        if self._connection is None:
            raise StoreError("the store is not open")
        result: T = await self._execute(function, self._connection)  # type: ignore[no-untyped-call] # aiosqlite's own way
        return result


async def writing(path: Path) -> Connection:
    """The one connection that writes; creates and migrates the file. Raises `SchemaError`."""

    def connect() -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < _OLDEST:
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: 3.37 or later is needed")
        if path.exists():
            reader = _connected(path, "ro")
            try:
                refuse(reader)
            finally:
                reader.close()
        db = _connected(path, "rwc", *_WRITING)
        try:
            migrate(db)
            _reserve(Path(f"{path}-wal"))
        except BaseException:
            db.close()
            raise
        return db

    return await Connection(connect).opened()


async def reading(path: Path) -> Connection:
    """A connection that cannot write. Each statement sees every commit that came before it."""
    return await Connection(lambda: _connected(path, "ro", "query_only = ON")).opened()


def _reserve(wal: Path) -> None:
    """Take the room for a few hundred commits while there is some: on a full disk tasks have to be paused and ended.

    SQLite writes its log from the start again after each checkpoint and keeps its length, so the room stays its own.
    """
    fd = os.open(wal, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, _RESERVED_BYTES)
    except OSError as error:
        _log.warning("no room is reserved for the database", error=error.strerror, bytes=_RESERVED_BYTES)
    finally:
        os.close(fd)


def _connected(path: Path, mode: str, *pragmas: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
    try:
        for pragma in _EITHER + pragmas:
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


_NO_SPACE: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
_LOCKED: Final = "another program holds the database locked: let it finish, then try again"
_PRIMARY: Final = 0xFF
"""The part of an error's code that is its kind (https://sqlite.org/rescode.html)."""


def is_full(error: BaseException) -> bool:
    """Whether the disk, or what we may use of it, is full."""
    return getattr(error, "sqlite_errorcode", None) in _NO_SPACE


def translated(error: Exception) -> Exception:
    """SQLite's errors as the contract's; others as they are."""
    if is_full(error):
        return StoreFullError("no space is left for the database: free some, then try again")
    if not isinstance(error, sqlite3.Error):
        return error
    if getattr(error, "sqlite_errorcode", 0) & _PRIMARY == sqlite3.SQLITE_BUSY:
        return StoreError(_LOCKED)
    return StoreError(f"the database answered {getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}")
