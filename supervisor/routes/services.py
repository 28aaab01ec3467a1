"""``/{service}/…``: the same five routes for every service; and ``/services``, which there are."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from pydantic import with_config
from typing_extensions import TypedDict

from intermission.state.status import Event
from intermission.supervisor.routes import answers, digests, lists, requests, shapes, streams, views
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.operation import Operation, Params


class OfService(TypedDict):
    """In the address of a service."""

    name: str


@with_config(use_attribute_docstrings=True)
class Which(TypedDict, total=False):
    """Which tasks of a service are meant."""

    task: shapes.TaskId
    """Only this one: the answer is the task, whole, instead of a page."""


def add(app: web.Application) -> None:
    """Add the routes. They match any name; the supervisor refuses what is no service, and says which there are."""
    app.router.add_get("/services", index)
    app.router.add_get("/services/{name}", show)
    app.router.add_options("/upload/start", streams.options_of_start)
    app.router.add_post("/{service}/start", start, expect_handler=requests.later)
    app.router.add_get("/{service}/status", status)
    for verb in answers.VERBS:
        app.router.add_post(f"/{{service}}/{verb}", _verb(verb), expect_handler=requests.later)


@Operation(answers={200: shapes.Services}, problems=(422,))
async def index(request: web.Request) -> web.StreamResponse:
    """List the services that there are, each with the JSON Schema of its params, state and result."""
    requests.query(request)
    handlers = request.app[SUPERVISOR].registry.handlers
    page: shapes.Services = {"items": [views.service(handlers[name]) for name in sorted(handlers)], "next": None}
    return requests.answer(request, page)


@Operation(path=(OfService,), answers={200: shapes.Service}, problems=(404, 422))
async def show(request: web.Request) -> web.StreamResponse:
    """Show a service, with the JSON Schema of its params, state and result."""
    requests.query(request)
    supervisor = request.app[SUPERVISOR]
    name = supervisor.service(request.match_info["name"])
    return requests.answer(request, views.service(supervisor.registry.handlers[name]))


@Operation(
    headers=(requests.Waiting, requests.Keyed),
    body=Params,
    answers={202: shapes.Task},
    problems=answers.STARTED_PROBLEMS,
    sends=("Location", "Idempotency-Replayed", *answers.SENDS),
    streamed=streams.start,
    filed=streams.start_with_file,
)
async def start(request: web.Request) -> web.StreamResponse:
    """Start a task of this service; the body is its params.

    202 means that it is on disk. With a wait, the answer comes when it rests.
    """
    supervisor = request.app[SUPERVISOR]
    service = supervisor.service(request.match_info["service"])
    if supervisor.is_stream(service):
        return await streams.start(request, service)
    handler = supervisor.registry.handlers[service]
    files = streams.file_types(handler)
    if handler.body is not None and request.headers.get("Content-Type") and request.content_type in files:
        return await streams.start_with_file(request, service, handler.body)
    requests.query(request)
    params = await requests.json_body(request, files)
    key = requests.key(request, params)
    return await answers.started(request, await supervisor.start(service, params, request[CALLER].user, key=key))


@Operation(
    query=(lists.Limit, lists.Filters, Which),
    headers=(digests.Wanting,),
    answers={200: shapes.Task | shapes.TaskPage},
    problems=(404, 410, 422, 503),
    sends=answers.PROGRESS,
)
async def status(request: web.Request) -> web.StreamResponse:
    """Show one task of this service, or list one's own."""
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    service = supervisor.service(request.match_info["service"])
    values = requests.query(request, "task", *lists.PARAMETERS, repeatable=lists.REPEATABLE)
    if "task" in values:
        task_id = requests.task_id(values["task"][0])
        return answers.task(request, await supervisor.of_service(service, task_id, caller.scope))
    return await lists.page(request, values, caller.user, service)


def _verb(verb: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    act = answers.VERBS[verb]

    @Operation(
        query=(requests.OneOf,),
        headers=(requests.Waiting,),
        answers=answers.TOLD[verb],
        problems=answers.TOLD_PROBLEMS,
        sends=answers.SENDS,
        streamed=streams.resume if verb == Event.RESUME else None,
    )
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

    told.__name__, told.__doc__ = verb, act.__doc__
    return told
