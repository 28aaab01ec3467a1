"""A system that has no process left: tasks wait for one, and to have waited is no error and no loss."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from fault_tools import TOYS, logs, until_logged
from harness import Server, problem
from upload_tools import data, resume, sha256, upload
from verb_tools import attempts, nothing_left, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAITS = "a task waits until it can be launched"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    async with playing(
        folder / "var", INTERMISSION_HANDLERS=f"{TOYS},verb_toys", TOYS_REFUSE_FORK=str(folder / "none")
    ) as running:
        yield running


@contextmanager
def none_left(server: Server) -> Iterator[None]:
    """No process is to be had."""
    sign = Path(server.settings["TOYS_REFUSE_FORK"])
    sign.touch()
    try:
        yield
    finally:
        sign.unlink()


async def test_tasks_wait(server: Server) -> None:
    """However often they have to try: they go on in their first attempt, as soon as there are processes again."""
    with none_left(server):
        before = logs(server, WAITS)
        ids = [await server.launch("steps", {"steps": 2, "delay_s": 0}) for _ in range(3)]
        await until_logged(server, WAITS, before + 3 * 6)  # five losses would have been the end of each
        assert {(await server.task(task_id))["status"] for task_id in ids} == {"running"}
        assert {(await server.task(task_id))["child"] for task_id in ids} == {None}
    for task_id in ids:
        task = await server.until_status(task_id, "completed")
        assert (task["attempt"], task["error"]) == (1, None)


@pytest.mark.parametrize("verb", ["pause", "terminate"])
async def test_one_that_waits_can_be_stopped(server: Server, verb: str) -> None:
    """It is not launched any more."""
    with none_left(server):
        before = logs(server, WAITS)
        task_id = await server.launch("steps", {"steps": 2, "delay_s": 0})
        await until_logged(server, WAITS, before + 1)
        answer = await server.verb(task_id, verb, wait_s=5)
    assert answer.status == 200, answer.body
    if verb == "pause":
        assert (answer.json["status"], answer.json["reason"]) == ("paused", "requested")
        assert (await server.verb(task_id, "resume")).status == 202
        assert (await server.until_status(task_id, "completed"))["attempt"] == 2


async def test_clean_waits_too(server: Server, tmp_path: Path) -> None:
    """What undoes a task's effects is not given up, and has all its tries."""
    path = tmp_path / "effect"
    task_id = await server.launch("effect", {"path": str(path), "clean_errors": 2})
    await server.until(task_id, lambda task: task["checkpoint"])
    with none_left(server):
        before = logs(server, WAITS)
        assert (await server.verb(task_id, "terminate", wait_s=0)).status == 202
        await until_logged(server, WAITS, before + 2)
        assert (await server.task(task_id))["status"] == "terminating"
        assert path.exists()
    gone = await server.until(task_id, lambda task: task["status"] == 410)
    assert gone["receipt"]["cleaned"]
    assert not path.exists()


async def test_no_thread_is_needed_later(server: Server) -> None:
    """Where there is no process left there is no thread either: all that the server needs are there by its start."""
    before = set(os.listdir(f"/proc/{server.pid}/task"))
    ids = [await server.launch("steps", {"steps": 2, "delay_s": 0}) for _ in range(12)]
    for task_id in ids:
        await server.until_status(task_id, "completed")
    await asyncio.gather(*(server.ask("GET", f"/tasks/{task_id}/log") for task_id in ids))
    assert set(os.listdir(f"/proc/{server.pid}/task")) <= before


async def test_an_upload_is_told(server: Server) -> None:
    """Its client waits: it hears at once that it has to come again, and where to go on."""
    content = data(1 << 20)
    with none_left(server):
        said = problem(await upload(server, content), 503, "interrupted")
    assert [attempt["outcome"] for attempt in await attempts(server, said["id"])] == ["errored"]
    answer = await resume(server, said["id"], content, said["offset"])
    assert answer.json["result"]["sha256"] == sha256(content)


async def test_a_stop_does_not_wait(server: Server) -> None:
    """What could not be launched when the server goes down is pending, and carries on at the next start."""
    with none_left(server):
        before = logs(server, WAITS)
        task_id = await server.launch("steps", {"steps": 2, "delay_s": 0})
        await until_logged(server, WAITS, before + 1)
        async with asyncio.timeout(5):
            assert await server.stop() == 0
    await server.start()
    assert (await server.until_status(task_id, "completed"))["error"] is None
    await nothing_left(server)
