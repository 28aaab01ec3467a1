"""Handlers that fork: what the other process does with its copy of the task changes nothing of the task."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from fault_tools import TOYS, outcomes
from harness import Server
from verb_tools import log, nothing_left, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

CODES = {"return": 0, "raise": 1, "exit": 7, "checkpoint": 1, "commit": 1, "sleep": 1, "output": 1}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with playing(tmp_path_factory.mktemp("forked"), INTERMISSION_HANDLERS=TOYS) as running:
        yield running
        await nothing_left(running)


@pytest.mark.parametrize("does", CODES)
async def test_the_other_process_leaves_unheard(server: Server, does: str) -> None:
    """Neither its end nor its state counts, and what it did wrong is in the log."""
    task_id = await server.launch("copied", {"does": does})
    task = await server.until_status(task_id, "completed", "failed")
    assert (task["status"], task["error"]) == ("completed", None)
    assert task["result"] == {"n": 2, "exit_code": CODES[does]}
    assert task["checkpoint"]["state"] == {"n": 2}
    assert task["progress"]["done"] == 2
    assert await outcomes(server, task_id) == ["completed"]
    assert await server.file(task_id, "lines.txt") == b"1\n2\n"
    said = await log(server, task_id)
    assert ("ValueError: from the copy" in said) == (does == "raise")
    refused = "RuntimeError: the task was used in a process that the handler has forked"
    assert (refused in said) == (does in {"checkpoint", "commit", "sleep", "output"})


async def test_clean_forks(server: Server, tmp_path: Path) -> None:
    """What it forked has not cleaned: when the process of `clean` itself dies, it is tried again."""
    path = tmp_path / "effect"
    task_id = await server.launch("copied_clean", {"path": str(path)})
    await server.until_progress(task_id, 1)
    answer = await server.verb(task_id, "terminate")
    assert (answer.status, answer.json["receipt"]["cleaned"]) == (200, True)
    assert path.read_text() == "cleaned\n"
