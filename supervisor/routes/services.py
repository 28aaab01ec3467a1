"""``/{service}/…``: the same five routes for every service."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from intermission.state.status import Event
from intermission.supervisor.routes import answers, lists, requests, streams
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER


def add(app: web.Application) -> None:
    """Add the routes. They match any name; the supervisor refuses what is no service, and says which there are."""
    app.router.add_post("/{service}/start", start)
    app.router.add_get("/{service}/status", status)
    for verb in answers.VERBS:
        app.router.add_post(f"/{{service}}/{verb}", _verb(verb))


async def start(request: web.Request) -> web.StreamResponse:
    """Start a task; the body is its params, or of a stream service its data."""
    supervisor = request.app[SUPERVISOR]
    service = supervisor.service(request.match_info["service"])
    if supervisor.is_stream(service):
        return await streams.start(request, service)
    requests.query(request)
    params = await requests.json_body(request)
    return await answers.started(request, await supervisor.start(service, params, request[CALLER].user))


async def status(request: web.Request) -> web.StreamResponse:
    """One task of the service with ``?task=``, else the caller's."""
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    service = supervisor.service(request.match_info["service"])
    values = requests.query(request, "task", *lists.PARAMETERS, repeatable=lists.REPEATABLE)
    if "task" in values:
        task_id = requests.task_id(values["task"][0])
        return answers.task(request, await supervisor.of_service(service, task_id, caller.scope))
    return await lists.page(request, values, caller.user, service)


def _verb(verb: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    act = answers.VERBS[verb]

    async def told(request: web.Request) -> web.StreamResponse:
        supervisor, caller = request.app[SUPERVISOR], request[CALLER]
        service = supervisor.service(request.match_info["service"])
        values = requests.query(request, "task")
        if "task" in values:
            task = await supervisor.of_service(service, requests.task_id(values["task"][0]), caller.scope)
        else:
            task = await supervisor.only(service, caller.user, Event(verb))
        if task.stream and verb == Event.RESUME:
            return await streams.resume(request, task)
        return await act(request, task.id)

    return told
