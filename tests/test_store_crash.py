"""SIGKILL of a process that writes: what it was told is written is there afterwards, and nothing half."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, Final

import pytest
from samples import new, pages

from intermission.state.models import Query, Task, Tombstone
from intermission.state.sqlite import SqliteStore
from intermission.state.status import Event, Status
from intermission.state.store import Store

HERE: Final = Path(__file__).parent
WRITER: Final = r"""
import asyncio, json, os, pathlib, sys
from intermission.state.models import Change
from intermission.state.sqlite import SqliteStore
from intermission.state.status import Event
from samples import end, new, now, point, step, tombstone

answers = os.dup(1)
os.dup2(2, 1)  # the log goes elsewhere

def say(**record):
    os.write(answers, json.dumps(record).encode() + b"\n")  # whole lines: less than PIPE_BUF

async def life(store, n):
    while True:
        task = await store.add(new(service=f"s{n}", bytes=n))
        say(id=task.id, status=task.status)
        (task,) = await store.claim(1, [task.service], now())
        say(id=task.id, status=task.status)
        for sequence in range(1, 4):
            assert await store.save(task.id, 1, point(sequence, state=json.dumps("x" * 2000)))
            say(id=task.id, status=task.status, sequence=sequence)
        task = await step(store, task, Event.COMPLETED, checkpoint=point(4), result='"done"', end=end(Event.COMPLETED))
        say(id=task.id, status=task.status, sequence=4)
        if n % 2:
            await store.bury(Change(task=task, event=Event.DELETE, at=now()), tombstone(task))
            say(id=task.id, status="gone")

async def main():
    store = SqliteStore(pathlib.Path(sys.argv[1]))
    await store.open()
    await asyncio.gather(*(life(store, n) for n in range(8)))

asyncio.run(main())
"""
ORDER: Final = ["pending", "running", "completed", "gone"]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator["Popen[bytes]"]:
    """A process that writes without end, and says what it was told is written."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "intermission.db")]
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    with Popen(command, stdout=PIPE, env=os.environ | {"PYTHONPATH": paths}) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("lines", [1, 2, 7, 50, 333, 1500])
async def test_what_was_told_is_there(writer: "Popen[bytes]", tmp_path: Path, lines: int) -> None:
    """Killed at some moment after so many answers, most likely in the middle of a commit."""
    told = await asyncio.to_thread(kill_after, writer, lines)
    assert len(told) >= lines
    latest: dict[str, dict[str, Any]] = {}
    for record in told:
        latest[record["id"]] = latest.get(record["id"], {}) | record
    store = SqliteStore(tmp_path / "intermission.db")
    await store.open()
    try:
        for task_id, record in latest.items():
            found = await store.get(task_id)
            assert found is not None
            assert at_least(found, record), record
        for page in await pages(store, Query(limit=200)):
            for item in page.items:
                await nothing_half(store, item)
        await store.add(new())
    finally:
        await store.close()
    with sqlite3.connect(tmp_path / "intermission.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        orphans = "SELECT count(*) FROM {} WHERE task_id NOT IN (SELECT id FROM tasks)"
        for table in ("checkpoints", "attempts", "events"):
            assert db.execute(orphans.format(table)).fetchone() == (0,), table
        counted = "SELECT * FROM tasks WHERE bytes IS NOT NULL"
        sums = f"SELECT user, sum(bytes), count(*), sum(status <> 'completed') FROM ({counted}) GROUP BY user"
        assert db.execute("SELECT * FROM usage").fetchall() == db.execute(sums).fetchall()
        assert db.execute("SELECT count(*) FROM tombstones WHERE id IN (SELECT id FROM tasks)").fetchone() == (0,)
    db.close()


def kill_after(process: "Popen[bytes]", lines: int) -> list[dict[str, Any]]:
    """SIGKILL once it has said so many things; all that it said."""
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    assert process.wait(30) == -signal.SIGKILL
    return [json.loads(line) for line in said if line.endswith(b"\n")]


def at_least(found: Task | Tombstone, record: dict[str, Any]) -> bool:
    """Whether it is as far as was told; it may be further, for an answer may have been cut off."""
    if isinstance(found, Tombstone):
        return True
    sequence = found.checkpoint.sequence if found.checkpoint else 0
    return ORDER.index(found.status) >= ORDER.index(record["status"]) and sequence >= record.get("sequence", 0)


async def nothing_half(store: Store, task: Task) -> None:
    """Its row, attempts, events and checkpoint tell one story."""
    statuses = [record.status for record in await store.events(task.id)]
    assert statuses == [Status(name) for name in ORDER[: ORDER.index(task.status) + 1]]
    attempts = await store.attempts(task.id)
    assert len(attempts) == task.attempt == (task.status is not Status.PENDING)
    ended = [attempt.end for attempt in attempts if attempt.end is not None]
    assert [end.outcome for end in ended] == [Event.COMPLETED] * (task.status is Status.COMPLETED)
    sequence = task.checkpoint.sequence if task.checkpoint else 0
    assert (sequence == 4) is (task.status is Status.COMPLETED)
    whole = await store.get(task.id)
    assert isinstance(whole, Task)
    assert (whole.result == '"done"') is (task.status is Status.COMPLETED)
