"""What clients see of the records: plain values for the JSON encoder, named as the API names them."""

import json
import math
import mimetypes
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Final, cast, overload
from urllib.parse import quote

import msgspec

from intermission.handlers import media
from intermission.handlers.base import Retry
from intermission.handlers.inputs import CONTENT
from intermission.handlers.registry import AnyHandler
from intermission.state.models import (
    Attempt,
    Checkpoint,
    ErrorInfo,
    EventRecord,
    Progress,
    Quota,
    Receipt,
    Task,
    Tombstone,
    Usage,
)
from intermission.supervisor.inputs import UPLOAD
from intermission.supervisor.routes import shapes
from intermission.supervisor.usage import ChildView

_OURS: Final = {"jsonl": "application/jsonl", "log": "text/plain"}  # which this machine may know or not
_PATH: Final = re.compile(r"[/\\]")
_LONGEST_BYTES: Final = 200
_PACKED: Final = {"gzip": "application/gzip"}


def task(of: Task, child: ChildView | None) -> shapes.Task:
    """A task, whole."""
    checkpoint = of.checkpoint
    return {
        **task_item(of),
        "checkpoint": None if checkpoint is None else {**_checkpoint(checkpoint), "state": stored(checkpoint.state)},
        "params": stored(of.params),
        "retry": None if of.retry is None else Retry(of.retry.errors, of.retry.base_s, of.retry.cap_s),
        "result": None if of.result is None else stored(of.result),
        "child": None if child is None else _child(child),
        "files": [] if checkpoint is None else _files(of, checkpoint.outputs),
    }


def task_item(of: Task) -> shapes.TaskItem:
    """A task as lists show it: without what may be large."""
    checkpoint = of.checkpoint
    return {
        "id": of.id,
        "service": of.service,
        "user": of.user,
        "status": of.status,
        "reason": of.reason,
        "priority": of.priority,
        "labels": of.labels,
        "attempt": of.attempt,
        "errors_left": of.errors_left,
        "progress": None if checkpoint is None or checkpoint.progress is None else _progress(checkpoint.progress),
        "checkpoint": None if checkpoint is None else _checkpoint(checkpoint),
        "error": None if of.error is None else error(of.error),
        "created_at": time(of.created_at),
        "started_at": time(of.started_at),
        "finished_at": time(of.finished_at),
        "due_at": time(of.due_at),
        "allowed": of.allowed,
    }


def terminated(stone: Tombstone) -> shapes.Terminated:
    """What a terminate answers when the task is gone."""
    return {
        "id": stone.id,
        "status": "terminated",
        "receipt": None if stone.receipt is None else receipt(stone.receipt),
    }


def receipt(of: Receipt) -> shapes.Receipt:
    """What a terminate did."""
    processes = [{**process, "started_at": _time_of(process)} for process in of.processes]
    return {
        "processes": cast("list[shapes.Process]", processes),  # as `models.Receipt` says that they are
        "survivors": of.survivors,
        "cleaned": of.cleaned,
        "files_deleted": of.files_deleted,
    }


def usage(of: Usage, quota: Quota) -> shapes.Usage:
    """What a user's uploads come to."""
    return {
        "stored_bytes": of.bytes,
        "max_bytes": quota.bytes,
        "uploads": of.uploads,
        "unfinished": of.unfinished,
        "max_unfinished": quota.unfinished,
    }


def attempt(of: Attempt) -> shapes.Attempt:
    """One attempt; what its end would say is null while it runs."""
    end = of.end
    return {
        "attempt": of.attempt,
        "kind": of.kind,
        "started_at": time(of.started_at),
        "ended_at": time(end.ended_at) if end else None,
        "outcome": end.outcome if end else None,
        "exit_code": end.exit_code if end else None,
        "signal": end.signal if end else None,
        "cpu_s": end.cpu_s if end else None,
        "peak_memory_bytes": end.peak_memory_bytes if end else None,
        "error": error(end.error) if end and end.error else None,
    }


