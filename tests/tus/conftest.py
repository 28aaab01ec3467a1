"""One server for each file of tests; no test leaves a process."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness import Server
from verb_tools import nothing_left, playing


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for the tests that need no settings of their own."""
    async with playing(tmp_path_factory.mktemp("tus")) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    if "server" in request.fixturenames:
        await nothing_left(request.getfixturevalue("server"))
