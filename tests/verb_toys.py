"""Handlers that wait at named places, look around or leave notes. For the tests of the verbs."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from toys import Count, Nothing, Steps

from intermission.handlers import Limits, Retry, Task, handler


@dataclass
class Gate:
    """A file to wait for after the first checkpoint, deaf to everything, and what to do then."""

    mark: str
    then: str = "return"


@handler("gate", retry=Retry(errors=3, base_s=0.01, cap_s=0.01), pause_grace_s=20.0)
def gate(task: Task[Gate, Count]) -> Count:
    """Save, wait for the mark, then return, raise, save once more, or refuse to leave."""
    out = task.output("lines.txt")
    task.state.n += 1
    out.write(f"{task.state.n}\n")
    task.checkpoint(done=task.state.n)
    while not os.path.exists(task.params.mark):
        time.sleep(0.002)
    if task.params.then == "raise":
        raise ValueError("while it was to pause")
    if task.params.then == "checkpoint":
        task.state.n += 1
        out.write(f"{task.state.n}\n")
        try:
            task.checkpoint(done=task.state.n)
        finally:
            out.write("from finally\n")
            out.flush()
    return task.state


@dataclass
class Group:
    """What a handler raises whose task group has wrapped the pause."""

    kind: str = "group"


@handler("wrapper")
def wrapper(task: Task[Group, Count]) -> Count:
    """Let a pause turn into something else on its way out."""
    while True:
        try:
            task.state.n += 1
            task.checkpoint(done=task.state.n)
            task.sleep(0.01)
        except BaseException as pause:
            match task.params.kind:
                case "group":
                    raise BaseExceptionGroup("wrapped", [pause]) from None
                case "error":
                    raise ValueError("in finally") from pause
                case "exit":
                    sys.exit(7)
                case "return":
                    return task.state
                case _:
                    os._exit(9)


@dataclass
class Diary:
    """How many attempts to make before it is done."""

    attempts: int = 3


@dataclass
class Entries:
    """For each attempt its number and whether it was resumed; and a state of every shape."""

    entries: list[tuple[int, bool]] = field(default_factory=list)
    text: str = "ä \u2028 \U0001f600 \x00"
    numbers: dict[str, float] = field(default_factory=lambda: {"": -0.1, "big": 1e300})
    nothing: None = None


@handler("diary")
def diary(task: Task[Diary, Entries]) -> Entries:
    """Note each attempt, then wait for a pause; done when there were enough."""
    task.state.entries.append((task.attempt, task.resumed))
    task.checkpoint(done=len(task.state.entries))
    while len(task.state.entries) < task.params.attempts:
        task.sleep(600)
    return task.state


@handler("patient", retry=Retry(errors=3, base_s=1e8, cap_s=1e8))
def patient(task: Task[Nothing, Count]) -> Count:
    """Err once; the wait that follows is longer than any test."""
    task.state.n += 1
    task.checkpoint(done=task.state.n)
    if task.attempt == 1:
        raise ValueError("not yet")
    return task.state


@handler("hasty", retry=Retry(errors=3, base_s=1.0, cap_s=1.0))
def hasty(task: Task[Nothing, Count]) -> Count:
    """Err in every attempt, a second or less apart."""
    task.checkpoint()
    raise ValueError("again")


@dataclass
class Census:
    """The most processes that there were at once, as one of them counted them."""

    most: int = 0


@handler("census")
def census(task: Task[Steps, Count]) -> Census:
    """Count the fork server's children a few times."""
    most, parent = 0, os.getppid()
    for _ in range(task.params.steps):
        most = max(most, len(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))
        time.sleep(task.params.delay_s)
    return Census(most)


@dataclass
class World:
    """What a child, and a program that it starts, see around them."""

    cwd: str = ""
    temporary: str = ""
    made_in: str = ""
    environ: dict[str, str] = field(default_factory=dict)
    descriptors: dict[str, str] = field(default_factory=dict)
    passed_on: dict[str, str] = field(default_factory=dict)


