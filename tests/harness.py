"""A real server in a process of its own, and a client for it: what every test of the whole way through stands on."""

import asyncio
import contextlib
import http.client
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from pydantic import TypeAdapter

from intermission.supervisor.routes import shapes

HERE = Path(__file__).parent
RLIMIT_LOCKS = 10
Json = dict[str, Any]
MEMBERS = frozenset(TypeAdapter(shapes.Problem).json_schema()["properties"])
"""What a problem may tell, as the OpenAPI document has it."""


@dataclass
class Answer:
    """An HTTP answer, read whole."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Server:
    """A running server on a data folder; may be killed and started again on the same one."""

    data: Path
    settings: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    before: tuple[str, ...] = ()
    """A command to run it with."""
    url: str = ""
    log: list[str] = field(default_factory=list)
    session: aiohttp.ClientSession | None = None
    _readers: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> "Server":
        """Start it and wait until it listens."""
        listening = await self.begin()
        async with asyncio.timeout(20):
            self.url = await listening
        if self.session is None:
            self.session = aiohttp.ClientSession()
        return self

    async def begin(self) -> "asyncio.Future[str]":
        """Start its process; the address, once it listens."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("INTERMISSION_")}
        environment |= {
            "INTERMISSION_PORT": "0",
            "INTERMISSION_DATA_DIR": str(self.data),
            "INTERMISSION_HANDLERS": "toys",
            "INTERMISSION_LOG_FORMAT": "json",
            **self.settings,
        }
        # A pipe of our own: with asyncio's, `wait` returns only when nobody holds it any more, and a frozen fork
        # server, which outlives its supervisor, does.
        near, far = os.pipe()
        command = (*self.before, sys.executable, "-m", "intermission.supervisor.cli", "serve")
        try:
            self.process = await asyncio.create_subprocess_exec(*command, cwd=HERE, env=environment, stderr=far)
        finally:
            os.close(far)
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        listening.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be waiting for it
        self._readers.append(asyncio.create_task(self._read(os.fdopen(near, "rb"), listening)))
        return listening

    async def _read(self, pipe: io.BufferedReader, listening: "asyncio.Future[str]") -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        async for raw in reader:
            line = raw.decode(errors="replace").rstrip()
            self.log.append(line)
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record.get("event") == "listening" and not listening.done():
                    listening.set_result(record["address"])
        transport.close()
        if not listening.done():
            listening.set_exception(RuntimeError("the server did not start:\n" + "\n".join(self.log[-30:])))

    async def kill(self) -> None:
        """``kill -9``."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def stop(self, within_s: float = 20, number: signal.Signals = signal.SIGTERM) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        send(self.pid, number)
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    async def close(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.returncode is None:
            await self.kill()
        if (self.data / "mark").exists():
            for survivor in self.survivors():  # of a test that failed: what outlives its server is frozen, or a bug
                send(int(survivor.split()[0]))
        async with asyncio.timeout(20):
            await asyncio.gather(*self._readers)
        if self.session is not None:
            await self.session.close()

    # Requests.

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        """Any request."""
        assert self.session is not None
        async with self.session.request(method, self.url + path, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def talk(self, said: bytes, *, hang_up: bool = False) -> bytes:
        """Bytes to the port, exactly these; all that comes back until the server closes.

        With ``hang_up`` the server is told that no more will come: what it waits for would never arrive.
        """
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        heard = b""
        with contextlib.suppress(ConnectionError):  # it closed while there was more to be read
            async with asyncio.timeout(20):
                writer.write(said)
                await writer.drain()
                if hang_up:
                    writer.write_eof()
                while block := await reader.read(1 << 16):
                    heard += block
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return heard

    async def exactly(self, line: str, *headers: str, body: bytes = b"") -> Answer:
        """A request whose line (``GET /tasks``) and headers are sent as they are; no client mends them on the way."""
        named = {header.partition(":")[0].lower() for header in headers}
        fill = ["Connection: close"]
        fill += [] if "host" in named else ["Host: localhost"]
        fill += [] if named & {"content-length", "transfer-encoding"} else [f"Content-Length: {len(body)}"]
        head = "\r\n".join([f"{line} HTTP/1.1", *fill, *headers, "", ""])
        return parsed(await self.talk(head.encode("latin-1") + body), line.partition(" ")[0])

    async def launch(self, service: str, params: Json | None = None) -> str:
        """Start a task; its id."""
        answer = await self.ask("POST", f"/{service}/start", json=params or {})
        assert answer.status == 202, answer.body
        return str(answer.json["id"])

    async def task(self, task_id: str) -> Json:
        """The task now; of a task that is gone, its problem."""
        answer = await self.ask("GET", f"/tasks/{task_id}")
        task: Json = answer.json
        return task

    async def items(self, path: str) -> list[Json]:
        """All that a list has, page by page."""
        found: list[Json] = []
        cursor: dict[str, str] = {}
        while True:
            page = (await self.ask("GET", path, params={"limit": "200", **cursor})).json
            found += page["items"]
            if page["next"] is None:
                return found
            cursor = {"cursor": page["next"]}

    async def verb(self, task_id: str, verb: str, wait_s: int | None = None) -> Answer:
        """Pause, resume or terminate."""
        headers = {} if wait_s is None else {"Prefer": f"wait={wait_s}"}
        return await self.ask("POST", f"/tasks/{task_id}/{verb}", headers=headers)

    async def until(self, task_id: str, condition: Callable[[Json], Any], within_s: float = 20) -> Json:
        """The task as soon as it is so."""
        task: Json = {}

        async def so() -> bool:
            nonlocal task
            task = await self.task(task_id)
            return bool(condition(task))

        await until(so, within_s, lambda: f"{task}\n" + "\n".join(self.log[-20:]))
        return task

    async def until_status(self, task_id: str, *statuses: str, within_s: float = 20) -> Json:
        """The task as soon as it has one of these statuses."""
        return await self.until(task_id, lambda task: task.get("status") in statuses, within_s)

    async def until_progress(self, task_id: str, done: float = 1, within_s: float = 20) -> Json:
        """The task as soon as it says that it has done so much."""
        return await self.until(task_id, lambda task: ((task.get("progress") or {}).get("done") or 0) >= done, within_s)

    async def file(self, task_id: str, name: str) -> bytes:
        """One of its files."""
        answer = await self.ask("GET", f"/tasks/{task_id}/files/{name}")
        assert answer.status == 200, answer.body
        return answer.body

    # Processes.

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self.process is not None
        return self.process.pid

    @property
    def fork_server(self) -> psutil.Process:
        """The fork server."""
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error):  # gone since
                if "intermission.supervisor.process.forkserver" in child.cmdline():
                    return child
        raise LookupError("no fork server")

    def descendants(self) -> list[psutil.Process]:
        """Every process below the fork server."""
        return self.fork_server.children(recursive=True)

    def mark(self) -> int:
        """What every process of this data folder has as its limit on file locks."""
        return int((self.data / "mark").read_text().rpartition("-")[2], 16)

    def survivors(self) -> list[str]:
        """Every process anywhere that was started below this server's fork servers."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.rlimit(RLIMIT_LOCKS)[0] == self.mark()
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {process.name()}")
        return found


