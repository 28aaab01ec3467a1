"""Heads that are made to be dear: whatever stands in what we parse, a request costs little more than its length."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest
import pytest_asyncio
from harness import Server, problem
from upload_tools import upload
from verb_tools import nothing_left, playing

from intermission.supervisor import tokens

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "a secret of the tests, thirty-two bytes and more"
MOST_CPU_S: Final = 0.2
"""Of the processor, of a request: the machine may have other work. What takes the square of 24 KiB takes 7 s."""
LINE_BYTES: Final = 24_000
"""What a line of a head may have."""
FILLS: Final = (" ", "\t", ",", ";", '"', "\\", '\\"', "a", "1", "=", "/", ":", "%", "a=", "a,", "a;", ";a=", '";a="')
ACCENTS: Final = "\u0301\u0327".encode().decode("latin-1")
"""Two in the wrong order; to put them right all of those before have to be looked at."""
START: Final = "POST /upload/start"
CREATE: Final = "POST /upload/start\nUpload-Length: 4"
TUS: Final = "POST /upload/files\nTus-Resumable: 1.0.0\nUpload-Length: 4"
PART: Final = "PATCH /upload/files/{id}\nTus-Resumable: 1.0.0\nContent-Type: application/offset+octet-stream"
APPEND: Final = "PATCH /upload/files/{id}\nUpload-Draft-Interop-Version: 8\nContent-Type: application/partial-upload"
FILE: Final = "GET /tasks/{id}/files/content"
HEADERS: Final = {
    "Accept: text/event-stream": "GET /tasks/{id}/events",
    "Authorization: Bearer a.b.": START,
    "Content-Digest: sha-256=:AA": CREATE,
    "Content-Disposition: attachment; filename=": CREATE,
    "Content-Disposition: attachment; filename*=utf-8'": CREATE,
    "Content-Encoding: gzip": START,
    "Content-Length: 1": START,
    "Content-Type: text/plain; a=b": CREATE,
    "Content-Type: multipart/form-data; boundary=": START,
    "Expect: 100-continue": START,
    "Forwarded: for=127.0.0.1;host=": TUS,
    "Host: localhost": START,
    "Idempotency-Key: a": CREATE,
    "If-None-Match: W/": FILE,
    "If-Range: W/": FILE,
    "Last-Event-ID: 1": "GET /tasks/{id}/events\nAccept: text/event-stream",
    "Origin: http://localhost": START,
    "Prefer: wait=1": "POST /upload/pause?task={id}",
    "Range: bytes=0-": FILE,
    "Repr-Digest: sha-256=:AA": CREATE,
    "Transfer-Encoding: chunked": START,
    "Tus-Resumable: 1.0.0": TUS,
    "Upload-Checksum: sha1 A": PART,
    "Upload-Complete: ?0;a=": APPEND,
    "Upload-Concat: final;/upload/files/a": TUS,
    "Upload-Concat: final;//a": TUS,
    "Upload-Defer-Length: 1": TUS,
    "Upload-Draft-Interop-Version: 8;a=": APPEND,
    "Upload-Length: 1": f"{APPEND}\nUpload-Complete: ?0\nUpload-Offset: 4",
    "Upload-Metadata: filename YQ==": TUS,
    "Upload-Offset: 4;a=": f"{APPEND}\nUpload-Complete: ?0",
    "Want-Repr-Digest: sha-256=1": CREATE,
    "X-Forwarded-Host: a": TUS,
    "X-HTTP-Method-Override: HEAD": "POST /upload/files/{id}\nTus-Resumable: 1.0.0",
}
"""How each header that is parsed begins, and the request that it is a part of."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for all tests, which believes what a proxy says."""
    settings = {"INTERMISSION_TRUSTED_PROXIES": "127.0.0.1"}
    async with playing(tmp_path_factory.mktemp("heads"), **settings) as running:
        yield running


