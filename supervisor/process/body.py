"""The pipe through which the body of a request goes to the child: our end of it, which never waits in place."""

import asyncio
import contextlib
import fcntl
import os
from typing import Final

_PIPE_BYTES: Final = 1 << 20
"""Half as fast again as the kernel's 64 KiB; what is in it when a child stops has never been acknowledged."""


class BodyPipe:
    """Both ends until the child has its own; then ours, to be written to."""

    def __init__(self) -> None:
        self.far, self._near = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._near, False)
        with contextlib.suppress(PermissionError):  # over the user's share of pipe buffers: a smaller one works too
            fcntl.fcntl(self._near, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
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

    async def _until_writable(self) -> None:
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
