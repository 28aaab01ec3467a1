"""``/upload/files/{id}``: an upload under its own address, whichever protocol is spoken there."""

import contextlib
from typing import Final

from aiohttp import web

from intermission.state.models import Task, Tombstone
from intermission.state.status import Status
from intermission.supervisor.errors import ConflictError, there
from intermission.supervisor.inputs import UPLOAD
from intermission.supervisor.routes import proxies, requests
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.problems import Problem
from intermission.supervisor.stream import announced

PATH: Final = "/upload/files"
_GONE_WITHIN_S: Final = 10.0


def location(request: web.Request, task_id: str) -> str:
    """Where it is. Absolute, for some clients need that; relative, which is right behind any proxy, for want of it."""
    return f"{proxies.origin(request) or ''}{PATH}/{task_id}"


async def found(request: web.Request) -> Task:
    """The upload that the address names. Raises `UnknownTaskError` and `GoneError`."""
    task_id = requests.task_id(request.match_info["id"])
    return await request.app[SUPERVISOR].of_service(UPLOAD, task_id, request[CALLER].scope)


def check_takes_bytes(task: Task) -> None:
    """Refuse the bytes for an upload that is made of others. Raises `Problem` (403)."""
    if not task.stream:
        raise Problem(403, "final", "an upload that is made of parts takes no bytes")


async def vacant(request: web.Request, task: Task) -> Task:
    """The upload, once no other request brings it bytes. Raises `UnknownTaskError` and `GoneError`."""
    supervisor = request.app[SUPERVISOR]
    task = await supervisor.take_over(task.id, request[CALLER].scope)
    if task.status is Status.TERMINATING:
        return there(await supervisor.wait_gone(task.id, _GONE_WITHIN_S))
    return task


def stays(task: Task, size: int | None) -> bool:
    """Whether bytes may come, but none that come now change nothing, and ``size`` bytes in all are nothing new.

    Then there is no need of an attempt, of which each is kept.
    """
    return task.status is Status.PAUSED and not task.is_held and size == announced(task)


async def delete(request: web.Request, task: Task) -> web.StreamResponse:
    """Have nothing be left of it: a complete one is deleted, any other terminated."""
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    while task.status is not Status.COMPLETED:
        with contextlib.suppress(ConflictError):  # it has been completed meanwhile
            await supervisor.terminate(task.id, caller.scope, by=caller.user)
            now = await supervisor.wait_gone(task.id, _GONE_WITHIN_S)
            return web.Response(status=204 if isinstance(now, Tombstone) else 202)
        task = await found(request)
    await supervisor.delete(task.id, caller.scope, by=caller.user)
    return web.Response(status=204)
