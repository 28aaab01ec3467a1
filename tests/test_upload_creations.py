"""Uploads by the thousand that never get a byte: each is a row and the room that it announced, and each expires."""

import asyncio
import os
import time
from pathlib import Path

import psutil
from harness import Server, until
from upload_tools import MIB
from verb_tools import playing

MANY = int(os.environ.get("MANY_CREATIONS", "1500"))
KEPT_S = 12.0


async def create(server: Server, count: int) -> None:
    """One after the other, with every size there may be."""
    for n in range(count):
        headers = {"Upload-Length": str(n)} if n % 2 else {"Upload-Defer-Length": "1"}
        answer = await server.ask("POST", "/upload/files", headers={"Tus-Resumable": "1.0.0", **headers})
        assert answer.status == 201, answer.body


async def slowest(server: Server, path: str, done: asyncio.Event) -> list[float]:
    """How long each answer took until then, the slowest last."""
    took = []
    while not done.is_set():
        began = time.monotonic()
        assert (await server.ask("GET", path)).status == 200
        took.append(time.monotonic() - began)
    return sorted(took)


async def test_creations_without_a_byte(tmp_path: Path) -> None:
    """The server answers others meanwhile; no process, descriptor or memory is held; in time all are gone."""
    settings = {"INTERMISSION_UPLOAD_EXPIRES_DAYS": str(KEPT_S / 86_400), "INTERMISSION_MAX_USER_UNFINISHED": "100000"}
    async with playing(tmp_path, **settings) as server:
        process = psutil.Process(server.pid)
        await create(server, 20)
        fds, memory, began = process.num_fds(), process.memory_info().rss, time.monotonic()
        done = asyncio.Event()
        asking = [asyncio.create_task(slowest(server, path, done)) for path in ("/health", "/upload/status?limit=50")]
        await asyncio.gather(*(create(server, MANY // 10) for _ in range(10)))
        done.set()
        took, grown = time.monotonic() - began, process.memory_info().rss - memory
        health, lists = [await one for one in asking]
        rows = sum(file.stat().st_size for file in server.data.glob("intermission.db*"))
        print(  # noqa: T201 -- pytest shows it with a failure, and with -s
            f"{MANY} in {took:.1f} s; memory +{grown / MIB:.1f} MiB; database {rows / MIB:.1f} MiB; "
            f"/health p99 {health[int(len(health) * 0.99)]:.4f} s of {len(health)}; "
            f"list p99 {lists[int(len(lists) * 0.99)]:.4f} s"
        )
        assert health[-1] < 2.0
        assert lists[-1] < 2.0
        assert grown < 32 * MIB
        assert process.num_fds() <= fds + 16, "the connections of this test"
        assert server.descendants() == []
        assert len(os.listdir(server.data / "tasks")) == (MANY + 20) // 2, "a folder for each that has said its length"

        async def gone() -> bool:
            return bool((await server.ask("GET", "/upload/usage")).json["uploads"] == 0)

        await until(gone, within_s=KEPT_S + 60)
        assert (await server.ask("GET", "/upload/status")).json["items"] == []
        assert os.listdir(server.data / "tasks") == []
