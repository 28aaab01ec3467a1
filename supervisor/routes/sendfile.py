"""The fast way of a file: from the disk into the client's socket inside the kernel, its bytes never read here.

`loop.sendfile` would read the disk in the loop. Here a thread does, and the loop waits for the client to take more.
"""

import asyncio
import os
import socket
from typing import Final

from aiohttp import web

from intermission.supervisor.routes.threads import to_its_end

_MOST_BYTES: Final = 4 << 20
"""At a time: what a client takes at once is less, and one that takes a lot is not to keep a thread for long."""


def can(request: web.Request) -> bool:
    """Whether bytes may go past the transport: it must not encrypt them, nor have something to send before them."""
    transport = request.transport
    return (
        transport is not None
        and transport.get_extra_info("sslcontext") is None
        and not transport.is_closing()
        and not transport.get_write_buffer_size()
    )


async def send(request: web.Request, fd: int, offset: int, end: int) -> int:
    """Send from the one to the other offset of a file; where it ended, if that is before.

    Raises ConnectionError when the client has gone, OSError when the disk fails.
    """
    if request.transport is None:
        raise ConnectionResetError
    # The loop watches the transport's own descriptor already, and refuses it to anybody else.
    sock = socket.socket(fileno=os.dup(request.transport.get_extra_info("socket").fileno()))
    try:
        while offset < end:
            try:
                sent = await to_its_end(os.sendfile, sock.fileno(), fd, offset, min(_MOST_BYTES, end - offset))
            except BlockingIOError:
                await _until_writable(sock)
                continue
            if not sent:
                break
            offset += sent
    finally:
        sock.close()
    return offset


async def _until_writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable = loop.create_future()

    def wake() -> None:
        if not writable.done():
            writable.set_result(None)

    loop.add_writer(sock, wake)
    try:
        await writable
    finally:
        loop.remove_writer(sock)
