"""Rows and records, each from the other: the one place that knows the order of columns."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final

import structlog

from intermission.state.models import (
    Attempt,
    AttemptEnd,
    Checkpoint,
    ErrorInfo,
    EventRecord,
    Kind,
    NewTask,
    Progress,
    Receipt,
    RetryPolicy,
    Task,
    Tombstone,
    Usage,
)
from intermission.state.status import Event, Reason, Status
from intermission.state.store import UnreadableError

_log = structlog.get_logger()

Row = tuple[Any, ...]

_NARROW: Final = (
    "t.id, t.service, t.user, t.status, t.reason, t.priority, t.attempt, t.errors_left, t.losses, t.lost_sequence, "
    "t.created_at, t.started_at, t.finished_at, t.due_at, t.labels, t.error, "
    "t.stream, c.sequence, c.attempt, c.version, c.saved_at, c.outputs, c.progress"
)
WHOLE: Final = f"{_NARROW}, c.state, t.params, t.result, t.retry, t.bytes"
"""The columns of a task and its checkpoint; ``t`` and ``c`` in a query."""
LISTED: Final = f"{_NARROW}, '', '', NULL, NULL, t.bytes"
"""The same without what lists leave out."""
WITH_CHECKPOINT: Final = "LEFT JOIN checkpoints AS c ON c.task_id = t.id"
TASKS: Final = f"SELECT {WHOLE} FROM tasks AS t {WITH_CHECKPOINT}"

TASK_COLUMNS: Final = (
    "id, service, user, status, priority, attempt, errors_left, losses, lost_sequence, created_at, labels, params, "
    "reason, stream, due_at, retry, bytes"
)
CHECKPOINT_COLUMNS: Final = "task_id, sequence, attempt, version, saved_at, outputs, progress, state"
ATTEMPT_COLUMNS: Final = (
    "task_id, attempt, kind, started_at, ended_at, outcome, exit_code, signal, cpu_s, peak_memory_bytes, error"
)
EVENT_COLUMNS: Final = "task_id, user, at, event, status, reason, attempt, asked_by"
TOMBSTONE_COLUMNS: Final = "id, service, user, gone_at, gone_by, receipt"


def task(row: Row) -> Task:
    """From the columns of `WHOLE` or `LISTED`. Raises `UnreadableError`."""
    try:
        return _task(row)
    except (ValueError, TypeError) as error:
        raise UnreadableError(row[0], error) from error


def readable(found: Iterable[Row]) -> Iterator[Task]:
    """The tasks of many rows. One that cannot be read is left out: it must not take the others along."""
    for row in found:
        try:
            yield task(row)
        except UnreadableError as error:
            _log.error("a task is left out", error=str(error))


def _task(row: Row) -> Task:
    return Task(
        id=row[0],
        service=row[1],
        user=row[2],
        status=Status(row[3]),
        reason=None if row[4] is None else Reason(row[4]),
        priority=row[5],
        attempt=row[6],
        errors_left=row[7],
        losses=row[8],
        lost_sequence=row[9],
        created_at=row[10],
        started_at=row[11],
        finished_at=row[12],
        due_at=row[13],
        labels=json.loads(row[14]),
        error=_error(row[15]),
        stream=bool(row[16]),
        checkpoint=None if row[17] is None else _checkpoint(row[17:24]),
        params=row[24],
        result=row[25],
        retry=None if row[26] is None else RetryPolicy(**json.loads(row[26])),
        bytes=row[27],
    )


def new_task(new: NewTask) -> Row:
    """For `TASK_COLUMNS`."""
    status, reason = begin(new)
    labels = _text(dict(new.labels))
    retry = None if new.retry is None else _text(asdict(new.retry))
    first = (new.id, new.service, new.user, status, new.priority, 0, new.errors_left, 0, -1)
    return (*first, new.created_at, labels, new.params, reason, new.stream, new.due_at, retry, new.bytes)


def begin(new: NewTask) -> tuple[Status, Reason | None]:
    """Where a new task's life begins."""
    return (Status.PAUSED, Reason.AWAITING_DATA) if new.stream else (Status.PENDING, None)


