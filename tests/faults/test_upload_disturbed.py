"""Uploads under random disturbances: each ends identical, no offset that was told is taken back, nothing is left."""

import asyncio
import contextlib
import mmap
import os
import random
import signal
import tempfile
import uuid
from pathlib import Path

import aiohttp
import psutil
import pytest
from harness import Answer, Server, seeded, send
from small_disk import SmallDisk, cramped, small_disk
from upload_tools import MIB, Sending, begin, sha256, upload

KINDS = (
    *["pause"] * 5,
    *["cut"] * 5,
    *["take over"] * 4,
    *["child"] * 5,
    *["full disk"] * 2,
    *["fork server"] * 2,
    *["server"] * 2,
)
TUS = {"Tus-Resumable": "1.0.0"}
CUT_OFF = (OSError, aiohttp.ClientConnectionError)
"""What a request meets whose server is killed."""
LEFT_OVER = 8
"""Descriptors that may be more at the end than at the beginning: connections that the test keeps open."""


class Client:
    """Brings one file, again and again, until the server says that it has all of it."""

    def __init__(self, server: Server, content: mmap.mmap | bytes, *, deferred: bool) -> None:
        self.server = server
        self.content = content
        self.deferred = deferred
        """Whether the length is not told before the end: then no space is kept, and the disk may be full on the way."""
        self.key = str(uuid.uuid4())
        self.task_id = ""
        self.told = 0
        """The highest offset that any answer has told."""
        self.sending: Sending | None = None
        self.result: Answer | None = None

    async def bring(self) -> None:
        """Until it is completed."""
        while not self.task_id:
            with contextlib.suppress(*CUT_OFF):
                await self._create()
        while self.result is None:
            with contextlib.suppress(*CUT_OFF, TimeoutError, asyncio.IncompleteReadError):
                await self._once()

    async def _create(self) -> None:
        if self.deferred:
            headers = {**TUS, "Upload-Defer-Length": "1"}
            answer = await self.server.ask("POST", "/upload/files", headers=headers)
            self.task_id = answer.headers.get("Location", "").rpartition("/")[2]
        else:
            # By its key, for the answer to a creation that has happened may be lost.
            answer = await upload(self.server, b"", Upload_Length=str(len(self.content)), Idempotency_Key=self.key)
            self.task_id = answer.json["id"] if answer.status == 201 else ""
        assert answer.status in {201, 503, 507}, answer.body
        if self.task_id and not self.content:
            self.hear(answer)

    async def _once(self) -> None:
        offset = await self._offset()
        if offset is None:
            await asyncio.sleep(0.01)
            return
        path = f"/upload/resume?task={self.task_id}"
        left = len(self.content) - offset
        self.sending = await begin(self.server, path, f"Upload-Offset: {offset}", length=left)
        part = max(16 << 10, len(self.content) // 200)
        try:
            for at in range(offset, len(self.content), part):
                await self.sending.send(self.content[at : at + part])
                await asyncio.sleep(0.002)  # the pace of a network, so that there is a middle to disturb
                if self.sending.reader.at_eof() or self.sending.reader._buffer:  # type: ignore[attr-defined]
                    break
            answer = await self.sending.answer()
        finally:
            self.sending.abort()
            self.sending = None
        self.hear(answer)

    async def _offset(self) -> int | None:
        answer = await self.server.ask("GET", f"/upload/status?task={self.task_id}")
        if answer.status != 200:
            return None
        self.hear(answer)
        if answer.json["status"] == "completed" or "resume" not in answer.json["allowed"]:
            return None
        return int(answer.headers["Upload-Offset"])

    def hear(self, answer: Answer) -> None:
        """No answer may say less than one before it."""
        if "Upload-Offset" in answer.headers:
            offset = int(answer.headers["Upload-Offset"])
            assert offset >= self.told, "an offset was taken back"
            self.told = offset
        if answer.status in {200, 201} and answer.body and answer.json["status"] == "completed":
            self.result = answer


class Disturber:
    """Does to uploads and their server what may happen to them."""

    def __init__(self, server: Server, disk: SmallDisk, chance: random.Random) -> None:
        self.server = server
        self.disk = disk
        self.chance = chance
        self.done = 0
        self.kinds: dict[str, int] = {}
        self._filling: asyncio.Task[None] | None = None

    async def once(self, clients: list[Client]) -> None:
        """One disturbance of an upload that is under way; none if none is."""
        await asyncio.sleep(self.chance.uniform(0, 0.04))  # another moment each time
        busy = [client for client in clients if client.sending is not None and client.sending.sent > 0]
        kind = self.chance.choice(KINDS)
        if not busy:
            return
        client = self.chance.choice(busy)
        with contextlib.suppress(*CUT_OFF):
            task = await self.server.task(client.task_id)
            if task.get("status") == "running" and task["child"] and await self._do(kind, client, task["child"]["pid"]):
                self.done += 1
                self.kinds[kind] = self.kinds.get(kind, 0) + 1

    async def _do(self, kind: str, client: Client, child: int) -> bool:
        match kind:
            case "pause":
                answer = await self.server.verb(client.task_id, "pause")
                if answer.status == 200:
                    client.hear(answer)
            case "take over":
                answer = await self.server.ask("HEAD", f"/upload/files/{client.task_id}", headers=TUS)
                client.hear(answer)
            case "cut" if client.sending is not None:
                client.sending.abort()
            case "child":
                send(child, signal.SIGKILL)
            case "full disk" if self._filling is None or self._filling.done():
                self._filling = asyncio.create_task(self._fill())
            case "fork server":
                with contextlib.suppress(LookupError, psutil.Error):
                    self.server.fork_server.kill()
            case "server":
                await self.server.kill()
                await self.server.start()
            case _:
                return False
        return True

    async def _fill(self) -> None:
        ballast = self.disk.fill()
        await asyncio.sleep(self.chance.uniform(0, 0.3))
        ballast.unlink()


def content(folder: Path, size: int, chance: random.Random) -> mmap.mmap | bytes:
    """Bytes in which no part is like another, in a file without a name: together they may be larger than memory."""
    if not size:
        return b""
    with tempfile.TemporaryFile(dir=folder) as file:
        for at in range(0, size, 16 * MIB):
            file.write(chance.randbytes(min(16 * MIB, size - at)))
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


async def disturbed(folder: Path, disk_bytes: int, rounds: list[list[int]], times: int) -> None:
    """Have files of these sizes brought, a round of them at once, the rounds again and again, until it was enough."""
    chance = seeded()
    with small_disk(folder, f"size={disk_bytes}") as disk:
        async with cramped(disk) as server:
            disturber = Disturber(server, disk, chance)
            undisturbed = (await upload(server, b"x" * MIB)).json["id"]
            kept = names(server, undisturbed) - {"slot.1"}
            begun = psutil.Process(server.pid).num_fds()
            number = 0
            while disturber.done < times:
                sizes = rounds[number % len(rounds)]
                number += 1
                clients = [
                    Client(server, content(folder, size, chance), deferred=bool(size) and n % 2 == 1)
                    for n, size in enumerate(sizes)
                ]
                bringing = asyncio.gather(*(client.bring() for client in clients))
                while not bringing.done():
                    if disturber.done < times:
                        await disturber.once(clients)
                    else:
                        await asyncio.wait({bringing})
                await bringing
                for client in clients:
                    assert client.result is not None
                    path = server.data / "tasks" / client.task_id / "files" / "content"
                    assert client.result.json["result"]["sha256"] == sha256(client.content)
                    assert sha256(path.read_bytes()) == sha256(client.content)
                    assert names(server, client.task_id) - {"slot.1"} == kept  # without one that saved only once
                    assert (await server.ask("DELETE", f"/tasks/{client.task_id}")).status == 204
            assert (await server.ask("GET", "/health")).json["running"] == 0
            assert os.listdir(server.data / "tasks") == [undisturbed]
            assert psutil.Process(server.pid).num_fds() <= begun + LEFT_OVER
    print(f"{disturber.done} disturbances in {number} rounds: {disturber.kinds}")  # noqa: T201


def names(server: Server, task_id: str) -> set[str]:
    """Every file of a task."""
    folder = server.data / "tasks" / task_id
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.timeout(240)
async def test_a_hundred_disturbances(tmp_path: Path) -> None:
    """Pauses, cut connections, takeovers, a full disk, SIGKILL of child, fork server and server, at five uploads.

    Some are so large that their children read most of them themselves.
    """
    await disturbed(tmp_path, 96 * MIB, [[1_500_000, 6_000_001, 6_000_002, 3_000_003, 0]], times=100)


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_a_thousand_disturbances(tmp_path: Path) -> None:
    """The same, with files from nothing to 2 GiB."""
    rounds = [
        [0, 1, 65_537, 3_000_000, 3_000_001],
        [1_500_000, 1_500_001, 20 * MIB, 20 * MIB + 1, 0],
        [200 * MIB, 200 * MIB + 1, 1, 500_000, 500_001],
        [2 << 30, 1_500_000, 1_500_001, 5 * MIB, 5 * MIB + 1],
    ]
    await disturbed(tmp_path, 4 << 30, rounds, times=1000)
