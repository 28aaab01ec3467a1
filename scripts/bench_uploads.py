"""Uploads beside their peers: one file, in turn by each, several times, and each time what arrived is compared."""

import asyncio
import contextlib
import filecmp
import mmap
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import aiohttp
import js_clients
import psutil
from bench_handlers import UNSYNCED
from bench_tools import HERE, Row, percentiles, server
from harness import Server, child_bytes, until
from yarl import URL

GIB = 1 << 30
SIZE = GIB
ROUNDS = 5
NO_DIGEST = "Want-Repr-Digest: sha-256=0"
_NGINX = """
daemon off; worker_processes 1; pid {0}/pid; error_log {0}/errors; user root;
events {{}}
http {{
  access_log off; client_body_temp_path {0}/temp; client_body_buffer_size 1m; client_max_body_size 0;
  server {{ listen 127.0.0.1:{1}; location / {{ root {0}; dav_methods PUT; }} }}
}}
"""


@dataclass
class Contender:
    """One who takes the file: where, and what it costs."""

    port: int
    method: str
    path: str
    processes: list[psutil.Process]
    kept: Callable[[], Path]
    """The file as it has arrived."""
    headers: tuple[str, ...] = ()
    created: Callable[[], Awaitable[str]] | None = None
    """Makes what the next file goes to, and has its path; not counted."""
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    async def take(self, source: Path) -> Path:
        """Once more; the file that was kept of it."""
        path = self.path if self.created is None else await self.created()
        before = self._cpu_s()
        self.seconds.append(await send(self.port, self.method, path, source, *self.headers))
        self.cpu.append(self._cpu_s() - before)
        kept = self.kept()
        await compared(source, kept)
        return kept

    def _cpu_s(self) -> float:
        # Children that were reaped count with who reaped them.
        times = [process.cpu_times() for process in self.processes]
        return sum(t.user + t.system + t.children_user + t.children_system for t in times)

    @property
    def gib_per_s(self) -> float:
        """The median."""
        return SIZE / GIB / median(self.seconds)

    @property
    def cpu_per_gib(self) -> float:
        """The median, in seconds."""
        return median(self.cpu) * GIB / SIZE


async def send(port: int, method: str, path: str, source: Path, *headers: str) -> float:
    """Send the file by a client in a process of its own; the seconds until the answer."""
    command = [sys.executable, str(HERE / "bench_client.py"), str(port), method, path, str(source), *headers]
    client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    said, _ = await client.communicate()
    status, seconds = said.split()
    if status not in {b"201", b"204"}:
        raise AssertionError(said)
    return float(seconds)


async def compared(source: Path, kept: Path) -> None:
    """See that what has arrived is what was sent."""
    if not await asyncio.to_thread(filecmp.cmp, source, kept, shallow=False):
        raise AssertionError(f"{kept} is not what was sent")


def disk_s(folder: Path) -> float:
    """The seconds that the disk takes for as much, durable: of one who has it all in memory, and copies nothing."""
    block = mmap.mmap(-1, 1 << 20)  # what goes to a disk directly begins at a page
    block.write(os.urandom(len(block)))
    path = folder / "direct"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
    try:
        os.posix_fallocate(fd, 0, SIZE)
        begun = time.perf_counter()
        for at in range(0, SIZE, len(block)):
            os.pwrite(fd, block, at)
        os.fdatasync(fd)
        return time.perf_counter() - begun
    finally:
        os.close(fd)
        path.unlink()


def ours(running: Server, service: str, *headers: str, name: str = "content") -> Contender:
    """A service of a server of ours, and the file that it keeps."""
    tasks = running.data / "tasks"

    def kept() -> Path:
        newest = max(os.listdir(tasks))  # ids are in the order of time
        return tasks / newest / "files" / name

    port = int(running.url.rpartition(":")[2])
    processes = [psutil.Process(running.pid), running.fork_server]
    return Contender(port, "POST", f"/{service}/start", processes, kept, headers)


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[Contender | None]:
    """Its module for PUT; None where it is not installed."""
    if shutil.which("nginx") is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "conf").write_text(_NGINX.format(folder, port))
    process = await asyncio.create_subprocess_exec("nginx", "-c", str(folder / "conf"), stderr=subprocess.DEVNULL)
    try:
        await until(lambda: listening(port))
        workers = psutil.Process(process.pid).children()
        yield Contender(port, "PUT", "/file", workers, lambda: folder / "file")
    finally:
        process.terminate()
        await process.wait()