def event(of: EventRecord) -> shapes.HistoryEvent:
    """One line of a history."""
    return {
        "id": of.id,
        "task": of.task_id,
        "at": time(of.at),
        "event": of.event or "created",
        "status": of.status,
        "reason": of.reason,
        "attempt": of.attempt,
        "by": of.by,
    }


@cache
def service(of: AnyHandler) -> shapes.Service:
    """A service."""
    return {
        "name": of.service,
        "description": of.description,
        "version": of.version,
        "stream": of.stream,
        "max_running": of.max_running,
        "retry": of.retry,
        "limits": of.limits,
        "params": of.params.json_schema("validation"),
        "state": of.state.json_schema("serialization"),
        "result": of.result.json_schema("serialization"),
    }


def error(of: ErrorInfo) -> shapes.Error:
    """Why an attempt errored."""
    return {
        "kind": of.kind,
        "type": of.type,
        "message": of.message,
        "traceback": of.traceback,
        "exit_code": of.exit_code,
        "signal": of.signal,
        "attempt": of.attempt,
    }


@overload
def time(seconds: float) -> str: ...
@overload
def time(seconds: float | None) -> str | None: ...
def time(seconds: float | None) -> str | None:
    """RFC 3339 in UTC, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def stored(text: str) -> msgspec.Raw:
    """JSON as it is stored, not parsed again.

    NaN and infinities, which a state may hold and Python's JSON can write, would make the answer unreadable to other
    clients: they become null, as JavaScript has it.
    """
    if "NaN" in text or "Infinity" in text:
        text = json.dumps(json.loads(text, parse_constant=lambda _: None))
    return msgspec.Raw(text)


def media_type(of: Task, name: str) -> str:
    """What an upload's bytes were found to be; of any other file what its name says, or how it is packed."""
    if of.service == UPLOAD and name == CONTENT:
        return media.inert("" if of.result is None else json.loads(of.result)["media_type"])
    kind, packing = mimetypes.guess_type(name)
    kind = _OURS.get(name.rpartition(".")[2], kind)
    if packing is not None:
        kind = _PACKED.get(packing)
    return kind or "application/octet-stream"


def saved_as(of: Task, name: str) -> str:
    """What a download is called: an upload as it was, without a path and what cannot be seen; other files by name."""
    if of.service != UPLOAD or name != CONTENT or of.result is None:
        return name
    called = _PATH.split(json.loads(of.result)["filename"] or "")[-1]
    # Format characters go, too: one that turns the order of letters makes an .exe look like a .jpg.
    seen = "".join(letter for letter in called if letter.isprintable())
    return seen.encode()[-_LONGEST_BYTES:].decode(errors="ignore").lstrip(". ") or name


def _progress(of: Progress) -> shapes.Progress:
    percent = eta_s = None
    if of.total:
        percent = round(100 * of.done / of.total, 1)
        if of.per_second:
            eta_s = round(max(of.total - of.done, 0) / of.per_second, 1)
    return {
        "done": _number(of.done),
        "total": _number(of.total),
        "unit": of.unit,
        "percent": _number(percent),
        "per_second": _number(of.per_second),
        "eta_s": _number(eta_s),
    }


def _number(value: float | None) -> float | int | None:
    """A count as a count: handlers say 3, the store keeps 3.0."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def _checkpoint(of: Checkpoint) -> shapes.CheckpointItem:
    return {"sequence": of.sequence, "saved_at": time(of.saved_at), "version": of.version}


def _child(of: ChildView) -> shapes.Child:
    return {
        "pid": of.pid,
        "node": "localhost",
        "started_at": time(of.started_at),
        "cpu_s": of.cpu_s,
        "rss_bytes": of.rss_bytes,
    }


def _files(of: Task, outputs: Mapping[str, int]) -> list[shapes.File]:
    return [
        {
            "name": name,
            "size_bytes": size,
            "media_type": media_type(of, name),
            "href": f"/tasks/{of.id}/files/{quote(name)}",
        }
        for name, size in sorted(outputs.items())
    ]


def _time_of(process: Mapping[str, object]) -> str | None:
    started_at = process.get("started_at")
    return time(started_at) if isinstance(started_at, int | float) else None
