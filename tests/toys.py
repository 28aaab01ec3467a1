"""Handlers that misbehave on purpose, and a few that are merely easy to watch. The server under test loads them."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from intermission.handlers import Fatal, Limits, Retry, Task, handler
from intermission.handlers.body import BodyInfo
from intermission.supervisor.process import wire


@dataclass
class Nothing:
    """No params, or no state."""


@dataclass
class Count:
    """A number."""

    n: int = 0


@dataclass
class Steps:
    """How many items to do, and where to leave a mark after each."""

    steps: int = 100
    delay_s: float = 0.01
    mark: str | None = None


@handler("steps")
def steps(task: Task[Steps, Count]) -> Count:
    """Write a line for each item, unbuffered by anything but `Output`."""
    out = task.output("lines.txt")
    while task.state.n < task.params.steps:
        task.state.n += 1
        out.write(f"{task.state.n} {task.state.n**2}\n")
        task.checkpoint(done=task.state.n, total=task.params.steps)
        if task.params.delay_s:
            task.sleep(task.params.delay_s)
    return Count(task.state.n)


@handler("committer")
def committer(task: Task[Steps, Count]) -> Count:
    """As ``steps``, each item committed before the next."""
    out = task.output("lines.txt")
    while task.state.n < task.params.steps:
        task.state.n += 1
        out.write(f"{task.state.n}\n")
        task.commit(done=task.state.n)
    return Count(task.state.n)


@dataclass
class Seconds:
    """How long."""

    seconds: float = 60.0


@handler("deaf", pause_grace_s=0.3)
def deaf(task: Task[Seconds, Count]) -> Count:
    """Save once, then sleep through every request."""
    task.output("lines.txt").write("saved\n")
    task.state.n = 1
    task.checkpoint(done=1)
    task.output("lines.txt").write("not saved\n")
    time.sleep(task.params.seconds)
    return task.state


@handler("gil", pause_grace_s=0.3)
def gil(task: Task[Seconds, Count]) -> Count:
    """Sleep inside C while holding the GIL."""
    task.checkpoint()
    ctypes.PyDLL(None).usleep(int(task.params.seconds * 1e6))
    return task.state


@handler("swallower", pause_grace_s=0.3)
def swallower(task: Task[Nothing, Count]) -> Count:
    """Catch `Paused` and go on as if nothing had been said."""
    while True:
        try:
            task.state.n += 1
            task.checkpoint(done=task.state.n)
            task.sleep(0.01)
        except BaseException:  # noqa: BLE001, S110
            pass


@dataclass
class Fault:
    """Which fault, and in how many attempts."""

    kind: str = "raise"
    attempts: int = 1000


class UnprintableError(Exception):
    """An exception that cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


Faulty = Task[Fault, Count]


def _raise(_: Faulty) -> None:
    raise ValueError("this cannot be")


def _fatal(_: Faulty) -> None:
    raise Fatal("line 7: no such country")


def _unprintable(_: Faulty) -> None:
    raise UnprintableError


def _group(_: Faulty) -> None:
    raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])


def _state_type(task: Faulty) -> None:
    task.state.n = "seven"  # type: ignore[assignment]
    task.checkpoint()


def _checkpoint_in_thread(task: Faulty) -> None:
    caught: list[BaseException] = []

    def save() -> None:
        try:
            task.checkpoint()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    thread.join()
    raise caught[0]


def _say(text: bytes, *, stay: bool) -> Callable[[Faulty], None]:
    def say(task: Faulty) -> None:
        os.write(task._pipe.fileno(), text)  # type: ignore[attr-defined]
        if stay:
            time.sleep(60)

    return say


def _unencodable(_: Faulty) -> None:
    raise FileNotFoundError(os.fsdecode(b"caf\xe9.csv"))


def _deaf_stderr(_: Faulty) -> None:
    sys.stderr.close()
    raise ValueError("this cannot be")


def _no_streams(_: Faulty) -> None:
    sys.stdout = sys.stderr = None  # type: ignore[assignment]
    raise ValueError("this cannot be")


def _forged(task: Faulty) -> None:
    task._pipe.send_bytes(wire.encode(wire.Errored("exception", None, "forged", refusal="nonsense")))  # type: ignore[attr-defined, arg-type]
    time.sleep(60)


def _flood(task: Faulty) -> None:
    while True:
        os.write(task._pipe.fileno(), b"\x00\x00\x00\x07\x91\xa5Ready" * 1000)  # type: ignore[attr-defined]


