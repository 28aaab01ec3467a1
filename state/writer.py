"""One writer with group commit: what was asked for during a commit goes into the next one, together and in order."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from intermission.state.connection import Connection, is_full, translated
from intermission.state.store import StoreError
from intermission.state.transaction import Operation, T, Transaction

_MOST: Final = 1000
"""Operations in one transaction: the first of a flood should not wait for its last."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of an operation of which nothing was written."""

    error: Exception


class Writer:
    """Runs operations on the one connection that writes."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._waiting: deque[tuple[Operation[Any], asyncio.Future[Any]]] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, operation: Operation[T]) -> T:
        """The operation's result, once it is on disk. Cancelling the caller does not cancel the operation."""
        if self._closed:
            raise StoreError("the store is not open")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, future))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return await future

    async def close(self) -> None:
        """Commit what waits, then refuse more."""
        self._closed = True
        if self._writing is not None:
            await asyncio.wait((self._writing,))

    async def _write(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST))]
            futures = [future for _, future in batch]
            try:
                results = await self._db.run(partial(committed, operations=[operation for operation, _ in batch]))
            except asyncio.CancelledError:
                for future in futures:
                    future.cancel()
                raise
            except Exception as error:  # noqa: BLE001 -- the callers must hear of it, and the next batch have its turn
                results = [Failure(error)] * len(batch)
            for future, result in zip(futures, results, strict=True):
                if future.done():  # its caller was cancelled
                    continue
                if isinstance(result, Failure):
                    future.set_exception(translated(result.error))
                else:
                    future.set_result(result)


def committed(db: sqlite3.Connection, operations: Sequence[Operation[Any]]) -> list[Any]:
    """What each operation returns, or its `Failure`, when that is on disk.

    If the transaction fails through one of them, or does not fit on the disk, each half gets one of its own, and so on:
    in the end only those that cannot be done are left out. No other failure can be mended by that: all are left out.
    """
    try:
        return _transacted(db, operations)
    except Exception as error:  # noqa: BLE001 -- whatever it is belongs to a caller, not to this thread
        beyond_them = isinstance(error, sqlite3.Error) and not isinstance(error, _THEIRS) and not is_full(error)
        if len(operations) == 1 or beyond_them:
            return [Failure(error) for _ in operations]
    half = len(operations) // 2
    return committed(db, operations[:half]) + committed(db, operations[half:])


_THEIRS: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


def _transacted(db: sqlite3.Connection, operations: Sequence[Operation[Any]]) -> list[Any]:
    try:
        db.execute("BEGIN IMMEDIATE")
        transaction = Transaction(db)
        results = [operation(transaction) for operation in operations]
        transaction.finish()
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some errors have rolled back by themselves
            db.execute("ROLLBACK")
        raise
    return results
