"""Where the data comes from that a body brings."""

import asyncio
from pathlib import Path
from typing import Protocol

from aiohttp import web

from intermission.supervisor.routes import requests
from intermission.supervisor.routes.bodies import body_length
from intermission.supervisor.routes.connection import LAST_BYTES
from intermission.supervisor.routes.pace import Pace


class Source(Protocol):
    """See the module."""

    @property
    def fast_bytes(self) -> int:
        """How many bytes of the connection are nothing but data, so that they may go past us."""

    async def ready(self) -> None:
        """Ask for it, where the client waits to be asked."""

    def at_hand(self) -> bytes:
        """What is here already."""

    async def more(self) -> bytes:
        """What comes next; nothing at the end. Raises ConnectionError, and `Problem` as `outcome.Brought.fault`."""


class Raw:
    """The data is the body."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.more = request.content.readany

    @property
    def fast_bytes(self) -> int:
        """All, if it says how many."""
        return body_length(self._request) or 0

    async def ready(self) -> None:
        """Ask for it, where the client waits to be asked."""
        await requests.go_on(self._request)

    def at_hand(self) -> bytes:
        """What is here already, also of a client that has gone. Raises ConnectionError, but not before that."""
        last: bytes = self._request.pop(LAST_BYTES, b"")
        return last or self._request.content.read_nowait()


class DifferentError(Exception):
    """The data is not what is here of it."""


class Rest:
    """The data behind its first bytes, which are here already."""

    def __init__(self, source: Source) -> None:
        """``source``: of all of it."""
        self._source = source
        self._skipped = 0
        self._left = b""

    @property
    def fast_bytes(self) -> int:
        """Those of the source, without what it has given."""
        return max(self._source.fast_bytes - self._skipped, 0)

    async def ready(self) -> None:
        """Ask for it, where the client waits to be asked."""
        await self._source.ready()

    async def skip(self, known: Path, count: int, pace: Pace) -> bool:
        """Take the first bytes, which are those of the file; whether so many have come before the data ended.

        Raises `DifferentError`, TimeoutError as ``pace`` does, and as `more`.
        """
        while self._skipped < count:
            block = self.at_hand() or await pace.wait(self.more())
            pace.came(len(block))
            if not block:
                return False
            there = await asyncio.to_thread(_part, known, self._skipped, min(len(block), count - self._skipped))
            if not there or not block.startswith(there):
                raise DifferentError
            self._skipped += len(there)
            self._left = block[len(there) :]
        return True

    def at_hand(self) -> bytes:
        """What is here already."""
        left, self._left = self._left, b""
        return left or self._source.at_hand()

    async def more(self) -> bytes:
        """What comes next."""
        return await self._source.more()


class Nothing:
    """There is no data, only its end; the body, if there is one, is not asked for."""

    fast_bytes = 0

    async def ready(self) -> None:
        """Do nothing."""

    def at_hand(self) -> bytes:
        """Nothing."""
        return b""

    async def more(self) -> bytes:
        """The end."""
        return b""


def _part(of: Path, begin: int, size: int) -> bytes:
    with of.open("rb") as file:
        file.seek(begin)
        return file.read(size)
