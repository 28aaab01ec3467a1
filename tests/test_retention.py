"""What is kept for so long: afterwards it is gone without a trace, and nothing else is."""

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from fault_tools import until_logged
from harness import Server, serving, until
from verb_tools import playing

TOYS: Final = "toys,retention_toys"
DAY_S: Final = 86_400
LONG: Final = "30"


def days(seconds: float) -> str:
    """The setting."""
    return f"{seconds / DAY_S:.12f}"


@asynccontextmanager
async def keeping(data: Path, seconds: float) -> AsyncIterator[Server]:
    """A server that keeps what has finished for so long, and makes no mistake."""
    async with playing(data, INTERMISSION_HANDLERS=TOYS, INTERMISSION_RETENTION_DAYS=days(seconds)) as server:
        yield server


def rows(server: Server) -> dict[str, int]:
    """How many rows each table has."""
    with contextlib.closing(sqlite3.connect(server.data / "intermission.db")) as db:
        tables = ("tasks", "checkpoints", "attempts", "events", "tombstones")
        return {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def gone_by(server: Server, task_id: str) -> list[str | None]:
    """Who its tombstone says ended it; nothing without one."""
    with contextlib.closing(sqlite3.connect(server.data / "intermission.db")) as db:
        return [by for (by,) in db.execute("SELECT gone_by FROM tombstones WHERE id = ?", (task_id,))]


def folders(server: Server) -> set[str]:
    """The tasks that have one."""
    return set(os.listdir(server.data / "tasks"))


async def until_folders(server: Server, left: set[str]) -> None:
    """Wait until no other task has one: that of a completed task follows its row."""

    async def so() -> bool:
        return folders(server) == left

    await until(so, what=lambda: f"{folders(server)}")


async def until_http(server: Server, task_id: str, status: int) -> Any:
    """The answer to a GET as soon as it has this status."""
    found: Any = None

    async def so() -> bool:
        nonlocal found
        found = await server.ask("GET", f"/tasks/{task_id}")
        return bool(found.status == status)

    await until(so, what=lambda: f"{found.status} {found.body}\n" + "\n".join(server.log[-20:]))
    return found.json


async def test_a_completed_task_goes_and_then_its_tombstone(tmp_path: Path) -> None:
    """Not before its time; then the task is 410 for as long again, and 404; nothing of it is left."""
    async with keeping(tmp_path, 1.5) as server:
        task_id = await server.launch("counter", {"limit": 3})
        task = await server.until_status(task_id, "completed")
        assert await server.file(task_id, "numbers.txt")
        said = await until_http(server, task_id, 410)
        assert said["receipt"] is None
        assert said["gone_at"] >= task["finished_at"]
        assert gone_by(server, task_id) == [None]
        await until_folders(server, set())
        await until_http(server, task_id, 404)
        assert rows(server) == dict.fromkeys(("tasks", "checkpoints", "attempts", "events", "tombstones"), 0)


async def test_a_failed_task_is_terminated(tmp_path: Path) -> None:
    """What it did outside is undone by `clean`, and its 410 has a receipt that says so."""
    effect = tmp_path / "effect"
    async with keeping(tmp_path / "var", 1.5) as server:
        task_id = await server.launch("half", {"path": str(effect)})
        await server.until_status(task_id, "failed")
        assert effect.exists()
        said = await until_http(server, task_id, 410)
        assert said["receipt"] == {
            "processes": [],
            "survivors": 0,
            "cleaned": True,
            "files_deleted": said["receipt"]["files_deleted"],
        }
        assert said["receipt"]["files_deleted"] >= 2
        assert not effect.exists()
        assert gone_by(server, task_id) == [None]
        await until_http(server, task_id, 404)
        assert (rows(server)["tasks"], folders(server)) == (0, set())


async def test_what_has_not_finished_stays(tmp_path: Path) -> None:
    """Paused and running tasks are kept whatever their age, and so are those that a person resumed."""
    async with keeping(tmp_path / "var", 1.0) as server:
        paused, running = [await server.launch("steps", {"steps": 1_000_000}) for _ in range(2)]
        await server.until_progress(paused)
        await server.verb(paused, "pause")
        resumed = await server.launch("half", {"path": str(tmp_path / "effect")})
        await server.until_status(resumed, "failed")
        assert (await server.verb(resumed, "pause")).status == 409
        later = await server.launch("counter", {"limit": 1})
        await until_http(server, later, 410)
        assert [(await server.task(task_id))["status"] for task_id in (paused, running)] == ["paused", "running"]
        assert folders(server) >= {paused, running}
        for task_id in (paused, running):
            assert (await server.verb(task_id, "terminate")).status == 200


async def test_a_clean_that_fails_keeps_the_task(tmp_path: Path) -> None:
    """It is tried again when its time is over once more, and the task goes only when it succeeds."""
    effect = tmp_path / "effect"
    async with keeping(tmp_path / "var", 1.0) as server:
        task_id = await server.launch("half", {"path": str(effect), "clean_errors": 4})
        task = await server.until(task_id, lambda task: task["reason"] == "clean_failed")
        assert task["status"] == "failed"
        assert task["error"]["message"] == "the mail server is away"
        assert effect.exists()
        await until_http(server, task_id, 410)
        assert not effect.exists()
        assert len(Path(f"{effect}.cleans").read_text().splitlines()) == 5


async def test_a_resume_at_the_same_instant(tmp_path: Path) -> None:
    """Either the one or the other, whole: who is resumed completes, who is not is gone; never both."""
    async with keeping(tmp_path / "var", 1.5) as server:
        ids = [await server.launch("half", {"path": str(tmp_path / f"effect{n}")}) for n in range(24)]
        for task_id in ids:
            await server.until(task_id, lambda task: task.get("status") in {"failed", "terminating", 410})

        async def resume_in_time(task_id: str) -> int:
            task = await server.task(task_id)
            while (answer := await server.verb(task_id, "resume")).status == 202:
                status = answer.json["status"]
                task = await server.until(task_id, lambda task: task.get("status") in {"completed", 410})
                return 202 if (status, task["status"]) != ("pending", 410) else 410
            return answer.status

        first = ids[0]
        await until_http(server, first, 410)
        answers = await asyncio.gather(*(resume_in_time(task_id) for task_id in ids))
        assert set(answers) <= {202, 409, 410}
        for task_id in ids:
            await until_http(server, task_id, 404)
        assert (rows(server)["tasks"], folders(server)) == (0, set())
        assert sorted(path.name for path in tmp_path.glob("effect*") if not path.name.endswith(".cleans")) == sorted(
            f"effect{n}" for n, answer in enumerate(answers) if answer == 202
        )


async def test_a_delete_at_the_same_instant(tmp_path: Path) -> None:
    """A person and the clock remove the same tasks: each is gone, and nobody is answered with a mistake."""
    async with keeping(tmp_path, 1.0) as server:
        ids = [await server.launch("counter", {"limit": 2}) for _ in range(40)]
        for task_id in ids:
            await server.until(task_id, lambda task: task.get("status") in {"completed", 410})
        await until_http(server, ids[0], 410)
        answers = await asyncio.gather(*(server.ask("DELETE", f"/tasks/{task_id}") for task_id in ids))
        assert {answer.status for answer in answers} <= {204, 404, 410}
        for task_id in ids:
            await until_http(server, task_id, 404)
        assert folders(server) == set()


async def test_one_that_cannot_be_removed_holds_up_no_other(tmp_path: Path) -> None:
    """Its folder stays, for the next start to try again; the others go."""
    async with serving(tmp_path / "var", INTERMISSION_RETENTION_DAYS=LONG) as server:
        ids = [await server.launch("counter", {"limit": 2}) for _ in range(9)]
        for task_id in ids:
            await server.until_status(task_id, "completed")
        elsewhere = tmp_path / "elsewhere"
        (server.data / "tasks" / ids[0]).rename(elsewhere)
        (server.data / "tasks" / ids[0]).symlink_to(elsewhere)  # nothing of ours is behind a link, also for root
        assert await server.stop() == 0
        with contextlib.closing(sqlite3.connect(server.data / "intermission.db")) as db:
            db.execute("UPDATE tasks SET finished_at = finished_at - 31 * ?", (DAY_S,))
            db.commit()
        await server.start()
        for task_id in ids:
            await until_http(server, task_id, 410)
        await until_logged(server, "its folder could not be removed")
        await until_folders(server, {ids[0]})
        (server.data / "tasks" / ids[0]).unlink()
        elsewhere.rename(server.data / "tasks" / ids[0])
        assert await server.stop() == 0
        await server.start()
        await until_folders(server, set())


@pytest.mark.parametrize("seed", range(3))
async def test_killed_while_many_expire(tmp_path: Path, seed: int) -> None:
    """SIGKILL at any instant: the next start finds the rest, and in the end there is neither row nor folder."""
    chance = random.Random(seed)
    async with serving(tmp_path, INTERMISSION_HANDLERS=TOYS, INTERMISSION_MAX_RUNNING="8") as server:
        ids = await asyncio.gather(*(server.launch("counter", {"limit": 2}) for _ in range(60)))
        ids += await asyncio.gather(*(server.launch("half", {"path": str(tmp_path / f"effect{n}")}) for n in range(20)))
        for task_id in ids:
            await server.until_status(task_id, "completed", "failed")
        # Where a SIGKILL between the files and the row leaves it.
        shutil.rmtree(server.data / "tasks" / ids[0])
        shutil.rmtree(server.data / "tasks" / ids[-1])
        server.settings["INTERMISSION_RETENTION_DAYS"] = days(0.001)
        for _ in range(4):
            await server.kill()
            await server.start()
            await asyncio.sleep(
                chance.uniform(0, 0.15)
            )  # the instant of the kill is the test, not a wait for something
        for task_id in ids:
            await until_http(server, task_id, 404)
        assert rows(server) == dict.fromkeys(("tasks", "checkpoints", "attempts", "events", "tombstones"), 0)
        assert folders(server) == set()
        assert list(tmp_path.glob("effect?")) == []
        assert await server.stop() == 0


async def test_who_terminated_it_is_known_after_a_restart(tmp_path: Path) -> None:
    """The tombstone names who asked, not who owns it."""
    async with serving(tmp_path, INTERMISSION_HANDLERS=TOYS) as server:
        hanging = await server.launch("effect", {"path": str(tmp_path / "effect"), "hang": True})
        await server.until(hanging, lambda task: task["checkpoint"])
        assert (await server.verb(hanging, "terminate", wait_s=0)).status == 202
        await server.until(hanging, lambda task: task["attempt"] == 2)
        await server.kill()
        with contextlib.closing(sqlite3.connect(tmp_path / "intermission.db")) as db:
            db.execute("UPDATE events SET asked_by = 'root' WHERE event = 'terminate'")
            db.execute("""UPDATE tasks SET params = json_set(params, '$.hang', json('false'))""")
            db.commit()
        await server.start()
        await until_http(server, hanging, 410)
        assert gone_by(server, hanging) == ["root"]
        assert await server.stop() == 0
