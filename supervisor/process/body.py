"""The ways of a body to the child: a pipe, our end of which never waits in place, and the client's connection.

What the child reads from the connection itself never comes here.
"""

import asyncio
import fcntl
import os
import socket
import sys
import termios
from typing import Final

_MOST_BYTES: Final = 1 << 20
"""Half as fast again as the kernel's 64 KiB; what is in it when a child stops has never been acknowledged."""


class BodyPipe:
    """Both ends until the child has its own; then ours, to be written to."""

    def __init__(self, connection: socket.socket | None = None) -> None:
        """``connection``: the client's, which remains its owner's; it may have been closed."""
        self.far, self._near = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._near, False)
        number = -1 if connection is None else connection.fileno()
        self._connection = os.dup(number) if number >= 0 else -1
        self.has_connection = self._connection >= 0
        self.written = 0
        """Bytes that went into the pipe."""
        self._loop = asyncio.get_running_loop()
        self._writable: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> None:
        """Hand everything to the kernel, waiting for the child to take what was there before.

        One at a time. Raises BrokenPipeError when nobody reads it any more.
        """
        rest = memoryview(data)
        while rest:
            if self._near < 0:
                raise BrokenPipeError
            try:
                written = os.write(self._near, rest)
            except BlockingIOError:
                await self._until_writable()
                continue
            self.written += written
            rest = rest[written:]

    @property
    def ends(self) -> list[int]:
        """The descriptors for the child: of the pipe, and of the connection if it may read that."""
        return [self.far, self._connection] if self.has_connection else [self.far]

    def _grow(self) -> bool:
        """Double a pipe that is full; False where it is large enough, or may not be larger.

        It has a number of places, which a page fills as well as 50 bytes or the 32 KiB of a packet on the way from
        this machine. So it is what it holds that counts; and many slow uploads do not use up the user's share.
        """
        held = int.from_bytes(fcntl.ioctl(self._near, termios.FIONREAD, bytes(4)), sys.byteorder)
        size = fcntl.fcntl(self._near, fcntl.F_GETPIPE_SZ)
        if size >= _MOST_BYTES or 2 * held > _MOST_BYTES:
            return False
        try:
            fcntl.fcntl(self._near, fcntl.F_SETPIPE_SZ, 2 * size)
        except PermissionError:  # over the user's share
            return False
        return True

    async def _until_writable(self) -> None:
        if self._grow():
            return
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._near, self._wake)
        try:
            await self._writable
        finally:
            if self._near >= 0:
                self._loop.remove_writer(self._near)
            self._writable = None

    def _wake(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def passed_on(self) -> None:
        """The child has its end: ours of it would hide its death from us."""
        if self.far >= 0:
            os.close(self.far)
            self.far = -1
        if self._connection >= 0:
            os.close(self._connection)
            self._connection = -1

    def close(self) -> None:
        """Close what is still ours."""
        self.passed_on()
        self.finish()

    def finish(self) -> None:
        """Nothing more comes. Safe to call twice, and while somebody waits in `write`."""
        if self._near >= 0:
            self._loop.remove_writer(self._near)
            os.close(self._near)
            self._near = -1
            self._wake()
