"""The handler's world: the decorator that declares a service, and the one object that a handler gets."""

import inspect
import io
import json
import os
import re
import typing
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from logging import Logger
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError

from intermission.handlers import disk
from intermission.handlers.body import BodyInfo
from intermission.handlers.inputs import Inputs
from intermission.handlers.schema import Invalid, Schema

P = TypeVar("P")
S = TypeVar("S")
R = TypeVar("R")

RESERVED: Final = frozenset(
    {"auth", "docs", "events", "health", "jobs", "metrics", "openapi", "services", "static", "tasks"}
)
"""The API's own path names, which no service may take."""

LONGEST_S: Final = 315_360_000
"""Ten years. What is due much later is in no calendar, and an infinite time in no JSON."""
MOST_ERRORS: Final = 1000
"""That a retry policy may allow."""
TABLE_TYPES: Final = ("text/csv", "application/jsonl", "application/x-ndjson")
"""The media types of files with rows."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_OUTPUT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class Paused(BaseException):
    """The task's place is saved and its process must go. Let it pass; every later call raises it again."""


class Fatal(Exception):  # noqa: N818 -- it says what kind of end this is
    """Raise it to fail the task at once: what its message says cannot be mended by trying again."""


@dataclass(frozen=True, slots=True)
class Retry:
    """What follows an error: another try after a random wait below ``base_s * 2**n``, capped; the last one fails."""

    errors: int = 4
    base_s: float = 1.0
    cap_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one attempt may use; None means unlimited. Only running time counts."""

    memory_bytes: int | None = None
    cpu_s: float | None = None
    wall_s: float | None = None


class Output(io.TextIOWrapper):
    """An append-only file of the task. Its length is part of every checkpoint, and a resume cuts it back to that.

    ``write`` takes text (UTF-8, newlines as they are), ``write_bytes`` anything.
    """

    def __init__(self, path: Path, neighbours: Path) -> None:
        """``neighbours``: a folder on the same disk, one for all tasks."""
        self.path = path
        self._neighbours = neighbours
        self._file = io.FileIO(path, "ab")
        self._binary = io.BufferedWriter(self._file, 1 << 16)
        self._behind = disk.WriteBehind(self._file.fileno())
        super().__init__(self._binary, encoding="utf-8", newline="")

    def write_bytes(self, data: bytes | memoryview) -> int:
        """Append bytes as they are."""
        self.flush()
        return self._binary.write(data)

    def reserve(self, size_bytes: int) -> None:
        """Have room kept for so many bytes in all: a full disk is met now, as an OSError, and not in the middle."""
        disk.reserve(self._file.fileno(), size_bytes, self._neighbours)

    def length(self) -> int:
        """Bytes in the file, once everything written so far has been handed to the kernel."""
        if self.closed:
            return os.stat(self._file.name).st_size
        self.flush()
        length = os.fstat(self._file.fileno()).st_size
        self._behind.grown(length)
        return length


class Task(ABC, Generic[P, S]):
    """What a handler gets: what was asked for, where it was, and the ways to save its place.

    Its methods are for the process that runs the handler: in one that this has forked they raise RuntimeError.

    The contract: *do the item, then checkpoint; after a crash at most the items since the last checkpoint repeat, and
    outputs repeat nothing.*
    """

    id: str
    user: str
    attempt: int
    resumed: bool
    """True where a checkpoint was restored, so `state` is not the initial one."""
    params: P
    state: S
    log: Logger
    inputs: Inputs
    """The operator's sources, and the uploads that the params name."""

    @property
    def body(self) -> Iterator[bytes]:
        """Of a stream service: the bytes as they arrive, in blocks, until all have.

        Asking for the next block is a pause point, as `sleep` is one: when a pause is wanted, or the client has gone,
        the state is saved and `Paused` raised. ``state.received`` has to say, then, how many bytes of the whole are
        done with: there the client will go on. Raises RuntimeError in a service that is none.
        """
        return map(bytes, self.blocks)

    @property
    def blocks(self) -> Iterator[memoryview]:
        """As `body`, without a copy of each block: it is there to be looked at until the next is asked for."""
        raise RuntimeError("only a stream service has a body: declare it with @handler(..., stream=True)")

    @abstractmethod
    def checkpoint(self, *, done: float | None = None, total: float | None = None, unit: str | None = None) -> None:
        """Save the state and every output's length; raise `Paused` if the task is to pause.

        Costs microseconds and survives any SIGKILL at once, a power cut within 250 ms. Call it after every item or
        small batch. Raises RuntimeError off the main thread, `Unencodable` for a state that is not what its type says
        and ValueError for one over 1 MiB (nothing is saved then).
        """

    @abstractmethod
    def commit(self, *, done: float | None = None, total: float | None = None, unit: str | None = None) -> None:
        """Like `checkpoint`, and returns when the checkpoint would survive a power cut."""

    @abstractmethod
    def output(self, name: str) -> Output:
        """The task's file of this name: created, or opened at the length of the last checkpoint.

        Raises ValueError for a name that is not letters, digits, ``.``, ``_`` and ``-``, or that starts with a dot.
        """

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Wait; a pause ends the wait at once: the state is saved and `Paused` raised."""


Run = Callable[[Task[P, S]], R]
Check = Callable[[P, Inputs], None]
Clean = Callable[[Task[P, S]], None]
References = Callable[[P], Mapping[str, str]]
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(eq=False, kw_only=True)
class Handler(Generic[P, S, R]):
    """A service, declared. `handler` makes it; its methods are the decorators for the service's other functions."""

    service: str
    run: Run[P, S, R]
    params: Schema[P]
    state: Schema[S]
    result: Schema[R]
    version: int
    retry: Retry
    limits: Limits
    pause_grace_s: float
    stall_after_s: float | None
    max_running: int | None
    body: str | None
    """The field of the params that takes a file which is the body of a start, kept as an upload."""
    body_types: tuple[str, ...]
    """The media types that such a file may have; one whose type says nothing of it is taken as well."""
    stream: bool = False
    checks: list[Check[P]] = field(default_factory=list)
    references: list[References[P]] = field(default_factory=list)
    cleans: list[Clean[P, S]] = field(default_factory=list)
    upgrades: dict[int, Upgrade] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """What the service does: the first paragraph of its function's docstring, as one line."""
        paragraph = inspect.cleandoc(self.run.__doc__ or "").partition("\n\n")[0]
        return " ".join(paragraph.split())

    def check(self, function: Check[P]) -> Check[P]:
        """Look at the params before a start is accepted; raise `Invalid` to refuse it.

        Runs in a thread of the server, with the params and what there is to read; it must be quick and change nothing.
        A start that is not through with it after 10 s is refused.
        """
        self.checks.append(function)
        return function

    def uploads(self, function: References[P]) -> References[P]:
        """Say which uploads the params name: each ``upload:<id>`` by its JSON pointer in the params.

        Each must be a completed upload of the same user, and is kept until the task is completed or gone.
        """
        self.references.append(function)
        return function

    def clean(self, function: Clean[P, S]) -> Clean[P, S]:
        """Undo the handler's outside effects when a task is terminated.

        Runs in a fresh process with the last state (or the initial one), and may run twice.
        """
        self.cleans.append(function)
        return function

    def upgrade(self, version: int) -> Callable[[Upgrade], Upgrade]:
        """Turn a state (as parsed JSON) saved by ``version`` into one of the version after it."""

        def keep(function: Upgrade) -> Upgrade:
            self.upgrades[version] = function
            return function

        return keep

    def restore(self, state: str, version: int) -> S:
        """A saved state (JSON), brought to this version.

        Raises `Invalid`, or LookupError where no upgrade leads here.
        """
        if version > self.version:
            message = f"the state was saved by version {version} of the handler, and this is version {self.version}"
            raise LookupError(message)
        if version == self.version:
            return self.state.load(state)
        raw = json.loads(state)  # not `loads`: a state may hold NaN, which a client may not send
        for step in range(version, self.version):
            if step not in self.upgrades:
                message = f"no upgrade from version {step} of the state: add @{self.service}.upgrade({step})"
                raise LookupError(message)
            try:
                raw = self.upgrades[step](raw)
            except Exception as error:
                message = f"the upgrade from version {step} of the state raised {type(error).__name__}: {error}"
                raise LookupError(message) from error
        return self.state.check(raw)


