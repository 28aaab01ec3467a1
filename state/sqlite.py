"""The store on SQLite, in one file: what is asked for goes to the writer, what is read to connections of its own."""

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import structlog

from intermission.state import changes, lists, rows
from intermission.state.connection import Connection, T, reading, translated, writing
from intermission.state.models import (
    Attempt,
    Change,
    Checkpoint,
    Earlier,
    EventPage,
    EventRecord,
    NewTask,
    Page,
    Query,
    Task,
    Tombstone,
    Usage,
)
from intermission.state.status import WITH_CHILD, Status
from intermission.state.store import StoreError
from intermission.state.transaction import Operation
from intermission.state.writer import Writer

_SAFE_WAL: Final = (3, 51, 3)
_log = structlog.get_logger()

_TASK: Final = f"{rows.TASKS} WHERE t.id = ?"
_TOMBSTONE: Final = f"SELECT {rows.TOMBSTONE_COLUMNS} FROM tombstones WHERE id = ?"
_TOMBSTONES: Final = "SELECT id FROM tombstones WHERE id IN (SELECT value FROM json_each(?))"
_WITH_CHILD: Final = (
    f"SELECT {rows.WHOLE} FROM tasks AS t INDEXED BY tasks_moving {rows.WITH_CHECKPOINT} "
    f"WHERE {lists.IS_MOVING} AND status IN ({', '.join(repr(str(s)) for s in sorted(WITH_CHILD))}) ORDER BY t.id"
)
_ALL: Final = -1
"""As a LIMIT, to SQLite."""
_ATTEMPTS: Final = (
    f"SELECT {rows.ATTEMPT_COLUMNS} FROM attempts WHERE task_id = ? AND attempt > ? ORDER BY attempt LIMIT ?"
)
_EVENTS: Final = f"SELECT id, {rows.EVENT_COLUMNS} FROM events WHERE task_id = ? AND id > ? ORDER BY id LIMIT ?"
_USERS: Final = "SELECT task_id FROM uses WHERE upload_id = ? ORDER BY task_id LIMIT ?"
_NEXT_DUE: Final = """
SELECT (SELECT min(due_at) FROM tasks INDEXED BY tasks_retrying WHERE status = 'retrying'),
       (SELECT min(due_at) FROM tasks INDEXED BY tasks_delayed WHERE status = 'pending' AND due_at > ?)
"""
_OLDEST: Final = """
SELECT (SELECT finished_at FROM tasks AS t INDEXED BY tasks_finished WHERE finished_at IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM uses WHERE upload_id = t.id) ORDER BY finished_at LIMIT 1),
       (SELECT min(gone_at) FROM tombstones INDEXED BY tombstones_gone)
"""
_NEXT_ABANDONED: Final = (
    "SELECT min(due_at) FROM tasks INDEXED BY tasks_abandoned WHERE status = 'paused' AND stream AND due_at > 0"
)
_COUNTS: Final = f"SELECT status, count(*) FROM tasks INDEXED BY tasks_moving WHERE {lists.IS_MOVING} GROUP BY status"


