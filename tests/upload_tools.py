"""A client whose body goes out piece by piece, so that a test can act in the middle of it."""

import asyncio
import base64
import contextlib
import hashlib
import io
import mmap
import random
from dataclasses import dataclass
from typing import Any

from crc32c import CRC32CHash
from harness import Answer, Server, parsed
from verb_tools import TOYS

MIB = 1 << 20
WAYS = {
    "direct": {"INTERMISSION_HANDLERS": TOYS},
    "copied": {"INTERMISSION_HANDLERS": f"{TOYS},without_direct"},
}
"""The settings of a server whose uploads go the fast way, and of one on a Python that does not have it."""


def data(size: int, seed: int = 1) -> bytes:
    """Bytes in which no part is like another."""
    return random.Random(seed).randbytes(size)


def sha256(content: bytes | mmap.mmap) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def crc32c(content: bytes) -> str:
    """The same of CRC-32C."""
    return CRC32CHash(content).hexdigest()


def digests(content: bytes, *algorithms: str) -> str:
    """What RFC 9530 calls those digests of the content."""
    made = {
        "crc32c": lambda: CRC32CHash(content).digest(),
        "sha-256": lambda: hashlib.sha256(content).digest(),
        "sha-512": lambda: hashlib.sha512(content).digest(),
    }
    return ", ".join(f"{name}=:{base64.b64encode(made[name]()).decode()}:" for name in algorithms)


@dataclass
class Sending:
    """A request under way."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent: int = 0

    async def send(self, part: bytes) -> None:
        """Some more of the body. Raises ConnectionError when the server has closed."""
        self.writer.write(part)
        await self.writer.drain()
        self.sent += len(part)

    async def answer(self, within_s: float = 20) -> Answer:
        """The answer, once the server has closed or said all of it."""
        heard = b""
        async with asyncio.timeout(within_s):
            with contextlib.suppress(ConnectionError):
                while not _is_whole(heard):
                    block = await self.reader.read(1 << 16)
                    if not block:
                        break
                    heard += block
        self.abort()
        return parsed(heard)

    def abort(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()

    async def leave(self) -> None:
        """Close in good order, in the middle of the body."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def _is_whole(heard: bytes) -> bool:
    head, separator, body = heard.partition(b"\r\n\r\n")
    if not separator:
        return False
    if head.startswith(b"HTTP/1.1 204 "):
        return True
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return False


async def begin(server: Server, path: str, *headers: str, length: int | None = None) -> Sending:
    """The head of a POST; the body follows by `Sending.send`. ``length`` None: chunked (send the frames yourself)."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    writer.write("\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", size, *headers, "", ""]).encode("latin-1"))
    return Sending(reader, writer)


def chunk(part: bytes) -> bytes:
    """A piece of a chunked body; of nothing, its end."""
    return b"%x\r\n%s\r\n" % (len(part), part)


async def upload(server: Server, content: bytes, query: str = "", **headers: str) -> Answer:
    """All at once."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await server.ask("POST", f"/upload/start{query}", data=io.BytesIO(content), headers=named)


async def resume(server: Server, task_id: str, content: bytes, offset: int) -> Answer:
    """The rest of the content, from an offset."""
    headers = {"Upload-Offset": str(offset)}
    return await server.ask(
        "POST", f"/upload/resume?task={task_id}", data=io.BytesIO(content[offset:]), headers=headers
    )


async def newest(server: Server, service: str = "upload") -> str:
    """The id of a service's newest task; empty if there is none."""
    items: list[dict[str, Any]] = (await server.ask("GET", f"/{service}/status?limit=1")).json["items"]
    return str(items[0]["id"]) if items else ""


async def newer(server: Server, before: str, service: str = "upload") -> str:
    """The id of a service's newest task, once that is not the one that was so before."""
    async with asyncio.timeout(20):
        while (after := await newest(server, service)) == before:
            pass
    return after


async def flowing(server: Server, content: bytes, upto: int, *headers: str, query: str = "") -> tuple[Sending, str]:
    """An upload of which so many bytes are sent, and all of them are in the child's hands; and its id."""
    before = await newest(server)
    sending = await begin(server, f"/upload/start{query}", *headers, length=len(content))
    await sending.send(content[:upto])
    task_id = await newer(server, before)
    await server.until_progress(task_id, upto)
    return sending, task_id