def handler(
    service: str,
    *,
    version: int = 1,
    retry: Retry | None = None,
    limits: Limits | None = None,
    pause_grace_s: float = 3.0,
    stall_after_s: float | None = None,
    max_running: int | None = None,
    stream: bool = False,
    body: str | None = None,
    body_types: tuple[str, ...] = TABLE_TYPES,
) -> Callable[[Run[P, S, R]], Handler[P, S, R]]:
    """Declare the service that a function does the work of.

    The types come from its annotations: ``def f(task: Task[Params, State]) -> Result``. Params, State and Result are
    dataclasses, pydantic models or anything that pydantic can check; State must be constructible without arguments.
    The work of a ``stream`` service is the body of the requests that start and resume it (`Task.body`).
    Its Params are `BodyInfo`, and its State has ``received: int = 0``.
    Where ``body`` names a field of the params, a start may have a file as its body: it is kept as an upload, and the
    params are ``upload:<id>`` in that field and the defaults of all others. ``body_types`` are its media types.

    Raises ValueError or TypeError, when the module is imported, for a declaration that cannot work.
    """
    if not _NAME.fullmatch(service) or service in RESERVED:
        message = (
            f"{service!r} cannot be a service's name: use [a-z][a-z0-9_]*, and none of {', '.join(sorted(RESERVED))}"
        )
        raise ValueError(message)
    retry, limits = retry or Retry(), limits or Limits()
    _check_bounds(service, retry, limits, pause_grace_s, stall_after_s)

    def declare(function: Run[P, S, R]) -> Handler[P, S, R]:
        params, state, result = _types(function)
        if stream and params is not BodyInfo:
            raise TypeError(f"{function.__qualname__} is a stream service, so its params must be BodyInfo")
        if stream and getattr(state(), "received", None) != 0:
            raise TypeError(f"{function.__qualname__} is a stream service, so its state must have received: int = 0")
        schema = Schema(params)
        return Handler(
            service=service,
            run=function,
            params=schema,
            state=Schema(state),
            result=Schema(result),
            version=version,
            retry=retry,
            limits=limits,
            pause_grace_s=pause_grace_s,
            stall_after_s=stall_after_s,
            max_running=max_running,
            stream=stream,
            body=_body(function, body, schema),
            body_types=body_types,
        )

    return declare


