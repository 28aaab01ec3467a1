"""The body that a request brings to an attempt: what its child is told of the bytes, and of their end.

They come through a ring (`write`), or the child reads them from the client's connection itself (`read_directly`). Of an
attempt without a body nothing is taken.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from intermission.state.status import Reason
from intermission.supervisor.process import wire
from intermission.supervisor.process.body import Body
from intermission.supervisor.process.incoming import PATIENCE_S

_LEAST_BYTES: Final = 4 << 10
"""With fewer at a time a child does not go on reading from the client's connection."""
Took = wire.Took


class Intake:
    """See the module. What is asked before the child is there, it is told when it begins."""

    def __init__(self, body: Body | None, cut: Callable[[], None]) -> None:
        """``cut`` is called when the child is to leave: the body ends before the data does, or somebody waits."""
        self.handed_over = False
        """Another request has taken the place of the one that brought the body."""
        self.disconnected: Reason | None = None
        """Why the body ended before the data did."""
        self._body = body
        self._cut = cut
        self._tell: Callable[[wire.Request], None] | None = None
        self._end: wire.BodyEnd | None = None
        self._direct: wire.Direct | None = None
        self._took: asyncio.Future[Took] | None = None
        self._closed = body is None

    # What the supervisor asks.

    @property
    def has_connection(self) -> bool:
        """Whether the child can read from the client's."""
        return self._body is not None and self._body.has_connection

    async def write(self, data: bytes) -> None:
        """Hand bytes of the body to the child. Raises BrokenPipeError when it takes no more."""
        if self._body is None:
            raise BrokenPipeError
        await self._body.write(data)

    def read_directly(self, count: int, least_rate: int, idle_s: float) -> asyncio.Future[Took]:
        """Have the child read so many bytes from the client's connection, for as long as they come fast.

        What it will have read; nobody else may read meanwhile. It leaves a client that is not much faster than
        ``least_rate``, in bytes a second, or silent for ``idle_s``, to who can judge that.
        Raises BrokenPipeError when it takes no more.
        """
        if self._body is None or self._end is not None or self._closed:
            raise BrokenPipeError
        self._took = asyncio.get_running_loop().create_future()
        self._took.add_done_callback(lambda took: took.cancelled() or took.exception())  # its asker may have gone
        patience_s = min(PATIENCE_S, idle_s)
        least = max(_LEAST_BYTES, int(2 * least_rate * patience_s))
        self._direct = wire.Direct(self._body.written, count, least, patience_s)
        if self._tell is not None:
            self._tell(self._direct)
        return self._took

    def end(self, cut: Reason | None = None) -> None:
        """All of the body is in the ring; or, with a reason, all that will come now. Only the first of these counts."""
        if self._body is None or self._end is not None or self._closed:
            return
        self.disconnected = cut
        self._end = wire.BodyEnd(self._body.written, complete=cut is None, cut=cut is Reason.DISCONNECTED)
        if self._tell is not None:
            self._tell(self._end)
        self._body.finish()
        if cut is not None:
            self._cut()

    def hand_over(self) -> None:
        """Have the child keep what came and stop: another request is there.

        Where all has come it does so anyway; but now somebody waits for that, so it has no longer than to stop.
        """
        if self._end is None and not self._closed:
            self.handed_over = True
            self.end(Reason.DISCONNECTED)
        elif not self._closed:
            self._cut()

    # What the attempt asks.

    @property
    def ends(self) -> Sequence[int]:
        """The descriptors for the child."""
        return () if self._body is None else self._body.ends

    def passed_on(self) -> None:
        """The child has them."""
        if self._body is not None:
            self._body.passed_on()

    def begin(self, tell: Callable[[wire.Request], None]) -> None:
        """The child is there, and this is how it is told."""
        self._tell = tell
        for asked in (self._direct, self._end):
            if asked is not None:
                tell(asked)

    def took(self, report: Took) -> None:
        """The child says what it has read directly."""
        if self._took is not None and not self._took.done():
            self._took.set_result(report)

    def close(self) -> None:
        """The child is dead, or there was none. Safe to call twice."""
        self._closed = True
        if self._body is not None:
            self._body.close()
        if self._took is not None and not self._took.done():
            self._took.set_exception(BrokenPipeError())