FAULTS: dict[str, Callable[[Faulty], object]] = {
    "raise": _raise,
    "fatal": _fatal,
    "unprintable": _unprintable,
    "group": _group,
    "exit": lambda _: sys.exit(3),
    "os_exit": lambda _: os._exit(0),
    "segv": lambda _: ctypes.string_at(0),
    "abort": lambda _: os.abort(),
    "unencodable": _unencodable,
    "deaf_stderr": _deaf_stderr,
    "no_streams": _no_streams,
    "forged": _forged,
    "garbage": _say(b"\x00\x00\x00\x08garbage!", stay=True),
    "garbage_and_leave": lambda task: (_say(b"\x00\x00\x00\x08garbage!", stay=False)(task), os._exit(0)),
    "huge": _say(b"\x7f\xff\xff\xff", stay=True),
    "half": _say(b"\x00\x00\x01\x00half", stay=False),
    "half_and_stay": _say(b"\x00\x00\x01\x00half", stay=True),
    "flood": _flood,
    "state_type": _state_type,
    "thread": _checkpoint_in_thread,
}


@handler("faulty", retry=Retry(errors=3, base_s=0.01, cap_s=0.02), pause_grace_s=0.5)
def faulty(task: Faulty) -> Count:
    """Commit the fault in the first attempts, then succeed."""
    task.state.n += 1
    task.checkpoint()
    if task.attempt <= task.params.attempts:
        FAULTS[task.params.kind](task)
    return task.state


@dataclass
class Big:
    """A state of any size."""

    text: str = ""


@handler("big")
def big(task: Task[Count, Big]) -> Count:
    """Save a state of n bytes."""
    task.state.text = "x" * task.params.n
    task.checkpoint()
    return task.params


@handler("liar", retry=Retry(errors=1))
def liar(task: Task[Nothing, Count]) -> Count:
    """Return what is not its result type."""
    task.checkpoint()
    return "seven"  # type: ignore[return-value]


@dataclass
class Forest:
    """Which descendants to leave behind, and where to note their pids."""

    notes: str = ""
    bomb: bool = False
    finish: bool = False


_PLAIN = "import time; time.sleep(600)"
_SETSID = "import os, time; os.setsid(); time.sleep(600)"
_DAEMON = "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  time.sleep(600)\n os._exit(0)"
_DEAF = "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]; time.sleep(600)"
_BOMB = """
import os, time
while True:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    time.sleep(0.0005)
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        pass
"""


@handler("forest", pause_grace_s=5.0)
def forest(task: Task[Forest, Count]) -> Count:
    """Grow a tree: a plain child, one in its own session, a double-forked daemon, one that ignores polite signals."""
    programs = [_BOMB] if task.params.bomb else [_PLAIN, _SETSID, _DAEMON, _DEAF]
    for program in programs:
        subprocess.Popen([sys.executable, "-S", "-c", program])
    task.state.n = len(programs)
    task.commit(done=task.state.n)
    while not task.params.finish:
        task.checkpoint()
        task.sleep(0.05)
    return task.state


@dataclass
class Effect:
    """A file outside the task, which the handler makes and `clean` removes."""

    path: str
    clean_errors: int = 0
    hang: bool = False


@handler("effect")
def effect(task: Task[Effect, Count]) -> Count:
    """Make the file, then wait to be stopped."""
    Path(task.params.path).write_text("made\n")
    while True:
        task.state.n += 1
        task.checkpoint()
        task.sleep(0.02)


@effect.clean
def _(task: Task[Effect, Count]) -> None:
    if task.params.hang:
        time.sleep(600)
    log = Path(task.params.path + ".cleans")
    with log.open("a") as lines:
        lines.write(f"{task.state.n}\n")
    if len(log.read_text().splitlines()) <= task.params.clean_errors:
        raise RuntimeError("the mail server is away")
    Path(task.params.path).unlink(missing_ok=True)


def _die_before_ready() -> None:
    """Kill the next child before it has said a word, if a test has left a mark for it."""
    mark = os.environ.get("TOYS_DIE_BEFORE_READY")
    if mark and os.path.exists(mark):
        os.unlink(mark)
        os.kill(os.getpid(), signal.SIGKILL)


os.register_at_fork(after_in_child=_die_before_ready)


