"""The service ``counter``: counts. The smallest complete handler, and the one to try things on."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from intermission.handlers.base import Task, handler


@dataclass
class Params:
    """How far to count, and how long to wait after each number."""

    limit: Annotated[int, Field(ge=0, le=10**12)] = 1500
    delay_s: Annotated[float, Field(ge=0, le=3600)] = 0.0


@dataclass
class State:
    """Where the count is."""

    next: int = 0


@dataclass
class Result:
    """How many numbers are in ``numbers.txt``."""

    counted: int


@handler("counter")
def counter(task: Task[Params, State]) -> Result:
    """Count to ``limit``, one number a line."""
    out, state = task.output("numbers.txt"), task.state
    while state.next < task.params.limit:
        out.write(f"{state.next}\n")
        state.next += 1
        task.checkpoint(done=state.next, total=task.params.limit, unit="numbers")
        if task.params.delay_s:
            task.sleep(task.params.delay_s)
    return Result(counted=state.next)
