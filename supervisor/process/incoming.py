"""The child's ends of a request's body: the ring that the supervisor writes to, and the client's connection itself."""

import os
import select
import socket
from typing import Final

from intermission.supervisor.process.ring import RING_BYTES, Ring, counted

BATCH_BYTES: Final = 1 << 20
"""How much has to be on the connection before a child wakes for it, and how much it takes at a time.

Each time it takes some, the kernel tells the client that there is room: with 256 KiB that alone cost 0.2 CPU s/GiB.
"""
PATIENCE_S: Final = 0.75
"""How long that may take to come at most, and so the most that a byte waits there.

A client at 1 MB/s wakes its child so often. With 0.25, two hundred of them took a tenth of a core more.
"""
_RING_BATCH_BYTES: Final = RING_BYTES // 2
"""How much of the ring a child takes at a time, so that there is room for more while it writes that."""


class Incoming:
    """Both ends; which of them is to be read, the supervisor says.

    What comes is always in one and the same memory, that of the ring, which stays in the processor's cache: memory that
    is new for each block would have its pages zeroed at their first touch, and that cost more than all the copying (0.9
    CPU s/GiB instead of 0.2).
    """

    def __init__(self, control: int, memory: int, came: int, taken: int, connection: int | None = None) -> None:
        """``control``: what the supervisor says comes here, and a wait for bytes ends for it."""
        self._control = control
        self._ring = Ring(memory)
        os.close(memory)
        self._came = came
        self._taken = taken
        self._connection = None if connection is None else socket.socket(fileno=connection)
        self._lowat = 1
        self._polls = select.poll(), select.poll()
        for poll, source in zip(self._polls, (came, connection), strict=True):
            poll.register(control, select.POLLIN)
            if source is not None:
                poll.register(source, select.POLLIN)
        self.copied = 0
        """Bytes that came through the ring."""
        self._there = 0
        self._lent = 0

    def wait_for_ring(self) -> bool:
        """Wait until the supervisor says something, or there is something in the ring: whether it has spoken.

        Who calls is done with what was read before.
        """
        if self._lent:
            os.eventfd_write(self._taken, self._lent)
            self._lent = 0
        self._there += counted(self._came)
        ready = {fd for fd, _ in self._polls[0].poll(0 if self._there else None)}
        self._there += counted(self._came)
        return self._control in ready

    def from_ring(self) -> memoryview:
        """Some of what is in the ring, until the next is read."""
        block = self._ring.at(self.copied, min(self._there, _RING_BATCH_BYTES))
        self._lent = len(block)
        self._there -= len(block)
        self.copied += len(block)
        return block

    def wait_for_connection(self, left: int, patience_s: float) -> bool:
        """Wait until the supervisor says something; or until a batch of what is left is there, or takes so long.

        Whether the supervisor has.
        """
        self._wake_for(min(BATCH_BYTES, left))
        return self._control in {fd for fd, _ in self._polls[1].poll(patience_s * 1000)}

    def from_connection(self, left: int) -> memoryview:
        """What is on the connection, until the next is read; nothing if that is nothing, or it is at its end."""
        if self._connection is None:
            return self._ring.memory[:0]
        try:
            return self._read(self._connection.fileno(), left)  # asyncio has made it one that never blocks
        except OSError:  # nothing yet, or it was reset: the supervisor, which reads on, finds out
            return self._ring.memory[:0]

    def _read(self, source: int, most: int) -> memoryview:
        return self._ring.memory[: os.readv(source, [self._ring.memory[:most]])]

    def leave_connection(self) -> None:
        """Nothing more is read from the connection for now: whoever reads on wakes for each byte."""
        self._wake_for(1)

    def _wake_for(self, size: int) -> None:
        if self._connection is not None and size != self._lowat:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._lowat = size
