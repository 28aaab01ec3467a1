"""The directory: teams and their members in SQLite, written by several children at once.

Whatever a task adds and the place up to which it has read are one transaction, so both are there or neither is: that is
what makes every row of it exactly once, through any kill. The journal is SQLite's oldest kind (DELETE), not a WAL:
before 3.51.3, two processes that write or checkpoint one WAL at the same instant can corrupt it.
"""

import errno
import fcntl
import os
import sqlite3
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

_VERSION: Final = 1
_BUSY_S: Final = 30.0
_READ_BUSY_S: Final = 1.0
_DELETED_AT_ONCE: Final = 10_000
"""Members that `remove` deletes in one transaction: 50 ms, in which nobody else can write."""
_SCHEMA: Final = """
    CREATE TABLE team (
        id INTEGER PRIMARY KEY,
        user TEXT NOT NULL,
        name TEXT NOT NULL,
        members INTEGER NOT NULL DEFAULT 0, -- counted by the triggers, so that a list need not
        task TEXT, -- that created it, or to which it was left
        created_at REAL NOT NULL,
        UNIQUE (user, name)
    );
    CREATE INDEX team_by_user ON team (user, id);
    CREATE INDEX team_by_task ON team (task);
    CREATE TABLE member (
        team INTEGER NOT NULL REFERENCES team (id),
        address TEXT NOT NULL, -- the e-mail address in lower case: what is unique
        email TEXT NOT NULL, -- as it was given
        name TEXT,
        role TEXT,
        task TEXT, -- that created it
        created_at REAL NOT NULL,
        PRIMARY KEY (team, address)
    ) WITHOUT ROWID;
    CREATE INDEX member_by_task ON member (task);
    CREATE TRIGGER member_added AFTER INSERT ON member BEGIN
        UPDATE team SET members = members + 1 WHERE id = NEW.team;
    END;
    CREATE TRIGGER member_removed AFTER DELETE ON member BEGIN
        UPDATE team SET members = members - 1 WHERE id = OLD.team;
    END;
    CREATE TABLE position ( -- of each task that is adding
        task TEXT PRIMARY KEY,
        offset INTEGER NOT NULL,
        line INTEGER NOT NULL,
        teams INTEGER NOT NULL,
        members INTEGER NOT NULL,
        rejected INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE rejected ( -- rows of those tasks
        task TEXT NOT NULL,
        number INTEGER NOT NULL, -- from 1
        line INTEGER,
        pointer TEXT,
        team TEXT NOT NULL,
        email TEXT NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (task, number)
    ) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row to add: a member, or a team alone (``email`` None). ``fault`` says why it cannot be added."""

    line: int | None
    """Where it stands in a file, or else the JSON pointer."""
    pointer: str | None
    team: str
    email: str | None
    name: str | None = None
    role: str | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that was not added, and why."""

    line: int | None
    pointer: str | None
    team: str
    email: str
    reason: str


@dataclass(frozen=True, slots=True)
class Position:
    """How far a task is: where its next row begins, and what became of those before it."""

    offset: int = 0
    line: int = 0
    teams: int = 0
    members: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Team:
    """A team, as lists show it. ``task`` created it, or has members in it since the one that did was removed."""

    id: int
    name: str
    members: int
    task: str | None
    created_at: float


class RejectedError(Exception):
    """A row was to be rejected where none may be: the how-manieth of the batch, from 0, and its rejection."""

    def __init__(self, index: int, rejection: Rejection) -> None:
        place = f"line {rejection.line}" if rejection.line else rejection.pointer
        super().__init__(f"{place}: {rejection.reason}")
        self.index = index


class Directory:
    """An open directory, for one task. Close it. Raises OSError for a full disk, `sqlite3.Error` for anything else."""

    def __init__(self, path: Path, task: str, user: str) -> None:
        self._task = task
        self._user = user
        self._queue = _Queue(f"{path}-queue")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # people's addresses are nobody else's
        self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it; what is not committed is undone."""
        self._connection.close()
        self._queue.close()

    def position(self) -> Position | None:
        """How far the task is; None if it has added nothing yet."""
        query = "SELECT offset, line, teams, members, rejected FROM position WHERE task = ?"
        row = self._connection.execute(query, (self._task,)).fetchone()
        return None if row is None else Position(*row)

    def add(self, entries: Sequence[Entry], since: Position, place: tuple[int, int], *, strict: bool) -> Position:
        """Add rows, and with them be at this place: all in one transaction.

        Raises `RejectedError` at the first row that cannot be added if ``strict``; then none of these is.
        """
        with self._writing():
            batch = _Batch(self._connection, self._task, self._user)
            rejections = []
            for index, entry in enumerate(entries):
                if reason := entry.fault or batch.add(entry):
                    rejection = Rejection(entry.line, entry.pointer, entry.team, entry.email or "", reason)
                    if strict:
                        raise RejectedError(index, rejection)
                    rejections.append(rejection)
            now = Position(
                offset=place[0],
                line=place[1],
                teams=since.teams + batch.teams,
                members=since.members + batch.members,
                rejected=since.rejected + len(rejections),
            )
            self._connection.executemany(
                "INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    (self._task, number, one.line, one.pointer, one.team, one.email, one.reason)
                    for number, one in enumerate(rejections, since.rejected + 1)
                ),
            )
            self._connection.execute(
                "INSERT OR REPLACE INTO position VALUES (?, ?, ?, ?, ?, ?)",
                (self._task, now.offset, now.line, now.teams, now.members, now.rejected),
            )
        return now

    def rejected(self, after: int, limit: int) -> list[Rejection]:
        """The task's rejected rows after so many."""
        query = """
            SELECT line, pointer, team, email, reason FROM rejected
            WHERE task = ? AND number > ? ORDER BY number LIMIT ?
        """
        return [Rejection(*row) for row in self._connection.execute(query, (self._task, after, limit))]

    def forget(self) -> None:
        """Keep what the task added, and nothing else of it."""
        with self._writing():
            self._connection.execute("DELETE FROM rejected WHERE task = ?", (self._task,))
            self._connection.execute("DELETE FROM position WHERE task = ?", (self._task,))

    def remove(self) -> None:
        """Remove what the task added and nothing else.

        A team of its that has members of others is left to one of those: with the last of them it goes as well.
        """
        members = """
            DELETE FROM member WHERE (team, address) IN (SELECT team, address FROM member WHERE task = ? LIMIT ?)
        """
        deleted = _DELETED_AT_ONCE
        while deleted == _DELETED_AT_ONCE:
            with self._writing():
                deleted = self._connection.execute(members, (self._task, _DELETED_AT_ONCE)).rowcount
        with self._writing():
            self._connection.execute(
                "DELETE FROM team WHERE task = ? AND NOT EXISTS (SELECT 1 FROM member WHERE team = team.id)",
                (self._task,),
            )
            heir = "SELECT task FROM member WHERE team = team.id AND task IS NOT NULL LIMIT 1"
            self._connection.execute(f"UPDATE team SET task = ({heir}) WHERE task = ?", (self._task,))
        self.forget()

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        if _version(connection) == 0:
            with self._writing():
                if _version(connection) == 0:  # nobody else has made it since
                    for statement in _statements(_SCHEMA):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
        if (found := _version(connection)) != _VERSION:
            raise sqlite3.DatabaseError(f"the directory has version {found}, and this code knows version {_VERSION}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, that either is there as a whole or leaves nothing."""
        ticket = self._queue.enter()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise
        finally:
            self._queue.leave(ticket)


class _Queue:
    """Processes that write one after the other, first come, first served; one that dies is out of it.

    SQLite's own lock, which is what keeps writers apart, is for whoever looks at the right moment: under load one task
    had it two hundred times while another waited. Here everybody locks the byte of a ticket, and waits until no earlier
    one is locked.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def enter(self) -> int:
        """Wait for one's turn; the ticket to leave with."""
        self._set(fcntl.F_WRLCK, 0, 1)
        ticket = int.from_bytes(os.pread(self._file, 8, 0), "big") + 1
        os.pwrite(self._file, ticket.to_bytes(8, "big"), 0)
        self._set(fcntl.F_WRLCK, ticket, 1)
        self._set(fcntl.F_UNLCK, 0, 1)
        if ticket > 1:
            self._set(fcntl.F_WRLCK, 1, ticket - 1)
            self._set(fcntl.F_UNLCK, 1, ticket - 1)
        return ticket

    def leave(self, ticket: int) -> None:
        """Let the next one in."""
        self._set(fcntl.F_UNLCK, ticket, 1)

    def close(self) -> None:
        """Also gives back what is locked."""
        os.close(self._file)

    def _set(self, kind: int, first: int, count: int) -> None:
        # Of the open file, not of the process: those are lost when the process closes the same file anywhere.
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLKW, struct.pack("hhqqq", kind, os.SEEK_SET, first, count, 0))


