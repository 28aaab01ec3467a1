"""A server that can open nothing more: uploads are refused or stop where they are, and none of it is lost."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import psutil
import pytest
import pytest_asyncio
from fault_tools import logs, until_logged
from harness import Server, problem, until
from upload_tools import MIB, data, newest, resume, sha256, upload
from verb_tools import nothing_left, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = data(3 * MIB)
ENOUGH = 8
"""With fewer no upload comes to its end."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for all tests."""
    async with playing(tmp_path_factory.mktemp("descriptors")) as running:
        assert (await upload(running, CONTENT)).status == 201  # what is opened once and kept is open from here on
        yield running


def numbers(server: Server) -> set[int]:
    """The server's descriptors."""
    return {int(name) for name in os.listdir(f"/proc/{server.pid}/fd")}


@contextmanager
def left(server: Server, spare: int) -> Iterator[None]:
    """Only so many more can be opened."""
    before = numbers(server)
    free = [number for number in range(max(before) + 20) if number not in before]
    process = psutil.Process(server.pid)
    limits = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (free[spare], limits[1]))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("spare", range(12))
async def test_nothing_more_can_be_opened(server: Server, spare: int) -> None:
    """However many are left: an answer that says so, or the upload; then it goes on from what was told."""
    before, last = numbers(server), await newest(server)
    with left(server, spare):
        answer = await upload(server, CONTENT)
    if spare < ENOUGH or answer.status != 201:
        said = problem(answer, 503, "interrupted" if "id" in answer.json else "unavailable")
        if "id" in said:
            answer = await resume(server, said["id"], CONTENT, said["offset"])
        else:
            assert await newest(server) == last, "an upload that its client does not know of"
            answer = await upload(server, CONTENT)
    assert answer.json["result"]["sha256"] == sha256(CONTENT)
    await nothing_left(server)

    async def as_before() -> bool:
        return len(numbers(server)) <= len(before)

    await until(as_before)


@pytest.mark.parametrize("spare", range(6))
async def test_a_task_waits(server: Server, spare: int) -> None:
    """For something that it can be launched with, in its first attempt: it has made no error."""
    with left(server, spare):
        task_id = await server.launch("steps", {"steps": 2, "delay_s": 0})
        await asyncio.sleep(0.3)  # a launch is tried at once, and what fails here is to be tried again later
    task = await server.until_status(task_id, "completed")
    assert (task["attempt"], task["error"]) == (1, None)


@pytest.mark.parametrize("verb", ["pause", "terminate"])
async def test_a_task_that_waits_can_be_stopped(server: Server, verb: str) -> None:
    """It is not launched any more; what undoes its effects may have to wait as well."""
    with left(server, 1):  # for a connection: to launch one takes two
        task_id = await server.launch("steps", {"steps": 2, "delay_s": 0})
        running = await server.until_status(task_id, "running")
        assert running["child"] is None
        answer = await server.verb(task_id, verb, wait_s=3)
    if verb == "pause":
        assert (answer.status, answer.json["status"]) == (200, "paused")
    else:
        await nothing_left(server)
        problem(await server.ask("GET", f"/tasks/{task_id}"), 410, "gone")


@pytest.mark.parametrize("spare", range(1, 4))
async def test_an_upload_without_its_room(server: Server, spare: int) -> None:
    """Is created all the same where nothing can be opened to keep it with: its first bytes do."""
    with left(server, spare):
        answer = await server.ask("POST", "/upload/start", headers={"Upload-Length": str(len(CONTENT))})
    assert answer.status == 201
    assert (await resume(server, answer.json["id"], CONTENT, 0)).json["result"]["sha256"] == sha256(CONTENT)


async def test_no_connection_can_be_accepted(server: Server) -> None:
    """Is told once, however often it is tried; who waits is served when one can be."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    with left(server, 0):
        crowd = [await asyncio.open_connection(host, int(port)) for _ in range(10)]
        await until_logged(server, "no connection can be accepted")
        await asyncio.sleep(2.5)  # a loop tries again each second
    for reader, writer in crowd:
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert (logs(server, "no connection can be accepted"), logs(server, "out of system resource")) == (1, 0)
