"""Processes as Linux knows them: who descends from whom, who is who, and ending a tree so that nothing is left.

A process is identified by its pid *and* start time: a bare pid may already be somebody else's.
"""

import contextlib
import ctypes
import os
import resource
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
DEAD: Final = "ZX"
"""States of a process that runs no more and waits to be reaped."""
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_WALKS: Final = 20
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Process:
    """A process that was alive when it was looked at. ``ticks``: its start, in clock ticks since boot."""

    pid: int
    ticks: int
    name: str
    state: str
    session: int

    @property
    def started_at(self) -> float:
        """Unix time of its start, by the wall clock as it stands now."""
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + self.ticks / _TICKS_PER_S


def become_subreaper() -> None:
    """Adopt every orphan below this process, where init would else take it out of sight."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when the thread that forked it ends; at once if ``parent`` is gone already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def outlive_parent() -> None:
    """Take `die_with_parent` back."""
    _prctl(_PR_SET_PDEATHSIG, 0)


def set_name(name: str) -> None:
    """What ``ps`` shows for this process; 15 bytes of it."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def look(pid: int) -> Process | None:
    """The process of this pid now, or None."""
    try:
        stat = _read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold anything, parentheses too: cut at the last one.
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    return Process(
        pid=pid,
        ticks=int(fields[19]),
        name=name.decode(errors="replace"),
        state=fields[0].decode(),
        session=int(fields[3]),
    )


def _read(path: str) -> bytes:
    """Without paths and buffers: whoever looks at each process it makes pays for each page of code that is in use."""
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def is_same(pid: int, ticks: int) -> bool:
    """Whether this very process still runs (a zombie does not)."""
    process = look(pid)
    return process is not None and process.ticks == ticks and process.state not in DEAD


def children(pid: int) -> list[int]:
    """The children of a process, those that it adopted too; zombies as well. Empty if it is gone."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def descendants(pid: int) -> list[int]:
    """Everything below a process, parents before their children."""
    found = children(pid)
    for one in found:  # grows while it is walked
        found += children(one)
    return found


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def stop(root: int) -> dict[int, Process]:
    """SIGSTOP a root and everything below it; what was found.

    Walks again until a walk finds nothing new, since a program may fork while it is walked; gives up after
    `_WALKS`, because the caller must not wait: what is left is adopted, and found, once the root is dead.
    """
    found: dict[int, Process] = {}
    fresh = [root]
    for _ in range(_WALKS):
        for pid in fresh:
            if (process := look(pid)) is not None:
                found[pid] = process
        signal_all(fresh, signal.SIGSTOP)
        fresh = [pid for pid in descendants(root) if pid not in found]
        if not fresh:
            break
    return found


def end_children() -> None:
    """SIGKILL and reap every child of this process, and what is adopted by that, until none is left.

    Blocks until they are dead: for a process that has nothing else to do, or a thread.
    """
    while fresh := children(os.getpid()):
        signal_all(fresh, signal.SIGKILL)
        for pid in fresh:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def reap_adopted(keep: Iterable[int] = ()) -> None:
    """Reap every dead child of this process but ``keep``, without waiting for one that lives."""
    kept = set(keep)
    for pid in children(os.getpid()):
        if pid not in kept:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def with_limit(limit: int, soft: int) -> list[Process]:
    """Every process that runs with this soft limit, of those that we may ask."""
    found = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if resource.prlimit(pid, limit)[0] == soft and (process := look(pid)) and process.state not in DEAD:
                found.append(process)
    return found
