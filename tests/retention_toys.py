"""Handlers that finish with something outside left behind. For the tests of retention."""

from dataclasses import dataclass
from pathlib import Path

from toys import Count

from intermission.handlers import Fatal, Retry, Task, handler


@dataclass
class Half:
    """A file outside the task, and how often `clean` is to err before it removes it."""

    path: str
    clean_errors: int = 0
    fail: bool = True


@handler("half", retry=Retry(errors=1))
def half(task: Task[Half, Count]) -> Count:
    """Make the file, and fail; but succeed when it is resumed."""
    task.state.n += 1
    task.output("lines.txt").write("half\n")
    Path(task.params.path).write_text("made\n")
    task.checkpoint(done=task.state.n)
    if task.params.fail and not task.resumed:
        raise Fatal("half-way")
    return task.state


@half.clean
def _(task: Task[Half, Count]) -> None:
    tries = Path(task.params.path + ".cleans")
    with tries.open("a") as lines:
        lines.write(f"{task.attempt}\n")
    if len(tries.read_text().splitlines()) <= task.params.clean_errors:
        raise RuntimeError("the mail server is away")
    Path(task.params.path).unlink(missing_ok=True)
