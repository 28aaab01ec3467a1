"""Handlers that are killed, or that hold still so that others can be, at named places. For ``tests/faults/``."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toys import Count, Nothing, Seconds

from intermission.handlers import Retry, Task, handler


def _at_import() -> None:
    """Let the importing process die, or have it wait, for as long as a test leaves the file there."""
    if os.path.exists(os.environ.get("TOYS_DIE_ON_IMPORT", "")):
        os._exit(1)
    while os.path.exists(os.environ.get("TOYS_HOLD_ON_IMPORT", "")):
        time.sleep(0.005)


_at_import()
_fork = os.fork


def _refusable_fork() -> int:
    """As ever, but for as long as a test leaves the file there: the kernel's answer where a limit is reached."""
    if os.path.exists(os.environ.get("TOYS_REFUSE_FORK", "")):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()


os.fork = _refusable_fork


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Doom:
    """How often to die, and where; a file to wait for the absence of in the others; how long to wait at the end."""

    attempts: int = 1
    at: str = "first"
    hold: str = ""
    then: float = 0.0


@handler("doomed")
def doomed(task: Task[Doom, Count]) -> Count:
    """Die before the first checkpoint, after the last one, or when it is reported that all is done."""
    dies = task.attempt <= task.params.attempts
    if dies and task.params.at == "first":
        _die()
    while os.path.exists(task.params.hold):
        task.sleep(0.01)
    for n in range(task.state.n, 3):
        task.output("lines.txt").write(f"{n}\n")
        task.state.n = n + 1
        task.checkpoint(done=n + 1)
    task.sleep(task.params.then)
    if dies and task.params.at == "last":
        _die()
    if dies and task.params.at == "reported":
        pipe: Any = task._pipe  # type: ignore[attr-defined]
        send = pipe.send_bytes

        def send_and_die(data: bytes) -> None:
            send(data)
            _die()

        pipe.send_bytes = send_and_die
    return task.state


@handler("fragile", retry=Retry(errors=4, base_s=1e8, cap_s=1e8))
def fragile(task: Task[Nothing, Count]) -> Count:
    """Err once; the wait that follows is longer than any test."""
    task.state.n += 1
    task.checkpoint(done=task.state.n)
    if task.attempt == 1:
        raise ValueError("not yet")
    return task.state


@dataclass
class Outside:
    """A file that the handler makes and `clean` removes; its neighbours steer `clean`."""

    path: str


@handler("held")
def held(task: Task[Outside, Count]) -> Count:
    """Make the file, then wait to be stopped."""
    Path(task.params.path).write_text("made\n")
    while True:
        task.state.n += 1
        task.output("lines.txt").write(f"{task.state.n}\n")
        task.checkpoint(done=task.state.n)
        task.sleep(0.01)


@held.clean
def _(task: Task[Outside, Count]) -> None:
    with open(f"{task.params.path}.cleans", "a") as lines:
        lines.write(f"{task.state.n}\n")
    while os.path.exists(f"{task.params.path}.hold"):
        time.sleep(0.005)
    if os.path.exists(f"{task.params.path}.die"):
        _die()
    Path(task.params.path).unlink(missing_ok=True)


@dataclass
class Mark:
    """A file to leave when a place is reached."""

    path: str


@handler("torn", pause_grace_s=0.3)
def torn(task: Task[Mark, Count]) -> Count:
    """Send half a message and hold still, in the first attempt; go on in the others."""
    task.state.n += 1
    task.checkpoint(done=task.state.n)
    if task.attempt == 1:
        os.write(task._pipe.fileno(), b"\x00\x00\x01\x00half")  # type: ignore[attr-defined]
        Path(task.params.path).touch()
        time.sleep(600)
    return task.state


@handler("stubborn", pause_grace_s=60.0)
def stubborn(task: Task[Seconds, Count]) -> Count:
    """Save once, then hear nothing; its grace is longer than any drain."""
    task.output("lines.txt").write("saved\n")
    task.state.n = 1
    task.checkpoint(done=1)
    time.sleep(task.params.seconds)
    return task.state


