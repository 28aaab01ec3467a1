"""Uploads under a hundred random disturbances: each ends identical, and no offset that was told is taken back."""

import asyncio
import contextlib
import signal
from pathlib import Path

import psutil
import pytest
from fault_tools import faulty
from harness import Answer, Server, seeded, send
from upload_tools import Sending, begin, data, sha256, upload

DISTURBANCES = 100
CLIENTS = 5


class Client:
    """Brings one file, again and again, until the server says that it has all of it."""

    def __init__(self, server: Server, content: bytes) -> None:
        self.server = server
        self.content = content
        self.task_id = ""
        self.told = 0
        """The highest offset that any answer has told."""
        self.sending: Sending | None = None
        self.result: Answer | None = None

    async def bring(self) -> None:
        """Until it is completed."""
        answer = await upload(self.server, b"", Upload_Length=str(len(self.content)))
        assert answer.status == 201, answer.body
        self.task_id = answer.json["id"]
        while self.result is None:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                await self._once()

    async def _once(self) -> None:
        offset = await self._offset()
        if offset is None:
            return
        path = f"/upload/resume?task={self.task_id}"
        rest = self.content[offset:]
        self.sending = await begin(self.server, path, f"Upload-Offset: {offset}", length=len(rest))
        try:
            for at in range(0, len(rest), 16_384):
                await self.sending.send(rest[at : at + 16_384])
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
        if answer.status == 200 and answer.json["status"] == "completed":
            self.result = answer


async def _disturb(server: Server, clients: list[Client], kind: str, pick: int) -> bool:
    """One disturbance of an upload that is under way; False if none is."""
    busy = [client for client in clients if client.sending is not None and client.sending.sent > 0]
    if not busy:
        return False
    client = busy[pick % len(busy)]
    task = await server.task(client.task_id)
    if task.get("status") != "running" or not task["child"]:
        return False
    match kind:
        case "pause":
            answer = await server.verb(client.task_id, "pause")
            if answer.status == 200:
                client.hear(answer)
        case "cut" if client.sending is not None:
            client.sending.abort()
        case "child":
            send(task["child"]["pid"], signal.SIGKILL)
        case "fork server":
            with contextlib.suppress(LookupError, psutil.Error):
                server.fork_server.kill()
        case "server":
            await server.kill()
            await server.start()
        case _:
            return False
    return True


@pytest.mark.timeout(180)
async def test_a_hundred_disturbances(tmp_path: Path) -> None:
    """Pauses, cut connections, SIGKILL of child, fork server and server, while five clients bring their files."""
    chance = seeded()
    kinds = ["pause"] * 5 + ["cut"] * 5 + ["child"] * 5 + ["fork server"] * 2 + ["server"] * 2
    done = 0
    async with faulty(tmp_path) as server:
        rounds = 0
        while done < DISTURBANCES:
            rounds += 1
            contents = [data(1_500_000 + n, seed=rounds * 100 + n) for n in range(CLIENTS)]
            clients = [Client(server, content) for content in contents]
            bringing = asyncio.gather(*(client.bring() for client in clients))
            while not bringing.done():
                await asyncio.sleep(chance.uniform(0, 0.04))  # another moment each time
                kind = chance.choice(kinds)
                if done < DISTURBANCES:
                    with contextlib.suppress(OSError):
                        done += await _disturb(server, clients, kind, chance.randrange(CLIENTS))
            await bringing
            for client in clients:
                assert client.result is not None
                assert client.result.json["result"]["sha256"] == sha256(client.content)
                assert await server.file(client.task_id, "content") == client.content
        assert (await server.ask("GET", "/health")).json["running"] == 0
    print(f"{done} disturbances in {rounds} rounds")  # noqa: T201
