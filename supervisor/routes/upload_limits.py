"""What one upload may do, and what is refused before a byte of it is taken."""

import asyncio
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.bodies import has_body
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.problems import Problem


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one upload may do."""

    max_bytes: int | None
    idle_s: float
    min_rate: int
    """In bytes a second; see `intermission.supervisor.routes.pace`."""


LIMITS: Final = web.AppKey("limits", UploadLimits)


def check_crowd(request: web.Request) -> None:
    """Refuse the body of a new upload while no place is free: else it would be created only to wait.

    Raises `CrowdedError`.
    """
    if has_body(request):
        request.app[SUPERVISOR].crowd.check(request[CALLER].user)


async def check_size(
    request: web.Request, size: int | None, body: int | None, offset: int = 0, task_id: str | None = None
) -> None:
    """Refuse what cannot fit before a byte of it is taken. Raises `Problem` (413, 507)."""
    supervisor, most = request.app[SUPERVISOR], request.app[LIMITS].max_bytes
    end = offset + (body or 0)
    if size is not None and end > size:
        detail = f"the data has {size} bytes in all, and this body would end at byte {end}: send the rest, no more"
        raise Problem(413, "too-long", detail, headers={"Upload-Length": str(size)})
    if most is not None and max(end, size or 0) > most:
        raise Problem(413, "too-large", f"at most {most} bytes are taken, and this would be {max(end, size or 0)}")
    free = await asyncio.to_thread(supervisor.places.room, task_id)
    if (wanted := (end if size is None else size) - offset) > free:
        raise Problem(507, "no-space", f"there is no space for {wanted} bytes: {free} are left; try again later")


def too_large(request: web.Request) -> Problem:
    """That more came than is taken, of what did not say how long it would be."""
    return Problem(413, "too-large", f"at most {request.app[LIMITS].max_bytes} bytes are taken; nothing is kept")
