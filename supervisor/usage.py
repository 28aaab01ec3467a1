"""What a child uses right now, for people to look at and for its limits."""

from dataclasses import dataclass

import psutil

from intermission.supervisor.process import tree
from intermission.supervisor.process.launcher import Child


@dataclass(frozen=True, slots=True)
class ChildView:
    """A child as the API shows it."""

    pid: int
    started_at: float
    cpu_s: float
    rss_bytes: int


def usage(child: Child | None) -> ChildView | None:
    """The child's process now; None without one, or when its pid is not its own any more."""
    if child is None or child.pid is None or child.ticks is None or child.started_at is None:
        return None
    if not tree.is_same(child.pid, child.ticks):
        return None
    try:
        process = psutil.Process(child.pid)
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
    except psutil.Error:
        return None
    return ChildView(child.pid, child.started_at, times.user + times.system, memory.rss)
