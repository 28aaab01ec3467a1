"""Server-sent events (WHATWG HTML, section 9.2): how they are framed, and streams of them that stay open."""

import asyncio
import re
from typing import Final

from aiohttp import web

from intermission.supervisor.routes import connection

KEEP_ALIVE_S: Final = 15.0
"""After so long without a word the client gets a comment: proxies keep the connection, and one that has gone shows."""
_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would collect events until there are enough of them
}
_LINE_END: Final = re.compile(r"\r\n|\r|\n")


def frame(data: str, *, number: int | None = None, event: str | None = None) -> bytes:
    """One event. ``number`` is its id, which a client that lost the connection sends as ``Last-Event-ID``."""
    lines = [] if number is None else [f"id: {number}"]
    lines += [] if event is None else [f"event: {event}"]
    lines += [f"data: {line}" for line in _LINE_END.split(data)]
    return "\n".join([*lines, "", ""]).encode()


class Stream:
    """One answer that stays open. Each write waits for the client, so a slow one costs no memory.

    Every method raises ConnectionError when the client has gone.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(headers=_HEADERS)

    async def open(self) -> None:
        """Send the head."""
        connection.stays(self._request)
        await self.response.prepare(self._request)

    async def send(self, frames: bytes) -> None:
        """Send events, framed."""
        await self.response.write(frames)

    async def until(self, *happenings: asyncio.Future[None]) -> None:
        """Return when one of these is done."""
        while not (await asyncio.wait(happenings, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED))[0]:
            await self.response.write(b":\n\n")
