"""What the tests of faults share: a server with every toy, what a task must have written, and who is still there."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from harness import HERE, Json, Server, serving, until

from intermission.supervisor.process.slot import newest_sequence

TOYS = "toys,fault_toys"


@asynccontextmanager
async def faulty(data: Path, **settings: str) -> AsyncIterator[Server]:
    """A server with all toys, which at the end has left no process behind."""
    async with serving(data, INTERMISSION_HANDLERS=TOYS, **settings) as server:
        yield server
        assert await server.stop() == 0
        assert server.survivors() == []


def place(server: Server, task_id: str) -> int:
    """The newest checkpoint that a task has saved, whether or not anybody was told of it."""
    return newest_sequence(server.data / "tasks" / task_id)


async def until_place(server: Server, task_id: str, sequence: int) -> None:
    """Wait until a task has saved this checkpoint or a later one."""

    async def reached() -> bool:
        return place(server, task_id) >= sequence

    await until(reached, what=lambda: "\n".join(server.log[-20:]))


async def until_lines(path: Path, count: int = 0) -> None:
    """Wait until a file is there and has so many lines."""

    async def written() -> bool:
        return path.exists() and path.read_text().count("\n") >= count

    await until(written, what=lambda: f"{path} has not {count} lines")


async def child(server: Server, task_id: str, other_than: int | None = None) -> int:
    """The pid of a task's child, once it has one."""
    task = await server.until(task_id, lambda task: task.get("child") and task["child"]["pid"] != other_than)
    return int(task["child"]["pid"])


async def outcomes(server: Server, task_id: str) -> list[str | None]:
    """How each attempt ended; None for one that has not."""
    return [attempt["outcome"] for attempt in await server.items(f"/tasks/{task_id}/attempts")]


async def every_task(server: Server) -> list[Json]:
    """All tasks, newest first."""
    return await server.items("/tasks")


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie does not."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


async def until_dead(processes: Iterable[psutil.Process], within_s: float) -> float:
    """Wait until none of them runs; the seconds that it took."""
    left, begun = list(processes), time.monotonic()

    async def dead() -> bool:
        left[:] = alive(left)
        return not left

    await until(dead, within_s, lambda: f"still there: {left}")
    return time.monotonic() - begun


async def until_logged(server: Server, event: str, times: int = 1, within_s: float = 20) -> None:
    """Wait until the server has logged this so often."""

    async def logged() -> bool:
        return logs(server, event) >= times

    await until(logged, within_s, lambda: "\n".join(server.log[-20:]))


def logs(server: Server, event: str) -> int:
    """How often the server has logged this."""
    return sum(event in line for line in server.log)


def serve(data: Path | str, *args: str, timeout: float = 20, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``intermission serve`` to its end, which is expected to be soon."""
    environment = {"PATH": "/usr/bin:/bin", "INTERMISSION_PORT": "0", "INTERMISSION_DATA_DIR": str(data), **settings}
    command = [sys.executable, "-m", "intermission.supervisor.cli", "serve", *args]
    return subprocess.run(
        command, env=environment, cwd=HERE, capture_output=True, text=True, timeout=timeout, check=False
    )


def generation(server: Server) -> Json:
    """Who holds the data folder, as it is written there."""
    record: Json = json.loads((server.data / "generation.json").read_text())
    return record
