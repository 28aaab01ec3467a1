"""What may be asked of the store, as operations: what each writes, and in what order."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from intermission.state import rows
from intermission.state.models import KEEP, Change, Checkpoint, Earlier, Keep, Kind, NewTask, Task, Tombstone, Usage
from intermission.state.status import Event, Reason, Status
from intermission.state.store import KEYS_KEPT_S, WARY_AFTER
from intermission.state.transaction import Operation, Transaction

_FINISHED: Final = frozenset({Status.COMPLETED, Status.FAILED})
_GUARD: Final = "WHERE id = ? AND status = ? AND attempt = ?"
_SAVE: Final = f"""
INSERT INTO checkpoints ({rows.CHECKPOINT_COLUMNS}) SELECT ?, ?, ?, ?, ?, ?, ?, ? WHERE {{guard}}
ON CONFLICT (task_id) DO UPDATE SET sequence = excluded.sequence, attempt = excluded.attempt,
  version = excluded.version, saved_at = excluded.saved_at, outputs = excluded.outputs, progress = excluded.progress,
  state = excluded.state
WHERE excluded.sequence > checkpoints.sequence
"""
_SAVE_ALONG: Final = _SAVE.format(guard="true")
_SAVE_ALONE: Final = _SAVE.format(
    guard="EXISTS (SELECT 1 FROM tasks WHERE id = ? AND attempt = ? AND status IN ('running', 'pausing'))"
)
_RIPEN: Final = "UPDATE tasks SET due_at = NULL WHERE status = 'pending' AND due_at <= ?"
_NEXT_OF_SERVICE: Final = """
SELECT * FROM (SELECT id, priority FROM tasks INDEXED BY {index}
  WHERE status = 'pending' AND due_at IS NULL AND losses {losses} AND service = ?
  ORDER BY priority DESC, id LIMIT ?)
"""
_CLAIM: Final = """
UPDATE tasks SET status = 'running', reason = NULL, attempt = attempt + 1, started_at = coalesce(started_at, ?)
WHERE id IN (SELECT id FROM ({next}) ORDER BY priority DESC, id LIMIT ?) RETURNING id
"""
_PARK: Final = """
UPDATE tasks SET status = 'failed', reason = 'state_unreadable', finished_at = ? WHERE id = ?
RETURNING user, attempt
"""
_BY_IDS: Final = f"{rows.TASKS} WHERE t.id IN (SELECT value FROM json_each(?)) ORDER BY t.priority DESC, t.id"
_WAKE: Final = """
UPDATE tasks SET status = 'pending', reason = NULL, due_at = NULL WHERE status = 'retrying' AND due_at <= ?
RETURNING id, user, attempt
"""
_FORGET: Final = """
DELETE FROM tombstones
WHERE id IN (SELECT id FROM tombstones INDEXED BY tombstones_gone WHERE gone_at < ? ORDER BY gone_at LIMIT ?)
"""

_EARLIER: Final = "SELECT task_id, digest FROM start_keys WHERE user = ? AND name = ? AND at > ?"
_KEEP_KEY: Final = "INSERT OR REPLACE INTO start_keys (user, name, digest, task_id, at) VALUES (?, ?, ?, ?, ?)"
_FORGET_KEYS: Final = """
DELETE FROM start_keys
WHERE (user, name) IN (SELECT user, name FROM start_keys INDEXED BY start_keys_at WHERE at <= ? ORDER BY at LIMIT 4)
"""
"""Each start with a key takes more old ones away than it adds, so that none stays for long."""

USAGE: Final = "SELECT bytes, uploads, unfinished FROM usage WHERE user = ?"
_COUNT: Final = """
INSERT INTO usage (user, bytes, uploads, unfinished)
SELECT user, {sign}bytes, {sign}1, {sign}(status <> 'completed') FROM tasks WHERE id = ?
ON CONFLICT (user) DO UPDATE SET bytes = bytes + excluded.bytes, uploads = uploads + excluded.uploads,
  unfinished = unfinished + excluded.unfinished
