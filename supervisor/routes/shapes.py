"""What clients get, field by field: `views` fills these in, and the OpenAPI document describes them."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, NotRequired

from pydantic import Field, WithJsonSchema, with_config
from typing_extensions import TypedDict

from intermission.handlers.base import Limits, Retry
from intermission.state.models import Kind
from intermission.state.status import VERBS, Event, Reason, Status

ID_PATTERN: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TaskId = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{ID_PATTERN}$"})]
_TEXT: Final = r"[^\u0000\ufffd]*"  # in a query, where U+FFFD is what is left of bytes that are no UTF-8
Text = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{_TEXT}$"})]
Label = Annotated[str, WithJsonSchema({"type": "string", "pattern": rf"^[^:\u0000\ufffd]+:{_TEXT}$"})]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time", "description": "In UTC"})]
TaskStatus = Annotated[
    str, WithJsonSchema({"type": "string", "enum": [str(status) for status in Status if status is not Status.GONE]})
]
Verb = Annotated[Event, WithJsonSchema({"type": "string", "enum": [str(verb) for verb in VERBS]})]
ErrorKind = Annotated[
    str, WithJsonSchema({"type": "string", "enum": ["exception", "exit", "signal", "limit", "stall", "protocol"]})
]
JsonSchema = Annotated[Any, WithJsonSchema({"type": "object", "description": "JSON Schema, draft 2020-12"})]

_Next = Annotated[str | None, Field(description="The `cursor` of the next page")]

_documented = with_config(use_attribute_docstrings=True)


@_documented
class Progress(TypedDict):
    """How far a task says it is."""

    done: float | None
    total: float | None
    unit: str | None
    percent: float | None
    per_second: float | None
    """As the server measured it."""
    eta_s: float | None


@_documented
class CheckpointItem(TypedDict):
    """Where a task goes on when it is resumed."""

    sequence: int
    saved_at: Time
    version: int
    """The handler's, that saved it."""


@_documented
class Checkpoint(CheckpointItem):
    """Where a task goes on when it is resumed, with its state."""

    state: Any
    """As the service's `state` describes it, of this version."""


@_documented
class Error(TypedDict):
    """Why an attempt errored."""

    kind: ErrorKind
    type: str | None
    """The exception's."""
    message: str
    traceback: str | None
    exit_code: int | None
    signal: str | None
    attempt: int


@_documented
class Child(TypedDict):
    """The process of a task, as it is now."""

    pid: int
    node: str
    started_at: Time
    cpu_s: float
    rss_bytes: int


@_documented
class File(TypedDict):
    """A file that a task wrote, as of its last checkpoint."""

    name: str
    size_bytes: int
    media_type: str
    href: str


class TaskItem(TypedDict):
    """A task, as lists show it: without what may be large."""

    id: TaskId
    service: str
    user: str
    status: TaskStatus
    reason: Annotated[Reason | None, Field(description="Why it has this status")]
    priority: Annotated[int, Field(description="Higher ones are launched first")]
    labels: Mapping[str, str]
    attempt: Annotated[int, Field(description="The number of the last launch; 0 before the first")]
    errors_left: Annotated[int, Field(description="How many more errors are retried")]
    progress: Progress | None
    checkpoint: CheckpointItem | None
    error: Annotated[Error | None, Field(description="The last one")]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    due_at: Annotated[
        Time | None, Field(description="When it is to start or be tried again; of a paused upload, when it expires")
    ]
    allowed: Annotated[tuple[Verb, ...], Field(description="What it can be told now")]


class Task(TaskItem):
    """A task, whole."""

    checkpoint: Checkpoint | None  # type: ignore[misc]  # narrower: nobody writes through the wider type
    params: Annotated[Any, Field(description="As the service's `params` describes them, with their defaults")]
    result: Annotated[Any, Field(description="As the service's `result` describes it; null before the end")]
    retry: Annotated[Retry | None, Field(description="How errors are retried, if not as the service says")]
    child: Child | None
    files: list[File]


@_documented
class TaskPage(TypedDict):
    """One page of tasks, newest first."""

    items: list[TaskItem]
    next: str | None
    """The `cursor` of the next page; null on the last. A page may be short, or empty, and still have one."""


@_documented
class Process(TypedDict):
    """A process that was killed."""

    pid: int
    name: str
    started_at: Time | None


@_documented
class Receipt(TypedDict):
    """What a terminate did."""

    processes: list[Process]
    """All that were killed."""
    survivors: int
    """0: there is no receipt before all of them are dead."""
    cleaned: bool
    """Whether the service has undone its outside effects."""
    files_deleted: int


class Terminated(TypedDict):
    """A task that is gone."""

    id: TaskId
    status: Annotated[str, WithJsonSchema({"const": "terminated"})]
    receipt: Receipt | None


@_documented
class Attempt(TypedDict):
    """One launch for a task; what its end would say is null while it runs."""

    attempt: int
    kind: Kind
    started_at: Time
    ended_at: Time | None
    outcome: Event | None
    exit_code: int | None
    signal: str | None
    cpu_s: float | None
    peak_memory_bytes: int | None
    error: Error | None