async def listening(port: int) -> bool:
    """Whether somebody does."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@asynccontextmanager
async def tus_server(folder: Path) -> AsyncIterator[Contender | None]:
    """The reference server of tus in JavaScript; None where it is not installed."""
    if shutil.which("npm") is None:
        yield None
        return
    await asyncio.to_thread(js_clients.install)
    kept = folder / "tus"
    await asyncio.to_thread(kept.mkdir)
    command = ["node", str(js_clients.CLIENTS / "tus_server.mjs"), str(kept)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None  # noqa: S101 -- for the type
        port, tus = int(await process.stdout.readline()), {"Tus-Resumable": "1.0.0", "Upload-Length": str(SIZE)}

        async def created() -> str:
            url = f"http://127.0.0.1:{port}/files"
            async with aiohttp.ClientSession() as session, session.post(url, headers=tus) as answer:
                return URL(answer.headers["Location"]).path

        def newest() -> Path:
            return max((path for path in kept.iterdir() if not path.suffix), key=lambda path: path.stat().st_mtime)

        headers = ("Tus-Resumable: 1.0.0", "Upload-Offset: 0", "Content-Type: application/offset+octet-stream")
        yield Contender(port, "PATCH", "", [psutil.Process(process.pid)], newest, headers, created)
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def writer(folder: Path) -> AsyncIterator[Contender]:
    """An aiohttp server that does nothing else."""
    command = [sys.executable, str(HERE / "bench_writer.py"), str(folder)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None  # noqa: S101 -- for the type
        port = int(await process.stdout.readline())
        yield Contender(port, "PUT", "/file", [psutil.Process(process.pid)], lambda: folder / "file")
    finally:
        process.kill()
        await process.wait()


async def uploads() -> list[Row]:
    """How fast a file gets in, and what it costs, beside nginx and the least that aiohttp can do."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = folder / "source"
        source.write_bytes(os.urandom(SIZE))
        fast = await stack.enter_async_context(server())
        slow = await stack.enter_async_context(server(handlers="bench_handlers,without_direct"))
        contenders: dict[str, Contender | None] = {
            "nginx": await stack.enter_async_context(nginx(folder)),
            "tus": await stack.enter_async_context(tus_server(folder)),
            "aiohttp": await stack.enter_async_context(writer(folder)),
            "unsynced": ours(fast, "pass", name=UNSYNCED),
            "copied": ours(slow, "pass", name=UNSYNCED),
            "plain": ours(fast, "upload", NO_DIGEST),
            "sha256": ours(fast, "upload"),
            "crc32c": ours(fast, "upload", "Want-Repr-Digest: crc32c=10"),
        }
        there = {name: one for name, one in contenders.items() if one is not None}
        for turn in range(ROUNDS + 1):
            for contender in there.values():
                kept = await contender.take(source)
                await asyncio.to_thread(kept.unlink)
                if turn == 0:  # the first is for warming up
                    contender.seconds.clear()
                    contender.cpu.clear()
        # Not in turn: it uses no memory, and a host that takes back what is free meanwhile would slow down who is next.
        direct = [await asyncio.to_thread(disk_s, folder) for _ in range(ROUNDS)]
    return _compared(there, SIZE / GIB / median(direct))


def _compared(there: dict[str, Contender], disk: float) -> list[Row]:
    unsynced, copied, plain = there["unsynced"], there["copied"], there["plain"]

    def figures(one: Contender) -> str:
        return f"{one.gib_per_s:.2f} GiB/s, {one.cpu_per_gib:.2f} CPU s/GiB"

    def speed(row: str, one: Contender, least: float | None, peer: str, peer_name: str) -> Row:
        target = "reported" if least is None else f"≥ {least:.0%} of {peer_name}"
        if peer not in there:
            return Row(row, target, f"{figures(one)}; {peer_name} is not installed", False)
        ratio = one.gib_per_s / there[peer].gib_per_s
        measured = f"{ratio:.0%} of {peer_name} ({figures(one)}; {peer_name} {figures(there[peer])})"
        return Row(row, target, measured, least is None or ratio >= least)

    rows = [speed("upload, no digest, left to the kernel as nginx leaves it", unsynced, 1, "nginx", "nginx PUT")]
    if "nginx" in there:
        cost = unsynced.cpu_per_gib / there["nginx"].cpu_per_gib
        rows.append(Row("its CPU", "≤ 80 % of nginx's", f"{cost:.0%} (load {os.getloadavg()[0]:.1f})", cost <= 0.8))
    durable = there["crc32c"].gib_per_s / disk
    return [
        *rows,
        speed("the same", unsynced, 3, "tus", "@tus/server"),
        speed("the same, copied", copied, 0.8, "aiohttp", "a bare aiohttp writer"),
        speed("upload, no digest, durable", plain, None, "nginx", "nginx PUT"),
        speed("upload with its CRC-32C, durable", there["crc32c"], 0.8, "unsynced", "the first row"),
        speed("the same", there["crc32c"], None, "plain", "it without a digest"),
        Row("the same", "reported", f"{durable:.0%} of the disk itself ({disk:.2f} GiB/s, written to directly)", True),
        speed("upload with its SHA-256, durable", there["sha256"], None, "plain", "it without a digest"),
    ]


