"""What is SQLite's own about the store: how it opens, what it costs, and what a full or locked database does to it."""
# ruff: noqa: ASYNC221 -- files are made and looked at while nothing else is on the loop

import asyncio
import ctypes
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from samples import STORED, ids, new, now, pages, point, reach, running, step, tombstone
from structlog.testing import capture_logs

from intermission.state import migrate
from intermission.state.connection import Connection
from intermission.state.models import Change, NewTask, Query, Task, Tombstone, Usage
from intermission.state.sqlite import SqliteStore
from intermission.state.status import Event, Status
from intermission.state.store import SchemaError, StoreError, StoreFullError
from intermission.state.transaction import Transaction

T = TypeVar("T")

OLD: Final = Path(__file__).parent / "data" / "version-1.db"
_READ_THROUGH: Final = re.compile(r"SCAN (t|c|tasks|checkpoints|attempts|events|tombstones|usage)\b(?!.*INDEX)")
SERVICES: Final = ["counter", "extract", "team"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is to be."""
    return tmp_path / "intermission.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """An open store, empty."""
    opened = SqliteStore(path)
    await opened.open()
    yield opened
    await opened.close()


def connections(store: SqliteStore) -> list[Connection]:
    """The one that writes, then those that read."""
    assert store._writer is not None
    assert store._points is not None
    assert store._lists is not None
    return [store._writer._db, store._points, store._lists]


async def pragma(store: SqliteStore, text: str) -> None:
    """Set one on the connection that writes."""
    await connections(store)[0].run(lambda db: db.execute(f"PRAGMA {text}").fetchall())


async def statements(store: SqliteStore, work: Awaitable[T]) -> tuple[T, list[str]]:
    """What the work returns, and every statement that it ran."""
    ran: list[str] = []
    for connection in connections(store):
        await connection.set_trace_callback(ran.append)
    try:
        return await work, ran
    finally:
        for connection in connections(store):
            await connection.set_trace_callback(None)  # type: ignore[arg-type] # None is how it is taken away


class TestOpening:
    """Which databases are opened, and what happens to the others."""

    async def test_a_new_database_is_ours_and_says_its_version(self, store: SqliteStore, path: Path) -> None:
        """In its header, where any program can see it."""
        assert store is not None
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA application_id").fetchone() == (0x494E544D,)
            assert db.execute("PRAGMA user_version").fetchone() == (len(migrate._scripts()),)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        db.close()

    async def test_a_commit_waits_for_the_disk(self, store: SqliteStore) -> None:
        """`synchronous=FULL` on the connection that writes; the others cannot write."""
        writing, *reading = connections(store)
        assert await writing.run(lambda db: db.execute("PRAGMA synchronous").fetchall()) == [(2,)]
        for connection in reading:
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                await connection.run(lambda db: db.execute("DELETE FROM tasks"))

    async def test_an_old_database_opens_and_is_understood(self, path: Path) -> None:
        """``tests/data/version-1.db`` was made by the first version: a task in each status, and a tombstone."""
        shutil.copy(OLD, path)
        store = SqliteStore(path)
        await store.open()
        try:
            tasks = (await store.find(Query(user="anna"))).items
            assert sorted(task.status for task in tasks) == sorted(STORED)
            for task in tasks:
                whole = await store.get(task.id)
                assert isinstance(whole, Task)
                assert (whole.params, whole.labels) == ('{"limit": 3}', {"team": "größe"})
                assert (whole.checkpoint is not None) == (task.status is not Status.PENDING)
                assert len(await store.events(task.id)) >= 1
            (completed,) = (task for task in tasks if task.status is Status.COMPLETED)
            (attempt,) = await store.attempts(completed.id)
            assert attempt.end is not None
            assert attempt.end.error is not None
            assert {task.retry for task in tasks} == {None}
            assert [task.status for task in await store.expired(1e12, 9)] == ["completed", "failed"]
            gone = await store.get("01a20d80-0000-7000-8000-000000000000")
            assert isinstance(gone, Tombstone)
            assert gone.receipt is not None
            assert len(gone.receipt.processes) == 2
            assert {task.status for task in await store.claim(9, [tasks[0].service, "counter"], now())} == {
                Status.RUNNING
            }
        finally:
            await store.close()

    async def test_a_newer_one_is_refused_and_left_alone(self, path: Path) -> None:
        """Not a byte of it changes, nor of the WAL that a crash left beside it."""
        newer = subprocess.run([sys.executable, "-c", _NEWER, path], check=False)
        assert newer.returncode == -9
        files = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")}
        assert files["intermission.db-wal"]
        with pytest.raises(SchemaError, match=r"version 99 .* newer program"):
            await SqliteStore(path).open()
        left = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")}
        assert left == files

    @pytest.mark.parametrize(
        "script", ["CREATE TABLE theirs (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"]
    )
    async def test_another_programs_database_is_refused(self, path: Path, script: str) -> None:
        """And left alone."""
        with sqlite3.connect(path) as db:
            db.executescript(script)
        db.close()
        before = path.read_bytes()
        with pytest.raises(SchemaError, match="another program"):
            await SqliteStore(path).open()
        assert path.read_bytes() == before

    async def test_a_file_that_is_no_database_is_refused(self, path: Path) -> None:
        """And left alone."""
        path.write_text("line,of,a,csv\n" * 200)
        with pytest.raises(SchemaError, match="no database"):
            await SqliteStore(path).open()
        assert path.read_text() == "line,of,a,csv\n" * 200

    async def test_an_empty_file_is_taken(self, path: Path) -> None:
        """A crash right at the first start leaves one."""
        path.touch()
        store = SqliteStore(path)
        await store.open()
        added = await store.add(new())
        assert isinstance(added, Task)
        assert await store.get(added.id) == added
        await store.close()

    async def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        """Said in a StoreError that names the file."""
        with pytest.raises(StoreError, match=r"nowhere/x\.db"):
            await SqliteStore(tmp_path / "nowhere" / "x.db").open()

    async def test_uploads_of_an_older_version_are_counted(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With what was announced of them, else with what is there."""
        scripts = migrate._scripts()
        with monkeypatch.context() as before:
            before.setattr(migrate, "_scripts", lambda: scripts[:6])
            db = sqlite3.connect(path, isolation_level=None)
            migrate.migrate(db)
        rest = "NULL, 0, 1, 4, 0, -1, 0, 0, NULL, NULL, '{}', NULL, ?, NULL, 1, NULL"
        row = f"INSERT INTO tasks VALUES (?, ?, ?, ?, {rest})"
        for task_id, service, user, status, params in (
            ("a", "upload", "anna", "completed", '{"size_bytes": 5}'),
            ("b", "upload", "anna", "paused", '{"size_bytes": null}'),
            ("c", "upload", "anna", "paused", '{"size_bytes": null}'),
            ("d", "counter", "anna", "completed", "{}"),
            ("e", "upload", "berta", "failed", '{"size_bytes": 70}'),
        ):
            db.execute(row, (task_id, service, user, status, params))
        db.execute("INSERT INTO checkpoints VALUES ('b', 1, 1, 1, 0, '{}', NULL, '{\"received\": 600}')")
        db.close()
        store = SqliteStore(path)
        await store.open()
        assert await store.usage("anna") == Usage(bytes=605, uploads=3, unfinished=2)
        assert await store.usage("berta") == Usage(bytes=70, uploads=1, unfinished=1)
        assert [task.bytes for page in await pages(store, Query()) for task in page.items] == [70, None, 0, 600, 5]
        await store.close()

    async def test_odd_names(self, tmp_path: Path) -> None:
        """A path is a path, though the connections are made with URIs."""
        path = tmp_path / "100% größe?mode=memory#1"
        path.mkdir()
        store = SqliteStore(path / "x.db")
        await store.open()
        added = await store.add(new())
        assert await store.get(added.id) == added
        await store.close()
        assert (path / "x.db").stat().st_size > 0

    async def test_a_migration_that_fails_leaves_the_version_before(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each has a transaction of its own; the next start can try again."""
        first = migrate._scripts()
        monkeypatch.setattr(migrate, "_scripts", lambda: [*first, "CREATE TABLE second (x); CREATE TABLE tasks (x)"])
        with pytest.raises(StoreError, match="already exists"):
            await SqliteStore(path).open()
        monkeypatch.setattr(migrate, "_scripts", lambda: [*first, "CREATE TABLE second (x) -- no semicolon"])
        for _ in range(2):
            store = SqliteStore(path)
            await store.open()
            await store.close()
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (len(first) + 1,)
        db.close()

    async def test_an_sqlite_with_the_wal_bug_is_warned_of(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """And one without is not."""
        for version, warnings in (((3, 51, 2), 1), ((3, 51, 3), 0)):
            monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
            with capture_logs() as logs:
                store = SqliteStore(path)
                await store.open()
                await store.close()
            assert [log["log_level"] for log in logs] == ["warning"] * warnings

    async def test_an_sqlite_that_is_too_old(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Refused by its version, and no file is made."""
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
        with pytest.raises(StoreError, match=r"3\.37"):
            await SqliteStore(path).open()
        assert not path.exists()

    async def test_no_thread_is_left(self, path: Path) -> None:
        """Neither by a store that was closed nor by one that did not open: such a thread would hang the process."""

        def running_ones() -> set[str]:
            return {thread.name for thread in threading.enumerate() if "connection_worker" in thread.name}

        before = running_ones()
        store = SqliteStore(path)
        await store.open()
        assert len(running_ones() - before) == 3
        await store.close()
        path.write_bytes(b"no database" * 100)
        with pytest.raises(SchemaError):
            await store.open()
        assert running_ones() == before

    def test_a_store_that_nobody_closed_does_not_hang_the_process(self, path: Path) -> None:
        """It exits by itself; what was committed is there."""
        subprocess.run([sys.executable, "-W", "ignore", "-c", _UNCLOSED, path], check=True, timeout=30)
        with sqlite3.connect(path) as db:
            assert db.execute("SELECT count(*) FROM tasks").fetchone() == (1,)
        db.close()


_NEWER: Final = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.executescript("PRAGMA journal_mode = WAL; CREATE TABLE tasks (x); PRAGMA user_version = 99;"
                 "PRAGMA application_id = 0x494E544D; INSERT INTO tasks VALUES (1)")
os.kill(os.getpid(), 9)
"""
_UNCLOSED: Final = """
import asyncio, pathlib, sys
from intermission.state.models import NewTask
from intermission.state.sqlite import SqliteStore

store = SqliteStore(pathlib.Path(sys.argv[1]))

async def main():
    await store.open()
    await store.add(NewTask(id="a", service="s", user="u", params="{}", created_at=0.0))

asyncio.run(main())
"""


class TestGroups:
    """Group commit as it is on the disk, and what waits for what."""

    async def test_what_is_asked_for_in_one_instant_is_one_commit(self, store: SqliteStore) -> None:
        """Whatever it is; the inserts go as few statements."""
        task = await running(store)

        async def burst() -> None:
            await asyncio.gather(
                *(store.add(new()) for _ in range(100)),
                store.save(task.id, 1, point(1)),
                store.advance(Change(task=task, event=Event.PAUSE, at=now())),
                store.claim(3, SERVICES, now()),
            )

        _, ran = await statements(store, burst())
        assert [sql.partition(" ")[0] for sql in ran].count("COMMIT") == 1
        assert sum(sql.startswith("INSERT INTO tasks") for sql in ran) <= 4
        assert sum(sql.startswith("INSERT INTO events") for sql in ran) <= 7

    async def test_what_comes_in_during_a_commit_goes_into_the_next_together(self, store: SqliteStore) -> None:
        """However many they are."""
        held = Held(store)
        first = asyncio.create_task(held.write())
        await held.reached()
        adds = [asyncio.create_task(store.add(new())) for _ in range(50)]
        await asyncio.sleep(0)

        async def rest() -> None:
            held.release()
            await asyncio.gather(first, *adds)

        writer = connections(store)[0]
        ran: list[str] = []
        # The trace is set behind the commit that is held: only what comes after it is seen.
        tracing = asyncio.create_task(_discard(writer.set_trace_callback(ran.append)))
        await asyncio.sleep(0)
        await rest()
        await tracing
        assert ran.count("COMMIT") == 1

    async def test_reads_do_not_wait_for_a_commit(self, store: SqliteStore) -> None:
        """They see what was there before it."""
        there = await store.add(new())
        held = Held(store)
        writing = asyncio.create_task(held.write())
        await held.reached()
        asked = asyncio.create_task(store.add(new()))
        assert await store.get(there.id) == there
        assert ids((await store.find(Query())).items) == [there.id]
        assert (await store.counts())[Status.PENDING] == 1
        assert not asked.done()
        held.release()
        await asyncio.gather(writing, asked)

    async def test_a_task_is_read_while_a_list_is(self, store: SqliteStore) -> None:
        """A page that examines thousands of rows does not keep `get` waiting."""
        there = await store.add(new())
        reached, release = threading.Event(), threading.Event()

        def long_read(_: sqlite3.Connection) -> None:
            reached.set()
            assert release.wait(30)

        reading = asyncio.create_task(connections(store)[2].run(long_read))
        assert await asyncio.to_thread(reached.wait, 30)
        assert await store.get(there.id) == there
        release.set()
        await reading

    async def test_a_loop_that_is_never_idle_does_not_starve_the_threads(self, store: SqliteStore) -> None:
        """Its turns are shorter than the interpreter's usual switch interval, so that nobody could ever insist."""
        await asyncio.gather(*(store.add(new()) for _ in range(60)))
        over = False

        async def busy() -> None:
            while not over:
                until = time.perf_counter() + 0.002
                while time.perf_counter() < until:
                    pass
                await asyncio.sleep(0)

        spinning = asyncio.create_task(busy())
        async with asyncio.timeout(30):
            for _ in range(30):
                await store.find(Query())
        over = True
        await spinning

    async def test_a_flood_is_cut_into_several_commits(self, store: SqliteStore) -> None:
        """Its first callers do not wait for its last; the order stays."""
        fresh = [new() for _ in range(2500)]

        async def flood() -> list[Task]:
            return await asyncio.gather(*(store.add(task) for task in fresh))

        _, ran = await statements(store, flood())
        assert ran.count("COMMIT") == 3
        assert ids(await store.claim(2500, SERVICES, now())) == [task.id for task in fresh]


async def _discard(awaitable: Awaitable[Any]) -> None:
    await awaitable


class Held:
    """A commit that is held in its middle."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._reached = threading.Event()
        self._release = threading.Event()

    async def write(self) -> None:
        """Ask for it."""

        def operation(_: Transaction) -> None:
            self._reached.set()
            assert self._release.wait(30)

        assert self._store._writer is not None
        await self._store._writer.submit(operation)

    async def reached(self) -> None:
        """Wait until it is under way."""
        assert await asyncio.to_thread(self._reached.wait, 30)

    def release(self) -> None:
        """Let it go on."""
        self._release.set()


class TestNoSpace:
    """Full disks and locked databases: a clear answer, nothing half, and a store that goes on afterwards."""

    async def test_no_page_is_left(self, store: SqliteStore) -> None:
        """StoreFullError, nothing of it is written; with room again, everything works."""
        task = await running(store)
        await pragma(store, "max_page_count = 1")  # the least that it can be is what it is
        big = new(params='"' + "x" * 200_000 + '"')
        with pytest.raises(StoreFullError, match="no space"):
            await store.add(big)
        assert await store.get(big.id) is None
        assert await store.events(big.id) == []
        await pragma(store, "max_page_count = 1000000")
        assert await store.get((await store.add(big)).id) is not None
        assert await store.save(task.id, 1, point(1)) is True

    async def test_what_needs_little_is_done_though_something_great_did_not_fit(self, store: SqliteStore) -> None:
        """A pause must be possible on a full disk, and beside a start that is refused."""
        task = await running(store)
        await pragma(store, "max_page_count = 1")
        results = await asyncio.gather(
            store.add(new(params='"' + "x" * 200_000 + '"')),
            store.advance(Change(task=task, event=Event.PAUSE, at=now())),
            store.save(task.id, 1, point(1)),
            return_exceptions=True,
        )
        assert isinstance(results[0], StoreFullError)
        assert isinstance(results[1], Task)
        assert results[2] is True

    async def test_a_real_full_disk(self, small_disk: Path) -> None:
        """Every start is either accepted and there, or refused as full and not there; with room again, all goes on."""
        store = SqliteStore(small_disk / "intermission.db")
        await store.open()
        try:
            task = await running(store)
            filler = small_disk / "filler"
            filler.write_bytes(b"x" * 600_000)
            fresh = [new(params='"' + "x" * 30_000 + '"') for _ in range(80)]
            results = await asyncio.gather(*(store.add(each) for each in fresh), return_exceptions=True)
            assert any(isinstance(result, StoreFullError) for result in results)
            for each, result in zip(fresh, results, strict=True):
                assert isinstance(result, (Task, StoreFullError))
                assert isinstance(await store.get(each.id), Task) is isinstance(result, Task)
            filler.unlink()
            assert isinstance(await store.add(new()), Task)
            await step(store, task, Event.PAUSE)
            assert await connections(store)[0].run(lambda db: db.execute("PRAGMA integrity_check").fetchall()) == [
                ("ok",)
            ]
        finally:
            await store.close()

    async def test_another_program_holds_the_lock(self, store: SqliteStore, path: Path) -> None:
        """The whole batch fails with nothing applied, reads go on, and the next batch works."""
        await pragma(store, "busy_timeout = 10")
        task = await running(store)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        added = new()
        results = await asyncio.gather(
            store.add(added),
            store.advance(Change(task=task, event=Event.PAUSE, at=now())),
            return_exceptions=True,
        )
        assert [(type(result), "locked" in str(result)) for result in results] == [(StoreError, True)] * 2
        assert await store.get(added.id) is None
        assert await store.get(task.id) == task
        other.close()
        assert isinstance(await store.add(added), Task)

    @pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
    async def test_a_begin_or_commit_that_fails(self, store: SqliteStore, statement: str) -> None:
        """Everybody of the batch is told, and nothing is left of it for the next one to commit."""
        task = await running(store)
        writer = connections(store)[0]
        real = writer._connection
        assert real is not None
        writer._connection = Failing(real, statement)  # type: ignore[assignment]
        adds = [new() for _ in range(5)]
        results = await asyncio.gather(
            *(store.add(each) for each in adds), store.save(task.id, 1, point(1)), return_exceptions=True
        )
        writer._connection = real
        assert {type(result) for result in results} == {StoreError}
        await store.add(new())
        assert [await store.get(each.id) for each in adds] == [None] * 5
        assert await store.get(task.id) == task


class Failing:
    """A connection on which one kind of statement fails as it does on a broken disk."""

    def __init__(self, real: sqlite3.Connection, statement: str) -> None:
        self._real = real
        self._statement = statement

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """As the real one, but for the statement."""
        if sql == self._statement:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return self._real.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        """The rest is the real one's."""
        return getattr(self._real, name)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB; root only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(tmp_path), b"tmpfs", 0, b"size=2m"):
        pytest.skip(f"a small disk cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    yield tmp_path
    detach = 2  # MNT_DETACH
    assert libc.umount2(os.fsencode(tmp_path), detach) == 0


class TestCost:
    """What is merely stored costs nothing: counted in steps of SQLite's own machine, so that no clock is asked."""

    async def test_it_does_not_grow_with_what_is_stored(self, store: SqliteStore) -> None:
        """Pages, claims, timers, counts and recovery, beside 100 and beside 10,000 tasks that rest."""
        for status in (Status.RUNNING, Status.PAUSING, Status.RETRYING, Status.TERMINATING):
            await reach(store, status, service="counter")
        costs = []
        for count in (100, 9_900):
            for start in range(0, count, 1000):
                await self._at_rest(store, min(1000, count - start))
            works = {**self._pages(store), **self._overviews(store)}
            costs.append({name: await self._cost(store, work) for name, work in works.items()})
        few, many = costs
        assert {name: (few[name], many[name]) for name in few if many[name] > few[name] * 1.3 + 50} == {}

    async def test_a_queue_that_may_not_run_is_not_looked_through(self, store: SqliteStore) -> None:
        """Claiming for one service costs the same whatever waits for the others, or for later."""
        await store.add(new(service="team"))
        alone = await self._cost(store, lambda: store.claim(1, ["team", "counter"], now()))
        for _ in range(5):
            await asyncio.gather(*(store.add(new(service="extract", priority=9)) for _ in range(1000)))
        await store.add(new(service="team"))
        assert await self._cost(store, lambda: store.claim(1, ["team", "counter"], now())) < alone * 1.3 + 50

    async def test_a_page_is_bounded(self, store: SqliteStore) -> None:
        """A filter that matches nothing costs the same beside 6,000 tasks and beside 12,000."""
        costs = []
        for _ in range(2):
            for _ in range(6):
                await self._at_rest(store, 1000)
            works = self._bounded_pages(store)
            costs.append({name: await self._cost(store, work) for name, work in works.items()})
        few, many = costs
        assert {name: (few[name], many[name]) for name in few if many[name] > few[name] * 1.1} == {}

    async def test_no_table_is_read_through(self, store: SqliteStore) -> None:
        """As SQLite explains its own plans: always along an index, and lists in its order."""
        for status in reversed(STORED):  # pending comes first in it, and would be claimed for the others
            await reach(store, status, service="counter")

        async def everything() -> None:
            for work in (self._pages(store) | self._bounded_pages(store) | self._overviews(store)).values():
                await work()

        _, ran = await statements(store, everything())
        plans = {sql: await self._plan(store, sql) for sql in set(ran) if sql.startswith(("SELECT", "UPDATE", "\n"))}
        assert len(plans) >= 20
        for sql, plan in plans.items():
            assert [line for line in plan if _READ_THROUGH.match(line)] == [], sql
            if "LIMIT" in sql and "priority" not in sql:
                assert [line for line in plan if "TEMP B-TREE" in line] == [], sql

    @staticmethod
    def _finding(store: SqliteStore, queries: dict[str, Query]) -> dict[str, Callable[[], Awaitable[Any]]]:
        return {name: partial(store.find, query) for name, query in queries.items()}

    def _pages(self, store: SqliteStore) -> dict[str, Callable[[], Awaitable[Any]]]:
        """Lists that an index answers."""
        queries = {
            "everything": Query(limit=20),
            "of a user": Query(user="anna", limit=20),
            "of a service": Query(service="counter", limit=20),
            "of both": Query(user="anna", service="counter", limit=20),
            "moving": Query(statuses=frozenset({Status.RUNNING})),
            "moving of a user": Query(user="anna", statuses=frozenset({Status.RUNNING, Status.PENDING})),
            "older": Query(user="anna", before="ffff", limit=20),
        }
        return self._finding(store, queries)

    def _bounded_pages(self, store: SqliteStore) -> dict[str, Callable[[], Awaitable[Any]]]:
        """Lists for which rows are looked at, up to the bound."""
        queries = {
            "resting": Query(statuses=frozenset({Status.FAILED})),
            "resting of a user": Query(user="anna", statuses=frozenset({Status.FAILED})),
            "resting of a service": Query(service="counter", statuses=frozenset({Status.FAILED})),
            "resting of both": Query(user="anna", service="counter", statuses=frozenset({Status.FAILED})),
            "labelled": Query(user="anna", labels={"no": "such"}),
        }
        return self._finding(store, queries)

    @staticmethod
    def _overviews(store: SqliteStore) -> dict[str, Callable[[], Awaitable[Any]]]:
        return {
            "claim": lambda: store.claim(1, SERVICES, now()),
            "wary claim": lambda: store.claim(1, SERVICES, now(), wary=True),
            "wake_due": lambda: store.wake_due(0),
            "next_due": lambda: store.next_due(0),
            "counts": store.counts,
            "with_child": store.with_child,
            "oldest": store.oldest,
            "expired": lambda: store.expired(1e12, 4),
            "forget": lambda: store.forget(0, 4),
            "events of all": lambda: store.find_events(None, None, 20),
            "events of a user": lambda: store.find_events("anna", None, 20),
            "older events of a user": lambda: store.find_events("anna", 1000, 20),
        }

    @staticmethod
    async def _at_rest(store: SqliteStore, count: int) -> None:
        await asyncio.gather(*(store.add(new(labels={"k": "v"})) for _ in range(count)))
        claimed = await store.claim(count, ["counter"], now())
        ends = [Event.STOPPED if n % 2 else Event.COMPLETED for n in range(count)]
        await asyncio.gather(*(_rest(store, task, event) for task, event in zip(claimed, ends, strict=True)))

    @staticmethod
    async def _cost(store: SqliteStore, work: Callable[[], Awaitable[Any]]) -> int:
        """Steps of SQLite's virtual machine, all connections together."""
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        for connection in connections(store):
            await connection.set_progress_handler(count, 1)
        await work()
        for connection in connections(store):
            await connection.set_progress_handler(None, 1)  # type: ignore[arg-type] # None is how it is taken away
        return steps

    @staticmethod
    async def _plan(store: SqliteStore, sql: str) -> list[str]:
        def explain(db: sqlite3.Connection) -> list[str]:
            return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()]

        return await connections(store)[0].run(explain)


async def _rest(store: SqliteStore, task: Task, event: Event) -> None:
    if event is Event.STOPPED:
        task = await step(store, task, Event.PAUSE)
    await step(store, task, event)


async def test_what_an_operator_reads(store: SqliteStore, path: Path) -> None:
    """The columns hold plain text and JSON as a person writes it."""
    task = await running(store, params='{"limit": 3}', labels={"team": "größe"})
    await store.save(task.id, 1, point(2))
    completed = await step(store, task, Event.COMPLETED, result='{"counted": 3}')
    other = NewTask(id="x", service="counter", user="anna", params="{}", created_at=1.5)
    await store.add(other)
    await store.bury(Change(task=completed, event=Event.DELETE, at=now()), tombstone(completed, receipt=None))
    paused = await step(store, await step(store, await running(store), Event.PAUSE), Event.STOPPED)
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT status, labels, params FROM tasks WHERE id = ?", (paused.id,)).fetchall()
        assert rows == [("paused", "{}", "{}")]
        assert db.execute("SELECT created_at FROM tasks WHERE id = 'x'").fetchall() == [(1.5,)]
        names = db.execute("SELECT event, status FROM events WHERE task_id = ? ORDER BY id", (paused.id,)).fetchall()
        assert names == [(None, "pending"), ("claimed", "running"), ("pause", "pausing"), ("stopped", "paused")]
    db.close()
