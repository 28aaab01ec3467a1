"""``/tasks``: every service's tasks, by id."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from aiohttp import web
from pydantic import Field

from intermission.handlers.schema import Fault, Invalid, Schema
from intermission.supervisor.routes import answers, lists, requests, views
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$")]
_Value = Annotated[str, Field(max_length=255)]


@dataclass
class StartRequest:
    """The body of ``POST /tasks``."""

    service: str
    params: dict[str, Any] = field(default_factory=dict)
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    labels: Annotated[dict[_Name, _Value], Field(max_length=16)] = field(default_factory=dict)


_START: Final = Schema(StartRequest)


def add(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/tasks", index)
    app.router.add_post("/tasks", start)
    app.router.add_get("/tasks/{id}", show)
    app.router.add_delete("/tasks/{id}", delete)
    for verb in answers.VERBS:
        app.router.add_post(f"/tasks/{{id}}/{verb}", _verb(verb))
    app.router.add_get("/tasks/{id}/attempts", attempts)
    app.router.add_get("/tasks/{id}/events", events)


async def index(request: web.Request) -> web.StreamResponse:
    """One page of tasks: the caller's, or for an administrator everybody's or those of ``?user=``."""
    values = requests.query(request, "service", "user", *lists.PARAMETERS, repeatable=lists.REPEATABLE)
    user = values["user"][0] if "user" in values else request[CALLER].scope
    return await lists.page(request, values, user, values["service"][0] if "service" in values else None)


async def start(request: web.Request) -> web.StreamResponse:
    """Start a task of any service, with a priority and labels."""
    requests.query(request)
    supervisor = request.app[SUPERVISOR]
    body = _START.check(await requests.json_body(request))
    service = supervisor.service(body.service)
    if supervisor.is_stream(service):
        raise Invalid([Fault("/service", f"its work is the body of a request: use POST /{service}/start")])
    try:
        fresh = await supervisor.start(
            service, body.params, request[CALLER].user, priority=body.priority, labels=body.labels
        )
    except Invalid as error:
        raise Invalid([Fault("/params" + fault.pointer, fault.message) for fault in error.faults]) from None
    return await answers.started(request, fresh)


async def show(request: web.Request) -> web.StreamResponse:
    """A task as it is now."""
    requests.query(request)
    return answers.task(request, await answers.found(request))


async def delete(request: web.Request) -> web.StreamResponse:
    """Delete a completed task."""
    requests.query(request)
    caller = request[CALLER]
    task_id = requests.task_id(request.match_info["id"])
    await request.app[SUPERVISOR].delete(task_id, caller.scope, by=caller.user)
    return web.Response(status=204)


async def attempts(request: web.Request) -> web.StreamResponse:
    """Each attempt, oldest first."""
    requests.query(request)
    task = await answers.found(request)
    rows = await request.app[SUPERVISOR].store.attempts(task.id)
    return requests.answer(request, {"items": [views.attempt(row) for row in rows], "next": None})


async def events(request: web.Request) -> web.StreamResponse:
    """The history, oldest first."""
    requests.query(request)
    task = await answers.found(request)
    rows = await request.app[SUPERVISOR].store.events(task.id)
    return requests.answer(request, {"items": [views.event(row) for row in rows], "next": None})


def _verb(verb: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    act = answers.VERBS[verb]

    async def told(request: web.Request) -> web.StreamResponse:
        requests.query(request)
        return await act(request, requests.task_id(request.match_info["id"]))

    return told
