"""Both ways of a file to its client, inside the kernel and copied: exact, bounded, and nothing left open."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from harness import Server, until
from upload_tools import MIB, data, upload
from verb_tools import TOYS, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = data(24 * MIB + 11)
WAYS = {"sent": TOYS, "copied": f"{TOYS},without_sendfile"}


@pytest.fixture(scope="module", params=list(WAYS))
def way(request: pytest.FixtureRequest) -> str:
    """The way that the server goes."""
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, way: str) -> AsyncIterator[Server]:
    """One server for all tests."""
    async with playing(tmp_path_factory.mktemp("downloads"), INTERMISSION_HANDLERS=WAYS[way]) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def path(server: Server) -> str:
    """The address of a large file."""
    return f"/tasks/{(await upload(server, CONTENT)).json['id']}/files/content"


async def connected(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that takes what it asks for."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=1 << 16)


def get(path: str, *headers: str) -> bytes:
    """A request on a connection that stays open."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


async def body(reader: asyncio.StreamReader) -> bytes:
    """Of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return await reader.readexactly(length)


async def test_several_on_one_connection(server: Server, path: str) -> None:
    """Whole and in part, asked for at once: each answer is its own, and the next begins where it ends."""
    reader, writer = await connected(server)
    middle = f"Range: bytes={5 * MIB + 3}-{20 * MIB}"
    writer.write(get(path) + get(path, middle) + get("/health") + get(path, "Range: bytes=-1") + get(path))
    assert await body(reader) == CONTENT
    assert await body(reader) == CONTENT[5 * MIB + 3 : 20 * MIB + 1]
    assert b'"status"' in await body(reader)
    assert await body(reader) == CONTENT[-1:]
    assert await body(reader) == CONTENT
    writer.close()


async def test_a_client_that_does_not_read(server: Server, path: str) -> None:
    """Costs a connection and the file, and no memory; both are closed once it has gone, and nobody else waits."""
    before = len(os.listdir(f"/proc/{server.pid}/fd"))
    waiting = [await connected(server) for _ in range(40)]
    memory = resident(server)
    for _, writer in waiting:
        writer.write(get(path))
    assert await asyncio.wait_for(server.ask("GET", path), 10)
    assert resident(server) - memory < len(waiting) * 2 * MIB
    reader, _ = waiting[0]
    assert await body(reader) == CONTENT
    for _, writer in waiting:
        writer.transport.abort()

    async def closed() -> bool:
        return len(os.listdir(f"/proc/{server.pid}/fd")) <= before + 2

    await until(closed)


def resident(server: Server) -> int:
    """The memory of the server, in bytes."""
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * 4096


async def test_the_file_is_cut_short(server: Server) -> None:
    """By somebody who should not: the connection breaks off, for the length has been told."""
    task_id = (await upload(server, CONTENT)).json["id"]
    file = server.data / "tasks" / task_id / "files" / "content"
    os.truncate(file, 3 * MIB)
    reader, writer = await connected(server)
    writer.write(get(f"/tasks/{task_id}/files/content"))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await body(reader)
    writer.close()
    assert any("could not be sent whole" in line for line in server.log)
