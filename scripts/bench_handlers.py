"""The handlers that are measured; the server of `scripts/bench` loads them."""

import csv
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from intermission.handlers import Output, Task, handler
from intermission.handlers.body import BodyInfo


@dataclass
class Nothing:
    """No params, or no state."""


@dataclass
class Instant:
    """A time of CLOCK_MONOTONIC, which all processes of a machine share, in nanoseconds."""

    monotonic_ns: int


@handler("first_line")
def first_line(task: Task[Nothing, Nothing]) -> Instant:  # noqa: ARG001 -- nothing but the time is asked
    """Say when the first line of a handler ran."""
    return Instant(time.monotonic_ns())


@dataclass
class Text:
    """A state of about a kilobyte."""

    text: str = "x" * 1000
    n: int = 0


@dataclass
class Times:
    """How many checkpoints."""

    times: int


@dataclass
class Cost:
    """Of one checkpoint, in microseconds."""

    median_us: float
    mean_us: float


@handler("checkpoints")
def checkpoints(task: Task[Times, Text]) -> Cost:
    """Save a kilobyte again and again."""
    costs = []
    clock = time.perf_counter_ns
    begin = clock()
    for n in range(task.params.times):
        task.state.n = n
        before = clock()
        task.checkpoint(done=n)
        costs.append(clock() - before)
    return Cost(median_us=median(costs) / 1000, mean_us=(clock() - begin) / task.params.times / 1000)


@dataclass
class Count:
    """A number."""

    n: int = 0


@handler("ticking")
def ticking(task: Task[Nothing, Count]) -> Count:
    """Save a checkpoint every millisecond."""
    while True:
        task.state.n += 1
        task.checkpoint(done=task.state.n)
        time.sleep(0.001)


@handler("idle")
def idle(task: Task[Nothing, Count]) -> Count:
    """Wait."""
    task.checkpoint(done=1)
    task.sleep(3600)
    return task.state


@handler("tree")
def tree(task: Task[Nothing, Count]) -> Count:
    """Be a tree of four processes."""
    for _ in range(3):
        subprocess.Popen(["sleep", "3600"])
    task.commit(done=1)
    task.sleep(3600)
    return task.state


@dataclass
class Loop:
    """Which CSV file to go through, and whether as a task does."""

    path: str
    pausable: bool


@dataclass
class Place:
    """Where in the file."""

    offset: int = 0


@dataclass
class Taken:
    """How long it took."""

    seconds: float
    total: int


@handler("rows")
def rows(task: Task[Loop, Place]) -> Taken:
    """Add up a column, with or without a checkpoint per 100 rows."""
    began, total, read = time.perf_counter(), 0, 0
    with open(task.params.path, encoding="utf-8", newline="") as file:

        def lines() -> Iterator[str]:
            nonlocal read
            for line in file:
                read += len(line)
                yield line

        for number, row in enumerate(csv.DictReader(lines())):
            total += int(row["distance"])
            if number % 100 == 0 and task.params.pausable:
                task.state.offset = read
                task.checkpoint(done=number)
    return Taken(time.perf_counter() - began, total)


UNSYNCED = "unsynced"


@dataclass
class Received:
    """How far a body has come."""

    received: int = 0


@handler("pass", stream=True)
def passing(task: Task[BodyInfo, Received]) -> Nothing:
    """Put the bytes where a server without tasks puts them: into a file that nobody syncs."""
    path, state = task.output("content").path, task.state
    out = Output(path.with_name(UNSYNCED), path.parent)
    out.reserve(task.params.size_bytes or 0)
    for block in task.blocks:
        out.write_bytes(block)
        state.received += len(block)
        task.checkpoint(done=state.received, total=task.params.size_bytes, unit="bytes")
    return Nothing()
