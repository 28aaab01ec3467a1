"""What becomes of a connection: whose client sends no more, whose body breaks, on which many requests wait."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import tus_tools
from harness import Server, parsed
from verb_tools import launched, nothing_left, playing
from yarl import URL

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with playing(tmp_path_factory.mktemp("connections")) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


def said(line: str, *headers: str, body: bytes = b"") -> bytes:
    """A request, as it is sent."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body


def statuses(heard: bytes) -> list[int]:
    """Those of the answers on one connection."""
    return [int(part[:3]) for part in heard.split(b"HTTP/1.1 ")[1:]]


def patched(path: str, offset: int, body: bytes) -> bytes:
    """A piece of a tus upload."""
    octets = f"Content-Type: {tus_tools.OCTETS}"
    place = (f"Upload-Offset: {offset}", f"Content-Length: {len(body)}")
    return said(f"PATCH {path}", "Tus-Resumable: 1.0.0", octets, *place, body=body)


# Clients that say that they send no more.


async def test_no_more_comes_and_what_was_asked_has_no_body(server: Server) -> None:
    """It is done, so it is answered: nobody would know where the upload is, nor that the task is paused."""
    created = parsed(
        await server.talk(said(f"POST {tus_tools.FILES}", "Tus-Resumable: 1.0.0", "Upload-Length: 5"), hang_up=True)
    )
    assert created.status == 201
    path = URL(created.headers["Location"]).path
    assert statuses(await server.talk(patched(path, 0, b""), hang_up=True)) == [204]
    task_id = await launched(server, "steps", {"steps": 100_000})
    heard = await server.talk(said(f"POST /tasks/{task_id}/pause"), hang_up=True)
    assert (parsed(heard).status, parsed(heard).json["status"]) == (200, "paused")
    heard = await server.talk(said(f"GET /tasks/{task_id}"), hang_up=True)
    assert (parsed(heard).status, parsed(heard).json["id"]) == (200, task_id)


async def test_no_more_comes_and_several_requests_wait(server: Server) -> None:
    """Each that came whole has its answer, then the connection is closed."""
    path = await tus_tools.create(server, 10)
    pieces = patched(path, 0, b"hello") + patched(path, 5, b"world")
    assert statuses(await server.talk(pieces, hang_up=True)) == [204, 204]
    assert await tus_tools.offset(server, path) == 10
    assert statuses(await server.talk(said("GET /tasks") * 100, hang_up=True)) == [200] * 100


async def test_no_more_comes_and_the_last_request_is_cut(server: Server) -> None:
    """What came of its body is kept, and nobody waits for the rest."""
    path = await tus_tools.create(server, 10)
    cut = said(f"HEAD {path}", "Tus-Resumable: 1.0.0") + patched(path, 0, b"0123456789")[:-3]
    assert statuses(await server.talk(cut, hang_up=True)) == [200]
    task = await server.until_status(path.rpartition("/")[2], "paused")
    await server.until(task["id"], lambda task: task["reason"] == "disconnected")
    assert await tus_tools.offset(server, path) == 7


async def test_no_more_comes_of_one_that_listens_without_end(server: Server) -> None:
    """Nothing else tells for long that it has gone: it is closed at once, whenever it says so."""
    task_id = await launched(server, "steps", {"steps": 100_000})
    listening = said(f"GET /tasks/{task_id}/log?follow=1")
    async with asyncio.timeout(10):  # less than it takes until a word that nobody hears tells
        await server.talk(listening, hang_up=True)
        await server.talk(said("GET /health") + listening, hang_up=True)
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(listening)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.write_eof()
        await reader.read()
        writer.close()
