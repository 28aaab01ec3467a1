"""How slowly a client may send: nothing for the idle time at most, less than the least rate for three times that.

Only time that was spent waiting for the client counts. A slow disk, a child that is stopped or another request of ours
is never held against it.
"""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

T = TypeVar("T")
_WINDOWS: Final = 3
"""So many idle times, so that who was fast and falls silent still has a whole one."""


class TooSlowError(TimeoutError):
    """The client brings less than the least rate."""


def window_s(idle_s: float) -> float:
    """The time over which the rate is measured."""
    return _WINDOWS * idle_s


class Pace:
    """Of one body. The client has a window's time of our waiting for each window's worth of bytes."""

    def __init__(self, idle_s: float, least: int) -> None:
        """``least`` is in bytes a second; 0: however few."""
        self.least_rate = least
        self.idle_s = idle_s
        self._window_s = window_s(idle_s)
        self._worth = max(least * self._window_s, 1)
        self._came = 0.0
        self._left_s = self._window_s

    def came(self, size: int) -> None:
        """So many bytes have come."""
        self._came += size
        if self._came >= self._worth:
            self._came %= self._worth
            self._left_s = self._window_s

    def waited(self, seconds: float) -> None:
        """The client was waited for elsewhere."""
        self._left_s -= seconds

    async def wait(self, for_client: Awaitable[T]) -> T:
        """What the client is waited for. Raises TimeoutError when it is idle, and `TooSlowError`."""
        loop = asyncio.get_running_loop()
        began, within_s = loop.time(), min(self.idle_s, self._left_s)
        try:
            async with asyncio.timeout(within_s):
                return await for_client
        except TimeoutError:
            if within_s < self.idle_s:
                raise TooSlowError from None
            raise
        finally:
            self.waited(loop.time() - began)
