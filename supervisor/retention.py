"""What is kept for so long and no longer: completed and failed tasks, abandoned uploads, tombstones of what is gone.

One timer for the earliest, whatever is stored. Each expiry is the step that a person might have taken: it loses against
a resume or a delete of the same task, and what a crash leaves undone is found again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog

from intermission.state.models import Task
from intermission.state.store import Store, StoreError
from intermission.supervisor.steady import SteadyClock

_AT_ONCE: Final = 4
"""Tasks that expire side by side. They take threads from those that keep checkpoints, and `clean` takes children."""
_TOMBSTONES_AT_ONCE: Final = 500
"""In one transaction: what is asked for meanwhile waits for it."""
_CLOCK_CHECK_S: Final = 60.0
"""The longest sleep: a corrected system clock is noticed by then, and what could not be removed is tried again."""
_log = structlog.get_logger()


class _Find(Protocol):
    async def __call__(self, before: float, limit: int, /, *, after: Task | None) -> list[Task]: ...


class Retention:
    """See the module."""

    def __init__(
        self,
        store: Store,
        expire: Callable[[Task], Awaitable[None]],
        remove_left: Callable[[], Awaitable[None]],
        *,
        keep_s: float,
        uploads_s: float,
        clock: SteadyClock,
    ) -> None:
        """``remove_left`` is called once, before the first tombstone goes: it needs them to know what is gone."""
        self._clock = clock
        self._store = store
        self._expire = expire
        self._remove_left = remove_left
        self._keep_s = keep_s
        self._uploads_s = uploads_s
        self._watching: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin."""
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop, in the middle of whatever it is: the next start goes on."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))

    async def _watch(self) -> None:
        try:
            await self._remove_left()
        except (OSError, StoreError) as error:
            _log.error("what deleted tasks have left could not be looked for", error=str(error))
        while True:
            try:
                wait_s = await self._sweep()
            except StoreError as error:
                _log.error("what has expired could not be read", error=str(error))
                wait_s = _CLOCK_CHECK_S
            except Exception:  # noqa: BLE001 -- this must not have been the last look; it is logged whole
                _log.exception("what has expired could not be read")
                wait_s = _CLOCK_CHECK_S
            await asyncio.sleep(min(max(wait_s, 0), _CLOCK_CHECK_S))

    async def _sweep(self) -> float:
        """Expire whatever is old enough; in how many seconds to look again."""
        now = self._clock.now()
        before = now - self._keep_s
        done = [
            *await self._expire_all(self._store.expired, before),
            *await self._expire_all(self._store.abandoned, now),
        ]
        while await self._store.forget(before, _TOMBSTONES_AT_ONCE) == _TOMBSTONES_AT_ONCE:
            pass
        if done:
            _log.info("what had expired is removed", tasks=sum(done), failures=len(done) - sum(done))
        # With nothing stored: what finishes or is paused in the meantime is kept for the whole time too.
        finished_at = (await self._store.oldest() or now) + self._keep_s
        abandoned_at = await self._store.next_abandoned() or now + self._uploads_s
        next_at = min(finished_at, abandoned_at)
        if next_at < now:  # something that is due could not be removed, or not be read
            return _CLOCK_CHECK_S
        return next_at - self._clock.now()

    async def _expire_all(self, find: _Find, before: float) -> list[bool]:
        """Expire what is found; of each whether that could be done."""
        done: list[bool] = []
        last: Task | None = None
        while batch := await find(before, _AT_ONCE, after=last):
            last = batch[-1]
            done += await asyncio.gather(*map(self._expired, batch))
        return done

    async def _expired(self, task: Task) -> bool:
        """Whether a task that is old enough could be expired."""
        try:
            await self._expire(task)
        except (OSError, StoreError) as error:
            _log.warning("a task that has expired could not be removed", task=task.id, error=str(error))
            return False
        return True
