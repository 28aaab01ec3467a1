"""The child's ends of a request's body: the pipe that the supervisor writes to, and the client's connection itself."""

import fcntl
import os
import select
import socket
import sys
import termios
from typing import Final

BATCH_BYTES: Final = 1 << 20
"""How much has to be on the connection before a child wakes for it, and how much it takes at a time.

Each time it takes some, the kernel tells the client that there is room: with 256 KiB that alone cost 0.2 CPU s/GiB.
"""
PATIENCE_S: Final = 0.25
"""How long that may take to come, and so the most that a byte waits there."""
_PIPED_BYTES: Final = 256 << 10
"""Of what a pipe of 1 MiB holds, so little that most blocks are full.

`os.read` allocates a block and then shrinks it to what came. One that is shrunk is always mapped anew by glibc and each
of its pages zeroed at its first touch: with 1 MiB that cost more than all the copying (0.9 CPU s/GiB instead of 0.35).
"""


class Incoming:
    """Both ends; which of them is to be read, the supervisor says."""

    def __init__(self, control: int, pipe: int, connection: int | None = None) -> None:
        """``control``: what the supervisor says comes here, and a wait for bytes ends for it."""
        self._control = control
        self._pipe = pipe
        self._connection = None if connection is None else socket.socket(fileno=connection)
        self._lowat = 1
        self._polls = select.poll(), select.poll()
        for poll, source in zip(self._polls, (pipe, connection), strict=True):
            poll.register(control, select.POLLIN)
            if source is not None:
                poll.register(source, select.POLLIN)
        self.piped = 0
        """Bytes that came through the pipe."""

    def wait_for_pipe(self) -> tuple[bool, bool]:
        """Wait until the supervisor says something, something is in the pipe, or both: which."""
        ready = {fd for fd, _ in self._polls[0].poll()}
        return self._control in ready, self._pipe in ready

    def from_pipe(self) -> bytes:
        """What is in the pipe; nothing once that is closed."""
        block = os.read(self._pipe, _PIPED_BYTES)
        self.piped += len(block)
        return block

    def wait_for_connection(self, left: int) -> bool:
        """Wait until the supervisor says something; or until a batch of what is left is there, or takes too long.

        Whether the supervisor has.
        """
        self._wake_for(min(BATCH_BYTES, left))
        return self._control in {fd for fd, _ in self._polls[1].poll(PATIENCE_S * 1000)}

    def from_connection(self, left: int) -> bytes:
        """What is on the connection; nothing if that is nothing, or it is at its end."""
        if self._connection is None:
            return b""
        try:
            size = min(BATCH_BYTES, left, self._waiting(self._connection) or 1)
            return self._connection.recv(size, socket.MSG_DONTWAIT)
        except OSError:  # nothing yet, or it was reset: the supervisor, which reads on, finds out
            return b""

    @staticmethod
    def _waiting(connection: socket.socket) -> int:
        """How many bytes are there: a block that is no larger has not to be shrunk, see `_PIPED_BYTES`."""
        return int.from_bytes(fcntl.ioctl(connection, termios.FIONREAD, bytes(4)), sys.byteorder)

    def leave_connection(self) -> None:
        """Nothing more is read from the connection for now: whoever reads on wakes for each byte."""
        self._wake_for(1)

    def _wake_for(self, size: int) -> None:
        if self._connection is not None and size != self._lowat:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._lowat = size
