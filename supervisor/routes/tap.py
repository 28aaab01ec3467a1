"""The fast way of a body: from the client's socket into the child's pipe inside the kernel, its bytes never read here.

It costs us a quarter of what copying does, and the loop is woken once per some hundred KiB, not for every packet or
two. While a tap is open the transport does not read; the parser of aiohttp must still believe that it has seen what
passed, or it would take the next request for the rest of this body. So it is fed as many zeros, which are thrown away
(0.02 s per GiB), and is right at every moment: nothing private is touched, and nothing has to be undone.

Only what comes fast goes this way. A slow client, one that has gone, and the end of the body are left to the copying
way, which has to know about them in any case.
"""

import asyncio
import os
import socket
from typing import Final

from aiohttp import web

from intermission.supervisor.attempt import Attempt
from intermission.supervisor.routes.pace import Pace

WORTH_BYTES: Final = 1 << 20
"""With less than this to come the copying way goes on. More than the batch, for which the client must have enough."""
BATCH_BYTES: Final = 256 << 10
"""How much has to be there before the loop is woken for it."""
PATIENCE_S: Final = 0.1
"""How long it may take to come, and so the most that a byte waits in the socket."""
_MOST_BYTES: Final = 1 << 20
_BLANK: Final = bytes(256 << 10)
"""Zeros for the parser, in parts that are below what makes aiohttp hold back."""


def works() -> bool:
    """Whether this system can do it, found by doing it."""
    near, far = socket.socketpair()
    out, into = os.pipe()
    try:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        far.send(b"x")
        os.splice(near.fileno(), into, 1, flags=os.SPLICE_F_NONBLOCK)
        return os.read(out, 1) == b"x"
    except (AttributeError, OSError):  # another Python, or a sandbox that knows neither
        return False
    finally:
        near.close()
        far.close()
        os.close(out)
        os.close(into)


class Tap:
    """On the connection of one request, whose body has a length."""

    def __init__(self, request: web.Request, pace: Pace) -> None:
        self._pace = pace
        self._content = request.content
        self._protocol = request.protocol
        self._transport = request.transport
        self._loop = asyncio.get_running_loop()

    async def flow(self, attempt: Attempt, rest: int) -> int:
        """Move the body, of which so much is to come, for as long as it comes fast; how much was moved.

        To be called when nothing of it is buffered. Raises ConnectionError when the client has gone, or the child, and
        as `Pace.wait`.
        """
        transport = self._transport
        if transport is None or rest < WORTH_BYTES or transport.get_extra_info("sslcontext") is not None:
            return 0
        transport.pause_reading()
        # The loop watches the transport's own descriptor already, and refuses it to anybody else.
        sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        moved = 0
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, BATCH_BYTES)
            while rest - moved >= WORTH_BYTES and not transport.is_closing():
                taken = await attempt.splice(sock.fileno(), min(rest - moved, _MOST_BYTES))
                if taken is None:
                    await self._pace.wait(self._until_ready(sock))
                    taken = await attempt.splice(sock.fileno(), min(rest - moved, _MOST_BYTES))
                if not taken:
                    break
                self._pretend(taken)
                self._pace.came(taken)
                moved += taken
                transport.pause_reading()
        finally:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            sock.close()
            transport.resume_reading()
        return moved

    async def _until_ready(self, sock: socket.socket) -> None:
        """Until a batch is there, the connection is at its end, or it takes too long."""
        ready = self._loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(sock, wake)
        patience = self._loop.call_later(PATIENCE_S, wake)
        try:
            await ready
        finally:
            self._loop.remove_reader(sock)
            patience.cancel()

    def _pretend(self, taken: int) -> None:
        """Have the parser count what it did not see."""
        while taken:
            part = _BLANK if taken >= len(_BLANK) else bytes(taken)
            self._protocol.data_received(part)
            self._content.read_nowait()  # has the transport read again: pause it before anything is awaited
            taken -= len(part)