_LIST_DESCRIPTORS = """
import json, os
names = os.listdir("/proc/self/fd")
print(json.dumps({n: os.readlink(f"/proc/self/fd/{n}") for n in names if os.path.exists(f"/proc/self/fd/{n}")}))
"""


@handler("world")
def world(task: Task[Nothing, Count]) -> World:
    """Look around."""
    task.output("lines.txt").write("line\n")
    task.checkpoint()
    with tempfile.NamedTemporaryFile() as temporary:
        made_in = os.path.dirname(temporary.name)
    held = {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _open(name)}
    told = subprocess.run(
        [sys.executable, "-S", "-c", _LIST_DESCRIPTORS], stdout=subprocess.PIPE, close_fds=False, check=True
    )
    return World(os.getcwd(), os.environ["TMPDIR"], made_in, dict(os.environ), held, json.loads(told.stdout))


def _open(name: str) -> bool:
    try:
        os.fstat(int(name))
    except OSError:
        return False
    return True


@dataclass
class Notes:
    """Where `clean` leaves its notes, and what it meets."""

    path: str
    trouble: str = ""


@handler("noted", retry=Retry(errors=3, base_s=1e8, cap_s=1e8))
def noted(task: Task[Notes, Count]) -> Count:
    """Count until stopped, or err."""
    Path(task.params.path).with_suffix(".pids").open("a").write(f"{os.getpid()}\n")
    while True:
        task.state.n += 1
        task.checkpoint(done=task.state.n)
        if task.params.trouble == "raise":
            raise ValueError("as asked")
        task.sleep(0.005)


@noted.clean
def _(task: Task[Notes, Count]) -> None:
    seen: dict[str, Any] = {"pid": os.getpid(), "attempt": task.attempt, "n": task.state.n, "resumed": task.resumed}
    with Path(task.params.path).open("a") as notes:
        notes.write(json.dumps(seen) + "\n")
    task.state.n += 1000
    task.commit()  # what `clean` has done so far, for its next try
    if task.params.trouble == "clean" and task.state.n < 3000:
        raise RuntimeError("half undone")


@dataclass
class Appetite:
    """How much to take, and then to hold for so long."""

    mebibytes: int = 0
    spin_s: float = 0.0
    hold_s: float = 0.0


@handler("glutton", limits=Limits(memory_bytes=256 << 20, cpu_s=0.5))
def glutton(task: Task[Appetite, Count]) -> Count:
    """Use memory and CPU time."""
    task.checkpoint()
    taken = b"\x01" * (task.params.mebibytes << 20)
    end = time.process_time() + task.params.spin_s
    while time.process_time() < end:
        pass
    time.sleep(task.params.hold_s)
    return Count(len(taken))


@handler("babbler")
def babbler(task: Task[Count, Count]) -> Count:
    """Print n mebibytes, then wait."""
    line = b"x" * 1023 + b"\n"
    for _ in range(task.params.n):
        os.write(1, line * 1024)
    task.checkpoint(done=1)
    task.sleep(600)
    return Count()


@dataclass
class Objects:
    """A state whose type allows what JSON cannot hold."""

    value: Any = None


@handler("unwritable")
def unwritable(task: Task[Nothing, Objects]) -> Count:
    """Try to save an object that has no JSON."""
    task.checkpoint(done=1)
    task.state.value = object()
    task.checkpoint(done=2)
    return Count()


@dataclass
class Walk:
    """How many steps are done, and a digest of each of them."""

    n: int = 0
    digest: str = ""


@handler("walker")
def walker(task: Task[Steps, Walk]) -> Walk:
    """Write a line for each step; slowly until the mark is there, then as fast as it can."""
    out, state = task.output("lines.txt"), task.state
    while state.n < task.params.steps:
        state.n += 1
        state.digest = hashlib.sha256(f"{state.digest}{state.n}".encode()).hexdigest()
        out.write(f"{state.n} {state.digest}\n")
        task.checkpoint(done=state.n, total=task.params.steps)
        if task.params.mark and not os.path.exists(task.params.mark):
            task.sleep(task.params.delay_s)
    return state


