"""The fast way of a body: the child reads it from the client's connection itself, and its bytes never come here.

The child has had a duplicate of the connection from its launch on. While it reads, the transport does not; it says how
much that was, when all of it is there or no more comes fast. The parser of aiohttp must then believe that it has seen
what passed, or it would take the next request for the rest of this body. So it is fed as many zeros, which are thrown
away (0.03 s per GiB): nothing private is touched, and nothing has to be undone.

Only what comes fast goes this way. A slow client, one that has gone, and one that is silent are left to the copying
way, which has to know about them in any case.
"""

import asyncio
import fcntl
import select
import socket
import sys
import termios
from contextlib import closing
from typing import Final, cast

from aiohttp import web

from intermission.supervisor.intake import Intake, Took
from intermission.supervisor.routes.connection import Http
from intermission.supervisor.routes.pace import Pace

FAST: Final = web.AppKey("fast", bool)
"""Whether bodies may go past us, inside the kernel."""
WORTH_BYTES: Final = 1 << 20
"""With less than this to come the copying way goes on."""
_MOST_BYTES: Final = 64 << 20
"""At a time: so often the parser is told, which is all that wakes us."""
_LEFT_S: Final = 3.0
"""How long a child may take nothing, once the client has gone, of what it has left on the connection."""
_ASKED_AFTER_S: Final = 60
"""How long nothing comes before the kernel asks a client's whether it is still there, in place of two hours.

A client that goes while its bytes fill all the buffers cannot say so: its farewell is behind them, and nobody reads.
"""
_STEP_BYTES: Final = 4 << 20
_BLANK: Final = bytes(256 << 10)
"""Zeros for the parser, in parts that are below what makes aiohttp hold back."""


def works() -> bool:
    """Whether this system can wait for a batch of bytes, found by doing it.

    Without that a child would wake for each packet or two.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, closing(socket.socket()) as far:
            far.connect(server.getsockname())
            near, _ = server.accept()
            with near:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2)
                poll = select.poll()
                poll.register(near, select.POLLIN)
                far.send(b"x")
                too_soon = poll.poll(1)
                far.send(b"x")
                return bool(poll.poll(1000)) and not too_soon
    except OSError:  # a sandbox that does not know it
        return False


def connection(request: web.Request, size: int) -> socket.socket | None:
    """What a child may read so many bytes from; None where it is not worth it, or they are not those of the body."""
    transport = request.transport
    if size < WORTH_BYTES or transport is None or transport.get_extra_info("sslcontext") is not None:
        return None
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ASKED_AFTER_S)
    return sock


class Direct:
    """Of one request."""

    def __init__(self, request: web.Request, pace: Pace) -> None:
        self._pace = pace
        self._content = request.content
        self._protocol = cast("Http", request.protocol)
        self._transport = request.transport

    async def flow(self, intake: Intake, rest: int) -> int:
        """Have the child read the body, of which so much is to come, for as long as it comes fast; how much that was.

        To be called when nothing of it is buffered. Raises ConnectionError when the client has gone, or the child.
        """
        transport = self._transport
        if transport is None or not intake.has_connection or rest < WORTH_BYTES:
            return 0
        moved = unseen = 0
        reading: asyncio.Future[Took] | None = None
        self._protocol.held = True
        transport.pause_reading()
        try:
            while rest - moved >= WORTH_BYTES and not transport.is_closing():
                wanted = min(rest - moved, _MOST_BYTES)
                reading = intake.read_directly(wanted, self._pace.least_rate, self._pace.idle_s)
                await self._pretend(unseen)  # while the child reads on
                took = await _unless_gone(reading, transport)
                unseen = took.count
                moved += unseen
                self._pace.came(unseen)
                self._pace.waited(took.waited_s)
                if unseen < wanted:
                    break
            await self._pretend(unseen)
        finally:
            if reading is None or reading.done():
                self._read_on(transport)
            else:
                # The child may be about to read, however late. Who read now as well would leave a hole in the data: so
                # not before it has said that it does not, or is dead.
                reading.add_done_callback(lambda _: self._read_on(transport))
        return moved

    async def _pretend(self, unseen: int) -> None:
        """Have the parser count what it did not see; others have their turn on the way."""
        left_in_step = _STEP_BYTES
        while unseen:
            part = _BLANK if unseen >= len(_BLANK) else bytes(unseen)
            self._protocol.data_received(part)
            self._content.read_nowait()
            unseen -= len(part)
            left_in_step -= len(part)
            if left_in_step <= 0:
                await asyncio.sleep(0)
                left_in_step = _STEP_BYTES

    def _read_on(self, transport: asyncio.Transport) -> None:
        """Have the transport read again, for each byte."""
        self._protocol.held = False
        if not transport.is_closing():
            # A child that was killed has not undone it.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            transport.resume_reading()


async def _unless_gone(reading: asyncio.Future[Took], transport: asyncio.Transport) -> Took:
    """What the child has read. Raises ConnectionError when the client has gone, and the child takes nothing any more.

    It may be frozen: nobody else would ever notice, for the transport does not read.
    """
    loop, sock = asyncio.get_running_loop(), transport.get_extra_info("socket")
    over = asyncio.Event()
    reading.add_done_callback(lambda _: over.set())
    with select.epoll() as epoll:
        try:
            epoll.register(sock.fileno(), select.EPOLLRDHUP)
        except (OSError, ValueError):  # the transport has been closed
            raise ConnectionResetError from None
        loop.add_reader(epoll, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(epoll)
    left = sys.maxsize
    while not reading.done():
        if transport.is_closing() or (now := _waiting(sock)) >= left:
            raise ConnectionResetError
        left = now
        await asyncio.wait({reading}, timeout=_LEFT_S)  # which leaves it alone, when that is cancelled
    return reading.result()


def _waiting(sock: socket.socket) -> int:
    """How many bytes are on it that nobody has read."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
