"""The life of a task: which status may follow which, and on what event.

This table is the only place that decides it. Routes ask it what is allowed, the supervisor advances along it, and the
store writes the pair as one guarded UPDATE. An edge that is not here does not exist.
"""

from enum import StrEnum
from typing import Final


class Status(StrEnum):
    """Where a task is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RETRYING = "retrying"
    TERMINATING = "terminating"
    COMPLETED = "completed"
    FAILED = "failed"
    GONE = "gone"
    """Never stored: the row is deleted, and a tombstone answers in its place."""


class Event(StrEnum):
    """What happens to a task: a person's wish, a child's report, or the supervisor's own step."""

    # A person asks (these are the verbs of the API).
    PAUSE = "pause"
    RESUME = "resume"
    TERMINATE = "terminate"
    DELETE = "delete"
    # The supervisor steps.
    CLAIMED = "claimed"
    DUE = "due"
    DRAINED = "drained"
    PREEMPTED = "preempted"
    # A request brings bytes to a stream service, and ends.
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    # An attempt ended.
    COMPLETED = "completed"
    STOPPED = "stopped"
    ERRORED = "errored"
    EXHAUSTED = "exhausted"
    REFUSED = "refused"
    LOST = "lost"
    CLEANED = "cleaned"
    CLEAN_FAILED = "clean_failed"


class Reason(StrEnum):
    """Why a task is where it is."""

    REQUESTED = "requested"
    AWAITING_DATA = "awaiting_data"
    DISCONNECTED = "disconnected"
    FORCED = "forced"
    ERRORED = "errored"
    NO_SPACE = "no_space"
    EXHAUSTED = "exhausted"
    LOST = "lost"
    STATE_UNREADABLE = "state_unreadable"
    NO_HANDLER = "no_handler"
    CLEAN_FAILED = "clean_failed"
    LIMIT_MEMORY = "limit_memory"
    LIMIT_WALL = "limit_wall"
    LIMIT_CPU = "limit_cpu"
    LIMIT_LOG = "limit_log"
    STALLED = "stalled"


_S, _E = Status, Event

TABLE: Final[dict[tuple[Status, Event], Status]] = {
    (_S.PENDING, _E.CLAIMED): _S.RUNNING,  # a slot is free; written before the process exists
    (_S.PENDING, _E.PAUSE): _S.PAUSED,  # nothing to stop yet
    (_S.PENDING, _E.TERMINATE): _S.TERMINATING,
    (_S.PENDING, _E.REFUSED): _S.FAILED,  # its handler is gone, or its state cannot be read
    #
    (_S.RUNNING, _E.PAUSE): _S.PAUSING,  # asked, not yet done
    (_S.RUNNING, _E.TERMINATE): _S.TERMINATING,
    (_S.RUNNING, _E.COMPLETED): _S.COMPLETED,
    (_S.RUNNING, _E.ERRORED): _S.RETRYING,  # the retry budget has something left
    (_S.RUNNING, _E.EXHAUSTED): _S.FAILED,  # the budget is used up
    (_S.RUNNING, _E.REFUSED): _S.FAILED,  # no retry can mend it: a limit, an unreadable state
    (_S.RUNNING, _E.STOPPED): _S.PAUSED,  # it cannot go on until somebody acts: the disk is full
    (_S.RUNNING, _E.DRAINED): _S.PENDING,  # we are going down in good order; the next start carries on
    (_S.RUNNING, _E.LOST): _S.PENDING,  # child, fork server or supervisor vanished: an interruption is not a failure
    (_S.RUNNING, _E.PREEMPTED): _S.PENDING,
    #
    (_S.PAUSING, _E.PAUSE): _S.PAUSING,  # asked twice
    (_S.PAUSING, _E.TERMINATE): _S.TERMINATING,
    (_S.PAUSING, _E.COMPLETED): _S.COMPLETED,  # the work finished before it saw the request
    (_S.PAUSING, _E.STOPPED): _S.PAUSED,  # it saved its place and exited, or its grace ran out
    (_S.PAUSING, _E.ERRORED): _S.PAUSED,  # a person's wish outranks the retry policy; the error is kept
    (_S.PAUSING, _E.LOST): _S.PAUSED,  # stopped is what was asked for
    (_S.PAUSING, _E.DRAINED): _S.PAUSED,
    (_S.PAUSING, _E.EXHAUSTED): _S.FAILED,
    (_S.PAUSING, _E.REFUSED): _S.FAILED,
    #
    (_S.PAUSED, _E.RESUME): _S.PENDING,
    (_S.PAUSED, _E.PAUSE): _S.PAUSED,  # asked twice
    (_S.PAUSED, _E.TERMINATE): _S.TERMINATING,
    #
    (_S.RETRYING, _E.DUE): _S.PENDING,  # the backoff is over
    (_S.RETRYING, _E.RESUME): _S.PENDING,  # a person would rather not wait
    (_S.RETRYING, _E.PAUSE): _S.PAUSED,
    (_S.RETRYING, _E.TERMINATE): _S.TERMINATING,
    #
    (_S.TERMINATING, _E.TERMINATE): _S.TERMINATING,  # asked twice
    (_S.TERMINATING, _E.CLAIMED): _S.TERMINATING,  # its tree is dead: `clean` is launched
    (_S.TERMINATING, _E.LOST): _S.TERMINATING,  # `clean` runs again
    (_S.TERMINATING, _E.DRAINED): _S.TERMINATING,
    (_S.TERMINATING, _E.ERRORED): _S.TERMINATING,  # `clean` erred and has tries left
    (_S.TERMINATING, _E.CLEANED): _S.GONE,  # files first, then row and tombstone in one transaction
    (_S.TERMINATING, _E.CLEAN_FAILED): _S.FAILED,  # everything is kept for a person to look at
    #
    (_S.COMPLETED, _E.DELETE): _S.GONE,
    #
    (_S.FAILED, _E.RESUME): _S.PENDING,  # from its last checkpoint, with a fresh retry budget
    (_S.FAILED, _E.TERMINATE): _S.TERMINATING,
}

