"""What clients may do to plain uploads by mistake or ill will: answered clearly, heard, and nothing comes of it."""

import asyncio
import io
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio
from harness import Answer, Server, parsed, problem
from upload_tools import MIB, WAYS, Sending, begin, data, flowing, newest, resume, sha256, upload
from verb_tools import nothing_left, playing

from intermission.supervisor import tokens
from intermission.supervisor.routes.connection import MOST_UNWANTED_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = data(3 * MIB + 12_345)
HALF = MIB + 7
BOUNDARY = "bb"
FORM = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
SECRET = "a secret of the tests, thirty-two bytes and more"


@pytest.fixture(scope="module", params=list(WAYS))
def way(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of a server whose uploads go the fast way, and of one that cannot do it."""
    return WAYS[request.param]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, way: dict[str, str]) -> AsyncIterator[Server]:
    """One server for all tests but one, which takes no more than a few megabytes at once."""
    settings = {**way, "INTERMISSION_MAX_UPLOAD_BYTES": str(48 * MIB)}
    async with playing(tmp_path_factory.mktemp("hostile"), **settings) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    if "server" in request.fixturenames:
        await nothing_left(request.getfixturevalue("server"))


# Early answers.


@dataclass
class Pusher:
    """A client that writes all that it has before it reads a byte, as many do; it blocks, so it has a thread."""

    server: Server
    head: str
    size: int
    sent: int = 0
    heard: bytes = b""
    error: OSError | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Write, then read to the end."""
        host, _, port = self.server.url.removeprefix("http://").rpartition(":")
        block = bytes(MIB)
        try:
            with socket.create_connection((host, int(port)), timeout=20) as sock:
                sock.sendall(self.head.encode("latin-1"))
                while self.sent < self.size:
                    self.sent += sock.send(block[: self.size - self.sent])
                while part := sock.recv(1 << 16):
                    self.heard += part
        except OSError as error:
            self.error = error
        finally:
            self.over.set()

    async def answer(self) -> Answer:
        """What it has been told, once it has sent everything."""
        await asyncio.to_thread(self.run)
        assert (self.error, self.sent) == (None, self.size)
        return parsed(self.heard)


def head(path: str, *headers: str) -> str:
    """A request's, of a body of 64 MiB if it says nothing else."""
    length = () if any(header.startswith("Content-Length") for header in headers) else ("Content-Length: 67108864",)
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *length, *headers, "", ""])


FILE = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n'
FIELD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f"\r\n\r\n'


@pytest.mark.parametrize(
    ("said", "status", "slug"),
    [
        (head("/upload/start"), 413, "too-large"),
        (head("/upload/start", "Content-Encoding: gzip"), 415, "unsupported-media-type"),
        (head("/upload/start", "Content-Type: multipart/mixed; boundary=x"), 415, "unsupported-media-type"),
        (head("/upload/start", "Repr-Digest: sha-256=:AA:", "Content-Length: 40000000"), 400, "malformed-header"),
        (head("/upload/start?nonsense=1"), 422, "invalid"),
        (head("/upload/resume?task={task}", "Upload-Offset: 3", "Upload-Length: 4"), 409, "not-now"),
        (head("/upload/resume?task={task}", "Upload-Offset: 3", FORM), 415, "unsupported-media-type"),
        (head("/upload/resume?task={open}", "Upload-Offset: 3", "Content-Length: 40000000"), 409, "offset"),
        (head("/upload/start", FORM), 413, "too-large"),
        (head("/upload/start", "Content-Type: multipart/form-data"), 400, "malformed-form"),
        (head("/upload/start", FORM, "Content-Length: 40000000") + FIELD, 422, "invalid"),
        (head("/upload/start", FORM, "Content-Length: 40000000") + "x" * 70_000, 400, "malformed-form"),
        (
            head("/upload/start", FORM, "Content-Length: 40000000")
            + FILE
            + "Content-Transfer-Encoding: base64\r\n\r\n",
            415,
            "unsupported-media-type",
        ),
        (
            head("/upload/start", FORM, "Content-Length: 40000000") + f"{FILE}\r\ndata\r\n{FILE}\r\n",
            422,
            "several-files",
        ),
        (head("/upload/start", "X: " + "x" * 30_000, "Content-Length: 40000000"), 431, "head-too-large"),
        (head("/upload/start", *["X: y"] * 200, "Content-Length: 40000000"), 400, "malformed-request"),
    ],
)
async def test_a_client_that_still_sends_is_told(server: Server, said: str, status: int, slug: str) -> None:
    """It hears the answer, not a reset, though it does not listen before it has sent everything."""
    before = await newest(server)
    if "{" in said:
        task_id = (await upload(server, b"data", Upload_Length="4")).json["id"]
        waiting = (await server.ask("POST", "/upload/start", headers={"Upload-Length": str(48 * MIB)})).json["id"]
        said, before = said.replace("{task}", task_id).replace("{open}", waiting), waiting
    lines, _, begun = said.partition("\r\n\r\n")
    size = int(lines.partition("Content-Length: ")[2].partition("\r\n")[0]) - len(begun)
    answer = await Pusher(server, said, size).answer()
    problem(answer, status, slug)
    assert answer.headers["Connection"] == "close"
    assert await newest(server) == before, "nothing is kept of it"


