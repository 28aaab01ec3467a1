"""A DELETE that breaks off anywhere: either the task is whole, or it is gone and its bytes go with the next start."""

import asyncio
import contextlib
import sqlite3
import uuid
from pathlib import Path
from typing import Final

from fault_tools import faulty, until_logged
from harness import Server, problem, seeded, serving, squares, until
from upload_tools import MIB, data, upload

STEPS: Final = 20


async def completed(server: Server, files: int = 0) -> str:
    """A task that has completed, with so many files in its folder that nobody knows of; its id."""
    task_id = await server.launch("steps", {"steps": STEPS})
    await server.until_status(task_id, "completed")
    for number in range(files):
        (folder(server, task_id) / "tmp" / str(number)).touch()
    return task_id


def folder(server: Server, task_id: str) -> Path:
    """Where a task's files are."""
    return server.data / "tasks" / task_id


async def until_removed(server: Server, task_id: str) -> None:
    """Wait until nothing of a task is on the disk."""

    async def removed() -> bool:
        return not folder(server, task_id).exists()

    await until(removed)


async def test_another_program_locks_the_database(tmp_path: Path) -> None:
    """503, and the task is as if nobody had asked, with its file; later it can be deleted."""
    async with faulty(tmp_path) as server:
        task_id = await completed(server)
        before = await server.task(task_id)
        with contextlib.closing(sqlite3.connect(server.data / "intermission.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            problem(await server.ask("DELETE", f"/tasks/{task_id}"), 503, "store")
            db.execute("ROLLBACK")
        assert await server.task(task_id) == before
        assert await server.file(task_id, "lines.txt") == squares(STEPS)
        assert (await server.ask("DELETE", f"/tasks/{task_id}")).status == 204
        assert not folder(server, task_id).exists()


async def test_killed_while_the_files_go(tmp_path: Path) -> None:
    """With the server back, the task is gone, and soon all of its files."""
    async with serving(tmp_path, INTERMISSION_HANDLERS="toys,slow_removals") as server:
        task_id, other = await completed(server, files=10), await completed(server)
        hold = folder(server, "hold")
        hold.touch()
        asking = asyncio.create_task(server.ask("DELETE", f"/tasks/{task_id}"))

        async def some_are_gone() -> bool:
            return not (folder(server, task_id) / "tmp").exists()

        await until(some_are_gone)
        await server.kill()
        await asyncio.gather(asking, return_exceptions=True)
        assert (folder(server, task_id) / "files" / "lines.txt").exists()
        hold.unlink()
        await server.start()
        problem(await server.ask("GET", f"/tasks/{task_id}"), 410, "gone")
        await until_removed(server, task_id)
        assert await server.file(other, "lines.txt") == squares(STEPS)


async def test_killed_at_any_instant(tmp_path: Path) -> None:
    """It is never both: a task that is there has its file, and of one that is gone nothing stays."""
    chance = seeded()
    async with faulty(tmp_path) as server:
        for _ in range(8):
            task_id = await completed(server, 200)
            asking = asyncio.create_task(server.ask("DELETE", f"/tasks/{task_id}"))
            await asyncio.sleep(chance.uniform(0, 0.03))  # the instant of the kill is the test
            await server.kill()
            await asyncio.gather(asking, return_exceptions=True)
            await server.start()
            if (await server.task(task_id))["status"] == "completed":
                assert await server.file(task_id, "lines.txt") == squares(STEPS)
                assert (await server.ask("DELETE", f"/tasks/{task_id}")).status == 204
            await until_removed(server, task_id)


async def test_a_folder_that_cannot_be_removed(tmp_path: Path) -> None:
    """The task is gone all the same; the server says that its folder is left, and the next start tries again."""
    async with faulty(tmp_path / "var") as server:
        task_id = await completed(server)
        elsewhere = folder(server, task_id).rename(tmp_path / "elsewhere")
        folder(server, task_id).symlink_to(elsewhere)  # nothing of ours is behind a link, also for root
        assert (await server.ask("DELETE", f"/tasks/{task_id}")).status == 204
        await until_logged(server, "its folder could not be removed")
        await server.stop()
        folder(server, task_id).unlink()
        elsewhere.rename(folder(server, task_id))
        await server.start()
        await until_removed(server, task_id)


async def test_a_folder_of_which_nothing_is_known(tmp_path: Path) -> None:
    """It stays: the database may be the wrong one."""
    async with faulty(tmp_path) as server:
        gone = await completed(server)
        await server.ask("DELETE", f"/tasks/{gone}")
        await server.stop()
        unknown = folder(server, str(uuid.uuid4()))
        for left in (unknown, folder(server, gone)):
            left.mkdir()
            (left / "log").touch()
        await server.start()
        await until_removed(server, gone)
        assert (unknown / "log").exists()


async def test_downloads_that_are_under_way(tmp_path: Path) -> None:
    """They end with every byte; the upload counts no more."""
    content = data(24 * MIB)
    async with faulty(tmp_path) as server:
        task_id = (await upload(server, content)).json["id"]
        assert server.session is not None
        async with server.session.get(f"{server.url}/tasks/{task_id}/files/content") as response:
            begin = await response.content.readexactly(1000)
            assert (await server.ask("DELETE", f"/tasks/{task_id}")).status == 204
            assert not folder(server, task_id).exists()
            assert (await server.ask("GET", "/upload/usage")).json["stored_bytes"] == 0
            assert begin + await response.read() == content
