"""The time of day, as far as it can be trusted with what nobody can undo.

A clock that is set wrong for a minute must not delete what is kept for a month.
"""

import time
from collections.abc import Callable
from typing import Final

import structlog

_STEP_S: Final = 60.0
"""By so much a clock may be corrected without a doubt."""
_BELIEVED_AFTER_S: Final = 3600.0
_log = structlog.get_logger()


def since_boot() -> float:
    """Seconds since the machine was started, those in which it slept too: a clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyClock:
    """Goes as the system's clock does, but jumps forward only once that has gone on from there for an hour.

    A jump back is believed at once: all it can do is that something is kept for longer.
    """

    def __init__(self, wall: Callable[[], float], boot: Callable[[], float]) -> None:
        """``wall`` is the clock in doubt, ``boot`` the one that it is held against, as `since_boot`."""
        self._wall = wall
        self._boot = boot
        self._steady_since = boot()
        self._told = self._believed = wall() - self._steady_since
        """When the machine was started, as the clock said last, and as we go by."""

    def now(self) -> float:
        """Unix seconds. A jump is noticed when somebody asks."""
        boot = self._boot()
        told = self._wall() - boot
        ahead = told - self._believed
        if abs(told - self._told) > _STEP_S:
            self._steady_since = boot
            if ahead > _STEP_S:
                _log.warning(
                    "the clock has jumped forward: nothing expires by it until it has been steady",
                    ahead_s=round(ahead),
                    steady_s=_BELIEVED_AFTER_S,
                )
        self._told = told
        if ahead <= _STEP_S or boot - self._steady_since >= _BELIEVED_AFTER_S:
            self._believed = told
        return boot + self._believed