"""
_COUNT_IN: Final = _COUNT.format(sign="")
_COUNT_OUT: Final = _COUNT.format(sign="-")
_GONE: Final = f"DELETE FROM tasks {_GUARD} RETURNING user, bytes, status <> 'completed'"
_COUNT_GONE: Final = """
UPDATE usage SET bytes = bytes - ?, uploads = uploads - 1, unfinished = unfinished - ? WHERE user = ?
"""
_MOST: Final = 2**63 - 1
_RESERVE: Final = f"""
UPDATE tasks SET bytes = ? {_GUARD} AND bytes < ?
AND ? + (SELECT bytes FROM usage WHERE usage.user = tasks.user) <= ?
"""


def add(new: NewTask) -> Operation[Task | Earlier | Usage]:
    """See `Store.add`."""
    row, task = rows.new_task(new), rows.added(new)

    def operation(transaction: Transaction) -> Task | Earlier | Usage:
        since = new.created_at - KEYS_KEPT_S
        if new.key is not None:
            for found in transaction.fetch(_EARLIER, (new.user, new.key.name, since)):
                return Earlier(*found)
        if new.quota is not None:
            usage = rows.usage(transaction.fetch(USAGE, (new.user,)))
            if usage.unfinished >= new.quota.unfinished or not new.quota.allows(usage, new.bytes or 0):
                return usage
        if new.key is not None:
            transaction.change(_FORGET_KEYS, (since,))
            transaction.change(_KEEP_KEY, (new.user, new.key.name, new.key.digest, new.id, new.created_at))
        transaction.add(row)
        if new.bytes is not None:
            transaction.change(_COUNT_IN, (new.id,))
        transaction.event((task.id, task.user, task.created_at, None, task.status, task.reason, 0, task.user))
        for upload_id in new.uploads:
            transaction.change("INSERT INTO uses (upload_id, task_id) VALUES (?, ?)", (upload_id, task.id))
        return task

    return operation


def advance(change: Change) -> Operation[Task | None]:
    """See `Store.advance`."""
    target = change.task.after(change.event)
    if target is None or target is Status.GONE:
        raise ValueError(f"{change.event} does not lead from {change.task.status} to a status that is stored")
    if target is Status.RETRYING and change.due_at is None:
        raise ValueError("a retrying task without due_at would never be woken")
    _check_fence(change)
    before, columns = change.task, _columns(change, target)
    names = ", ".join(f"{name} = ?" for name in columns)
    sql = f"UPDATE tasks SET {names} {_GUARD}"
    values = (*columns.values(), before.id, before.status, before.attempt)

    def operation(transaction: Transaction) -> Task | None:
        if not _changed(transaction, before, sql, values):
            return None
        if change.checkpoint is not None:
            transaction.change(_SAVE_ALONG, rows.checkpoint_row(before.id, change.checkpoint))
        task = rows.task(*transaction.fetch(f"{rows.TASKS} WHERE t.id = ?", (before.id,)))
        if change.end is not None:
            transaction.ended(task.id, before.attempt, rows.end_row(change.end))
        if target is Status.COMPLETED:
            transaction.change("DELETE FROM uses WHERE task_id = ?", (task.id,))
        if change.kind is not None:
            transaction.begun(task.id, task.attempt, change.kind, change.at)
        transaction.event(_event(task, change.event, change.at, change.by))
        return task

    return operation


def _check_fence(change: Change) -> None:
    if isinstance(change.attempt, Keep):
        if change.kind is not None:
            raise ValueError("an attempt can only begin with a number of its own")
    elif change.attempt <= change.task.attempt:
        raise ValueError(f"attempt {change.attempt} does not raise the fence, which is at {change.task.attempt}")


def _columns(change: Change, target: Status) -> Mapping[str, Any]:
    columns: dict[str, Any] = {"status": target, "reason": change.reason, "due_at": change.due_at}
    columns["finished_at"] = change.at if target in _FINISHED else None
    for name in ("attempt", "params", "bytes", "result", "errors_left", "losses", "lost_sequence"):
        if (value := getattr(change, name)) is not KEEP:
            columns[name] = value
    if not isinstance(change.error, Keep):
        columns["error"] = rows.error_text(change.error)
    if change.kind is Kind.RUN and change.task.started_at is None:
        columns["started_at"] = change.at
    return columns


def claim(limit: int, services: Collection[str], at: float, *, wary: bool) -> Operation[list[Task]]:
    """See `Store.claim`."""
    index, losses = ("tasks_wary", f">= {WARY_AFTER}") if wary else ("tasks_ready", f"< {WARY_AFTER}")
    of_service = _NEXT_OF_SERVICE.format(index=index, losses=losses)
    sql = _CLAIM.format(next=" UNION ALL ".join([of_service] * len(services)))

    def operation(transaction: Transaction) -> list[Task]:
        # A pending task that was delayed joins the others for good: its time is compared once, not by each claim.
        transaction.change(_RIPEN, (at,))
        claimed: list[Task] = []
        while (left := limit - len(claimed)) > 0:
            values = [at, *(value for service in services for value in (service, left)), left]
            ids = [task_id for (task_id,) in transaction.fetch(sql, values)]
            found = list(rows.readable(transaction.fetch(_BY_IDS, (json.dumps(ids),)))) if ids else []
            claimed += found
            if len(found) == len(ids):
                break
            for task_id in set(ids).difference(task.id for task in found):
                _park(transaction, task_id, at)
        for task in claimed:
            transaction.begun(task.id, task.attempt, Kind.RUN, at)
            transaction.event(_event(task, Event.CLAIMED, at))
        return claimed

    return operation


def _park(transaction: Transaction, task_id: str, at: float) -> None:
    """Fail a task whose row cannot be read, or it would be the next one for ever."""
    for user, attempt in transaction.fetch(_PARK, (at, task_id)):
        transaction.event((task_id, user, at, Event.REFUSED, Status.FAILED, Reason.STATE_UNREADABLE, attempt, None))


def reserve(task: Task, size: int, most: int | None) -> Operation[bool]:
    """See `Store.reserve`."""
    values = (size, task.id, task.status, task.attempt, size, size, _MOST if most is None else most)

    def operation(transaction: Transaction) -> bool:
        return _changed(transaction, task, _RESERVE, values)

    return operation


def _changed(transaction: Transaction, task: Task, sql: str, values: Sequence[Any]) -> bool:
    """Whether a statement changes the task; if it is counted, it is taken out of its user's usage for as long."""
    if task.bytes is None:
        return transaction.change(sql, values) > 0
    transaction.change(_COUNT_OUT, (task.id,))
    changed = transaction.change(sql, values)
    transaction.change(_COUNT_IN, (task.id,))
    return changed > 0


