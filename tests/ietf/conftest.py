"""One server for each file of tests, spoken to in both versions of the draft; no test leaves a process."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness import Server
from ietf_tools import Client
from verb_tools import nothing_left, playing


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for the tests that need no settings of their own."""
    async with playing(tmp_path_factory.mktemp("ietf")) as running:
        yield running


@pytest.fixture(params=[6, 8])
def client(request: pytest.FixtureRequest, server: Server) -> Client:
    """A client of each version."""
    return Client(server, request.param)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    if "server" in request.fixturenames:
        await nothing_left(request.getfixturevalue("server"))
