"""The records that the store keeps. Frozen: a changed task is another value, read after its commit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from intermission.state.status import HELD, Event, Reason, Status, after, allowed


class Kind(StrEnum):
    """What an attempt is launched for."""

    RUN = "run"
    CLEAN = "clean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a task says it is. ``per_second`` is measured by the supervisor, the rest is the handler's word."""

    done: float
    total: float | None = None
    unit: str | None = None
    per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A durable record of a state. ``outputs`` maps a file's name to its length in bytes at that moment."""

    sequence: int
    attempt: int
    version: int
    state: str
    """JSON."""
    outputs: Mapping[str, int]
    progress: Progress | None
    saved_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """Why an attempt errored, as the API shows it."""

    kind: str
    """One of exception, exit, signal, limit, stall, protocol."""
    type: str | None
    message: str
    traceback: str | None = None
    exit_code: int | None = None
    signal: str | None = None
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How errors are retried where the start said otherwise than the handler."""

    errors: int
    base_s: float
    cap_s: float


@dataclass(frozen=True, slots=True)
class Key:
    """What a client calls a start, and a digest of all that it asks for."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Earlier:
    """A start of the same user and name: whose task it made, and the digest of what that one asked for."""

    task_id: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a user's tasks that are counted (see `NewTask.bytes`) come to."""

    bytes: int = 0
    uploads: int = 0
    unfinished: int = 0
    """Those of them that are not completed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """The most that the usage of one user may come to."""

    bytes: int | None
    """None: as many as there is space for."""
    unfinished: int

    def allows(self, usage: Usage, more: int) -> bool:
        """Whether so many bytes may be added."""
        return self.bytes is None or usage.bytes + more <= self.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A start that a client was promised. The row begins as ``pending`` (see ``stream``), attempt 0."""

    id: str
    service: str
    user: str
    params: str
    """JSON, validated."""
    created_at: float
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    errors_left: int = 4
    uploads: tuple[str, ...] = ()
    """The uploads that it reads, by id: in use until it is completed or gone."""
    key: Key | None = None
    stream: bool = False
    """Its work is the body of requests: it begins as ``paused``, for ``awaiting_data``."""
    retry: RetryPolicy | None = None
    due_at: float | None = None
    """Not to be claimed before; of a ``stream`` task, when it expires."""
    bytes: int | None = None
    """What it counts with in its user's stored bytes; None: it is not counted."""
    quota: Quota | None = None
    """What its user's usage may come to with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request for a service by one user, as of its last commit."""

    id: str
    service: str
    user: str
    status: Status
    reason: Reason | None
    params: str
    priority: int
    labels: Mapping[str, str]
    attempt: int
    """The newest attempt's number; 0 before the first. Every write is fenced by it."""
    errors_left: int
    losses: int
    """How often in a row it was lost without a newer checkpoint in between."""
    lost_sequence: int
    """The checkpoint's sequence at the last loss; -1 for never."""
    checkpoint: Checkpoint | None
    result: str | None
    """JSON."""
    error: ErrorInfo | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    due_at: float | None
    stream: bool
    retry: RetryPolicy | None = None
    """None: as the handler says."""
    bytes: int | None = None
    """See `NewTask.bytes`."""

    @property
    def allowed(self) -> tuple[Event, ...]:
        """What a person may ask for now."""
        return allowed(self.status, self.reason, stream=self.stream)

    @property
    def is_held(self) -> bool:
        """Of a stream service: whether bytes alone do not make it go on."""
        return self.status is Status.FAILED or (self.status is Status.PAUSED and self.reason in HELD)

    def after(self, event: Event) -> Status | None:
        """The status that follows, or None: the event is not possible now."""
        return after(self.status, event, stream=self.stream)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How an attempt's process ended, from the fork server's ``wait4``."""

    ended_at: float
    outcome: Event
    exit_code: int | None = None
    signal: str | None = None
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One launch for a task. ``end`` is None while it runs."""

    task_id: str
    attempt: int
    kind: Kind
    started_at: float
    end: AttemptEnd | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a terminate did: every process it killed, and how many outlived it."""

    processes: tuple[Mapping[str, object], ...]
    """Each ``{"pid", "name", "started_at"}``."""
    survivors: int
    cleaned: bool
    files_deleted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """All that is left of a task: enough to answer 410 instead of 404."""

    id: str
    service: str
    user: str
    gone_at: float
    by: str | None
    """The user who terminated or deleted it; None: its time was over."""
    receipt: Receipt | None
    """None for a completed task that was deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One line of a task's history."""

    id: int
    """Grows with every event of every task."""
    task_id: str
    user: str
    at: float
    event: Event | None
    """None for the task's creation."""
    status: Status
    reason: Reason | None
    attempt: int
    by: str | None
    """The user who asked; None for what the supervisor did itself."""


class Keep:
    """The default of a `Change` field: leave the column as it is."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step of a task along the table, and everything that must become true in the same commit.

    ``task`` is the task as it was read: the write is guarded by its id, status and attempt.
    """

    task: Task
    event: Event
    at: float
    by: str | None = None
    reason: Reason | None = None
    attempt: int | Keep = KEEP
    """The attempt's new number where the step raises the fence (a claim, a terminate, a retried `clean`)."""
    kind: Kind | None = None
    """With a raised attempt that will be launched: the kind of the new attempt, whose row is then begun."""
    checkpoint: Checkpoint | None = None
    """Saved along with it, if newer than the one stored."""
    params: str | Keep = KEEP
    """JSON: of an upload, once it is known how long it will be."""
    bytes: int | Keep = KEEP
    """See `NewTask.bytes`; of a task that is counted."""
    result: str | Keep = KEEP
    error: ErrorInfo | Keep | None = KEEP
    errors_left: int | Keep = KEEP
    losses: int | Keep = KEEP
    lost_sequence: int | Keep = KEEP
    due_at: float | None = None
    """Written in each step, so that leaving it out clears it. A step to retrying must give one; a stream task
    that is paused with one expires then."""
    end: AttemptEnd | None = None
    """How the attempt ``task.attempt`` ended, if this step is its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A list's filters. ``user`` None means everybody's (an administrator's list)."""

    user: str | None = None
    service: str | None = None
    statuses: frozenset[Status] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    before: str | None = None
    """The cursor: only tasks with a smaller id, that is older ones."""
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Newest first. ``next`` is the cursor of the following page."""

    items: tuple[EventRecord, ...]
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Newest first. ``next`` is the cursor of the following page; a page may be short or empty and still have one."""

    items: tuple[Task, ...]
    next: str | None
