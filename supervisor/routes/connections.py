"""The connections of all clients: no more than there are descriptors for. Who asks for nothing makes room.

So however many somebody opens, to send nothing or to begin what never comes, the next client is served.
"""

from typing import Protocol

from intermission.supervisor.logs import Seldom


class Member(Protocol):
    """One of them."""

    def drop(self) -> None:
        """Close it at once; it leaves when that is done."""


class Connections:
    """See the module."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = set[Member]()
        self._idle = dict[Member, None]()  # in the order in which they became so
        self._told = Seldom()

    def enter(self, member: Member) -> bool:
        """Let it be one of them, in the place of the longest idle one if there is no other; whether it is."""
        if len(self._open) >= self._most:
            self._told.warning("no more connections can be open", open=len(self._open), idle=len(self._idle))
            if not self._idle:
                return False
            longest = next(iter(self._idle))
            del self._idle[longest]
            longest.drop()
        self._open.add(member)
        self._idle[member] = None
        return True

    def busy(self, member: Member) -> None:
        """It has a request under way, and keeps its place."""
        self._idle.pop(member, None)

    def idle(self, member: Member) -> None:
        """It waits for a request."""
        if member in self._open:
            self._idle[member] = None

    def leave(self, member: Member) -> None:
        """It is closed."""
        self._open.discard(member)
        self._idle.pop(member, None)
