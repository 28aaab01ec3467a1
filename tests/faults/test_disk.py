"""A full disk, a locked or failing database, a folder that is not ours alone: refused or waited for, never lost."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import sqlite3
from pathlib import Path

import aiohttp
import psutil
import pytest
from fault_tools import (
    TOYS,
    alive,
    child,
    faulty,
    generation,
    outcomes,
    place,
    serve,
    until_logged,
    until_place,
)
from harness import Server, problem, serving, squares, until
from small_disk import cramped, small_disk

MIB = 1 << 20
TEN = {"INTERMISSION_MAX_RUNNING": "10"}


def blocks(count: int) -> bytes:
    """What the toy ``bulk`` writes."""
    return b"".join(n.to_bytes(4, "big") * 1024 for n in range(count))


@contextlib.contextmanager
def database(server: Server) -> "contextlib._GeneratorContextManager[sqlite3.Connection]":
    """Another program's connection to the server's database."""
    with contextlib.closing(sqlite3.connect(server.data / "intermission.db", isolation_level=None, timeout=20)) as db:
        yield db


# A full disk.


async def test_a_full_disk(tmp_path: Path) -> None:
    """Tasks that hit it are paused as ``no_space``, starts are refused with 507; with room again, both go on."""
    with small_disk(tmp_path, "size=80m") as disk:
        async with cramped(disk) as server:
            rests = await server.launch("steps", {"steps": 5, "delay_s": 0})
            await server.until_status(rests, "completed")
            ballast = disk.fill(left=20 * MIB)
            ids = [await server.launch("bulk", {"blocks": 6000}) for _ in range(2)]
            for task_id in ids:
                task = await server.until_status(task_id, "paused", "failed", "retrying")
                assert (task["status"], task["reason"], task["errors_left"]) == ("paused", "no_space", 4)
                assert "No space left on device" in task["error"]["message"]
                n = (task["checkpoint"] or {"state": {"n": 0}})["state"]["n"]
                assert n < 6000
                assert place(server, task_id) == n
            assert disk.free_bytes == 0
            for path, body in (("/steps/start", {}), ("/tasks", {"service": "steps"})):
                said = problem(await server.ask("POST", path, json=body), 507, "no-space")
                assert "free some, then try again" in said["detail"]
            assert (await server.task(rests))["status"] == "completed"
            assert await server.file(rests, "lines.txt") == squares(5)

            assert (await server.verb(ids[0], "resume")).status == 202
            task = await server.until_status(ids[0], "paused")
            assert (task["reason"], task["attempt"]) == ("no_space", 2), "it is as full as before"

            ballast.unlink()
            late = await server.launch("steps", {"steps": 5, "delay_s": 0})
            for task_id in ids:
                assert (await server.verb(task_id, "resume")).status == 202
                await server.until_status(task_id, "completed")
                assert await server.file(task_id, "bulk.bin") == blocks(6000)
            await server.until_status(late, "completed")


async def test_it_can_be_emptied_by_terminating(tmp_path: Path) -> None:
    """Who notices that it was a mistake can end it while not one byte is left: that is what frees the room."""
    with small_disk(tmp_path, "size=48m") as disk:
        async with cramped(disk) as server:
            tasks = [await server.launch("bulk", {"blocks": 1_000_000}) for _ in range(3)]
            for task_id in tasks:
                await server.until_status(task_id, "paused")
            assert disk.free_bytes < 4096 * 4
            disk.fill()
            for task_id in tasks:
                answer = await server.verb(task_id, "terminate")
                assert (answer.status, answer.json["receipt"]["survivors"]) == (200, 0)
                problem(await server.ask("GET", f"/tasks/{task_id}"), 410, "gone")
                assert not (server.data / "tasks" / task_id).exists()
            assert disk.free_bytes > 16 * MIB
            task_id = await server.launch("steps", {"steps": 5, "delay_s": 0})
            await server.until_status(task_id, "completed")


async def test_a_person_can_pause_and_resume_on_a_full_disk(tmp_path: Path) -> None:
    """The database has put some room aside, so that what people ask of tasks does not fail for want of a page."""
    with small_disk(tmp_path, "size=48m") as disk:
        async with cramped(disk) as server:
            ids = [await server.launch("steps", {"steps": 1_000_000, "delay_s": 0.5}) for _ in range(4)]
            for task_id in ids:
                await until_place(server, task_id, 1)
            disk.fill()
            for _ in range(10):
                for task_id in ids:
                    answer = await server.verb(task_id, "pause")
                    assert (answer.status, answer.json["status"]) == (200, "paused")
                for task_id in ids:
                    assert (await server.verb(task_id, "resume")).status == 202
                    await server.until_status(task_id, "running", "paused")
            for task_id in ids:
                assert (await server.verb(task_id, "terminate")).status == 200


@pytest.mark.parametrize("left", range(7))
async def test_no_room_for_the_first_files(tmp_path: Path, left: int) -> None:
    """Whichever of its files is the one that cannot be made, the task is paused for it, and no error is counted."""
    with small_disk(tmp_path, "size=64m,nr_inodes=400") as disk:
        async with cramped(disk) as server:
            names = disk.fill_names(left)
            task_id = await server.launch("steps", {"steps": 5, "delay_s": 0})
            task = await server.until_status(task_id, "paused", "completed", "failed", "retrying")
            # Its folder, its log, its folders for temporary files and outputs, two slots, and the output.
            assert (task["status"], task["reason"], task["errors_left"]) == ("paused", "no_space", 4)
            for name in names:
                name.unlink()
            assert (await server.verb(task_id, "resume")).status == 202
            await server.until_status(task_id, "completed")
            assert await server.file(task_id, "lines.txt") == squares(5)


async def test_killed_on_a_full_disk(tmp_path: Path) -> None:
    """``kill -9`` and a new start while not one byte is left: no checkpoint is lost, and all goes on later."""
    with small_disk(tmp_path, "size=48m") as disk:
        async with cramped(disk) as server:
            bulk = await server.launch("bulk", {"blocks": 1500, "delay_s": 0.003})
            steps = [await server.launch("steps", {"steps": 1000, "delay_s": 0.005}) for _ in range(3)]
            for task_id in (bulk, *steps):
                await until_place(server, task_id, 5)
            ballast = disk.fill()
            await server.until_status(bulk, "paused")
            disk.fill()
            places = {task_id: place(server, task_id) for task_id in (bulk, *steps)}
            for _ in range(2):
                await server.kill()
                await server.start()
                server.fork_server.kill()
                for task_id in (bulk, *steps):
                    await server.until_status(task_id, "running", "paused", "pending")
                    assert place(server, task_id) >= places[task_id]
            ballast.unlink()
            for task_id in (bulk, *steps):
                await server.until(
                    task_id, lambda task: task["status"] in {"paused", "completed"} or task["child"], within_s=10
                )
                if (await server.task(task_id))["status"] == "paused":
                    assert (await server.verb(task_id, "resume")).status == 202
            for task_id in (bulk, *steps):
                task = await server.until_status(task_id, "completed", "failed", "paused", within_s=40)
                assert (task["status"], task["errors_left"]) == ("completed", 4), task
            assert await server.file(bulk, "bulk.bin") == blocks(1500)
            for task_id in steps:
                assert await server.file(task_id, "lines.txt") == squares(1000)


async def test_slow_removals_stop_nobody_else(tmp_path: Path) -> None:
    """While more folders are removed than there are threads for anything, tasks start, are read, paused and resumed."""
    async with serving(tmp_path, INTERMISSION_HANDLERS="toys,slow_removals", INTERMISSION_MAX_RUNNING="50") as server:
        ids = [await server.launch("steps", {"steps": 1_000_000}) for _ in range(40)]
        for task_id in ids:
            await server.until_progress(task_id)
        hold = server.data / "tasks" / "hold"
        hold.touch()
        for task_id in ids:
            assert (await server.verb(task_id, "terminate", wait_s=0)).status == 202
        async with asyncio.timeout(10):
            other = await server.launch("steps", {"steps": 1_000_000})
            await server.until_progress(other)
            assert (await server.ask("GET", f"/tasks/{other}/log")).status == 200
            assert (await server.verb(other, "pause")).json["status"] == "paused"
            assert await server.file(other, "lines.txt")
            assert (await server.verb(other, "resume")).status == 202
            assert (await server.task(ids[-1]))["status"] == "terminating"
        hold.unlink()
        for task_id in ids:
            assert (await server.verb(task_id, "terminate")).status in {200, 410}
            assert not (server.data / "tasks" / task_id).exists()


# The database.


async def test_another_program_locks_the_database_for_a_moment(tmp_path: Path) -> None:
    """What is asked meanwhile waits for it, and is then done."""
    async with faulty(tmp_path) as server:
        running = await server.launch("steps", {"steps": 200})
        await until_place(server, running, 1)
        with database(server) as db:
            db.execute("BEGIN IMMEDIATE")
            asked = asyncio.create_task(server.ask("POST", "/steps/start", json={"steps": 1}))
            await until_place(server, running, place(server, running) + 30)
            assert not asked.done()
            db.execute("ROLLBACK")
        answer = await asked
        assert answer.status == 202
        for task_id in (running, answer.json["id"]):
            await server.until_status(task_id, "completed")


async def test_another_program_locks_the_database_for_long(tmp_path: Path) -> None:
    """Changes are refused with 503, reading and running go on; when it lets go, everything is as if it had not been."""
    async with faulty(tmp_path, **TEN) as server:
        lasting = await server.launch("steps", {"steps": 1_000_000})
        ending = await server.launch("steps", {"steps": 150})
        erring = await server.launch("faulty", {"attempts": 1})
        await server.until_status(erring, "completed")
        for task_id in (lasting, ending):
            await until_place(server, task_id, 1)
        with database(server) as db:
            db.execute("BEGIN IMMEDIATE")
            asked = [
                server.ask("POST", "/steps/start", json={"steps": 1}),
                server.verb(lasting, "pause"),
                server.verb(ending, "terminate"),
                server.ask("DELETE", f"/tasks/{erring}"),
            ]
            for answer in await asyncio.gather(*asked):
                said = problem(answer, 503, "store")
                assert answer.headers["Retry-After"] == "1"
                assert "try again" in said["detail"]
            assert (await server.ask("GET", "/tasks")).status == 200
            assert (await server.task(lasting))["status"] == "running"
            await until_place(server, ending, 150)
            assert (await server.task(ending))["status"] == "running", "its end is not on disk yet"
            db.execute("ROLLBACK")
        assert (await server.until_status(ending, "completed"))["attempt"] == 1
        assert await server.file(ending, "lines.txt") == squares(150)
        assert (await server.verb(lasting, "pause")).status == 200
        n = (await server.task(lasting))["checkpoint"]["state"]["n"]
        assert await server.file(lasting, "lines.txt") == squares(n)
        assert (await server.verb(lasting, "terminate")).status == 200
        assert (await server.ask("DELETE", f"/tasks/{erring}")).status == 204
        late = await server.launch("steps", {"steps": 1})
        await server.until_status(late, "completed")


async def test_it_is_killed_while_the_database_is_locked(tmp_path: Path) -> None:
    """What could not be committed is in the slots: the next start finds it there."""
    async with faulty(tmp_path) as server:
        task_id = await server.launch("steps", {"steps": 100})
        await until_place(server, task_id, 1)
        with database(server) as db:
            db.execute("BEGIN IMMEDIATE")
            await until_place(server, task_id, 50)
            await server.kill()
            db.execute("ROLLBACK")
        assert place(server, task_id) >= 50
        await server.start()
        assert (await server.until(task_id, lambda task: task["attempt"] == 2))["checkpoint"]["sequence"] >= 50
        await server.until_status(task_id, "completed")
        assert await server.file(task_id, "lines.txt") == squares(100)


async def test_it_accepts_nothing_before_it_has_recovered(tmp_path: Path) -> None:
    """The port is open by then: who asks is told that the server is starting, and starts are refused."""
    async with faulty(tmp_path) as server:
        task_id = await server.launch("steps", {"steps": 100})
        await until_place(server, task_id, 1)
        await server.kill()
        refuse(server, "BEFORE UPDATE ON tasks WHEN NEW.status = 'pending'")
        server.settings["INTERMISSION_PORT"] = server.url.rpartition(":")[2]
        listening = await server.begin()

        async def starting() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectorError):
                return (await server.ask("GET", "/health")).json["status"] == "starting"
            return False

        await until(starting)
        problem(await server.ask("GET", "/health/ready"), 503, "unavailable")
        problem(await server.ask("POST", "/steps/start", json={"steps": 1}), 503, "unavailable")
        assert not listening.done()
        allow(server)
        await listening
        assert (await server.ask("GET", "/health")).json["status"] == "ok"
        await server.until_status(task_id, "completed")
        assert await server.file(task_id, "lines.txt") == squares(100)


async def test_a_claim_that_fails_takes_no_other_along(tmp_path: Path) -> None:
    """What an earlier claim of the same moment has taken is running, and has to be carried, whatever the next says."""
    async with faulty(tmp_path, **TEN) as server:
        ahead = await server.launch("single", {"delay_s": 600})
        await server.until_status(ahead, "running")
        assert await server.stop() == 0
        refuse(server, "BEFORE UPDATE ON tasks WHEN NEW.service = 'single' AND NEW.status = 'running'")
        await server.start()
        await until_logged(server, "nothing could be claimed")
        steps = [await server.launch("steps", {"steps": 3, "delay_s": 0}) for _ in range(3)]
        for task_id in steps:
            assert (await server.until_status(task_id, "completed"))["attempt"] == 1
        assert (await server.task(ahead))["status"] == "pending"
        allow(server)
        await server.until_status(ahead, "running")
        assert (await server.verb(ahead, "terminate")).status == 200


async def test_an_end_that_cannot_be_committed_is_committed_later(tmp_path: Path) -> None:
    """A completion, a pause and a termination that the database refuses stay under way until it does not."""
    async with faulty(tmp_path, **TEN) as server:
        completes, pauses, ends = [await server.launch("steps", {"steps": 1_000_000}) for _ in range(3)]
        for task_id in (completes, pauses, ends):
            await until_place(server, task_id, 1)
        refuse(
            server,
            "BEFORE UPDATE ON tasks WHEN NEW.status IN ('paused', 'completed')",
            "BEFORE DELETE ON tasks",
        )
        short = await server.launch("steps", {"steps": 2, "delay_s": 0})
        await until_place(server, short, 2)
        assert (await server.verb(pauses, "pause", wait_s=1)).json["status"] == "pausing"
        assert (await server.verb(ends, "terminate", wait_s=1)).json["status"] == "terminating"
        assert (await server.task(short))["status"] == "running"
        await until_logged(server, "a terminated task cannot be finished yet")
        await until_logged(server, "an ending could not be committed", times=2)
        allow(server)
        await server.until_status(pauses, "paused")
        await server.until_status(short, "completed")
        await server.until(ends, lambda task: task["status"] == 410)
        assert (await server.verb(completes, "terminate")).status == 200


def refuse(server: Server, *events: str) -> None:
    """Have the database refuse some of what the server wants to write."""
    with database(server) as db:
        for n, event in enumerate(events):
            db.execute(f"CREATE TRIGGER refused{n} {event} BEGIN SELECT RAISE(ABORT, 'as the test wants it'); END")


def allow(server: Server) -> None:
    """Take back every `refuse`."""
    with database(server) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()]
        for name in names:
            db.execute(f"DROP TRIGGER {name}")


# The data folder.


@pytest.mark.parametrize("kind", ["a file", "below a file", "of the kernel", "read-only", "with a file for a folder"])
def test_a_folder_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    """The start is refused with a sentence that names the folder and the setting, and changes nothing there."""
    folder = tmp_path / "data"
    match kind:
        case "a file":
            folder.write_text("mine")
        case "below a file":
            folder.write_text("mine")
            folder /= "below"
        case "of the kernel":
            folder = Path("/proc/intermission")
        case "read-only":
            if os.geteuid() == 0:
                pytest.skip("root may write to every folder; 'of the kernel' is what even root cannot write to")
            folder.mkdir(mode=0o500)
        case _:
            folder.mkdir()
            (folder / "tasks").write_text("mine")
    done = serve(folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"the data folder {folder} cannot be written to" in done.stderr
    assert "set INTERMISSION_DATA_DIR" in done.stderr
    assert "Traceback" not in done.stderr
    for path in (tmp_path / "data", tmp_path / "data" / "tasks"):
        if path.is_file():
            assert path.read_text() == "mine"


async def test_a_second_server_is_refused_by_name(tmp_path: Path) -> None:
    """It is told who is there, and the first one's tasks do not notice."""
    async with faulty(tmp_path) as server:
        task_id = await server.launch("steps", {"steps": 1_000_000})
        pid = await child(server, task_id)
        done = await asyncio.to_thread(serve, tmp_path)
        assert done.returncode == 1
        assert f"another server (pid {server.pid}) is running on {tmp_path}" in done.stderr
        assert "Traceback" not in done.stderr
        assert await child(server, task_id) == pid
        assert generation(server)["supervisor"]["pid"] == server.pid
        task = (await server.verb(task_id, "pause")).json
        assert (task["status"], task["attempt"]) == ("paused", 1)
        assert await server.file(task_id, "lines.txt") == squares(task["checkpoint"]["state"]["n"])
        assert (await server.verb(task_id, "terminate")).status == 200


