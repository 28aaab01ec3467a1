"""What an attempt may use, and for how long it may stand still. Time has timers; the rest is looked at each second.

Nobody announces how large a log grows or how much memory a process takes.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from intermission.handlers.registry import AnyHandler
from intermission.state.models import Kind
from intermission.state.status import Reason
from intermission.supervisor.process.child import LOG_NAME
from intermission.supervisor.process.launcher import Child
from intermission.supervisor.process.slot import newest_sequence
from intermission.supervisor.timers import Timers
from intermission.supervisor.usage import usage

CLEAN_WALL_S: Final = 60.0
_SAMPLE_S: Final = 1.0
_LOG_BYTES: Final = 64 << 20
_LOG_MORE_BYTES: Final = 1 << 20
"""What an attempt may print where the log is full already."""


class Limits:
    """Of one attempt."""

    def __init__(
        self, handler: AnyHandler, kind: Kind, folder: Path, timers: Timers, broken: Callable[[Reason], None]
    ) -> None:
        """``broken`` is called with the limit that is, perhaps more than once."""
        self._handler = handler
        self._kind = kind
        self._folder = folder
        self._timers = timers
        self._broken = broken
        self._log = f"{folder}/{LOG_NAME}"  # to make it anew for each look cost more than the look
        self._log_bytes = _LOG_BYTES

    def allow_for_log(self) -> None:
        """Let one that an earlier attempt has filled not end this one, a `clean` too, before it has said a word."""
        with contextlib.suppress(FileNotFoundError):
            self._log_bytes = max(_LOG_BYTES, os.stat(self._log).st_size + _LOG_MORE_BYTES)

    def watch(self, child: Child, sequence: int) -> None:
        """Begin, with a child that goes on from the checkpoint of this sequence."""
        wall_s = CLEAN_WALL_S if self._kind is Kind.CLEAN else self._handler.limits.wall_s
        if wall_s is not None:
            self._timers.arm("wall", wall_s, lambda: self._broken(Reason.LIMIT_WALL))
        if self._handler.stall_after_s is not None and self._kind is Kind.RUN:
            self._watch_progress(self._handler.stall_after_s, sequence)
        self._sample_later(child)

    def _watch_progress(self, within_s: float, last: int) -> None:
        def look() -> None:
            now = newest_sequence(self._folder)
            if now <= last:
                self._broken(Reason.STALLED)
            else:
                self._watch_progress(within_s, now)

        self._timers.arm("stall", within_s, look)

    def _sample_later(self, child: Child) -> None:
        self._timers.arm_together("sample", _SAMPLE_S, lambda: self._sample(child))

    def _sample(self, child: Child) -> None:
        with contextlib.suppress(OSError):
            if os.stat(self._log).st_size > self._log_bytes:
                self._broken(Reason.LIMIT_LOG)
        limits = self._handler.limits
        if limits.memory_bytes is not None or limits.cpu_s is not None:
            used = usage(child)
            if used is not None and limits.memory_bytes is not None and used.rss_bytes > limits.memory_bytes:
                self._broken(Reason.LIMIT_MEMORY)
            if used is not None and limits.cpu_s is not None and used.cpu_s > limits.cpu_s:
                self._broken(Reason.LIMIT_CPU)
        self._sample_later(child)
