"""Timers by name: to arm one again is to move it."""

import asyncio
from collections.abc import Callable
from typing import Final

_TOGETHER_S: Final = 0.1
"""What is due within so long is done at once: one commit of the store, which costs a sync, and one turn of the loop."""


class Timers:
    """Of one attempt."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._armed: dict[str, asyncio.TimerHandle] = {}

    def __contains__(self, name: str) -> bool:
        """Whether it was armed, and not forgotten since."""
        return name in self._armed

    def arm(self, name: str, delay_s: float, then: Callable[[], None]) -> None:
        """Call that after so long."""
        self.forget(name)
        self._armed[name] = self._loop.call_later(delay_s, then)

    def arm_together(self, name: str, within_s: float, then: Callable[[], None]) -> None:
        """Call that within this time, at the last multiple of `_TOGETHER_S`: all attempts share these moments."""
        now = self._loop.time()
        latest = now + within_s
        self.arm(name, latest - latest % _TOGETHER_S - now, then)

    def forget(self, name: str) -> None:
        """It is not called any more, if it was to be."""
        if (timer := self._armed.pop(name, None)) is not None:
            timer.cancel()

    def close(self) -> None:
        """None is called any more."""
        for timer in self._armed.values():
            timer.cancel()
