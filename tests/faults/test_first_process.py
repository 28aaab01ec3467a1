"""The server as a container's first process: it is init there, reaps what is orphaned, and nothing outlives it."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psutil
import pytest
from fault_tools import TOYS
from harness import Server, squares, until

NAMESPACE: Final = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
LEAVE_ORPHANS: Final = "(sleep 0.1 &) ; (setsid sleep 0.2 &) ; (setsid sh -c '(sleep 0.3 &)' &)"


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    """Root only, or where users may make namespaces."""
    if subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no PID namespace can be made here")


@asynccontextmanager
async def first(data: Path) -> AsyncIterator[tuple[Server, psutil.Process]]:
    """A server that is process 1 of a namespace, and its process as it is seen from outside."""
    server = Server(data, {"INTERMISSION_HANDLERS": TOYS}, before=NAMESPACE)
    try:
        await server.start()
        yield server, psutil.Process(server.pid).children()[0]
    finally:
        await server.close()


def inside(init: psutil.Process, script: str) -> None:
    """Run a script in the namespace, as ``docker exec`` does."""
    subprocess.run(["nsenter", "--target", str(init.pid), "--pid", "--mount", "sh", "-c", script], check=True)


async def test_it_reaps_what_others_orphan(tmp_path: Path) -> None:
    """Whoever comes in from outside and leaves something behind: it becomes ours, and is reaped when it ends."""
    async with first(tmp_path) as (server, init):
        (fork_server,) = init.children()
        inside(init, LEAVE_ORPHANS)
        inside(init, "setsid sleep 600 &")

        async def reaped() -> bool:
            try:
                return sorted(child.name() for child in init.children()) == sorted([fork_server.name(), "sleep"])
            except psutil.NoSuchProcess:  # reaped between the two looks
                return False

        await until(reaped, what=lambda: str(init.children(recursive=True)))
        task_id = await server.launch("steps", {"steps": 20, "delay_s": 0})
        await server.until_status(task_id, "completed")
        fork_server.kill()  # it is reaped as what it is, and another is started
        task_id = await server.launch("steps", {"steps": 20, "delay_s": 0})
        await server.until_status(task_id, "completed")
        assert await server.file(task_id, "lines.txt") == squares(20)


async def test_it_drains_and_nothing_outlives_it(tmp_path: Path) -> None:
    """SIGTERM to process 1 while trees run: it drains, is gone with everything, and the next one carries on."""
    async with first(tmp_path) as (server, init):
        forest = await server.launch("forest")
        steps = await server.launch("steps", {"steps": 300, "delay_s": 0.01})
        await server.until_progress(forest)
        await server.until_progress(steps, 5)
        assert server.process is not None
        everyone = init.children(recursive=True)
        assert len(everyone) >= 1 + 2 + 4
        init.terminate()
        assert await asyncio.wait_for(server.process.wait(), 12) == 0
        assert [process for process in everyone if process.is_running()] == []
        await server.start()
        for task_id in (forest, steps):
            assert (await server.task(task_id))["status"] in {"pending", "running"}
        await server.verb(forest, "terminate")
        await server.until_status(steps, "completed")
        assert await server.file(steps, "lines.txt") == squares(300)
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(server.pid).children()[0].terminate()
        assert await asyncio.wait_for(server.process.wait(), 12) == 0
