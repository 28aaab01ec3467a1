"""Uploads and the disk: room is kept for them, what is full or slow stops nobody else, what is lost is noticed."""

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_tools import TOYS, faulty
from harness import HERE, Answer, problem, serving, until
from slow_disk import SYNC_S
from small_disk import cramped, small_disk
from tus_tools import OCTETS
from upload_tools import MIB, begin, chunk, data, flowing, newest, resume, sha256

from intermission.handlers import disk as calls


async def test_room_is_kept(tmp_path: Path) -> None:
    """From its first byte on an upload has the room for all of it, through a pause, whatever else fills the disk."""
    content = data(24 * MIB)
    with small_disk(tmp_path, "size=64m") as disk:
        async with cramped(disk) as server:
            before = disk.free_bytes
            sending, task_id = await flowing(server, content, MIB)
            assert before - disk.free_bytes >= len(content)
            assert (await server.verb(task_id, "pause")).status == 200
            await sending.answer()
            ballast = disk.fill(left=4 * MIB)
            said = problem(
                await server.ask("POST", "/upload/start", headers={"Upload-Length": "6000000"}), 507, "no-space"
            )
            assert "6000000" in said["detail"]
            answer = await resume(server, task_id, content, MIB)
            assert (answer.status, answer.json["result"]["sha256"]) == (200, sha256(content))
            ballast.unlink()
            assert (await server.ask("DELETE", f"/tasks/{task_id}")).status == 204
            assert before - disk.free_bytes < MIB


async def test_more_is_announced_than_there_is_room_for(tmp_path: Path) -> None:
    """Each fits alone: one has the room, before a byte has come and through a crash; of the others nothing is left."""
    content = data(30 * MIB)
    with small_disk(tmp_path, "size=64m") as disk:
        async with cramped(disk) as server:
            before = disk.free_bytes
            announced = {"headers": {"Upload-Length": str(len(content))}}
            answers = await asyncio.gather(*(server.ask("POST", "/upload/start", **announced) for _ in range(12)))
            assert sorted(answer.status for answer in answers) == [201] + [507] * 11
            for answer in answers:
                if answer.status != 201:
                    problem(answer, 507, "no-space")
            (task_id,) = (answer.json["id"] for answer in answers if answer.status == 201)
            assert os.listdir(server.data / "tasks") == [task_id]
            assert len(content) <= before - disk.free_bytes < len(content) + 2 * MIB
            await server.kill()
            await server.start()
            disk.fill(left=2 * MIB)
            ended = await resume(server, task_id, content, 0)
            assert (ended.status, ended.json["result"]["sha256"]) == (200, sha256(content))


async def test_one_that_is_terminated_before_it_has_its_room(tmp_path: Path) -> None:
    """Nothing is left of it, though its folder was made after it had been removed."""
    async with serving(tmp_path, INTERMISSION_HANDLERS="late_room") as server:
        announced = {"headers": {"Upload-Length": "1000000"}}
        creating = asyncio.create_task(server.ask("POST", "/upload/start", **announced))

        async def there() -> bool:
            return bool((await server.ask("GET", "/upload/status")).json["items"])

        await until(there)
        task_id = await newest(server)
        assert (await server.verb(task_id, "terminate")).status == 200
        assert (await creating).status == 201
        assert os.listdir(server.data / "tasks") == []