async def upload_parallel() -> list[Row]:
    """Four files at once, without a digest, in turn by us and by nginx."""
    count = 4
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = folder / "source"
        source.write_bytes(os.urandom(SIZE))
        running = await stack.enter_async_context(server())
        peer = await stack.enter_async_context(nginx(folder))
        if peer is None:
            return [Row(f"{count} uploads at once", "≥ 100 % of nginx PUT", "nginx is not installed", False)]
        port, tasks = int(running.url.rpartition(":")[2]), running.data / "tasks"

        async def by_us() -> list[Path]:
            await asyncio.gather(*(send(port, "POST", "/upload/start", source, NO_DIGEST) for _ in range(count)))
            return [tasks / name / "files" / "content" for name in sorted(os.listdir(tasks))[-count:]]

        async def by_nginx() -> list[Path]:
            await asyncio.gather(*(send(peer.port, "PUT", f"/file{n}", source) for n in range(count)))
            return [folder / f"file{n}" for n in range(count)]

        seconds: dict[str, list[float]] = {"ours": [], "nginx": []}
        for turn in range(ROUNDS + 1):
            for name, by in (("ours", by_us), ("nginx", by_nginx)):
                begun = time.perf_counter()
                kept = await by()
                if turn:  # the first is for warming up
                    seconds[name].append(time.perf_counter() - begun)
                for path in kept:
                    await compared(source, path)
                    await asyncio.to_thread(path.unlink)
    speeds = {name: count * SIZE / GIB / median(taken) for name, taken in seconds.items()}
    ratio = speeds["ours"] / speeds["nginx"]
    measured = f"{ratio:.0%} ({speeds['ours']:.2f} GiB/s; nginx {speeds['nginx']:.2f} GiB/s)"
    return [Row(f"{count} uploads at once, no digest, durable", "≥ 100 % of nginx PUT", measured, ratio >= 1)]


async def upload_stops() -> list[Row]:
    """From a pause to the answer that says so, while bytes come as fast as they can; its process is gone by then."""
    latencies, memory = [], 0
    async with server() as running:
        source = running.data.parent / "holes"
        source.touch()
        os.truncate(source, 4 * GIB)
        port = running.url.rpartition(":")[2]
        for _ in range(50):
            command = [sys.executable, str(HERE / "bench_client.py"), port, "POST", "/upload/start", str(source)]
            client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            task = await _flowing(running, 64 << 20)
            child = task["child"]["pid"]
            memory = max(memory, child_bytes(psutil.Process(child)))
            before = time.perf_counter()
            answer = await running.verb(task["id"], "pause")
            latencies.append((time.perf_counter() - before) * 1e3)
            if answer.status != 200 or psutil.pid_exists(child):
                raise AssertionError(answer.body)
            await running.verb(task["id"], "terminate")
            await client.communicate()
    p50, p99 = percentiles(latencies)
    measured = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms (load {os.getloadavg()[0]:.1f})"
    return [
        Row("pause of an upload at full speed → durable, process gone", "p99 ≤ 50 ms", measured, p99 <= 50),
        Row("private memory of its child, and its ring", "≤ 15 MB", f"most {memory / 1e6:.1f} MB", memory <= 15e6),
    ]


async def _flowing(running: Server, upto: int) -> dict[str, dict[str, int] | str]:
    """The newest upload, once so much of it is there."""
    task: dict[str, dict[str, int] | str] = {}

    async def there() -> bool:
        nonlocal task
        items = (await running.ask("GET", "/tasks?limit=1&status=running")).json["items"]
        if not items:
            return False
        task = await running.task(items[0]["id"])
        return bool(task["child"]) and ((task["progress"] or {"done": 0})["done"] >= upto)

    await until(there)
    return task


async def upload_takeover() -> list[Row]:
    """From a HEAD to its answer while an earlier request for the upload hangs; what it tells is then accepted."""
    latencies = []
    tus = {"Tus-Resumable": "1.0.0"}
    async with server() as running:
        host, _, port = running.url.removeprefix("http://").rpartition(":")
        for _ in range(50):
            size = 4 << 20
            created = await running.ask("POST", "/upload/files", headers={**tus, "Upload-Length": str(size)})
            path = created.headers["Location"].removeprefix(running.url)
            _, hanging = await asyncio.open_connection(host, int(port))
            lines = [f"PATCH {path} HTTP/1.1", "Host: localhost", "Tus-Resumable: 1.0.0", "Upload-Offset: 0"]
            lines += ["Content-Type: application/offset+octet-stream", f"Content-Length: {size}", "", ""]
            hanging.write("\r\n".join(lines).encode() + bytes(size // 2))
            await _flowing(running, size // 2)
            before = time.perf_counter()
            head = await running.ask("HEAD", path, headers=tus)
            latencies.append((time.perf_counter() - before) * 1e3)
            offset = int(head.headers["Upload-Offset"])
            headers = {**tus, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
            rest = await running.ask("PATCH", path, data=bytes(size - offset), headers=headers)
            if rest.status != 204 or offset != size // 2:
                raise AssertionError(rest.body)
            hanging.transport.abort()
    p50, p99 = percentiles(latencies)
    measured = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    return [Row("HEAD of an upload whose client hangs", "p99 ≤ 200 ms", measured, p99 <= 200)]