class _Batch:
    """The rows of one transaction. What it knows of teams holds no longer than that: others may remove them."""

    def __init__(self, connection: sqlite3.Connection, task: str, user: str) -> None:
        self.teams = 0
        self.members = 0
        self._connection = connection
        self._task = task
        self._user = user
        self._ids: dict[str, int] = {}
        self._now = time.time()

    def add(self, entry: Entry) -> str | None:
        """Add a row; why not, if it is there already."""
        team = self._ids.get(entry.team)
        if team is None:
            team = self._ids[entry.team] = self._team(entry.team)
        if entry.email is None:
            return None
        address = entry.email.lower()
        added = self._connection.execute(
            "INSERT INTO member VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (team, address, entry.email, entry.name, entry.role, self._task, self._now),
        )
        if added.rowcount == 0:
            return self._present(team, address)
        self.members += 1
        return None

    def _team(self, name: str) -> int:
        query = "SELECT id FROM team WHERE user = ? AND name = ?"
        row = self._connection.execute(query, (self._user, name)).fetchone()
        if row is not None:
            return int(row[0])
        self.teams += 1
        added = self._connection.execute(
            "INSERT INTO team (user, name, task, created_at) VALUES (?, ?, ?, ?)",
            (self._user, name, self._task, self._now),
        )
        return int(added.lastrowid or 0)

    def _present(self, team: int, address: str) -> str:
        query = "SELECT task FROM member WHERE team = ? AND address = ?"
        (task,) = self._connection.execute(query, (team, address)).fetchone()
        return (
            "the team has this e-mail from an earlier row" if task == self._task else "the team has this e-mail already"
        )


def teams(path: Path, user: str, before: int | None, limit: int) -> list[Team]:
    """So many teams of a user, the newest first, older than ``before``. Raises `sqlite3.Error`."""
    if not path.exists():
        return []
    # Writable, though nothing is written: whoever comes first after a kill has to roll back what was not committed.
    name = f"file:{quote(os.fsencode(path))}?mode=rw"
    connection = sqlite3.connect(name, uri=True, timeout=_READ_BUSY_S, isolation_level=None)
    try:
        connection.execute("PRAGMA query_only = ON")
        if _version(connection) == 0:
            return []
        query = """
            SELECT id, name, members, task, created_at FROM team
            WHERE user = ? AND (? IS NULL OR id < ?) ORDER BY id DESC LIMIT ?
        """
        return [Team(*row) for row in connection.execute(query, (user, before, before, limit))]
    finally:
        connection.close()


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: `executescript` would commit before the first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
