"""Which index a list walks along, and how far.

A filter that an index answers costs nothing; the others are asked of each row on the way, and of `EXAMINED` at most.
"""

import contextlib
import sqlite3
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

from intermission.state import rows
from intermission.state.models import EventPage, Page, Query, Task
from intermission.state.status import RESTING, Status

EXAMINED: Final = 5000
MOVING: Final = tuple(status for status in Status if status not in RESTING and status is not Status.GONE)
"""Statuses that a task does not stay in, in the order of the indexes' own conditions."""
IS_MOVING: Final = f"status IN ({', '.join(repr(str(status)) for status in MOVING)})"

_LABELS: Final = "CASE WHEN json_valid(t.labels) THEN t.labels ELSE '{}' END"
_LAST_EVENT: Final = 2**63 - 1
_EXPIRED: Final = (
    f"SELECT {rows.LISTED} FROM tasks AS t INDEXED BY tasks_finished {rows.WITH_CHECKPOINT} "
    "WHERE t.finished_at < ? AND (t.finished_at, t.id) > (?, ?) "
    "AND NOT EXISTS (SELECT 1 FROM uses WHERE upload_id = t.id) ORDER BY t.finished_at, t.id"
)
_ABANDONED: Final = (
    f"SELECT {rows.LISTED} FROM tasks AS t INDEXED BY tasks_abandoned {rows.WITH_CHECKPOINT} "
    "WHERE t.status = 'paused' AND t.stream AND t.due_at < ? AND (t.due_at, t.id) > (?, ?) "
    "ORDER BY t.due_at, t.id"
)


@dataclass(frozen=True, slots=True)
class Walk:
    """An index, newest first, and the conditions that it answers."""

    index: str | None
    where: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    rest: Query = field(default_factory=Query)
    """What is left to be asked of each row."""

    @property
    def source(self) -> str:
        """The table with its index, for FROM. The planner has no statistics, so it is told."""
        return "tasks AS t" if self.index is None else f"tasks AS t INDEXED BY {self.index}"


def walk(query: Query) -> Walk:
    """The narrowest index for a query."""
    moving = bool(query.statuses) and query.statuses <= set(MOVING)
    match query:
        case Query(user=str(user), service=str(service)):
            rest = replace(query, service=None)
            return Walk("tasks_of_user_and_service", ("user = ?", "service = ?"), (user, service), rest)
        case Query(user=str(user)) if moving:
            return Walk("tasks_moving_of_user", (IS_MOVING, "user = ?"), (user,), query)
        case Query(user=str(user)):
            return Walk("tasks_of_user", ("user = ?",), (user,), query)
        case Query(statuses=statuses) if moving and len(statuses) == 1:
            rest = replace(query, statuses=frozenset())
            return Walk("tasks_moving", (IS_MOVING, "status = ?"), tuple(statuses), rest)
        case Query(service=str(service)):
            return Walk("tasks_of_service", ("service = ?",), (service,), replace(query, service=None))
        case _:
            return Walk(None, rest=query)


def page(db: sqlite3.Connection, query: Query) -> Page:
    """See `Store.find`."""
    along = walk(query)
    where, values = list(along.where), list(along.values)
    if query.before is not None:
        where.append("t.id < ?")
        values.append(query.before)
    asked, asked_values = _asked(along.rest)
    last = _last(db, along.source, where, values) if asked else None
    if last is not None:
        where.append("t.id >= ?")
        values.append(last)
    sql = (
        f"SELECT {rows.LISTED} FROM {along.source} {rows.WITH_CHECKPOINT} "
        f"WHERE {' AND '.join([*where, *asked]) or 'true'} ORDER BY t.id DESC LIMIT ?"
    )
    found = db.execute(sql, (*values, *asked_values, query.limit + 1)).fetchall()
    items = tuple(rows.readable(found[: query.limit]))
    return Page(items=items, next=str(found[query.limit - 1][0]) if len(found) > query.limit else last)


def events(db: sqlite3.Connection, user: str | None, before: int | None, limit: int) -> EventPage:
    """See `Store.find_events`."""
    where, values = ("WHERE", ()) if user is None else ("INDEXED BY events_of_user WHERE user = ? AND", (user,))
    sql = f"SELECT id, {rows.EVENT_COLUMNS} FROM events {where} id < ? ORDER BY id DESC LIMIT ?"
    last = _LAST_EVENT if before is None else before
    found = [rows.event(row) for row in db.execute(sql, (*values, last, limit + 1)).fetchall()]
    return EventPage(items=tuple(found[:limit]), next=found[limit - 1].id if len(found) > limit else None)


def expired(db: sqlite3.Connection, before: float, limit: int, after: Task | None) -> list[Task]:
    """See `Store.expired`."""
    place = (-1.0, "") if after is None else (after.finished_at, after.id)
    return _first(db, limit, _EXPIRED, (before, *place))


def abandoned(db: sqlite3.Connection, at: float, limit: int, after: Task | None) -> list[Task]:
    """See `Store.abandoned`."""
    place = (-1.0, "") if after is None else (after.due_at, after.id)
    return _first(db, limit, _ABANDONED, (at, *place))


def _first(db: sqlite3.Connection, limit: int, sql: str, values: tuple[Any, ...]) -> list[Task]:
    """The first tasks that can be read, however many cannot be."""
    with contextlib.closing(db.execute(sql, values)) as found:
        return list(islice(rows.readable(found), limit))


def _asked(rest: Query) -> tuple[list[str], list[Any]]:
    """The conditions that are asked of each row, and their values; its user is always an index's matter."""
    parts, values = list[str](), list[Any]()
    if rest.service is not None:
        parts.append("service = ?")
        values.append(rest.service)
    if rest.statuses:
        parts.append(f"status IN ({', '.join('?' * len(rest.statuses))})")
        values += sorted(rest.statuses)
    for name, value in rest.labels.items():
        parts.append(f"EXISTS (SELECT 1 FROM json_each({_LABELS}) AS l WHERE l.key = ? AND l.value = ?)")
        values += (name, value)
    return parts, values


def _last(db: sqlite3.Connection, source: str, where: list[str], values: list[Any]) -> str | None:
    """The last task that may be examined, if there are so many. Read first: who comes in later is newer."""
    sql = f"SELECT t.id FROM {source} WHERE {' AND '.join(where) or 'true'} ORDER BY t.id DESC LIMIT 1 OFFSET ?"
    found = db.execute(sql, (*values, EXAMINED - 1)).fetchall()
    return str(found[0][0]) if found else None
