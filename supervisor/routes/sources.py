"""Where the data comes from that a body brings."""

from typing import Protocol

from aiohttp import web

from intermission.supervisor.routes import requests
from intermission.supervisor.routes.bodies import body_length
from intermission.supervisor.routes.connection import LAST_BYTES


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