async def drip(sending: Sending) -> None:
    """A megabyte a second, for ever."""
    while True:
        await sending.send(bytes(100_000))
        await asyncio.sleep(0.1)


@pytest.mark.timeout(60)
async def test_one_that_never_stops_sending_is_closed(tmp_path: Path) -> None:
    """Slow or fast: after ten seconds, or so many bytes, whichever comes first. Both at once, to save time."""
    async with playing(tmp_path) as server:
        fast = Pusher(server, head("/upload/start", "Content-Encoding: gzip", f"Content-Length: {1 << 40}"), 1 << 40)
        threading.Thread(target=fast.run, daemon=True).start()
        sending = await begin(server, "/upload/start", "Content-Encoding: gzip", length=1 << 40)
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionError):
                await drip(sending)
        sending.abort()
        assert await asyncio.to_thread(fast.over.wait, 5)
        assert isinstance(fast.error, ConnectionError)
        # What the two ends' kernels hold on the way comes on top of what was read.
        assert MOST_UNWANTED_BYTES - MIB < fast.sent < MOST_UNWANTED_BYTES + 64 * MIB


# Lengths, offsets, places.


@pytest.mark.parametrize("length", ["-1", "+5", "1e3", "0x10", "5, 6", "", "abc", str(2**63), "9" * 40, "\u0665"])
@pytest.mark.parametrize("kind", ["raw", "form"])
async def test_lengths_that_are_none(server: Server, length: str, kind: str) -> None:
    """A clear 400, whoever of us finds it first, and nothing is created."""
    before, host = await newest(server), server.url.removeprefix("http://").partition(":")
    for name in ("Content-Length", "Upload-Length"):
        lines = ["POST /upload/start HTTP/1.1", "Host: localhost", f"{name}: {length}"]
        lines += [FORM] if kind == "form" else []
        lines += ["Content-Length: 4"] if name == "Upload-Length" else []
        sending = Sending(*await asyncio.open_connection(host[0], int(host[2])))
        await sending.send("\r\n".join([*lines, "", "data"]).encode())
        answer = await sending.answer()
        assert answer.status == (413 if (name, length) == ("Content-Length", str(2**63)) else 400)
    assert await newest(server) == before


async def test_a_body_that_is_shorter_than_it_says(server: Server) -> None:
    """When its client leaves, what came is kept and waits."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    await sending.leave()
    task = await server.until_status(task_id, "paused")
    assert (task["reason"], task["checkpoint"]["state"]["received"]) == ("disconnected", HALF)


async def test_a_body_that_is_longer_than_it_says(server: Server) -> None:
    """What is behind its length is no part of it, and no request either."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    await sending.send(CONTENT[HALF:] + b"and more of it\r\n\r\n")
    async with asyncio.timeout(20):
        heard = await sending.reader.read(-1)
    sending.abort()
    first, garbage = re.split(rb"HTTP/1\.[01] ", heard)[1:]
    assert (first[:3], garbage[:3]) == (b"201", b"400")
    assert await server.file(task_id, "content") == CONTENT


@pytest.mark.parametrize("offset", [0, 4, 5, 2**62])
async def test_a_body_after_completion(server: Server, offset: int) -> None:
    """A completed upload is what it is."""
    task = (await upload(server, b"data")).json
    answer = await resume(server, task["id"], CONTENT[:offset] + b"more" if offset < 10 else b"", offset)
    problem(answer, 409, "not-now")
    assert await server.task(task["id"]) == task
    assert await server.file(task["id"], "content") == b"data"


