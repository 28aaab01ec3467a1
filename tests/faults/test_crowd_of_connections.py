"""More connections than a server may have open: whoever asks for something is served, and tasks have what they need."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from fault_tools import logs, until_logged
from harness import Server, until
from verb_tools import TOYS, mistakes, nothing_left

LIMIT = 309
PLACES = 53
"""What that leaves for connections, beside one task and one upload."""
HALF = b"GET /health HTTP/1.1\r\nHost:"
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with few descriptors, and not one mistake of its own by the end."""
    settings = {
        "INTERMISSION_HANDLERS": TOYS,
        "INTERMISSION_MAX_RUNNING": "1",
        "INTERMISSION_MAX_UPLOADS": "1",
    }
    server = Server(tmp_path, settings, before=("prlimit", f"--nofile={LIMIT}"))
    try:
        yield await server.start()
        await nothing_left(server)
        assert await server.stop() == 0
    finally:
        await server.close()
    assert mistakes(server) == []
    assert logs(server, "no connection can be accepted") == 0


async def connected(server: Server, said: bytes) -> Pair:
    """A connection on which this has been sent."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    return reader, writer


async def heard(pair: Pair) -> bytes:
    """What comes first; nothing, if that is the end."""
    try:
        return await pair[0].read(1 << 16)
    except ConnectionError:
        return b""


async def once(server: Server) -> bytes:
    """What a client hears that asks for one thing; nothing, if it is sent away."""
    try:
        return await server.talk(HALF + b" localhost\r\nConnection: close\r\n\r\n")
    except ConnectionError:
        return b""


def abort(pairs: list[Pair]) -> None:
    """Have none of them be left."""
    for _, writer in pairs:
        writer.transport.abort()


@pytest.mark.parametrize("said", [b"", HALF, HALF + b" localhost\r\n\r\n"], ids=["nothing", "half", "one request"])
async def test_who_asks_for_nothing(server: Server, said: bytes) -> None:
    """Makes room, the longest first: who comes is served, what is under way goes on, and the log says it once."""
    task_id = await server.launch("steps", {"steps": 1_000_000})
    await server.until_progress(task_id)
    following = await connected(
        server, f"GET /tasks/{task_id}/log?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    )
    assert (await heard(following)).startswith(b"HTTP/1.1 200 ")
    crowd: list[Pair] = []
    for _ in range(6):
        crowd += [await connected(server, said) for _ in range(PLACES)]
        # On a connection of its own: one that a client keeps may be the one that makes room as it is used again.
        assert (await once(server)).startswith(b"HTTP/1.1 200 ")
        assert len(os.listdir(f"/proc/{server.pid}/fd")) < LIMIT - PLACES
    await asyncio.gather(*(reader.read() for reader, _ in crowd[:PLACES]), return_exceptions=True)
    assert (await server.verb(task_id, "terminate")).status == 200
    async with asyncio.timeout(20):
        while b"event: end" not in (block := await heard(following)):
            assert block
    abort([*crowd, following])
    assert logs(server, "no more connections can be open") == 1


async def test_all_have_asked_for_something(server: Server) -> None:
    """Who comes then is sent away at once, and served as soon as one of them is."""
    task_id = await server.launch("steps", {"steps": 1_000_000})
    await server.until_progress(task_id)
    follow = f"GET /tasks/{task_id}/log?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    assert server.session is not None
    await server.session.close()  # its connection would be the one that makes room
    crowd = [await connected(server, follow) for _ in range(PLACES)]
    for pair in crowd:
        assert (await heard(pair)).startswith(b"HTTP/1.1 200 ")
    for _ in range(3):
        assert await once(server) == b""
    await until_logged(server, "no more connections can be open")
    abort(crowd[:1])

    async def served() -> bool:
        return (await once(server)).startswith(b"HTTP/1.1 200 ")

    await until(served)
    abort(crowd)
    assert logs(server, "no more connections can be open") == 1
    server.session = aiohttp.ClientSession()