async def test_more_than_there_is_room_for_is_told_with_the_bytes(tmp_path: Path) -> None:
    """Each fits alone: whose bytes come first has the room, and to the others it is 507 and a pause, never an error."""
    content = data(30 * MIB)
    with small_disk(tmp_path, "size=64m") as disk:
        async with cramped(disk) as server:
            later = {"headers": {"Tus-Resumable": "1.0.0", "Upload-Defer-Length": "1"}}
            answers = await asyncio.gather(*(server.ask("POST", "/upload/files", **later) for _ in range(12)))
            assert {answer.status for answer in answers} == {201}
            ids = [answer.headers["Location"].rpartition("/")[2] for answer in answers]

            async def bring(task_id: str) -> Answer:
                tus = ("Tus-Resumable: 1.0.0", "X-HTTP-Method-Override: PATCH", f"Content-Type: {OCTETS}")
                length = (f"Upload-Length: {len(content)}", "Upload-Offset: 0")
                sending = await begin(server, f"/upload/files/{task_id}", *tus, *length, length=len(content))
                with contextlib.suppress(ConnectionError):
                    await sending.send(content)
                return await sending.answer()

            answers = await asyncio.gather(*map(bring, ids))
            assert sorted(answer.status for answer in answers) == [204] + [507] * 11
            tasks = [await server.task(task_id) for task_id in ids]
            assert {task["reason"] for task in tasks} <= {None, "awaiting_data", "no_space"}
            (done,) = (task["id"] for task in tasks if task["status"] == "completed")
            assert (await server.ask("DELETE", f"/tasks/{done}")).status == 204
            other = next(task_id for task_id in ids if task_id != done)
            assert (await bring(other)).status == 204
            assert (await server.task(other))["result"]["sha256"] == sha256(content)


async def test_the_disk_is_full_in_the_middle(tmp_path: Path) -> None:
    """One of unknown length meets it: 507, paused with what is durable; with room again it goes on from there."""
    content = data(32 * MIB)
    with small_disk(tmp_path, "size=80m") as disk:
        async with cramped(disk) as server:
            ballast = disk.fill(left=20 * MIB)
            sending = await begin(server, "/upload/start")
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(content), 65_536):
                    await sending.send(chunk(content[at : at + 65_536]))
            offset = problem(await sending.answer(), 507, "no-space")["offset"]
            assert 0 < offset <= 20 * MIB
            task = await server.task(await newest(server))
            assert (task["status"], task["reason"]) == ("paused", "no_space")
            assert task["checkpoint"]["state"]["received"] == offset
            ballast.unlink()
            ended = await resume(server, task["id"], content, offset)
            assert (ended.status, ended.json["result"]["sha256"]) == (200, sha256(content))
            assert await server.file(task["id"], "content") == content


@pytest.mark.parametrize("fault", ["EIO", "EFBIG", "EROFS", "EDQUOT"])
async def test_a_disk_that_fails(tmp_path: Path, fault: str) -> None:
    """Is 507 too, and a pause with what is durable, not an error that uses anything up; when it works again, so on."""
    content = data(2 * MIB)
    async with serving(tmp_path, INTERMISSION_HANDLERS=f"{TOYS},bad_disk") as server:
        (server.data / fault).touch()
        sending, task_id = await flowing(server, content, 300_000)
        with contextlib.suppress(ConnectionError):
            await sending.send(content[300_000:])
        said = problem(await sending.answer(), 507, "no-space")
        assert os.strerror(getattr(errno, fault)) in said["detail"]
        assert said["offset"] >= 300_000
        task = await server.task(task_id)
        assert (task["status"], task["reason"]) == ("paused", "no_space")
        assert task["checkpoint"]["state"]["received"] == said["offset"]
        for _ in range(6):  # more often than a task may err
            said = problem(await resume(server, task_id, content, said["offset"]), 507, "no-space")
        (server.data / fault).unlink()
        ended = await resume(server, task_id, content, said["offset"])
        assert (ended.status, ended.json["result"]["sha256"]) == (200, sha256(content))


async def test_an_end_that_the_disk_has_lost(tmp_path: Path) -> None:
    """Is noticed before a byte is added; nothing is built upon it."""
    content = data(3 * MIB)
    async with faulty(tmp_path) as server:
        sending, task_id = await flowing(server, content, 2 * MIB)
        assert (await server.verb(task_id, "pause")).status == 200
        await sending.answer()
        path = server.data / "tasks" / task_id / "files" / "content"
        with path.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(bytes(100))
        said = problem(await resume(server, task_id, content, 2 * MIB), 422, "failed")
        assert "the disk has lost it" in said["detail"]
        assert path.stat().st_size == 2 * MIB
        task = await server.task(task_id)
        assert (task["status"], task["error"]["type"], task["allowed"]) == (
            "failed",
            "Damaged",
            ["resume", "terminate"],
        )