@handler("slow", pause_grace_s=0.1)
def slow(task: Task[Seconds, Count]) -> Count:
    """Save its place once in so many seconds, which is longer than its grace."""
    while task.state.n < 3:
        time.sleep(task.params.seconds)
        task.state.n += 1
        task.output("lines.txt").write(f"{task.state.n}\n")
        task.checkpoint(done=task.state.n)
    return task.state


@dataclass
class Bulk:
    """How many blocks of 4 KiB to write."""

    blocks: int = 100
    delay_s: float = 0.0


@handler("bulk")
def bulk(task: Task[Bulk, Count]) -> Count:
    """Write much."""
    out = task.output("bulk.bin")
    while task.state.n < task.params.blocks:
        out.write_bytes(task.state.n.to_bytes(4, "big") * 1024)
        task.state.n += 1
        task.checkpoint(done=task.state.n, total=task.params.blocks)
        if task.params.delay_s:
            task.sleep(task.params.delay_s)
    return task.state


@dataclass
class Stray:
    """A file that the program writes to, and whether it leaves our session and our descriptors as well."""

    path: str
    far: bool = False


@handler("stray")
def stray(task: Task[Stray, Count]) -> None:
    """Have a program write a line now and then, with an environment of its own."""
    program = f'while sleep 0.01; do echo {task.attempt} >> "{task.params.path}"; done'
    end = subprocess.DEVNULL if task.params.far else None
    path = {"PATH": os.environ["PATH"]}
    subprocess.Popen(
        ["sh", "-c", program], env=path, stdin=end, stdout=end, stderr=end, start_new_session=task.params.far
    )
    task.checkpoint(done=1)
    while True:
        task.sleep(0.05)


def _exit_7(_: object) -> None:
    sys.exit(7)


def _raise(_: object) -> None:
    raise ValueError("from the copy")


COPIES: dict[str, Callable[[Task[Any, Any]], object]] = {
    "return": lambda _: None,
    "raise": _raise,
    "exit": _exit_7,
    "checkpoint": lambda task: task.checkpoint(done=666),
    "commit": lambda task: task.commit(done=666),
    "sleep": lambda task: task.sleep(0.001),
    "output": lambda task: task.output("copy.txt"),
}


@dataclass
class Copy:
    """What the forked process does."""

    does: str


@dataclass
class Forked:
    """Where the handler got to, and how the process ended that it had forked."""

    n: int
    exit_code: int


@handler("copied", retry=Retry(errors=1))
def copied(task: Task[Copy, Count]) -> Forked:
    """Fork a process that leaves this function too, or uses the task; then go on."""
    out = task.output("lines.txt")
    out.write("1\n")
    task.checkpoint(done=1)
    out.write("2\n")  # which is in both processes' buffer now
    pid = os.fork()
    if pid == 0:
        task.state.n = 666
        COPIES[task.params.does](task)
        return Forked(666, 666)
    _, status = os.waitpid(pid, 0)
    task.state.n = 2
    task.checkpoint(done=2)
    return Forked(task.state.n, os.waitstatus_to_exitcode(status))


@handler("copied_clean")
def copied_clean(task: Task[Outside, Count]) -> None:
    """Wait to be terminated."""
    task.checkpoint(done=1)
    task.sleep(600)


@copied_clean.clean
def _(task: Task[Outside, Count]) -> None:
    if (pid := os.fork()) == 0:
        return
    os.waitpid(pid, 0)
    path = Path(task.params.path)
    if not path.exists():
        path.write_text("tried\n")
        _die()
    path.write_text("cleaned\n")


@dataclass
class Depth:
    """How many folders to nest, and whether the first attempt is killed."""

    folders: int = 1
    dies: bool = True


@dataclass
class Found:
    """What was in the temporary folder before."""

    names: list[str]


@handler("messy")
def messy(task: Task[Depth, Count]) -> Found:
    """Leave temporary files."""
    temporary = tempfile.gettempdir()
    found = Found(os.listdir(temporary))
    below = os.open(temporary, os.O_RDONLY)
    for _ in range(task.params.folders):
        os.mkdir("inner", dir_fd=below)
        below = os.open("inner", os.O_RDONLY, dir_fd=below)
    os.close(os.open("file", os.O_CREAT, dir_fd=below))
    task.checkpoint(done=1)
    if task.attempt == 1 and task.params.dies:
        _die()
    return found
