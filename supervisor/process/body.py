"""The pipe through which the body of a request goes to the child: our end of it, which never waits in place."""

import asyncio
import fcntl
import os
import select
import sys
import termios
from typing import Final

_MOST_BYTES: Final = 1 << 20
"""Half as fast again as the kernel's 64 KiB; what is in it when a child stops has never been acknowledged."""


class BodyPipe:
    """Both ends until the child has its own; then ours, to be written to."""

    def __init__(self) -> None:
        self.far, self._near = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._near, False)
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
                rest = rest[os.write(self._near, rest) :]
            except BlockingIOError:
                await self._until_writable()

    async def splice(self, source: int, most: int) -> int | None:
        """Move what waits in a socket, up to so many bytes, waiting for the child to make room but for nothing else.

        None if nothing is there, 0 if nothing ever will be. One at a time. Raises as `write`.
        """
        while self._near >= 0:
            try:
                return os.splice(source, self._near, most, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                if self._has_room():
                    return None
                await self._until_writable()
        raise BrokenPipeError

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._near, select.POLLOUT)
        return bool(poll.poll(0))

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