async def test_a_folder_that_another_program_has_locked(tmp_path: Path) -> None:
    """Nobody lives who could be named: after a while the start is refused all the same; the next one may succeed."""
    async with serving(tmp_path) as server:
        assert await server.stop() == 0
        with (tmp_path / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = await asyncio.to_thread(serve, tmp_path)
        assert done.returncode == 1
        assert f"{tmp_path} is locked by another program; stop it or choose another folder" in done.stderr
        await server.start()
        assert await server.stop() == 0


async def test_a_second_server_on_the_same_database_is_refused(tmp_path: Path) -> None:
    """Its data folder is its own: the first one's tasks are no less there, and are not run a second time."""
    (tmp_path / "link.db").symlink_to(tmp_path / "tasks.db")
    url = f"sqlite:///{tmp_path}/tasks.db"
    async with faulty(tmp_path / "data", INTERMISSION_DATABASE_URL=url) as server:
        task_id = await server.launch("steps", {"steps": 1_000_000})
        pid = await child(server, task_id)
        for name in ("tasks.db", "link.db"):
            path = tmp_path / name
            done = await asyncio.to_thread(
                serve, tmp_path / "other", INTERMISSION_DATABASE_URL=f"sqlite:///{path}", INTERMISSION_HANDLERS=TOYS
            )
            assert done.returncode == 1
            assert f"another server keeps its tasks in {path}; stop it or set another" in done.stderr
            assert "Traceback" not in done.stderr
        assert await child(server, task_id) == pid
        assert await outcomes(server, task_id) == [None]
        await server.kill()
        await server.start()
        assert (await server.until(task_id, lambda task: task["child"]))["attempt"] == 2
        assert (await server.verb(task_id, "terminate")).status == 200


async def test_a_database_whose_server_was_killed_and_whose_fork_server_was_not(tmp_path: Path) -> None:
    """Its children may still run, so nobody else may carry their tasks on; once all are gone it is free."""
    url = f"sqlite:///{tmp_path}/tasks.db"
    async with serving(tmp_path / "data", INTERMISSION_DATABASE_URL=url) as server:
        task_id = await server.launch("steps", {"steps": 1_000_000})
        await child(server, task_id)
        fork_server = server.fork_server
        fork_server.suspend()
        await server.kill()
        done = await asyncio.to_thread(serve, tmp_path / "other", INTERMISSION_DATABASE_URL=url)
        assert (done.returncode, "another server keeps its tasks in" in done.stderr) == (1, True)
        fork_server.resume()
        async with serving(tmp_path / "other", INTERMISSION_DATABASE_URL=url) as other:
            assert alive([fork_server]) == []
            assert (await other.verb(task_id, "terminate")).status == 200


def test_a_folder_of_a_database_that_is_not_there(tmp_path: Path) -> None:
    """The refusal names it, and the setting."""
    done = serve(tmp_path, INTERMISSION_DATABASE_URL=f"sqlite:///{tmp_path}/none/tasks.db")
    assert done.returncode == 1
    assert f"the folder {tmp_path}/none cannot be written to; set INTERMISSION_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_copied_folder_is_another_one(tmp_path: Path) -> None:
    """A server on a backup carries on its own copies, and leaves the children of the original alone."""
    async with faulty(tmp_path / "data", **TEN) as server:
        paused = await server.launch("steps", {"steps": 60})
        await server.until_progress(paused)
        assert (await server.verb(paused, "pause")).status == 200
        deaf = await server.launch("deaf")
        await server.until_progress(deaf)
        pid = await child(server, deaf)
        shutil.copytree(server.data, tmp_path / "copy")
        async with faulty(tmp_path / "copy", **TEN) as other:
            assert other.mark() != server.mark()
            assert (await other.until(deaf, lambda task: task["attempt"] == 2))["status"] == "running"
            assert psutil.Process(pid).status() == psutil.STATUS_SLEEPING
            assert await child(server, deaf) == pid
            assert await outcomes(other, deaf) == ["lost", None]
            for one in (server, other):
                assert (await one.verb(paused, "resume")).status == 202
            for one in (server, other):
                await one.until_status(paused, "completed")
                assert await one.file(paused, "lines.txt") == squares(60)
                assert (await one.verb(deaf, "terminate")).status == 200
