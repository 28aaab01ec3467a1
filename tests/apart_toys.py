"""Handlers whose code goes wrong in the server itself: where a start is looked at, or a launch. For the faults."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from toys import Count

from intermission.handlers import Retry, Task, handler
from intermission.handlers.inputs import Inputs


def _raise(error: BaseException) -> None:
    raise error


MISTAKES: dict[str, Callable[[], object]] = {
    "error": lambda: {}["secret"],
    "exit": lambda: sys.exit("secret"),
    "interrupt": lambda: _raise(KeyboardInterrupt("secret")),
    "stop": lambda: next(iter([])),
    "close": lambda: _raise(GeneratorExit("secret")),
    "cancel": lambda: _raise(asyncio.CancelledError("secret")),
    "hang": threading.Event().wait,
}


@dataclass
class Mistake:
    """What goes wrong, and where; with ``once``, a file's name, as soon as that is there."""

    what: str = "error"
    where: str = ""
    once: str = ""

    def __post_init__(self) -> None:
        """Look at oneself."""
        self.make("validator")

    def make(self, where: str) -> None:
        """The mistake, if it belongs here."""
        if self.where == where and (not self.once or os.path.exists(self.once)):
            MISTAKES[self.what]()


@handler("mistaken", retry=Retry(errors=2, base_s=0.01, cap_s=0.01))
def mistaken(task: Task[Mistake, Count]) -> Count:
    """Wait to be stopped."""
    task.state.n += 1
    task.checkpoint(done=task.state.n)
    task.sleep(600)
    return task.state


@mistaken.check
def _(params: Mistake, inputs: Inputs) -> None:  # noqa: ARG001 -- as a check is called
    params.make("check")


@mistaken.uploads
def _(params: Mistake) -> Mapping[str, str]:
    params.make("uploads")
    return {}


@mistaken.clean
def _(task: Task[Mistake, Count]) -> None:
    Path(f"{task.params.once}.cleaned").touch()
