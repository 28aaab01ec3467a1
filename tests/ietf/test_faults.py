"""Resumable uploads for HTTP under SIGKILL and cuts, either way of the bytes: a client that resumes ends identical."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness import Server, seeded, send
from ietf_tools import CONTENT, FILES, MIB, START, Client, Talk, Told, durable, task_id
from upload_tools import WAYS, data
from verb_tools import nothing_left, playing
from yarl import URL

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = data(24 * MIB + 17)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(WAYS))
async def either(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """A server whose bytes go either way."""
    async with playing(tmp_path_factory.mktemp("faults"), **WAYS[str(request.param)]) as running:
        yield running
        await nothing_left(running)


async def pour(talk: Talk, content: bytes) -> Told | None:
    """Send all of it, hearing what is told meanwhile; the answer, None if the connection ended without one."""
    sending = asyncio.create_task(talk.send(content))
    try:
        return await talk.answer()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    finally:
        talk.abort()
        with contextlib.suppress(ConnectionError):
            await sending


@pytest.mark.parametrize("version", [6, 8])
async def test_all_at_once(either: Server, version: int) -> None:
    """By the main path; and what is announced by 104 on the way changes nothing of the bytes."""
    client = Client(either, version)
    talk = await client.begin("POST", START, "Upload-Complete: ?1", length=len(LARGE))
    answer = await pour(talk, LARGE)
    assert answer is not None
    assert (answer.status, answer.complete) == (201, "?1")
    assert await client.content(answer.path) == LARGE


@pytest.mark.parametrize("victim", ["child", "server", "client"])
@pytest.mark.parametrize("version", [6, 8])
async def test_killed_in_the_middle(either: Server, version: int, victim: str) -> None:
    """The client asks how far it is and goes on from there; no offset that it was ever told is taken back."""
    client, chance = Client(either, version), seeded()
    path = await client.create(len(LARGE))
    told = [0]
    for _ in range(3):
        at = (await client.state(path)).offset
        assert at >= told[-1]
        told.append(at)
        talk = await client.begin_append(path, at, "?1", length=len(LARGE) - at)
        await talk.send(LARGE[at : at + chance.randrange(2 * MIB, 6 * MIB)])
        told.append(int((await talk.interim()).headers["Upload-Offset"]))
        assert at < told[-1] <= durable(await client.task(path))
        if victim == "server":
            await either.kill()
            await either.start()
        elif victim == "child":
            send((await client.task(path))["child"]["pid"], signal.SIGKILL)
            answer = await talk.answer()
            answer.problem(503, "interrupted")
            assert answer.complete == "?0"
            told.append(answer.offset)
        talk.abort()
    at = (await client.state(path)).offset
    told.append(at)
    assert told == sorted(told)
    answer = await pour(await client.begin_append(path, at, "?1", length=len(LARGE) - at), LARGE[at:])
    assert answer is not None
    assert (answer.status, answer.complete) == (200, "?1")
    assert await client.content(path) == LARGE


async def test_a_creation_whose_server_is_killed(either: Server) -> None:
    """The address from the 104 is all that its client has, and is enough."""
    client = Client(either)
    talk = await client.begin("POST", START, "Upload-Complete: ?1", length=len(CONTENT))
    path = URL((await talk.interim()).headers["Location"]).path
    await talk.send(CONTENT[:MIB])
    told = int((await talk.interim()).headers["Upload-Offset"])
    await either.kill()
    talk.abort()
    await either.start()
    at = (await client.state(path)).offset
    assert at >= told > 0
    assert path == f"{FILES}/{task_id(path)}"
    answer = await client.append(path, CONTENT[at:], at, "?1")
    assert (answer.status, answer.complete) == (200, "?1")
    assert await client.content(path) == CONTENT


async def test_complete_but_for_the_word_when_the_server_is_killed(either: Server) -> None:
    """All bytes are there, and it is complete only once its client says so, to the next generation."""
    client = Client(either)
    path = await client.create(len(CONTENT))
    assert (await client.append(path, CONTENT, 0, "?0")).offset == len(CONTENT)
    await either.kill()
    await either.start()
    answer = await client.state(path)
    assert (answer.offset, answer.complete) == (len(CONTENT), "?0")
    assert (await client.append(path, b"", len(CONTENT), "?1")).complete == "?1"
    assert await client.content(path) == CONTENT
