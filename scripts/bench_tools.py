"""What all measurements share: a row of the table, a server to measure, and figures of processes."""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import aiohttp
import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from harness import Server, serving  # noqa: E402 -- the tests' own way to run a server


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    reach: str
    measured: str
    reached: bool


@asynccontextmanager
async def server(max_running: int = 4, handlers: str = "bench_handlers") -> AsyncIterator[Server]:
    """A server with the handlers to measure, on a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        async with serving(
            Path(folder) / "data",
            INTERMISSION_HANDLERS=handlers,
            PYTHONPATH=str(HERE),
            INTERMISSION_MAX_RUNNING=str(max_running),
        ) as running:
            yield running


@asynccontextmanager
async def watched(running: Server) -> AsyncIterator[list[float]]:
    """Somebody who asks for the server's health meanwhile; how many milliseconds each answer took."""
    latencies: list[float] = []

    async def watch() -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                before = time.perf_counter()
                async with session.get(f"{running.url}/health") as response:
                    await response.read()
                latencies.append((time.perf_counter() - before) * 1e3)
                await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    try:
        yield latencies
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def percentiles(values: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    return median(values), quantiles(values, n=100, method="inclusive")[98]


def cpu_s(process: psutil.Process) -> float:
    """CPU time so far."""
    times = process.cpu_times()
    return times.user + times.system
