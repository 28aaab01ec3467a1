"""One transaction on the thread of the connection that writes, and what may be done in it.

A change of status is one statement, guarded and in its order. Rows that nothing in the same transaction reads (events,
attempts) are collected and written together at its end, new tasks as soon as somebody may look for them.
"""

import sqlite3
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final, TypeVar

from intermission.state import rows
from intermission.state.rows import Row

T = TypeVar("T")
Operation = Callable[["Transaction"], T]
"""What is asked of the store, run on the thread. It may be run again in another transaction if its first one failed."""

_MOST_AT_ONCE: Final = 64
_ENDED: Final = """
UPDATE attempts SET ended_at = ?, outcome = ?, exit_code = ?, signal = ?, cpu_s = ?, peak_memory_bytes = ?, error = ?
WHERE task_id = ? AND attempt = ?
"""


class Transaction:
    """Between BEGIN and COMMIT; `finish` comes last."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._added: list[Row] = []
        self._begun: list[Row] = []
        self._ended: list[Row] = []
        self._events: list[Row] = []

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement that must see everything before it; what it returns."""
        self._flush_added()
        return self._db.execute(sql, values).fetchall()

    def change(self, sql: str, values: Sequence[Any]) -> int:
        """The same for a statement that returns nothing; how many rows it changed."""
        self._flush_added()
        return self._db.execute(sql, values).rowcount

    def add(self, row: Row) -> None:
        """Insert a task, soon."""
        self._added.append(row)

    def begun(self, task_id: str, attempt: int, kind: str, at: float) -> None:
        """An attempt begins."""
        self._begun.append((task_id, attempt, kind, at))

    def ended(self, task_id: str, attempt: int, end: Row) -> None:
        """An attempt ended."""
        self._ended.append((*end, task_id, attempt))

    def event(self, row: Row) -> None:
        """Something happened; for `rows.EVENT_COLUMNS`."""
        self._events.append(row)

    def finish(self) -> None:
        """Write what was collected."""
        self._flush_added()
        self._insert("attempts", "task_id, attempt, kind, started_at", self._begun)
        for row in self._ended:
            self._db.execute(_ENDED, row)
        self._ended.clear()
        self._insert("events", rows.EVENT_COLUMNS, self._events)

    def _flush_added(self) -> None:
        self._insert("tasks", rows.TASK_COLUMNS, self._added)

    def _insert(self, table: str, columns: str, values: list[Row]) -> None:
        """Many rows a statement: between two statements the thread has to win the interpreter's lock back."""
        while values:
            count = min(_MOST_AT_ONCE, 1 << (len(values).bit_length() - 1))  # few sizes, so few statements to prepare
            self._db.execute(_insert_sql(table, columns, count), tuple(chain.from_iterable(values[:count])))
            del values[:count]


@lru_cache
def _insert_sql(table: str, columns: str, count: int) -> str:
    row = f"({', '.join('?' * (columns.count(',') + 1))})"
    return f"INSERT INTO {table} ({columns}) VALUES {', '.join([row] * count)}"
