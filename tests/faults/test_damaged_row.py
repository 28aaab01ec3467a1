"""A row of the database that somebody has changed by hand so that it cannot be read: it takes no other along."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from fault_tools import logs, until_logged
from harness import Server, problem, serving
from verb_tools import launched, mistakes

LEFT_OUT: Final = "a task is left out"
QUICK: Final = {"steps": 1, "delay_s": 0}
FOREVER: Final = {"steps": 1_000_000}


def write(server: Server, sql: str, *ids: str) -> None:
    """Do that to each of these rows."""
    with closing(sqlite3.connect(server.data / "intermission.db", timeout=20)) as db, db:
        for task_id in ids:
            assert db.execute(f"UPDATE tasks SET {sql} WHERE id = ?", (task_id,)).rowcount == 1


def damage(server: Server, *ids: str) -> None:
    """Have them be no JSON any more."""
    write(server, "labels = '{'", *ids)


async def shown(server: Server, query: str = "") -> list[str]:
    """The tasks of the list, oldest first."""
    answer = await server.ask("GET", f"/tasks{query}")
    assert answer.status == 200, answer.body
    return sorted(item["id"] for item in answer.json["items"])


async def test_one_that_is_next(tmp_path: Path) -> None:
    """It fails, and those behind it are launched; mended it can be resumed."""
    async with serving(tmp_path, INTERMISSION_MAX_RUNNING="1") as server:
        first = await server.launch("steps", FOREVER)
        await server.until_progress(first)
        damaged = await server.launch("steps", QUICK)
        behind = [await launched(server, "steps", QUICK, labels={"a": "b"}) for _ in range(2)]
        damage(server, damaged)
        assert await shown(server) == sorted([first, *behind])
        assert await shown(server, "?label=a:b") == sorted(behind)
        assert (await server.ask("GET", "/tasks?limit=1")).json["next"] == behind[1]
        problem(await server.ask("GET", f"/tasks/{damaged}"), 500, "damaged")
        assert any("mend it while the server is down" in line and damaged in line for line in server.log)
        assert (await server.verb(first, "pause")).status == 200
        for task_id in behind:
            await server.until_status(task_id, "completed")
        assert any(LEFT_OUT in line and damaged in line for line in server.log)
        assert await server.stop() == 0
        write(server, "labels = '{}'", damaged)
        await server.start()
        task = await server.task(damaged)
        assert (task["status"], task["reason"], task["allowed"]) == (
            "failed",
            "state_unreadable",
            ["resume", "terminate"],
        )
        await server.verb(damaged, "resume")
        await server.until_status(damaged, "completed")
        assert mistakes(server) == []


async def test_one_that_runs(tmp_path: Path) -> None:
    """It keeps no place when its process has ended, and a start carries on all others; its log says what is wrong."""
    async with serving(tmp_path, INTERMISSION_MAX_RUNNING="2") as server:
        damaged, other = [await server.launch("steps", FOREVER) for _ in range(2)]
        for task_id in (damaged, other):
            await server.until_progress(task_id)
        behind = await server.launch("steps", QUICK)
        damage(server, damaged)
        for child in server.descendants():
            if child.pid != (await server.task(other))["child"]["pid"]:
                child.kill()
        await server.until_status(behind, "completed")
        await server.kill()
        await server.start()
        await server.until(other, lambda task: task["attempt"] == 2 and task["child"])
        assert any(LEFT_OUT in line and damaged in line for line in server.log)
        assert await server.stop() == 0
        assert mistakes(server) == []


async def test_those_that_are_old(tmp_path: Path) -> None:
    """The others expire, and nobody looks at them all the time."""
    async with serving(tmp_path) as server:
        ids = [await server.launch("steps", QUICK) for _ in range(8)]
        for task_id in ids:
            await server.until_status(task_id, "completed")
        assert await server.stop() == 0
        damage(server, *ids[:6])
        server.settings["INTERMISSION_RETENTION_DAYS"] = "0.00000001"
        await server.start()
        for task_id in ids[6:]:
            await server.until(task_id, lambda task: task["status"] in {404, 410})
        await until_logged(server, LEFT_OUT)
        assert logs(server, LEFT_OUT) < 100
        assert await server.stop() == 0
        assert mistakes(server) == []