async def test_a_slow_disk_stops_nobody_else(tmp_path: Path) -> None:
    """With more syncs to be done than there is time for, other tasks start and end as if there were none."""
    async with serving(tmp_path, INTERMISSION_HANDLERS="toys,slow_disk", INTERMISSION_MAX_RUNNING="16") as server:
        content = data(2 * MIB)
        uploads = [await begin(server, "/upload/start", length=len(content)) for _ in range(60)]
        for at in range(0, MIB, 65_536):
            await asyncio.gather(*(sending.send(content[at : at + 65_536]) for sending in uploads))
        waited = []
        for _ in range(10):
            begun = time.monotonic()
            task_id = await server.launch("steps", {"steps": 1, "delay_s": 0})
            await server.until(task_id, lambda task: task["child"] or task["status"] == "completed")
            waited.append(time.monotonic() - begun)
            await asyncio.gather(*(sending.send(content[sending.sent : sending.sent + 65_536]) for sending in uploads))
        assert sorted(waited)[5] < SYNC_S, waited
        await asyncio.gather(*(sending.send(content[sending.sent :]) for sending in uploads))
        answers = await asyncio.gather(*(sending.answer(within_s=50) for sending in uploads))
        assert {answer.json["result"]["sha256"] for answer in answers} == {sha256(content)}


def test_reserving(tmp_path: Path) -> None:
    """Takes the room and leaves the length; where there is none it says so, and keeps nothing."""
    with small_disk(tmp_path, "size=8m") as disk:
        path = disk.root / "file"
        with path.open("ab", buffering=0) as file:
            file.write(b"some")
            calls.reserve(file.fileno(), 4 * MIB, disk.root)
            assert (path.stat().st_size, path.stat().st_blocks * 512) == (4, 4 * MIB)
            for size in (16 * MIB, 8 * MIB - 4096):  # the second would leave nothing for its checkpoints
                with pytest.raises(OSError, match="No space") as caught:
                    calls.reserve(file.fileno(), size, disk.root)
                assert caught.value.errno == errno.ENOSPC
            calls.reserve(file.fileno(), 7 * MIB, disk.root)  # what it has counts
        assert path.read_bytes() == b"some"


def test_reserving_at_once(tmp_path: Path) -> None:
    """As many have it as there is room for: they do not take it from each other until none has."""
    with small_disk(tmp_path, "size=64m") as disk, contextlib.ExitStack() as running:
        paths = [disk.root / f"file{number}" for number in range(6)]
        processes = [
            running.enter_context(
                subprocess.Popen(
                    [sys.executable, HERE / "reserving.py", path, str(30 * MIB)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                )
            )
            for path in paths
        ]
        for _ in range(20):
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(b"\n")
            said = [process.stdout.readline() for process in processes if process.stdout is not None]
            assert sorted(said) == [b"No space left on device\n"] * 4 + [b"kept\n"] * 2
            for path in paths:
                path.unlink()


def test_writing_behind(tmp_path: Path) -> None:
    """Leaves what is in the file as it is, whatever its steps; a descriptor that knows no such thing is left alone."""
    path, content = tmp_path / "file", data(20 * MIB)
    with path.open("ab", buffering=0) as file:
        behind, at = calls.WriteBehind(file.fileno()), 0
        for size in (1, 7 * MIB, 3 * MIB, 9 * MIB, MIB - 1):
            file.write(content[at : at + size])
            at += size
            behind.grown(at)
    assert path.read_bytes() == content
    near, far = os.pipe()
    calls.WriteBehind(far).grown(32 * MIB)
    os.close(near)
    os.close(far)
