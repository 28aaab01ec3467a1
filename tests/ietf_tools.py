"""A client of the draft of resumable uploads for HTTP, on a bare socket: it sees every interim answer, in its order."""

import asyncio
import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPMessage, parse_headers
from typing import Any

from harness import MEMBERS, Answer, Json, Server
from upload_tools import MIB, data, newest
from yarl import URL

START = "/upload/start"
FILES = "/upload/files"
PARTIAL = "application/partial-upload"
CONTENT = data(2 * MIB + 4321)
HALF = MIB + 7
REGISTERED = "https://iana.org/assignments/http-problem-types#"


@dataclass
class Interim:
    """An answer before the answer (1xx)."""

    status: int
    headers: Mapping[str, str]


@dataclass
class Talk:
    """A request under way."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    method: str
    interims: list[Interim] = field(default_factory=list)

    async def send(self, part: bytes) -> None:
        """Some more of the body. Raises ConnectionError when the server has closed."""
        self.writer.write(part)
        await self.writer.drain()

    async def interim(self, within_s: float = 20) -> Interim:
        """The next interim answer; AssertionError if it is the answer."""
        async with asyncio.timeout(within_s):
            status, headers = await self._head()
        assert status < 200, (status, headers.items())
        return self.interims[-1]

    async def until_told(self, offset: int) -> Interim:
        """The interim answer that tells so much; those before it tell less."""
        while True:
            interim = await self.interim()
            told = int(interim.headers["Upload-Offset"])
            assert told <= offset
            if told == offset:
                return interim

    async def answer(self, within_s: float = 20) -> "Told":
        """The answer, whole, and all that came before it."""
        async with asyncio.timeout(within_s):
            status = 100
            while status < 200:
                status, headers = await self._head()
            is_empty = status == 204 or self.method == "HEAD"
            body = await self.reader.readexactly(0 if is_empty else int(headers.get("Content-Length", 0)))
        self.abort()
        return Told(status, headers, body, self.interims)

    async def _head(self) -> tuple[int, HTTPMessage]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        line, _, lines = head.partition(b"\r\n")
        status, headers = int(line.split()[1]), parse_headers(io.BytesIO(lines))
        if status < 200:
            self.interims.append(Interim(status, headers))
        return status, headers

    def abort(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()


@dataclass
class Told(Answer):
    """An answer, and those before it."""

    interims: list[Interim] = field(default_factory=list)

    @property
    def complete(self) -> str | None:
        """What it says of the upload's completeness."""
        said: str | None = self.headers.get("Upload-Complete")
        return said

    @property
    def offset(self) -> int:
        """How far the data is, as it says."""
        return int(self.headers["Upload-Offset"])

    @property
    def path(self) -> str:
        """Where the upload is."""
        return URL(self.headers["Location"]).path

    def problem(self, status: int, slug: str) -> Json:
        """The problem that it must be; one of the registry's if its name is one of those."""
        assert self.status == status, (self.status, self.body)
        assert self.headers["Content-Type"] == "application/problem+json"
        said: Json = self.json
        registered = slug.endswith(("-offset", "-length", "-upload"))
        assert said["type"] == (REGISTERED if registered else "https://intermission.dev/problems/") + slug
        assert set(said) <= MEMBERS
        return said

    def told(self, name: str) -> list[str]:
        """The values that interim answers (104) had for a header."""
        return [one.headers[name] for one in self.interims if one.status == 104 and name in one.headers]


@dataclass
class Client:
    """Speaks one version of the draft; None: it says none, as one of the final standard will."""

    server: Server
    version: int | str | None = 8

    async def begin(self, method: str, path: str, *headers: str, length: int | None = None) -> Talk:
        """The head of a request. ``length`` None: chunked (send the frames yourself); -1: nothing is said of a body."""
        host, _, port = self.server.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
        lines += [] if self.version is None else [f"Upload-Draft-Interop-Version: {self.version}"]
        if length != -1:
            lines += ["Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return Talk(reader, writer, method)

    async def ask(self, method: str, path: str, *headers: str, body: bytes | None = None) -> Told:
        """A whole request, and its answer."""
        talk = await self.begin(method, path, *headers, length=-1 if body is None else len(body))
        with contextlib.suppress(ConnectionError):  # it has been refused meanwhile
            await talk.send(body or b"")
        return await talk.answer()

    async def create(self, length: int | None = len(CONTENT), *headers: str, path: str = START) -> str:
        """An empty upload; its path."""
        said = () if length is None else (f"Upload-Length: {length}",)
        answer = await self.ask("POST", path, "Upload-Complete: ?0", *said, *headers, body=b"")
        assert (answer.status, answer.complete) == (201, "?0"), answer.body
        return answer.path

    async def flowing(self, upto: int, *headers: str, complete: str = "?1") -> tuple[Talk, str]:
        """A creation with all of `CONTENT` of which so much has come, and then no more; and the upload's path."""
        before = after = await newest(self.server)
        talk = await self.begin("POST", START, f"Upload-Complete: {complete}", *headers, length=len(CONTENT))
        await talk.send(CONTENT[:upto])
        async with asyncio.timeout(20):
            while after == before:
                after = await newest(self.server)
        await self.server.until_progress(after, upto)
        return talk, f"{FILES}/{after}"

    async def state(self, path: str, method: str = "HEAD") -> Told:
        """How far it is."""
        answer = await self.ask(method, path)
        assert answer.status == 204, answer.body
        return answer

    async def begin_append(self, path: str, at: int, complete: str, *headers: str, length: int | None = None) -> Talk:
        """The head of a PATCH."""
        fixed = (f"Content-Type: {PARTIAL}", f"Upload-Offset: {at}", f"Upload-Complete: {complete}")
        return await self.begin("PATCH", path, *fixed, *headers, length=length)

    async def append(self, path: str, body: bytes, at: int, complete: str, *headers: str) -> Told:
        """Bytes for a place."""
        talk = await self.begin_append(path, at, complete, *headers, length=len(body))
        with contextlib.suppress(ConnectionError):
            await talk.send(body)
        return await talk.answer()

    async def hanging(self, path: str, upto: int, at: int = 0, complete: str = "?1") -> Talk:
        """A PATCH of `CONTENT` whose bytes have come up to a place, and then no more."""
        talk = await self.begin_append(path, at, complete, length=len(CONTENT) - at)
        await talk.send(CONTENT[at:upto])
        await self.server.until_progress(task_id(path), upto)
        return talk

    async def task(self, path: str) -> Json:
        """The upload as a task."""
        return await self.server.task(task_id(path))

    async def content(self, path: str) -> bytes:
        """What of it can be downloaded."""
        return await self.server.file(task_id(path), "content")


def task_id(path: str) -> str:
    """The upload's id as a task."""
    return path.rpartition("/")[2]


def limits(told: Any) -> dict[str, int]:
    """The value of Upload-Limit."""
    return {name: int(value) for name, _, value in (part.partition("=") for part in told.split(", "))}


def durable(task: Json) -> int:
    """How many bytes of an upload the store has as durable."""
    return int(task["checkpoint"]["state"]["received"]) if task["checkpoint"] else 0


def as_json(answer: Told) -> Json:
    """The task that it is answered with."""
    task: Json = json.loads(answer.body)
    return task
