"""What a handler's author gets wrong in the code that the server itself runs: only that service feels it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from apart_toys import MISTAKES
from fault_tools import logs
from harness import Server, problem, serving
from verb_tools import attempts, log

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for all mistakes, which is the same at the end, and stops in order."""
    data = tmp_path_factory.mktemp("apart")
    async with serving(data, INTERMISSION_HANDLERS="toys,apart_toys") as running:
        yield running
        assert await running.stop() == 0
        assert running.survivors() == []


@pytest.mark.parametrize("what", sorted(set(MISTAKES) - {"hang"}))
@pytest.mark.parametrize("where", ["validator", "uploads", "check"])
async def test_a_mistake_at_a_start(server: Server, where: str, what: str) -> None:
    """It is answered with a problem that tells nothing of it, the log has it whole, and the server goes on."""
    before = logs(server, "Traceback")
    async with asyncio.timeout(5):
        answer = await server.ask("POST", "/mistaken/start", json={"where": where, "what": what})
    said = problem(answer, 500, "internal")
    assert "'mistaken'" in said["detail"]
    assert "secret" not in answer.body.decode()
    assert logs(server, "Traceback") == before + 1
    (line,) = [line for line in server.log if "Traceback" in line][before:]
    assert '"service": "mistaken"' in line
    assert "apart_toys.py" in line
    task_id = await server.launch("counter", {"limit": 3})
    await server.until_status(task_id, "completed")


async def launched(server: Server, once: Path, where: str = "uploads", what: str = "error") -> str:
    """A task that has begun, and meets the mistake as soon as there is a file; its id."""
    task_id = await server.launch("mistaken", {"where": where, "what": what, "once": str(once)})
    await server.until_progress(task_id)
    return task_id


async def cleaned(server: Server, task_id: str, once: Path) -> None:
    """Terminate a task: it is gone, and `clean` has run."""
    answer = await server.verb(task_id, "terminate")
    assert (answer.status, answer.json["status"]) == (200, "terminated"), answer.body
    assert answer.json["receipt"]["cleaned"] is True
    assert Path(f"{once}.cleaned").exists()


@pytest.mark.parametrize("what", sorted(set(MISTAKES) - {"hang"}))
async def test_a_mistake_at_a_launch(server: Server, what: str, tmp_path: Path) -> None:
    """Each attempt errs with what was raised; when that is mended the task goes on, and it can be terminated."""
    once = tmp_path / "once"
    task_id = await launched(server, once, what=what)
    assert (await server.verb(task_id, "pause")).json["status"] == "paused"
    once.touch()
    assert (await server.verb(task_id, "resume")).status == 202
    task = await server.until_status(task_id, "failed")
    assert (task["reason"], task["attempt"], task["errors_left"]) == ("exhausted", 3, 0)
    error = task["error"]
    assert error["kind"] == ("exit" if what == "exit" else "exception")
    assert error["type"] in error["traceback"]
    assert "apart_toys.py" in error["traceback"]
    outcomes = [attempt["outcome"] for attempt in await attempts(server, task_id)]
    assert outcomes == ["stopped", "errored", "exhausted"]
    once.unlink()
    assert (await server.verb(task_id, "resume")).status == 202
    await server.until_progress(task_id, 2)
    once.touch()
    await cleaned(server, task_id, once)


async def test_a_mistake_after_it_has_failed(server: Server, tmp_path: Path) -> None:
    """What failed for it is terminated all the same."""
    once = tmp_path / "once"
    task_id = await launched(server, once)
    await server.verb(task_id, "pause")
    once.touch()
    await server.verb(task_id, "resume")
    await server.until_status(task_id, "failed")
    await cleaned(server, task_id, once)


# What does not return.

AT_ONCE = 8
"""The calls of one service that may be under way."""


async def test_checks_that_hang(tmp_path: Path) -> None:
    """As many as one likes: everybody else is served, and who waits for them is told in time to try again."""
    hanging = {"where": "check", "what": "hang"}
    async with serving(tmp_path, INTERMISSION_HANDLERS="toys,apart_toys") as server:
        asked = [asyncio.create_task(server.ask("POST", "/mistaken/start", json=hanging)) for _ in range(AT_ONCE + 2)]
        async with asyncio.timeout(8):  # so before any of them is given up
            for _ in range(5):
                task_id = await server.launch("steps", {"steps": 1_000_000})
                await server.until_progress(task_id)
                assert await log(server, task_id) == ""
                assert (await server.verb(task_id, "pause")).json["status"] == "paused"
                assert await server.file(task_id, "lines.txt")
                assert (await server.verb(task_id, "terminate")).json["status"] == "terminated"
            assert not any(one.done() for one in asked)
        for answer in await asyncio.gather(*asked):
            said = problem(answer, 503, "unavailable")
            assert "'mistaken' did not return within 10 s" in said["detail"]
            assert answer.headers["Retry-After"]
        assert logs(server, "does not return") == len(asked)


async def test_a_launch_that_hangs(tmp_path: Path) -> None:
    """It counts as an error of the handler's; meanwhile others are launched."""
    once = tmp_path / "once"
    async with serving(tmp_path / "data", INTERMISSION_HANDLERS="toys,apart_toys") as server:
        task_id = await launched(server, once, what="hang")
        await server.verb(task_id, "pause")
        once.touch()
        await server.verb(task_id, "resume")
        await server.until_status(task_id, "running")
        await server.until_status(await server.launch("counter", {"limit": 3}), "completed")
        task = await server.until(task_id, lambda task: task["errors_left"] == 1)
        assert (task["error"]["type"], task["error"]["kind"]) == ("TimeoutError", "exception")
        assert task["error"]["message"] == "the code of the service 'mistaken' did not return within 10 s"


@pytest.mark.parametrize("where", ["validator", "uploads", "check"])
async def test_a_stop_waits_for_nobody_who_hangs(tmp_path: Path, where: str) -> None:
    """Whatever hangs in the server, it ends in good order, and soon."""
    async with serving(tmp_path, INTERMISSION_HANDLERS="toys,apart_toys") as server:
        asked = asyncio.create_task(server.ask("POST", "/mistaken/start", json={"where": where, "what": "hang"}))
        await server.until_status(await server.launch("counter", {"limit": 3}), "completed")
        assert await server.stop(within_s=5) == 0
        await asyncio.gather(asked, return_exceptions=True)
        assert server.survivors() == []
