"""Requests that do not come to their end are given up, with an answer where somebody may wait for one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from harness import Server, parsed, problem
from upload_tools import begin, chunk, data, sha256
from verb_tools import TOYS, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a secret of the tests, thirty-two bytes and more"
WITHIN_S = 1.0
HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server with little patience."""
    async with playing(tmp_path_factory.mktemp("slow"), INTERMISSION_HANDLERS=f"{TOYS},impatient") as running:
        yield running


async def connected(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which nothing has been sent."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def answered(reader: asyncio.StreamReader) -> bytes:
    """One answer with a body of a known length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return head + await reader.readexactly(int(length))


@pytest.mark.parametrize(
    "said", [b"G", HEAD[:-2], HEAD[:-4] + b"\r\nX-Half: ", b"POST /steps/start HTTP/1.1\r\nContent-Length: 100\r\n"]
)
async def test_half_a_head(server: Server, said: bytes) -> None:
    """Is answered, and the connection closed; before anybody is asked who they are, and others are served."""
    talking = asyncio.create_task(server.talk(said))
    assert (await server.ask("GET", "/health")).status == 200
    answer = parsed(await talking)
    assert "within 1 s" in problem(answer, 408, "head-too-slow")["detail"]
    assert (answer.headers["Connection"], answer.headers["Server"]) == ("close", "intermission")


async def test_a_head_in_drops(server: Server) -> None:
    """Has no longer because each line of it comes soon after the last."""
    reader, writer = await connected(server)
    hearing = asyncio.create_task(reader.read())
    writer.write(HEAD[:-2])
    while not hearing.done():
        writer.write(b"X-Drop: y\r\n")
        await asyncio.wait({hearing}, timeout=0.1)
    problem(parsed(hearing.result()), 408, "head-too-slow")
    writer.close()


async def test_nothing_at_all(server: Server) -> None:
    """Ends in silence."""
    assert await server.talk(b"") == b""


async def test_the_next_head(server: Server) -> None:
    """Has as long as the first; who only waits with it is not hurried."""
    reader, writer = await connected(server)
    for _ in range(2):
        writer.write(HEAD)
        assert b'"status":"ok"' in await answered(reader)
        await asyncio.sleep(1.5 * WITHIN_S)
    writer.write(HEAD[:10])
    await asyncio.sleep(WITHIN_S / 2)
    writer.write(HEAD[10:])
    assert b'"status":"ok"' in await answered(reader)
    writer.write(HEAD[:10])
    problem(parsed(await reader.read()), 408, "head-too-slow")
    writer.close()


async def test_an_answer_that_takes_long(server: Server) -> None:
    """Is no fault of the request's: what waits for a task, and what brings it bytes, goes on."""
    answer = await server.ask("POST", "/steps/start", json={"steps": 30, "delay_s": 0.1}, headers={"Prefer": "wait=20"})
    assert answer.json["status"] == "completed"
    content = data(1000)
    sending = await begin(server, "/upload/start", length=len(content))
    for at in range(0, len(content), 250):
        await sending.send(content[at : at + 250])
        await asyncio.sleep(WITHIN_S / 2)
    assert (await sending.answer()).json["result"]["sha256"] == sha256(content)


@pytest.mark.parametrize("path", ["/tasks", "/counter/start", "/csv/start"])
@pytest.mark.parametrize("length", [100, None])
async def test_half_a_body(server: Server, path: str, length: int | None) -> None:
    """Is answered, however it was to end, and no task is started."""
    before = (await server.ask("GET", "/tasks?limit=1")).json["items"]
    sending = await begin(server, path, "Content-Type: application/json", length=length)
    await sending.send(b"{" if length else chunk(b"{"))
    assert "within 1 s" in problem(await sending.answer(), 408, "body-too-slow")["detail"]
    assert (await server.ask("GET", "/tasks?limit=1")).json["items"] == before


async def test_a_body_without_end(server: Server) -> None:
    """Comes all the time, and so slowly that it would never be too long."""
    sending = await begin(server, "/tasks", "Content-Type: application/json")
    answering = asyncio.create_task(sending.answer())
    while not answering.done():
        with contextlib.suppress(ConnectionError):
            await sending.send(chunk(b" "))
        await asyncio.wait({answering}, timeout=0.05)
    problem(answering.result(), 408, "body-too-slow")


async def test_who_is_nobody(tmp_path: Path) -> None:
    """Is told so before the body that will not come."""
    settings = {"INTERMISSION_HANDLERS": f"{TOYS},impatient", "INTERMISSION_JWT_SECRET": SECRET}
    async with playing(tmp_path, **settings) as server:
        sending = await begin(server, "/counter/start", length=100)
        problem(await sending.answer(), 401, "unauthorized")
        problem(parsed(await server.talk(HEAD[:-2])), 408, "head-too-slow")
