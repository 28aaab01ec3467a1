"""A server that can open nothing more: uploads are refused or stop where they are, and none of it is lost."""

import os
import resource
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio
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


@pytest.mark.parametrize("spare", range(12))
async def test_nothing_more_can_be_opened(server: Server, spare: int) -> None:
    """However many are left: an answer that says so, or the upload; then it goes on from what was told."""
    before, last = numbers(server), await newest(server)
    free = [number for number in range(max(before) + 20) if number not in before]
    process = psutil.Process(server.pid)
    limits = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (free[spare], limits[1]))
    try:
        answer = await upload(server, CONTENT)
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, limits)
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