@handler("last_words", pause_grace_s=2.0)
def last_words(task: Task[Steps, Count]) -> Count:
    """Die by SIGKILL after having saved, on the way out of a pause."""
    try:
        while True:
            task.state.n += 1
            task.output("lines.txt").write(f"{task.state.n}\n")
            task.checkpoint(done=task.state.n)
            task.sleep(0.005)
    finally:
        if task.params.mark:
            Path(task.params.mark).write_text(str(task.state.n))
        os.kill(os.getpid(), signal.SIGKILL)


@handler("greedy", limits=Limits(wall_s=0.3))
def greedy(task: Task[Seconds, Count]) -> Count:
    """Run longer than it may."""
    task.checkpoint()
    time.sleep(task.params.seconds)
    return task.state


@handler("stuck", stall_after_s=0.3)
def stuck(task: Task[Seconds, Count]) -> Count:
    """Stop making progress."""
    task.checkpoint()
    time.sleep(task.params.seconds)
    return task.state


@handler("printer")
def printer(task: Task[Count, Count]) -> Count:
    """Print in every way there is."""
    print("from print")  # noqa: T201 -- that is the point
    sys.stderr.write("from stderr\n")
    os.write(1, b"from the descriptor\n")
    subprocess.run(["echo", "from a subprocess"], check=True)
    task.log.info("from the log")
    for n in range(task.params.n):
        print("x" * 1000, n)  # noqa: T201 -- as above
    return task.params


@handler("single", max_running=1)
def single(task: Task[Steps, Count]) -> Count:
    """Never beside another of its kind."""
    task.checkpoint()
    task.sleep(task.params.delay_s)
    return Count(task.attempt)


@handler("full")
def full(task: Task[Steps, Count]) -> Count:
    """Meet a full disk."""
    task.state.n += 1
    task.checkpoint()
    if task.params.mark and not Path(task.params.mark).exists():
        raise OSError(28, "No space left on device")
    return task.state


@dataclass
class Odd:
    """A state that holds what JSON cannot."""

    value: float = 0.0


@handler("talker")
def talker(task: Task[Nothing, Count]) -> Count:
    """Print to where there is no space."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    os.dup2(1, 2)
    task.state.n += 1
    task.checkpoint(done=task.state.n)
    if task.attempt == 1:
        print("x" * 100)  # noqa: T201 -- that is the point
    return task.state


@handler("odd")
def odd(task: Task[Nothing, Odd]) -> Odd:
    """Save numbers that are none."""
    task.state.value = float("nan")
    task.checkpoint(done=float("inf"), total=float("nan"))
    task.state.value = float("-inf")
    return task.state


@dataclass
class Writing:
    """Files by name with the bytes that count, how many more are written after the checkpoint, and whether to fail."""

    files: dict[str, int]
    more: int = 0
    fail: bool = False


@handler("writer")
def writer(task: Task[Writing, Count]) -> Count:
    """Write files of these sizes, save, write what is not to count, and fail or wait."""
    for name, size in task.params.files.items():
        task.output(name).write_bytes(b"0123456789abcdef" * (size // 16) + b"0123456789abcdef"[: size % 16])
    task.commit()
    for name in task.params.files if task.params.more else ():
        task.output(name).write_bytes(b"-" * task.params.more)
        task.output(name).flush()
    if task.params.fail:
        raise Fatal("as asked")
    while task.params.more:
        time.sleep(0.01)
    return Count()


@dataclass
class Saying:
    """Texts, each with how often it is said."""

    parts: list[tuple[str, int]]
    wait: bool = False


@handler("sayer")
def sayer(task: Task[Saying, Count]) -> Count:
    """Say exactly this, and wait for a pause if asked to."""
    for text, times in task.params.parts:
        os.write(1, text.encode() * times)
    task.commit(done=1)
    if task.params.wait and not task.resumed:
        task.sleep(600)
    return Count()


@dataclass
class Tally:
    """How much of a body is done with, and the CRC-32 of that."""

    received: int = 0
    crc: int = 0


@handler("tally", stream=True)
def tally(task: Task[BodyInfo, Tally]) -> Tally:
    """Look at each block only when two more have come."""
    waiting = deque[bytes]()
    for block in chain(task.body, (b"", b"")):
        waiting.append(block)
        if len(waiting) > 2:
            done = waiting.popleft()
            task.state.crc = zlib.crc32(done, task.state.crc)
            task.state.received += len(done)
            task.checkpoint(done=task.state.received, unit="bytes")
    return task.state
