"""Uploads whose child hangs once all of its body has come: whoever asks for them is answered, and nothing is lost."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import psutil
import pytest
from fault_tools import child, faulty
from harness import Server, problem, send, until
from tus_tools import ask, begin, content, create, head, patch, task_id
from upload_tools import Sending, chunk, data

CONTENT = data(100_000)
AT_ONCE_S = 2.0
"""Less than the grace that a child has, so that it has not been waited for."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """One for each test."""
    async with faulty(tmp_path) as running:
        yield running


async def stuck(server: Server, length: int | None = len(CONTENT)) -> tuple[Sending, str, int]:
    """A PATCH of which all has come, the upload's path, and its child, which hangs."""
    path = await create(server, length)
    sending = await begin(server, path)
    await sending.send(chunk(CONTENT[:1]))
    await server.until_progress(task_id(path), 1)
    pid = await child(server, task_id(path))
    send(pid, signal.SIGSTOP)
    await sending.send(chunk(CONTENT[1:]) + chunk(b""))

    async def taken() -> bool:
        return all(part.path != "/memfd:body (deleted)" for part in psutil.Process(server.pid).memory_maps())

    await until(taken)
    return sending, path, pid


async def test_how_far_it_is(server: Server) -> None:
    """The child is ended when it has had the time of a pause; its client is told to go on, and can."""
    sending, path, _ = await stuck(server)
    begun = monotonic()
    told = int((await head(server, path)).headers["Upload-Offset"])
    assert monotonic() - begun < 10
    assert told == 1
    problem(await sending.answer(), 503, "interrupted")
    assert (await patch(server, path, CONTENT[told:], told)).status == 204
    assert await content(server, path) == CONTENT


async def test_somebody_else_goes_on(server: Server) -> None:
    """Another PATCH has its turn as soon."""
    sending, path, _ = await stuck(server)
    assert (await patch(server, path, CONTENT[1:], 1)).status == 204
    problem(await sending.answer(), 503, "interrupted")
    assert await content(server, path) == CONTENT


async def test_a_pause(server: Server) -> None:
    """It is answered within its wait, also while another waits for the child, and is so in the end."""
    sending, path, _ = await stuck(server)
    asked = asyncio.create_task(head(server, path))
    begun = monotonic()
    answer = await server.verb(task_id(path), "pause", wait_s=0)
    assert monotonic() - begun < AT_ONCE_S
    assert (answer.status, answer.json["status"]) == (202, "pausing")
    answer = await server.verb(task_id(path), "pause")
    assert (answer.status, answer.json["status"], answer.json["reason"]) == (200, "paused", "forced")
    assert (await asked).headers["Upload-Offset"] == "1"
    problem(await sending.answer(), 423, "held")
    problem(await patch(server, path, CONTENT[1:], 1), 423, "held")


async def test_a_child_that_was_only_slow(server: Server) -> None:
    """It is not ended as long as it comes to its end within that time."""
    sending, path, pid = await stuck(server)
    asked = asyncio.create_task(ask(server, "HEAD", path))
    await server.task(task_id(path))  # asked later, so that the other is waited for by now
    send(pid, signal.SIGCONT)
    assert (await asked).headers["Upload-Offset"] == str(len(CONTENT))
    assert (await sending.answer()).status == 204
    assert len((await server.ask("GET", f"/tasks/{task_id(path)}/attempts")).json["items"]) == 1


async def test_a_child_that_cannot_be_ended(server: Server) -> None:
    """Nobody is left to wait for it; when it has gone after all, its upload goes on."""
    sending, path, _ = await stuck(server)
    fork_server = server.fork_server
    fork_server.suspend()
    try:
        answers = await asyncio.gather(ask(server, "HEAD", path), patch(server, path, CONTENT[1:], 1))
    finally:
        fork_server.resume()
    assert [answer.status for answer in answers] == [503, 503]
    assert all(answer.headers["Retry-After"] for answer in answers)
    problem(await sending.answer(), 503, "interrupted")
    await server.until_status(task_id(path), "paused")
    assert (await patch(server, path, CONTENT[1:], 1)).status == 204
    assert await content(server, path) == CONTENT