@dataclass
class Names:
    """Names of files."""

    names: list[str]


@handler("untidy", retry=Retry(errors=3, base_s=0.01, cap_s=0.01))
def untidy(task: Task[Nothing, Count]) -> Names:
    """Leave a file that no checkpoint knows, and err; then say which files there are."""
    if task.attempt > 1:
        return Names(os.listdir(Path(os.environ["TMPDIR"]).parent / "files"))
    task.output("kept.txt").write("kept\n")
    task.checkpoint()
    task.output("stray.txt").write("stray\n")
    raise ValueError("before it was saved")


@handler("hoarder")
def hoarder(task: Task[Nothing, Count]) -> Count:
    """Leave a file in a folder that nobody may write to, inside another one."""
    inner = Path(tempfile.mkdtemp()) / "inner"
    inner.mkdir()
    (inner / "file").write_text("kept")
    (inner / "away").symlink_to("/etc")
    inner.chmod(0o500)
    inner.parent.chmod(0)
    task.checkpoint(done=1)
    task.sleep(600)
    return task.state


@dataclass
class Depth:
    """How many folders, each in the other."""

    depth: int
    finish: bool = False


@handler("nester")
def nester(task: Task[Depth, Count]) -> Count:
    """Nest folders with a file in each, deeper than a path can be long, then wait or finish."""
    os.chdir(tempfile.mkdtemp())
    for _ in range(task.params.depth):
        Path("file").touch()
        os.mkdir("folder")
        os.chdir("folder")
    task.checkpoint(done=1)
    if not task.params.finish:
        task.sleep(600)
    return task.state


@handler("lingerer", limits=Limits(wall_s=0.6), pause_grace_s=10.0)
def lingerer(task: Task[Nothing, Count]) -> Count:
    """Say that it pauses, and take longer to leave than it may run."""
    task.state.n += 1
    task.checkpoint(done=task.state.n)
    try:
        task.sleep(600)
    finally:
        time.sleep(1)
    return task.state


@handler("boaster")
def boaster(task: Task[Count, Count]) -> str:
    """Return n letters."""
    task.checkpoint(done=1)
    return "x" * task.params.n


@dataclass
class Amount:
    """What to say of the progress, and how many outputs to have."""

    kind: str = "decimal"
    outputs: int = 0


AMOUNTS: dict[str, tuple[Any, Any, Any]] = {
    "decimal": (Decimal("2.5"), Fraction(5, 1), None),
    "true": (True, 3, 7),
    "huge": (10**30, 10**31, None),
    "word": ("many", None, None),
    "long": (1, 2, "x" * (3 << 20)),
}


@handler("teller", retry=Retry(errors=2, base_s=0.01, cap_s=0.01))
def teller(task: Task[Amount, Count]) -> Count:
    """Say it, and in the second attempt what was kept of the first."""
    if task.attempt > 1:
        return task.state
    task.state.n = 1
    task.checkpoint(done=1)
    task.state.n = 2
    for n in range(task.params.outputs):
        task.output(f"{'n' * 190}{n}").close()
    done, total, unit = AMOUNTS[task.params.kind]
    task.checkpoint(done=done, total=total, unit=unit)
    raise ValueError("said")


@handler("chatter")
def chatter(task: Task[Notes, Count]) -> Count:
    """Fill the log, for as long as the notes are not there; then say a little, every second."""
    line = b"x" * 1023 + b"\n"
    task.checkpoint(done=0)
    while not os.path.exists(task.params.path):
        os.write(1, line * 1024)
    while True:
        os.write(1, b"a little\n")
        task.state.n += 1
        task.checkpoint(done=task.state.n)
        task.sleep(1)


@chatter.clean
def _(task: Task[Notes, Count]) -> None:
    os.write(1, b"a little\n")
    time.sleep(1.5)  # longer than it takes until somebody looks at the log
    Path(task.params.path).write_text("cleaned")
