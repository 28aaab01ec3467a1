"""A task in this process, for tests of handlers: behaves as `Task` says, without processes, pipe or store."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intermission.handlers.base import Handler, Output, Paused, Task, output_path
from intermission.handlers.inputs import Inputs, Upload


@dataclass(frozen=True)
class Saved:
    """A checkpoint: the state as JSON, the length of each output, and the progress that was given with it."""

    state: str
    lengths: dict[str, int]
    progress: tuple[float | None, float | None, str | None]


@dataclass
class FakeTask(Task[Any, Any]):
    """One attempt. Pauses at its ``pause_at``-th checkpoint (from 1), if that is given."""

    handler: Handler[Any, Any, Any]
    params: Any
    folder: Path
    inputs: Inputs
    start: Saved | None = None
    pause_at: int | None = None
    saved: list[Saved] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id, self.user, self.attempt = "0193", "local", 1
        self.log = logging.getLogger("fake")
        self.resumed = self.start is not None
        self.state = self.handler.state.type()
        if self.start is not None:
            self.state = self.handler.restore(self.start.state, self.handler.version)
        self.stopped = False
        self._lengths = dict(self.start.lengths) if self.start else {}
        self._open: dict[str, Output] = {}
        self._cut_outputs()

    def checkpoint(self, *, done: float | None = None, total: float | None = None, unit: str | None = None) -> None:
        """See `Task.checkpoint`."""
        if self.stopped:
            raise Paused
        self._lengths |= {name: out.length() for name, out in self._open.items()}
        state = self.handler.state.encode(self.state).decode()
        self.saved.append(Saved(state, dict(self._lengths), (done, total, unit)))
        if len(self.saved) == self.pause_at:
            self.stopped = True
            raise Paused

    commit = checkpoint

    def output(self, name: str) -> Output:
        """See `Task.output`."""
        if self.stopped:
            raise Paused
        if name not in self._open or self._open[name].closed:
            self._open[name] = Output(output_path(self.folder, name), self.folder)
        return self._open[name]

    def sleep(self, seconds: float) -> None:  # noqa: ARG002 -- nobody waits in a test
        """See `Task.sleep`."""
        if self.stopped:
            raise Paused

    def close(self) -> None:
        """Close the outputs, as the end of a process does."""
        for out in self._open.values():
            out.close()

    def _cut_outputs(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.name in self._lengths:
                os.truncate(path, min(self._lengths[path.name], path.stat().st_size))
            else:
                path.unlink()


@dataclass(frozen=True)
class Attempt:
    """How an attempt ended: the result as parsed from its JSON, or None if it has paused; and its checkpoints."""

    result: Any
    saved: list[Saved]


def inputs(sources: Path, uploads: dict[str, Upload] | None = None) -> Inputs:
    """The inputs of a task, with the directory beside the sources."""
    return Inputs(sources, sources.parent / "directory.db", uploads or {})


def attempt(
    handler: Handler[Any, Any, Any],
    params: dict[str, Any],
    folder: Path,
    *,
    sources: Path,
    uploads: dict[str, Upload] | None = None,
    start: Saved | None = None,
    pause_at: int | None = None,
) -> Attempt:
    """Run a handler once, its params checked and stored as a start would, its result as a completion would."""
    checked, given = handler.params.check(params), inputs(sources, uploads)
    for check in handler.checks:
        check(checked, given)
    stored = handler.params.load(handler.params.encode(checked))
    task = FakeTask(handler, stored, folder, given, start, pause_at)
    try:
        result = handler.run(task)
    except Paused:
        return Attempt(None, task.saved)
    finally:
        task.close()
    return Attempt(handler.result.load(handler.result.encode(result)), task.saved)