async def test_an_offset_from_the_future(server: Server) -> None:
    """Would leave a hole: refused with the right one, for an upload of a known length and for one without."""
    known = (await upload(server, CONTENT[:HALF], Upload_Length=str(len(CONTENT)))).json["id"]
    sending = await begin(server, "/upload/start")
    await sending.send(b"%x\r\n%s\r\n" % (HALF, CONTENT[:HALF]))
    unknown = known
    async with asyncio.timeout(20):
        while unknown == known:
            unknown = await newest(server)
    await server.until_progress(unknown, HALF)
    await sending.leave()
    await server.until_status(unknown, "paused")
    for task_id in (known, unknown):
        said = problem(await resume(server, task_id, CONTENT, HALF + 1), 409, "offset")
        assert said["offset"] == HALF
        assert (await resume(server, task_id, CONTENT, HALF)).json["result"]["sha256"] == sha256(CONTENT)


async def test_terminated_in_mid_body_and_gone_on_with(server: Server) -> None:
    """The request ends with 410, and so does every one for it after that."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    assert (await server.verb(task_id, "terminate")).status == 200
    problem(await sending.answer(), 410, "gone")
    problem(await resume(server, task_id, CONTENT, HALF), 410, "gone")
    assert not (server.data / "tasks" / task_id).exists()


async def test_another_users_upload(of_several: Server) -> None:
    """Is not there: not for bytes, not for a verb, not while it runs; and nothing happens to it."""
    server, anna, ben = of_several, bearer("anna"), bearer("ben")
    sending = await begin(server, "/upload/start", f"Authorization: {anna}", length=len(CONTENT))
    await sending.send(CONTENT[:HALF])
    task_id = ""
    async with asyncio.timeout(20):
        while not task_id:
            items = (await server.ask("GET", "/upload/status", headers={"Authorization": anna})).json["items"]
            task_id = items[0]["id"] if items else ""
    for offset in ("0", str(HALF)):
        headers = {"Authorization": ben, "Upload-Offset": offset}
        answer = await server.ask("POST", f"/upload/resume?task={task_id}", data=io.BytesIO(b"x"), headers=headers)
        problem(answer, 404, "unknown-task")
    for verb in ("pause", "resume", "terminate"):
        answer = await server.ask("POST", f"/upload/{verb}?task={task_id}", headers={"Authorization": ben})
        problem(answer, 404, "unknown-task")
    await sending.send(CONTENT[HALF:])
    assert (await sending.answer()).json["result"]["sha256"] == sha256(CONTENT)


def bearer(user: str) -> str:
    """A token of a user."""
    return f"Bearer {tokens.sign(SECRET, user, admin=False, now=time.time(), life_s=3600)}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_several(tmp_path_factory: pytest.TempPathFactory, way: dict[str, str]) -> AsyncIterator[Server]:
    """A server of several users."""
    async with playing(tmp_path_factory.mktemp("users"), **way, INTERMISSION_JWT_SECRET=SECRET) as running:
        assert running.session is not None
        running.session.headers["Authorization"] = bearer("root")
        yield running


# Names.


NAMES = [
    "../../etc/passwd\r\nX: y",
    "\r\n\r\nHTTP/1.1 200 OK",
    "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egpj.exe",
    "\u2066a\u2069\u200b\ufeff",
    "x" * 4000,
    "\U0001f600" * 1000,
    *("CON", "nul", "a:b", "COM1.txt", "trailing...", "trailing ", "C:\\x\\..\\y", "\\\\host\\share"),
    *(".", "..", "/", "/etc/passwd", "~", "-rf", "*", "$(id)", "`id`", "a\tb", '"quoted"', "a;b=c", "%2e%2e%2f", "<b>"),
    "e\u0301\u00e9",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_a_name_is_data(server: Server, name: str) -> None:
    """By whichever way it is said, it is kept as it was, and harmless: on disk, in the log and on its download."""
    extended = f"UTF-8''{quote(name, safe='')}"
    ways = [
        ("/upload/start?filename=" + quote(name, safe=""), (), b"data"),
        ("/upload/start", ("Content-Type: a/b", f"Content-Disposition: attachment; filename*={extended}"), b"data"),
        ("/upload/start", (FORM,), form(f"filename*={extended}")),
    ]
    if not set(name) & set("\r\n"):  # where they end a line
        plain = 'filename="' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        ways.append(("/upload/start", (FORM,), form(plain)))
    if name.isprintable() or name.startswith("\u202e"):  # what is not is no header by aiohttp's reading
        ways.append(("/upload/start", ("Content-Disposition: attachment; " + plain,), b"data"))
    for path, headers, body in ways:
        raw = tuple(header.encode().decode("latin-1") for header in headers)
        if sum(map(len, [path, *raw])) > 8000:
            continue  # it is no name that is too long, but a head
        answer = await server.exactly(f"POST {path}", *raw, body=body)
        assert answer.status == 201, (headers, answer.body)
        task = answer.json
        assert task["result"]["filename"] == name, headers
        folder = server.data / "tasks" / task["id"]
        assert [entry.name for entry in (folder / "files").iterdir()] == ["content"]
        download = await server.ask("GET", task["files"][0]["href"])
        assert download.body == b"data"
        assert download.headers["X-Content-Type-Options"] == "nosniff"
        disposition = download.headers["Content-Disposition"]
        assert disposition.startswith("attachment")
        assert disposition.isascii()
        assert disposition.isprintable()
        assert "X" not in download.headers
    for line in server.log:  # each is one record, of which nothing reaches a terminal as it is
        json.loads(line)
        assert line.isprintable(), line


def form(filename: str) -> bytes:
    """A form of one small file."""
    disposition = f'Content-Disposition: form-data; name="f"; {filename}'
    return f"--{BOUNDARY}\r\n{disposition}\r\n\r\ndata\r\n--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize(
    "header",
    [
        b'attachment; filename="../../etc/passwd\r\nX: y"',
        b'attachment; filename="open',
        b"attachment; filename=a b",
        b"attachment; filename",
        b'; filename="a"',
        b'attachment; filename="a"; filename="b"',
        b"attachment; filename*=UTF-8''%FF",
        b"attachment; filename*=UTF-8",
        b"attachment; filename*=nonsense''a",
        b"attachment" + b"; x" * 2000,
        b'attachment; filename="' + b"\\" * 5000,
    ],
)
async def test_a_disposition_that_is_none(server: Server, header: bytes) -> None:
    """Names nothing; and it is no mistake of ours, nor a line in the log."""
    before = len(server.log)
    said = b"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 4\r\n"
    answer = parsed(await server.talk(said + b"Content-Disposition: " + header + b"\r\n\r\ndata"))
    assert (answer.status, answer.json["result"]["filename"]) == (201, None)
    assert server.log[before:] == []


@pytest.mark.parametrize("header", [b"a\0b", b"a\rb"])
async def test_what_is_no_header(server: Server, header: bytes) -> None:
    """Is refused by who reads the head."""
    before = await newest(server)
    said = b"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 4\r\n"
    heard = await server.talk(said + b"Content-Disposition: attachment; filename=" + header + b"\r\n\r\ndata")
    problem(parsed(heard), 400, "malformed-request")
    assert await newest(server) == before


@pytest.mark.parametrize(
    ("header", "status", "slug"),
    [
        ("X-Long: " + "x" * 25_000, 431, "head-too-large"),
        ("Cookie: " + "x" * 200_000, 431, "head-too-large"),
        ("\r\n".join(f"X-{n}: x" for n in range(200)), 400, "malformed-request"),
    ],
)
async def test_a_head_that_is_too_large(server: Server, header: str, status: int, slug: str) -> None:
    """Is refused, and nothing is created."""
    before = await newest(server)
    sending = await begin(server, "/upload/start", header, length=4)
    problem(await sending.answer(), status, slug)
    assert await newest(server) == before


# Requests behind it.


async def test_a_second_upload_in_the_same_bytes(server: Server) -> None:
    """Requests in one piece with the end of a body are answered each in its turn, whatever kinds of body there are."""
    whole = form('filename="f"')
    second = (
        f"POST /upload/start HTTP/1.1\r\nHost: localhost\r\n{FORM}\r\nContent-Length: {len(whole)}\r\n\r\n".encode()
    )
    third = (
        b"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmore\r\n0\r\n\r\n"
    )
    refused = b"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nUpload-Length: 1\r\n\r\nmuch"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    sending = await begin(server, "/upload/start", length=len(CONTENT))
    await sending.send(CONTENT[:HALF])
    await sending.send(CONTENT[HALF:] + second + whole + third + refused + last)
    async with asyncio.timeout(20):
        heard = await sending.reader.read(-1)
    sending.abort()
    answers = heard.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"201", b"201", b"201", b"413", b"200"]
    for content, answer in zip((CONTENT, b"data", b"more"), answers, strict=False):
        assert f'"sha256":"{sha256(content)}"'.encode() in answer