def save(task_id: str, attempt: int, checkpoint: Checkpoint) -> Operation[bool]:
    """See `Store.save`."""
    values = (*rows.checkpoint_row(task_id, checkpoint), task_id, attempt)

    def operation(transaction: Transaction) -> bool:
        return transaction.change(_SAVE_ALONE, values) > 0

    return operation


def wake_due(at: float) -> Operation[int]:
    """See `Store.wake_due`."""

    def operation(transaction: Transaction) -> int:
        woken = transaction.fetch(_WAKE, (at,))
        for task_id, user, attempt in woken:
            transaction.event((task_id, user, at, Event.DUE, Status.PENDING, None, attempt, None))
        return len(woken)

    return operation


def bury(change: Change, tombstone: Tombstone) -> Operation[bool]:
    """See `Store.bury`."""
    task = change.task
    if task.after(change.event) is not Status.GONE:
        raise ValueError(f"{change.event} does not lead from {task.status} to gone")
    if tombstone.id != task.id:
        raise ValueError("the tombstone is another task's")

    def operation(transaction: Transaction) -> bool:
        gone = transaction.fetch(_GONE, (task.id, task.status, task.attempt))
        if not gone:
            return False
        ((user, counted, unfinished),) = gone
        if counted is not None:
            transaction.change(_COUNT_GONE, (counted, unfinished, user))
            transaction.change("DELETE FROM usage WHERE user = ? AND uploads = 0", (user,))
        transaction.finish()  # what was collected of this task must not be written after it is deleted
        for table in ("checkpoints", "attempts", "events", "uses"):
            transaction.change(f"DELETE FROM {table} WHERE task_id = ?", (task.id,))
        sql = f"INSERT INTO tombstones ({rows.TOMBSTONE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"
        transaction.change(sql, rows.tombstone_row(tombstone))
        return True

    return operation


def forget(before: float, limit: int) -> Operation[int]:
    """See `Store.forget`."""

    def operation(transaction: Transaction) -> int:
        return transaction.change(_FORGET, (before, limit))

    return operation


def _event(task: Task, event: Event, at: float, by: str | None = None) -> rows.Row:
    return task.id, task.user, at, event, task.status, task.reason, task.attempt, by
