"""The verbs as HTTP answers, the same for a task by its id and for a service's only task.

A pause or a terminate is answered with 200 when it is so, and otherwise with 202 and the status as it is.
"""

from typing import Any, Final

from aiohttp import web

from intermission.state.models import Task, Tombstone
from intermission.state.status import RESTING, Status
from intermission.supervisor.core import Start, Supervisor
from intermission.supervisor.errors import there
from intermission.supervisor.routes import digests, requests, shapes, views
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.stream import announced, received

SUPERVISOR: Final = web.AppKey("supervisor", Supervisor)
_STOP_WAIT_S: Final = 10.0


async def found(request: web.Request) -> Task:
    """The task that the address names. Raises `UnknownTaskError` and `GoneError`."""
    task_id = requests.task_id(request.match_info["id"])
    return await request.app[SUPERVISOR].get(task_id, request[CALLER].scope)


def task(request: web.Request, shown: Task, status: int = 200, **headers: str) -> web.Response:
    """The task, whole; of a stream service, with how much of its data is durable, and its digest if that is wanted."""
    child = request.app[SUPERVISOR].child(shown.id)
    told = _progress(shown) | digests.wanted(request, shown)
    return requests.answer(request, views.task(shown, child), status, **told, **headers)


async def started(request: web.Request, start: Start) -> web.Response:
    """A task that has just been accepted, or was by the same start before; with a wait, as it is when it rests."""
    now = await _resting(request, start.task)
    return task(request, now, 202, Location=f"/tasks/{now.id}", **replayed(start))


def replayed(start: Start) -> dict[str, str]:
    """The header that says that this is the task of an earlier start."""
    return {"Idempotency-Replayed": "true"} if start.replayed else {}


async def pause(request: web.Request, task_id: str) -> web.Response:
    """Pause the task.

    200 when it is so: its place is saved and its process is gone. 202 with the task as it is when that takes longer
    than the wait, or when it came to another end first.
    """
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    await supervisor.pause(task_id, caller.scope, by=caller.user)
    wait_s = requests.wait_s(request, _STOP_WAIT_S)
    now = there(await supervisor.wait(task_id, lambda now: now.status is not Status.PAUSING, wait_s))
    return task(request, now, 200 if now.status is Status.PAUSED else 202)


async def resume(request: web.Request, task_id: str) -> web.Response:
    """Let the task go on where it stopped.

    With a wait, the answer comes when it rests again. 200 is that of a stream service, whose task now awaits its data.
    """
    caller = request[CALLER]
    resumed = await request.app[SUPERVISOR].resume(task_id, caller.scope, by=caller.user)
    return task(request, await _resting(request, resumed), 200 if resumed.stream else 202)


async def terminate(request: web.Request, task_id: str) -> web.Response:
    """Terminate the task: its whole process tree is killed, its effects are undone, its state is deleted.

    200 with the receipt when it is so. 202 with the task as it is when that takes longer than the wait.
    """
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    await supervisor.terminate(task_id, caller.scope, by=caller.user)
    wait_s = requests.wait_s(request, _STOP_WAIT_S)
    now = await supervisor.wait_gone(task_id, wait_s)
    if isinstance(now, Tombstone):
        return requests.answer(request, views.terminated(now))
    return task(request, now, 202)


def _progress(shown: Task) -> dict[str, str]:
    if not shown.stream:
        return {}
    length = announced(shown)
    return {"Upload-Offset": str(received(shown)), **({} if length is None else {"Upload-Length": str(length)})}


VERBS: Final = {"pause": pause, "resume": resume, "terminate": terminate}
TOLD: Final[dict[str, dict[int, Any]]] = {
    "pause": {200: shapes.Task, 202: shapes.Task},
    "resume": {200: shapes.Task, 202: shapes.Task},
    "terminate": {200: shapes.Terminated, 202: shapes.Task},
}
"""What each verb answers."""
TOLD_PROBLEMS: Final = (404, 409, 410, 422, 503, 507)
STARTED_PROBLEMS: Final = (410, 503, 507)
PROGRESS: Final = ("Upload-Offset", "Upload-Length", *digests.SENDS)
SENDS: Final = ("Preference-Applied", *PROGRESS)


async def _resting(request: web.Request, now: Task) -> Task:
    wait_s = requests.wait_s(request, 0.0)
    if wait_s == 0:
        return now
    return there(await request.app[SUPERVISOR].wait(now.id, lambda task: task.status in RESTING, wait_s))
