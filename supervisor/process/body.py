"""The ways of a body to the child: a ring in memory that both have, and the client's connection.

What the child reads from the connection itself never comes here.
"""

import asyncio
import os
import socket
from contextlib import ExitStack, closing

from intermission.supervisor.process.ring import RING_BYTES, Ring, counted, new_counter, new_memory


class Body:
    """Our ends, and until the child has its own those as well."""

    def __init__(self, connection: socket.socket | None = None) -> None:
        """``connection``: the client's, which remains its owner's; it may have been closed."""
        self._loop = asyncio.get_running_loop()
        self.has_connection = connection is not None and connection.fileno() >= 0
        """Whether the child may read that."""
        with ExitStack() as ours, ExitStack() as childs:  # where there are too many, none of them stays open
            memory = _kept(new_memory(), childs)
            self._came, self._taken = _kept(new_counter(), ours), _kept(new_counter(), ours)
            self.ends = [memory, _kept(os.dup(self._came), childs), _kept(os.dup(self._taken), childs)]
            """The descriptors for the child: of the ring, and of the connection if it may read that."""
            if connection is not None and self.has_connection:
                self.ends.append(_kept(os.dup(connection.fileno()), childs))
            self._ring: Ring | None = ours.enter_context(closing(Ring(memory)))
            self._ours, self._childs = ours.pop_all(), childs.pop_all()
        self.written = 0
        """Bytes that went into the ring."""
        self._free = RING_BYTES
        self._room = asyncio.Event()

    async def write(self, data: bytes) -> None:
        """Put everything into the ring, waiting for the child to take what was there before.

        One at a time. Raises BrokenPipeError when nothing more may come.
        """
        rest = memoryview(data)
        while rest:
            if self._ring is None:
                raise BrokenPipeError
            self._free += counted(self._taken)
            if self._free >= RING_BYTES:
                self._free = RING_BYTES
                self._ring.restart(self.written)
            elif not self._free:
                await self._until_taken()
                continue
            with self._ring.at(self.written, min(len(rest), self._free)) as room:
                size = len(room)
                room[:] = rest[:size]
            self.written += size
            self._free -= size
            os.eventfd_write(self._came, size)
            rest = rest[size:]

    async def _until_taken(self) -> None:
        self._room.clear()
        self._loop.add_reader(self._taken, self._room.set)
        try:
            await self._room.wait()
        finally:
            if self._ring is not None:
                self._loop.remove_reader(self._taken)

    def passed_on(self) -> None:
        """The child has its ends. Safe to call twice."""
        self._childs.close()

    def finish(self) -> None:
        """Nothing more comes. Safe to call twice, and while somebody waits in `write`."""
        if self._ring is not None:
            self._loop.remove_reader(self._taken)
            self._ring = None
            self._ours.close()
            self._room.set()

    def close(self) -> None:
        """Close what is still ours."""
        self.passed_on()
        self.finish()


def _kept(fd: int, stack: ExitStack) -> int:
    stack.callback(os.close, fd)
    return fd
