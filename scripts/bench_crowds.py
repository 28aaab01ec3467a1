"""Many uploads at once: how one that is fast fares beside slow ones, and what a thousand cost that are open."""

import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
from bench_tools import HERE, Row, cpu_s, percentiles, server, watched
from bench_uploads import GIB, SIZE, ours
from harness import Server, child_bytes, private_bytes, until

SLOW = 200
RATE = 1_000_000
OPEN = 1000


async def upload_beside() -> list[Row]:
    """A file at full speed, alone and beside 200 others that come at 1 MB/s each; all are compared by their SHA-256.

    Memory is full of what was read, as on every machine that has been up for a while, and what arrives stays. Else the
    row tells of the host of a virtual machine, which takes back what memory is free: then most of a writer's time goes
    into the first touch of each new page, and beside 200 others all of its pages are new (65 % of its CPU, measured).
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.write_bytes(os.urandom(SIZE))
        await asyncio.to_thread(_fill_memory, Path(folder))
        async with server() as running:
            fast = ours(running, "upload")
            for _ in range(5):
                await fast.take(source)
            alone, fast.seconds = fast.seconds[1:], []
            command = [sys.executable, str(HERE / "bench_slow.py"), str(fast.port), str(SLOW), str(RATE), "20"]
            others = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            await until(lambda: _flowing(running, SLOW), 20)
            async with watched(running) as latencies:
                for _ in range(4):
                    await fast.take(source)
            identical, _ = await others.communicate()
            if int(identical) != SLOW:
                raise AssertionError(f"{identical!r} of {SLOW} slow uploads ended identical")
    beside = fast.seconds
    more = median(beside) / median(alone) - 1
    _, p99 = percentiles(latencies)
    speeds = f"{SIZE / GIB / median(alone):.2f} → {SIZE / GIB / median(beside):.2f} GiB/s"
    return [
        Row(f"a fast upload beside {SLOW} at 1 MB/s", "≤ 25 % slower", f"{more:.0%} ({speeds})", more <= 0.25),
        Row("`/health` meanwhile", "p99 ≤ 20 ms", f"p99 {p99:.1f} ms", p99 <= 20),
    ]


def _fill_memory(folder: Path) -> None:
    """Have the page cache take all of the memory that is free: of nothing but a hole, so that no disk is read."""
    hole = folder / "hole"
    hole.touch()
    os.truncate(hole, psutil.virtual_memory().total)
    buffer = bytearray(1 << 20)
    with hole.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


async def _flowing(running: Server, count: int) -> bool:
    return len(running.descendants()) >= count


async def upload_crowd() -> list[Row]:
    """A thousand uploads open at once, each half there; then the other halves, and all are compared."""
    content = os.urandom(200_000)
    digest = hashlib.sha256(content).hexdigest()
    half = len(content) // 2
    head = f"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    async with server() as running:
        host, _, port = running.url.removeprefix("http://").rpartition(":")
        supervisor = psutil.Process(running.pid)
        before = private_bytes(supervisor)
        opened = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(OPEN)))
        begun = time.perf_counter()
        for _, writer in opened:
            writer.write(head + content[:half])
        await until(lambda: _flowing(running, OPEN), 60)
        took_s = time.perf_counter() - begun
        await asyncio.sleep(5)
        async with watched(running) as latencies:
            used = cpu_s(supervisor)
            await asyncio.sleep(5)
            share = (cpu_s(supervisor) - used) / 5
        more = (private_bytes(supervisor) - before) / OPEN
        private = [child_bytes(child) for child in running.descendants()]
        for _, writer in opened:
            writer.write(content[half:])
        answers = await asyncio.gather(*(reader.readuntil(b"}") for reader, _ in opened))
        rest = await asyncio.gather(*(reader.read(65_536) for reader, _ in opened))
        for _, writer in opened:
            writer.close()
        exact = sum(digest.encode() in first + second for first, second in zip(answers, rest, strict=True))
        if exact != OPEN:
            raise AssertionError(f"{exact} of {OPEN} ended identical")
    _, p99 = percentiles(latencies)
    measured = f"child median {median(private) / 1e6:.1f}, most {max(private) / 1e6:.1f} MB; server {more / 1e3:.0f} KB"
    return [
        Row(f"{OPEN:,} uploads open: private memory of each, and its ring", "≤ 15 MB", measured, max(private) <= 15e6),
        Row("until all of them are under way", "reported", f"{took_s:.1f} s", True),
        Row("the server's CPU while they hang, with `/health` asked", "reported", f"{share:.1%} of a core", True),
        Row("`/health` meanwhile", "p99 ≤ 20 ms", f"p99 {p99:.1f} ms", p99 <= 20),
    ]
