"""How much of a body is taken: no more than its data may have, and than its user may store."""

from typing import Final

from intermission.state.models import Task
from intermission.supervisor.core import Supervisor
from intermission.supervisor.errors import QuotaError

_STEP_BYTES: Final = 8 << 20
"""With how much more an upload of unknown length counts at a time."""


class Allowance:
    """Of one body. Offsets here are those of the data."""

    def __init__(self, supervisor: Supervisor, task: Task, bound: int | None, counted: int) -> None:
        """``bound``: how long the data may be. ``counted``: how long it has been reserved for."""
        self._supervisor = supervisor
        self._task = task
        self._bound = bound
        self._counted = counted
        self.used_up = False
        """Whether it is the user who may not store more."""

    async def up_to(self, wanted: int) -> int:
        """To which offset the data may be taken, that is no further than what is wanted."""
        most = wanted if self._bound is None else min(wanted, self._bound)
        if most > self._counted:
            self._counted = await self._count(most)
        self.used_up = self._counted < most
        return min(self._counted, most)

    async def _count(self, wanted: int) -> int:
        """Have the upload count with so much, and some more if its user may have that; with how much it counts then."""
        most = wanted
        for size in (wanted + _STEP_BYTES, wanted):
            try:
                await self._supervisor.reserve(self._task, size)
            except QuotaError as error:
                most = size - error.excess
            else:
                return size
        try:
            await self._supervisor.reserve(self._task, most)
        except QuotaError:  # another one of theirs has had it
            return self._counted
        return max(most, self._counted)