STREAM_TABLE: Final[dict[tuple[Status, Event], Status]] = {
    **{edge: target for edge, target in TABLE.items() if not {Status.PENDING, Status.RETRYING} & {edge[0], target}},
    (_S.PAUSED, _E.CONNECTED): _S.RUNNING,  # bytes arrive
    (_S.PAUSED, _E.RESUME): _S.PAUSED,  # only lifts a pause: bytes may come again
    (_S.RUNNING, _E.DISCONNECTED): _S.PAUSED,  # the request has ended before its data has
    (_S.RUNNING, _E.ERRORED): _S.PAUSED,  # nobody but the client can send its bytes again
    (_S.RUNNING, _E.LOST): _S.PAUSED,
    (_S.RUNNING, _E.DRAINED): _S.PAUSED,
    (_S.FAILED, _E.RESUME): _S.PAUSED,
}
"""The table of stream services. Their work is the body of a request, so they never wait for their turn or a retry."""

HELD: Final = frozenset({Reason.REQUESTED, Reason.FORCED, Reason.ERRORED})
"""Why a stream task may be paused because somebody asked for it: it takes no bytes until somebody resumes it."""
VERBS: Final = (Event.PAUSE, Event.RESUME, Event.TERMINATE, Event.DELETE)
RESTING: Final = frozenset({Status.PAUSED, Status.COMPLETED, Status.FAILED})
"""A task here stays until a person acts."""
WITH_CHILD: Final = frozenset({Status.RUNNING, Status.PAUSING, Status.TERMINATING})
"""A task here may have a process; after a start none has, and each of these gets ``lost``."""


def after(status: Status, event: Event, *, stream: bool = False) -> Status | None:
    """The status that follows, or None: the event is not possible now."""
    return (STREAM_TABLE if stream else TABLE).get((status, event))


def changes(status: Status, reason: Reason | None, verb: Event, *, stream: bool = False) -> bool:
    """Whether a verb would change anything: asking again for what is so, or under way, does not."""
    target = after(status, verb, stream=stream)
    if target is None or (verb is Event.RESUME and reason is Reason.CLEAN_FAILED):
        return False
    if target is not status:
        return True
    # A stream task that waits for its client can be told not to take its bytes, and to take them again.
    wanted = {Event.PAUSE: Reason.REQUESTED, Event.RESUME: Reason.AWAITING_DATA}.get(verb, reason)
    return stream and status is Status.PAUSED and reason is not wanted


def allowed(status: Status, reason: Reason | None = None, *, stream: bool = False) -> tuple[Event, ...]:
    """What a person may ask for now, in the order of `VERBS`; asking again for what is under way is left out."""
    waits = stream and status is Status.PAUSED
    return tuple(
        verb
        for verb in VERBS
        if changes(status, reason, verb, stream=stream) or (waits and verb is Event.RESUME)  # with bytes
    )