def added(new: NewTask) -> Task:
    """The task that `new_task` inserts."""
    status, reason = begin(new)
    return Task(
        id=new.id,
        service=new.service,
        user=new.user,
        status=status,
        reason=reason,
        params=new.params,
        priority=new.priority,
        labels=dict(new.labels),
        attempt=0,
        errors_left=new.errors_left,
        losses=0,
        lost_sequence=-1,
        checkpoint=None,
        result=None,
        error=None,
        created_at=new.created_at,
        started_at=None,
        finished_at=None,
        due_at=new.due_at,
        stream=new.stream,
        retry=new.retry,
        bytes=new.bytes,
    )


def _checkpoint(row: Row) -> Checkpoint:
    sequence, attempt, version, saved_at, outputs, progress, state = row
    return Checkpoint(
        sequence=sequence,
        attempt=attempt,
        version=version,
        saved_at=saved_at,
        outputs=json.loads(outputs),
        progress=None if progress is None else Progress(**json.loads(progress)),
        state=state,
    )


def checkpoint_row(task_id: str, point: Checkpoint) -> Row:
    """For `CHECKPOINT_COLUMNS`."""
    progress = None if point.progress is None else _text(asdict(point.progress))
    outputs = _text(dict(point.outputs))
    return task_id, point.sequence, point.attempt, point.version, point.saved_at, outputs, progress, point.state


def _error(text: str | None) -> ErrorInfo | None:
    return None if text is None else ErrorInfo(**json.loads(text))


def error_text(info: ErrorInfo | None) -> str | None:
    """Its JSON."""
    return None if info is None else _text(asdict(info))


def attempt(row: Row) -> Attempt:
    """From `ATTEMPT_COLUMNS`."""
    task_id, number, kind, started_at, ended_at, outcome, exit_code, signal, cpu_s, peak_memory_bytes, error = row
    end = None
    if ended_at is not None:
        end = AttemptEnd(
            ended_at=ended_at,
            outcome=Event(outcome),
            exit_code=exit_code,
            signal=signal,
            cpu_s=cpu_s,
            peak_memory_bytes=peak_memory_bytes,
            error=_error(error),
        )
    return Attempt(task_id=task_id, attempt=number, kind=Kind(kind), started_at=started_at, end=end)


def end_row(end: AttemptEnd) -> Row:
    """For the columns of `ATTEMPT_COLUMNS` from ``ended_at`` on."""
    first = (end.ended_at, end.outcome, end.exit_code, end.signal)
    return (*first, end.cpu_s, end.peak_memory_bytes, error_text(end.error))


def event(row: Row) -> EventRecord:
    """From ``id`` and `EVENT_COLUMNS`."""
    return EventRecord(
        id=row[0],
        task_id=row[1],
        user=row[2],
        at=row[3],
        event=None if row[4] is None else Event(row[4]),
        status=Status(row[5]),
        reason=None if row[6] is None else Reason(row[6]),
        attempt=row[7],
        by=row[8],
    )


def tombstone(row: Row) -> Tombstone:
    """From `TOMBSTONE_COLUMNS`."""
    return Tombstone(id=row[0], service=row[1], user=row[2], gone_at=row[3], by=row[4], receipt=_receipt(row[5]))


def usage(found: list[Row]) -> Usage:
    """From the row of a user, if there is one."""
    if not found:
        return Usage()
    size, uploads, unfinished = found[0]
    return Usage(bytes=size, uploads=uploads, unfinished=unfinished)


def _receipt(text: str | None) -> Receipt | None:
    if text is None:
        return None
    values = json.loads(text)
    return Receipt(**{**values, "processes": tuple(values["processes"])})


def tombstone_row(left: Tombstone) -> Row:
    """For `TOMBSTONE_COLUMNS`."""
    receipt = None if left.receipt is None else _text(asdict(left.receipt))
    return left.id, left.service, left.user, left.gone_at, left.by, receipt


def _text(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, from a log or a client's "\\ud800": SQLite takes it only escaped
        return json.dumps(value)
    return text