class SqliteStore:
    """Implements `Store`. A read never waits for a commit, nor `get` for a list: each has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Writer | None = None
        self._points: Connection | None = None
        self._lists: Connection | None = None
        self._opened = AsyncExitStack()

    async def open(self) -> None:
        """See `Store.open`."""
        if sqlite3.sqlite_version_info < _SAFE_WAL:
            _log.warning(
                "this SQLite has the WAL-reset bug; one writing connection avoids it: "
                "open the database with other programs only to read, or while the server is down",
                sqlite=sqlite3.sqlite_version,
                fixed_in="3.51.3",
            )
        try:
            await self._connect()
        except sqlite3.Error as error:
            raise StoreError(f"the database {self._path} cannot be opened: {error}") from error

    async def _connect(self) -> None:
        async with AsyncExitStack() as stack:  # the writing one is closed last: it puts the WAL away
            db = await writing(self._path)
            stack.push_async_callback(db.close)
            points = await reading(self._path)
            stack.push_async_callback(points.close)
            longer = await reading(self._path)
            stack.push_async_callback(longer.close)
            writer = Writer(db)
            stack.push_async_callback(writer.close)
            self._opened = stack.pop_all()
        self._points, self._lists, self._writer = points, longer, writer

    async def close(self) -> None:
        """See `Store.close`."""
        opened, self._opened = self._opened, AsyncExitStack()
        await opened.aclose()
        self._points = self._lists = self._writer = None

    async def add(self, task: NewTask) -> Task | Earlier | Usage:
        """See `Store.add`."""
        return await self._write(changes.add(task))

    async def advance(self, change: Change) -> Task | None:
        """See `Store.advance`."""
        return await self._write(changes.advance(change))

    async def claim(self, limit: int, services: Collection[str], at: float, *, wary: bool = False) -> list[Task]:
        """See `Store.claim`."""
        if limit < 1 or not services:
            return []
        return await self._write(changes.claim(limit, services, at, wary=wary))

    async def save(self, task_id: str, attempt: int, checkpoint: Checkpoint) -> bool:
        """See `Store.save`."""
        return await self._write(changes.save(task_id, attempt, checkpoint))

    async def reserve(self, task: Task, size: int, most: int | None) -> bool:
        """See `Store.reserve`."""
        return await self._write(changes.reserve(task, size, most))

    async def usage(self, user: str) -> Usage:
        """See `Store.usage`."""
        return await self._read(self._points, lambda db: rows.usage(db.execute(changes.USAGE, (user,)).fetchall()))

    async def wake_due(self, at: float) -> int:
        """See `Store.wake_due`."""
        return await self._write(changes.wake_due(at))

    async def bury(self, change: Change, tombstone: Tombstone) -> bool:
        """See `Store.bury`."""
        return await self._write(changes.bury(change, tombstone))

    async def users_of(self, upload_id: str, limit: int) -> list[str]:
        """See `Store.users_of`."""
        return await self._read(
            self._points, lambda db: [task_id for (task_id,) in db.execute(_USERS, (upload_id, limit)).fetchall()]
        )

    async def gone(self, ids: Sequence[str]) -> list[str]:
        """See `Store.gone`."""
        text = json.dumps(ids)
        return await self._read(
            self._lists, lambda db: [task_id for (task_id,) in db.execute(_TOMBSTONES, (text,)).fetchall()]
        )

    async def forget(self, before: float, limit: int) -> int:
        """See `Store.forget`."""
        return await self._write(changes.forget(before, limit))

    async def get(self, task_id: str, user: str | None = None) -> Task | Tombstone | None:
        """See `Store.get`."""

        def read(db: sqlite3.Connection) -> Task | Tombstone | None:
            kept: Task | Tombstone
            if (row := _only(db, _TASK, task_id)) is not None:
                kept = rows.task(row)
            elif (row := _only(db, _TOMBSTONE, task_id)) is not None:
                kept = rows.tombstone(row)
            else:
                return None
            return kept if user is None or kept.user == user else None

        return await self._read(self._points, read)

    async def find(self, query: Query) -> Page:
        """See `Store.find`."""
        return await self._read(self._lists, lambda db: lists.page(db, query))

    async def with_child(self) -> list[Task]:
        """See `Store.with_child`."""
        return await self._read(self._lists, lambda db: list(rows.readable(db.execute(_WITH_CHILD).fetchall())))

    async def attempts(self, task_id: str, after: int = 0, limit: int | None = None) -> list[Attempt]:
        """See `Store.attempts`."""
        asked = (task_id, after, _ALL if limit is None else limit)
        return await self._read(
            self._lists, lambda db: [rows.attempt(row) for row in db.execute(_ATTEMPTS, asked).fetchall()]
        )

    async def events(self, task_id: str, after: int = 0, limit: int | None = None) -> list[EventRecord]:
        """See `Store.events`."""
        asked = (task_id, after, _ALL if limit is None else limit)
        return await self._read(
            self._lists, lambda db: [rows.event(row) for row in db.execute(_EVENTS, asked).fetchall()]
        )

    async def find_events(self, user: str | None, before: int | None, limit: int) -> EventPage:
        """See `Store.find_events`."""
        return await self._read(self._lists, lambda db: lists.events(db, user, before, limit))

    async def expired(self, before: float, limit: int, after: Task | None = None) -> list[Task]:
        """See `Store.expired`."""
        return await self._read(self._lists, lambda db: lists.expired(db, before, limit, after))

    async def oldest(self) -> float | None:
        """See `Store.oldest`."""
        return await self._read(self._lists, lambda db: _earliest(db, _OLDEST))

    async def abandoned(self, at: float, limit: int, after: Task | None = None) -> list[Task]:
        """See `Store.abandoned`."""
        return await self._read(self._lists, lambda db: lists.abandoned(db, at, limit, after))

    async def next_abandoned(self) -> float | None:
        """See `Store.next_abandoned`."""
        return await self._read(self._lists, lambda db: _earliest(db, _NEXT_ABANDONED))

    async def next_due(self, after: float) -> float | None:
        """See `Store.next_due`."""
        return await self._read(self._lists, lambda db: _earliest(db, _NEXT_DUE, after))

    async def counts(self) -> dict[Status, int]:
        """See `Store.counts`."""

        def read(db: sqlite3.Connection) -> dict[Status, int]:
            found = {Status(status): count for status, count in db.execute(_COUNTS).fetchall()}
            return dict.fromkeys(lists.MOVING, 0) | found

        return await self._read(self._lists, read)

    async def _write(self, operation: Operation[T]) -> T:
        if self._writer is None:
            raise StoreError("the store is not open")
        return await self._writer.submit(operation)

    @staticmethod
    async def _read(db: Connection | None, function: Callable[[sqlite3.Connection], T]) -> T:
        if db is None:
            raise StoreError("the store is not open")
        try:
            return await db.run(function)
        except sqlite3.Error as error:
            raise translated(error) from error


def _earliest(db: sqlite3.Connection, sql: str, *values: float) -> float | None:
    """The least of a statement's columns; None where all are."""
    (times,) = db.execute(sql, values).fetchall()
    return min((time for time in times if time is not None), default=None)


def _only(db: sqlite3.Connection, sql: str, task_id: str) -> rows.Row | None:
    # Not fetchone(): that leaves the statement, and with it a view of the past, open.
    found: list[rows.Row] = db.execute(sql, (task_id,)).fetchall()
    return found[0] if found else None