class Attempts(TypedDict):
    """One page of a task's attempts, oldest first."""

    items: list[Attempt]
    next: _Next


@_documented
class HistoryEvent(TypedDict):
    """One line of a task's history."""

    id: int
    """Grows with every event of every task."""
    task: TaskId
    at: Time
    event: Annotated[str, WithJsonSchema({"type": "string", "enum": ["created", *(str(event) for event in Event)]})]
    status: TaskStatus
    """After it."""
    reason: Reason | None
    attempt: int
    by: str | None
    """The user who asked; null for what happened by itself."""


class Events(TypedDict):
    """One page of a task's history, oldest first."""

    items: list[HistoryEvent]
    next: _Next


class EventPage(TypedDict):
    """One page of what happened, newest first."""

    items: list[HistoryEvent]
    next: _Next


@_documented
class Service(TypedDict):
    """A kind of work that can be started."""

    name: str
    description: str
    version: int
    """Of its state: a task that an older version saved is resumed by a newer one, never the other way round."""
    stream: bool
    """Whether its work is the body of the request that starts or resumes it."""
    max_running: int | None
    """How many of its tasks run at once, at most."""
    retry: Retry
    limits: Limits
    params: JsonSchema
    """What a start takes."""
    state: JsonSchema
    """What a task's checkpoint has."""
    result: JsonSchema
    """What a completed task has."""


class Services(TypedDict):
    """Every service, by name."""

    items: list[Service]
    next: None


class Column(TypedDict):
    """A column of a source, and what it seems to hold."""

    name: str
    type: Annotated[str, WithJsonSchema({"enum": ["integer", "number", "date", "datetime", "text", "json"]})]


@_documented
class Source(TypedDict):
    """Something to extract from."""

    name: str
    format: str | None
    size_bytes: int
    columns: list[Column]
    error: str | None
    """Why its columns cannot be read."""


class SourcePage(TypedDict):
    """One page of sources, by name."""

    items: list[Source]
    next: Annotated[str | None, Field(description="The `cursor` of the next page")]


@_documented
class Team(TypedDict):
    """A team in the directory."""

    name: str
    members: int
    """How many it has."""
    task: TaskId | None
    """Which created it, or has members in it since the one that did was terminated."""
    created_at: Time


class TeamPage(TypedDict):
    """One page of teams, newest first."""

    items: list[Team]
    next: Annotated[str | None, Field(description="The `cursor` of the next page")]


@_documented
class Health(TypedDict):
    """That the server runs, and how much it has to do."""

    status: Annotated[str, WithJsonSchema({"enum": ["starting", "ok", "draining"]})]
    version: str
    running: int
    """Tasks that have a process."""
    pending: int
    """Tasks that wait for one."""
    max_running: int


@_documented
class Usage(TypedDict):
    """What a user's uploads come to, and what they may."""

    stored_bytes: int
    """The completed with their size, the others with what was announced of them or has come."""
    max_bytes: int | None
    """None: as many as there is space for."""
    uploads: int
    unfinished: int
    """Those of them that are not completed."""
    max_unfinished: int


class Ready(TypedDict):
    """That starts are accepted."""

    status: Annotated[str, WithJsonSchema({"const": "ready"})]


@_documented
class Fault(TypedDict):
    """One thing that is wrong with a request, and where."""

    pointer: NotRequired[str]
    """A JSON pointer (RFC 6901) into the body."""
    parameter: NotRequired[str]
    """A name in the query."""
    detail: str


@_documented
class Problem(TypedDict):
    """An error (RFC 9457)."""

    type: Annotated[str, WithJsonSchema({"type": "string", "format": "uri"})]
    """A stable identifier; nothing is fetched."""
    title: str
    status: int
    detail: str
    """A sentence that says what is wrong, or what to do."""
    errors: NotRequired[list[Fault]]
    """422: every fault."""
    id: NotRequired[TaskId]
    """The task that this is about."""
    task_status: NotRequired[TaskStatus]
    """Its status."""
    allowed: NotRequired[tuple[Verb, ...]]
    """What it can be told now."""
    tasks: NotRequired[list[TaskId]]
    """409: those that could be meant, or that are in the way."""
    offset: NotRequired[int]
    """At which byte of the data a resume may go on."""
    expected: NotRequired[Annotated[int, Field(alias="expected-offset")]]
    """409: the same, by the draft of resumable uploads for HTTP."""
    provided: NotRequired[Annotated[int, Field(alias="provided-offset")]]
    """409: at which byte the request would have gone on."""
    stored_bytes: NotRequired[int]
    """507: where a user may not have more, what their uploads come to, and what they may; all as in `Usage`."""
    max_bytes: NotRequired[int | None]
    uploads: NotRequired[int]
    unfinished: NotRequired[int]
    max_unfinished: NotRequired[int]
    service: NotRequired[str]
    """410: the task's."""
    gone_at: NotRequired[Time]
    """410: since when."""
    receipt: NotRequired[Receipt | None]
    """410: what its terminate did."""
