"""What becomes of a connection: whose client sends no more, whose body breaks, on which many requests wait."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import tus_tools
from harness import Server, parsed, problem
from upload_tools import Sending, begin, chunk, newer, newest
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


async def connected(server: Server) -> Sending:
    """A connection."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return Sending(*await asyncio.open_connection(host, int(port)))


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


async def test_no_more_comes_and_the_last_of_it_is_no_http(server: Server) -> None:
    """What came before that is answered, then that, and nothing is waited for."""
    before = await newest(server, "steps")
    sending = await connected(server)
    await sending.send(said("POST /steps/start", "Prefer: wait=20") + said("GET /health"))
    await newer(server, before, "steps")
    await sending.send(b"no HTTP\r\n\r\n" + bytes(100_000))
    sending.writer.write_eof()
    async with asyncio.timeout(20):
        heard = await sending.reader.read(-1)
    sending.abort()
    assert statuses(heard.replace(b"HTTP/1.0", b"HTTP/1.1")) == [202, 200, 400]


async def test_no_more_comes_of_one_that_listens_without_end(server: Server) -> None:
    """Nothing else tells for long that it has gone: it is closed at once, whenever it says so."""
    task_id = await launched(server, "steps", {"steps": 100_000})
    listening = said(f"GET /tasks/{task_id}/log?follow=1")
    async with asyncio.timeout(10):  # less than it takes until a word that nobody hears tells
        await server.talk(listening, hang_up=True)
        await server.talk(said("GET /health") + listening, hang_up=True)
        sending = await connected(server)
        await sending.send(listening)
        assert (await sending.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        sending.writer.write_eof()
        await sending.reader.read(-1)
        sending.abort()


# Bodies that break.


@pytest.mark.parametrize("size", [None, 10])
@pytest.mark.parametrize("broken", [b"zz\r\n", b"0\r\n" + b"a: b\r\n" * 200 + b"\r\n"], ids=["chunk", "trailer"])
async def test_a_body_that_breaks_in_the_middle(server: Server, broken: bytes, size: int | None) -> None:
    """It is told at once, not when nothing has come for long; what came before is kept, and nothing follows."""
    path = await tus_tools.create(server, size)
    task_id = path.rpartition("/")[2]
    sending = await begin(server, f"/upload/resume?task={task_id}", "Upload-Offset: 0")
    await sending.send(chunk(b"hello"))
    await server.until_progress(task_id, 5)
    await sending.send(broken + said("GET /health"))
    async with asyncio.timeout(20):
        heard = await sending.reader.read(-1)
    sending.abort()
    assert statuses(heard) == [400]
    told = problem(parsed(heard), 400, "malformed-body")
    assert (told["task_status"], told["offset"], parsed(heard).headers["Upload-Offset"]) == ("paused", 5, "5")
    assert (await tus_tools.patch(server, path, b"world", 5, Upload_Length="10")).status == 204
    assert (await server.task(task_id))["status"] == "completed"


async def test_a_trailer_that_breaks_behind_all_of_the_data(server: Server) -> None:
    """Nothing is missing, so it is completed; but nobody can tell where a next request would begin."""
    path = await tus_tools.create(server, 5)
    task_id = path.rpartition("/")[2]
    sending = await begin(server, f"/upload/resume?task={task_id}", "Upload-Offset: 0")
    await sending.send(chunk(b"hello"))
    await server.until_progress(task_id, 5)
    await sending.send(b"0\r\nno field\r\n\r\n" + said("GET /health"))
    async with asyncio.timeout(20):
        heard = await sending.reader.read(-1)
    sending.abort()
    assert (statuses(heard), parsed(heard).json["status"]) == ([200], "completed")


async def test_json_that_breaks_in_the_middle(server: Server) -> None:
    """Also where its turn to be read has not come yet."""
    before = await newest(server, "steps")
    sending = await begin(server, "/steps/start", "Content-Type: application/json", "Expect: 100-continue")
    await sending.reader.readuntil(b" 100 Continue\r\n\r\n")
    await sending.send(b"zz\r\n")
    problem(await sending.answer(), 400, "malformed-body")
    sending = await connected(server)
    chunked = ("Content-Type: application/json", "Transfer-Encoding: chunked")
    await sending.send(said("POST /steps/start", "Prefer: wait=20") + said("POST /steps/start", *chunked) + chunk(b"{"))
    task_id = await newer(server, before, "steps")
    await sending.send(b"zz\r\n")
    async with asyncio.timeout(20):
        heard = await sending.reader.read(-1)
    sending.abort()
    assert statuses(heard) == [202, 400]
    assert (await server.task(task_id))["status"] == "completed"


# Many requests at once.


async def test_many_requests_behind_a_body_that_comes_late(server: Server) -> None:
    """All of them are answered."""
    before = await newest(server)
    sending = await begin(server, "/upload/start", length=5)
    await newer(server, before)
    await sending.send(b"hello" + said("GET /health") * 100 + said("GET /health", "Connection: close"))
    async with asyncio.timeout(20):
        heard = await sending.reader.read(-1)
    sending.abort()
    assert statuses(heard) == [201] + [200] * 101