class _Recorded:
    """A socket as `http.client` wants one."""

    def __init__(self, heard: bytes) -> None:
        self._heard = heard

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._heard)


def parsed(heard: bytes, method: str = "GET") -> Answer:
    """An answer from its bytes."""
    response = http.client.HTTPResponse(_Recorded(heard), method=method)  # type: ignore[arg-type]
    response.begin()
    return Answer(response.status, response.headers, response.read())


def problem(answer: Answer, status: int, slug: str) -> Json:
    """The problem that an answer must be (RFC 9457)."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    said: Json = answer.json
    assert said["type"] == f"https://intermission.dev/problems/{slug}"
    assert said["status"] == status
    assert said["title"]
    assert said["detail"]
    assert set(said) <= MEMBERS
    return said


def pointers(said: Json) -> set[str]:
    """Where a problem says that something is wrong: JSON pointers into the body, names of parameters."""
    return {fault["pointer"] if "pointer" in fault else fault["parameter"] for fault in said["errors"]}


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = 20, what: Callable[[], str] = str) -> None:
    """Wait until the condition holds, looking again every few milliseconds; AssertionError when time is over."""
    deadline = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {within_s} s: {what()}")
        await asyncio.sleep(0.004)


@contextlib.asynccontextmanager
async def serving(data: Path, **settings: str) -> AsyncIterator[Server]:
    """A server for as long as the block lasts."""
    server = Server(data, settings)
    try:
        yield await server.start()
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def flawless(data: Path, **settings: str) -> AsyncIterator[Server]:
    """As `serving`, of a server that must not have made a mistake of its own by the end, and that stops in order."""
    async with serving(data, **settings) as server:
        yield server
        assert await server.stop() == 0
        await server.close()  # reads the log to its end
        assert [line for line in server.log if "a request failed" in line] == []


def seeded() -> random.Random:
    """Chance that can be had again: the seed is printed when a test fails."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # noqa: T201 -- pytest shows it with a failure
    return random.Random(seed)


def squares(steps: int) -> bytes:
    """What the toy ``steps`` writes."""
    return b"".join(b"%d %d\n" % (n, n * n) for n in range(1, steps + 1))


def private_bytes(process: psutil.Process) -> int:
    """What only it has in memory."""
    return sum(part.private_clean + part.private_dirty for part in process.memory_maps())


def child_bytes(child: psutil.Process) -> int:
    """What is in memory for one child: what only it has, and the ring of its body, which its supervisor has as well."""
    rings = (part for part in child.memory_maps() if part.path.startswith("/memfd:body"))
    return private_bytes(child) + sum(part.shared_clean + part.shared_dirty for part in rings)


def send(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """A signal, to whoever is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
