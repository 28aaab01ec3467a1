"""A tus client that sends what it is told to, and begins to send what a test then cuts short."""

import asyncio
import base64
import hashlib
import io

from crc32c import CRC32CHash
from harness import Answer, Server, problem
from upload_tools import MIB, Sending, data
from yarl import URL

FILES = "/upload/files"
OCTETS = "application/offset+octet-stream"
CONTENT = data(2 * MIB + 4321)
HALF = MIB + 7


def headed(headers: dict[str, str | None]) -> dict[str, str]:
    """What a test names as a keyword, as headers; None leaves out what is there by default."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {name: value for name, value in {"Tus-Resumable": "1.0.0", **named}.items() if value is not None}


async def ask(
    server: Server, method: str, path: str = FILES, body: bytes | None = None, **headers: str | None
) -> Answer:
    """Any request of tus; ``path`` may be what a Location says."""
    return await server.ask(
        method,
        URL(path).path,
        data=None if body is None else io.BytesIO(body),
        headers=headed(headers),
        skip_auto_headers=["Content-Type"],
    )


async def create(server: Server, length: int | None = len(CONTENT), **headers: str) -> str:
    """An empty upload; its path. None: the length comes later."""
    size = {"Upload_Defer_Length": "1"} if length is None else {"Upload_Length": str(length)}
    answer = await ask(server, "POST", **size, **headers)
    assert answer.status == 201, answer.body
    return URL(answer.headers["Location"]).path


async def head(server: Server, path: str) -> Answer:
    """How far it is."""
    answer = await ask(server, "HEAD", path)
    assert answer.status == 200
    return answer


async def offset(server: Server, path: str) -> int:
    """The same as a number."""
    return int((await head(server, path)).headers["Upload-Offset"])


async def patch(server: Server, path: str, body: bytes, at: int | str, **headers: str | None) -> Answer:
    """Bytes for a place."""
    named: dict[str, str | None] = {"Content_Type": OCTETS, "Upload_Offset": str(at), **headers}
    return await ask(server, "PATCH", path, body, **named)


async def begin(
    server: Server, path: str, *headers: str, length: int | None = None, method: str = "PATCH", at: int = 0
) -> Sending:
    """The head of a PATCH; the body follows by `Sending.send`. ``length`` None: chunked."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    fixed = ["Host: localhost", "Tus-Resumable: 1.0.0", f"Content-Type: {OCTETS}", f"Upload-Offset: {at}", size]
    writer.write("\r\n".join([f"{method} {path} HTTP/1.1", *fixed, *headers, "", ""]).encode("latin-1"))
    return Sending(reader, writer)


async def hanging(server: Server, path: str, content: bytes, upto: int, *headers: str, at: int = 0) -> Sending:
    """A PATCH whose bytes have come up to a place, and then no more."""
    sending = await begin(server, path, *headers, length=len(content) - at, at=at)
    await sending.send(content[at:upto])
    await server.until_progress(task_id(path), upto)
    return sending


def task_id(path: str) -> str:
    """The upload's id as a task."""
    return path.rpartition("/")[2]


async def content(server: Server, path: str) -> bytes:
    """What of it can be downloaded."""
    return await server.file(task_id(path), "content")


async def unchanged(server: Server, path: str, answer: Answer, status: int, slug: str, *, at: int = 0) -> None:
    """Assert that a request was refused so, and that the upload is where it was."""
    problem(answer, status, slug)
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert await offset(server, path) == at


def checksum(body: bytes, algorithm: str = "sha1") -> str:
    """The value of Upload-Checksum."""
    digest = CRC32CHash(body) if algorithm == "crc32c" else hashlib.new(algorithm, body)
    return f"{algorithm} {base64.b64encode(digest.digest()).decode()}"


def metadata(**values: bytes | str) -> str:
    """The value of Upload-Metadata."""
    packed = {key: value.encode() if isinstance(value, str) else value for key, value in values.items()}
    return ",".join(f"{key} {base64.b64encode(value).decode()}" for key, value in packed.items())
