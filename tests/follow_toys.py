"""A handler that prints what it is told to, when it is told to. For the tests of logs that are followed."""

import os
from dataclasses import dataclass

from toys import Count

from intermission.handlers import Fatal, Task, handler


@dataclass
class Script:
    """A file whose bytes are to be printed as they appear. ``<path>.end`` says how to end: return or raise."""

    path: str


@handler("teller")
def teller(task: Task[Script, Count]) -> Count:
    """Print each byte of the script once, through any number of pauses."""
    with open(task.params.path, "rb") as script:
        script.seek(task.state.n)
        while True:
            ended = os.path.exists(f"{task.params.path}.end")
            if said := script.read(1 << 20):
                os.write(1, said)
                task.state.n += len(said)
                task.checkpoint(done=task.state.n)
            elif ended:
                break
            task.sleep(0.002)
    with open(f"{task.params.path}.end") as end:
        if end.read() == "raise":
            raise Fatal("as asked")
    return task.state


@handler("flooder")
def flooder(task: Task[Count, Count]) -> Count:
    """Print n lines of a hundred bytes as fast as it can."""
    line = b"x" * 90 + b"%09d\n"
    for start in range(0, task.params.n, 1000):
        os.write(1, b"".join(line % n for n in range(start, min(start + 1000, task.params.n))))
        task.checkpoint(done=start)
    return task.params