async def cpu_s(server: Server, said: bytes) -> float:
    """What the answer to this took of the processor's time."""
    process = psutil.Process(server.pid)
    before = process.cpu_times()
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    heard = await reader.read(1 << 16)
    after = process.cpu_times()
    writer.transport.abort()  # who is refused may go on to send for a while, which is not waited for here
    assert heard.startswith(b"HTTP/1."), heard[:100]
    assert b" 500 " not in heard[:20], heard[:1000]
    return after.user + after.system - before.user - before.system


def request(line: str, *more: str) -> bytes:
    """One that is whole, of a line and the headers below it."""
    first, *headers = line.split("\n")
    named = {header.partition(":")[0] for header in (*headers, *more)}
    fill = ["Connection: close", *(() if "Host" in named else ("Host: localhost",))]
    return "\r\n".join([f"{first} HTTP/1.1", *fill, *headers, *more, "", ""]).encode("latin-1")


def lines(header: str) -> Iterator[list[str]]:
    """What may stand in a head of a header that begins like this."""
    room = LINE_BYTES - len(header) - 2
    for fill in FILLS:
        line = header + (fill * room)[:room] + "!"
        yield [line]
        yield [line] * 3


@pytest.mark.parametrize("header", HEADERS)
async def test_a_long_header(server: Server, header: str) -> None:
    """It is answered at once, or nobody else would be meanwhile."""
    line = HEADERS[header].replace("{id}", (await upload(server, b"data")).json["id"])
    for given in lines(header):
        spent = await cpu_s(server, request(line, *given))
        assert spent < MOST_CPU_S, (given[0][:60], len(given))
    await nothing_left(server)


async def test_a_long_token(tmp_path: Path) -> None:
    """Nor does who has none delay those who have one."""
    async with playing(tmp_path, INTERMISSION_JWT_SECRET=SECRET) as server:
        for begin in (
            "Authorization: Bearer ",
            f"Authorization: Bearer {tokens.sign(SECRET, 'a', admin=False, now=0, life_s=1)}",
        ):
            for given in lines(begin):
                assert await cpu_s(server, request("GET /tasks", *given)) < MOST_CPU_S, given[0][:60]


@pytest.mark.parametrize("path", ["/", "/tasks/", "/tasks?a=b", "/tasks?label=a", "/upload/start?filename=a"])
async def test_a_long_address(server: Server, path: str) -> None:
    """The same of the first line."""
    method = "POST" if path.startswith("/upload") else "GET"
    for fill in ("/", "../", "a/", "%41", "%", "&", "&a", "&a=", ";", "+", "=", "?"):
        line = f"{method} {path}{(fill * LINE_BYTES)[: LINE_BYTES - len(path) - 20]}"
        assert await cpu_s(server, request(line)) < MOST_CPU_S, fill


@pytest.mark.parametrize(
    "begin",
    [
        "a:",
        "a",
        'Content-Disposition: form-data; name="a"; filename="a',
        "Content-Disposition: form-data; filename*=utf-8'",
        'Content-Disposition: form-data; filename="a"\r\nContent-Type: a/a',
    ],
)
async def test_a_long_head_of_a_form(server: Server, begin: str) -> None:
    """The same of a form's file, whose head may be longer."""
    for fill in FILLS:
        for end in ("", "!", "\0"):
            body = f"--b\r\n{begin}{(fill * 60_000)[:60_000]}{end}\r\n\r\ndata\r\n--b--\r\n"
            head = request(START, "Content-Type: multipart/form-data; boundary=b", f"Content-Length: {len(body)}")
            assert await cpu_s(server, head + body.encode()) < MOST_CPU_S, (fill, end)
    await nothing_left(server)


@pytest.mark.parametrize("name", ["Content-Type", "Host"])
async def test_what_is_long_beyond_all_use(server: Server, name: str) -> None:
    """It is refused before anybody parses it."""
    answer = await server.exactly("GET /health", f"{name}: {'a' * 1025}")
    assert name in problem(answer, 400, "malformed-header")["detail"]