def output_path(folder: Path, name: str) -> Path:
    """Where an output lives. Raises ValueError for a name that could be anything but a plain file's."""
    if not _OUTPUT.fullmatch(name):
        message = (
            f"{name!r} cannot be an output's name: use letters, digits, '.', '_' and '-', not starting with '.' or '-'"
        )
        raise ValueError(message)
    return folder / name


def _check_bounds(
    service: str, retry: Retry, limits: Limits, pause_grace_s: float, stall_after_s: float | None
) -> None:
    if retry.errors not in range(1, MOST_ERRORS + 1):
        raise ValueError(
            f"{service}: retry.errors is {retry.errors}, and must be a whole number from 1 to {MOST_ERRORS}"
        )
    times = {
        "retry.base_s": retry.base_s,
        "retry.cap_s": retry.cap_s,
        "limits.cpu_s": limits.cpu_s,
        "limits.wall_s": limits.wall_s,
        "pause_grace_s": pause_grace_s,
        "stall_after_s": stall_after_s,
    }
    for name, value in times.items():
        if value is not None and not 0 <= value <= LONGEST_S:  # NaN is neither
            raise ValueError(f"{service}: {name} is {value}, and must be from 0 to {LONGEST_S} seconds (ten years)")


def _body(function: Run[P, S, R], field: str | None, params: Schema[P]) -> str | None:
    if field is not None:
        try:
            params.check({field: f"upload:{uuid.UUID(int=0)}"})
        except Invalid as error:
            message = f"{function.__qualname__}: params of nothing but an upload in {field!r} do not fit ({error})"
            raise TypeError(message) from None
    return field


def _types(function: Run[P, S, R]) -> tuple[type[P], type[S], type[R]]:
    name = function.__qualname__
    hints = typing.get_type_hints(function)
    first = next(iter(inspect.signature(function).parameters), None)
    annotation = hints.get(first) if first else None
    if typing.get_origin(annotation) is not Task or "return" not in hints:
        message = f"{name} must be annotated: def {name}(task: Task[Params, State]) -> Result"
        raise TypeError(message)
    params, state = typing.get_args(annotation)
    try:
        state()
    except (TypeError, ValidationError):
        message = f"{name}: {state.__name__} must have a default for every field, for that is where a task begins"
        raise TypeError(message) from None
    return params, state, hints["return"]
