"""``/tasks``: every service's tasks, by id."""

import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any, Final

from aiohttp import web
from pydantic import BeforeValidator, Field, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from intermission.handlers.base import LONGEST_S, MOST_ERRORS, Retry
from intermission.handlers.schema import Fault, Invalid, Schema
from intermission.state.models import RetryPolicy
from intermission.supervisor.routes import answers, digests, lists, requests, shapes, streams, views
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.operation import Operation

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$")]
_Value = Annotated[str, Field(max_length=255)]

_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _moment(value: object) -> datetime:
    """A time with its zone (RFC 3339), which pydantic would also take in a dozen other forms."""
    moment = None
    if isinstance(value, str) and _MOMENT.fullmatch(value.upper()):
        with contextlib.suppress(ValueError):  # a 31st of February
            moment = datetime.fromisoformat(value.upper())
    if moment is None:
        raise PydanticCustomError("moment", "Must be a time such as 2030-01-31T08:00:00Z, with its zone")
    if moment.timestamp() > time.time() + LONGEST_S:
        raise PydanticCustomError("moment", "Must be within ten years")
    return moment


@with_config(extra="forbid", use_attribute_docstrings=True)
@dataclass
class RetryRequest:
    """How this task's errors are retried; what is left out is as its handler says."""

    errors: Annotated[int, Field(ge=1, le=MOST_ERRORS)] | None = None
    """The last of so many fails it."""
    base_s: Annotated[float, Field(ge=0, le=LONGEST_S)] | None = None
    """The longest wait after the first; it doubles with each."""
    cap_s: Annotated[float, Field(ge=0, le=LONGEST_S)] | None = None
    """The longest wait of all."""

    def over(self, usual: Retry) -> RetryPolicy:
        """The whole of it."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return RetryPolicy(**asdict(usual) | given)


@with_config(use_attribute_docstrings=True)
@dataclass
class StartRequest:
    """Which service, with which params, and what else is to be known of the task."""

    service: str
    params: dict[str, Any] = field(default_factory=dict)
    """As the service's own `/start` takes them."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Higher ones are launched first."""
    labels: Annotated[dict[_Name, _Value], Field(max_length=16)] = field(default_factory=dict)
    """To find it by."""
    delay_s: Annotated[float, Field(ge=0, le=LONGEST_S)] | None = None
    """Start it so much later."""
    due_at: Annotated[datetime, BeforeValidator(_moment)] | None = None
    """Start it then; a time that is past is now."""
    retry: RetryRequest | None = None

    def start_at(self) -> float | None:
        """When to start it, if not now. Raises `Invalid`."""
        if self.delay_s is not None and self.due_at is not None:
            raise Invalid([Fault("/due_at", "Give either delay_s or due_at")])
        now = time.time()
        at = now + (self.delay_s or 0) if self.due_at is None else self.due_at.timestamp()
        return at if at > now else None


_START: Final = Schema(StartRequest)
_READ_PROBLEMS: Final = (404, 410, 422, 503)


@with_config(use_attribute_docstrings=True)
class Filters(TypedDict, total=False):
    """What the list of all tasks takes besides."""

    service: shapes.Text
    """Only tasks of this service."""
    user: shapes.Text
    """Only this user's; for administrators."""


def add(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/tasks", index)
    app.router.add_post("/tasks", start, expect_handler=requests.later)
    app.router.add_get("/tasks/{id}", show)
    app.router.add_delete("/tasks/{id}", delete)
    app.router.add_post("/tasks/{id}/pause", _verb("pause"))
    app.router.add_post("/tasks/{id}/resume", resume, expect_handler=requests.later)
    app.router.add_post("/tasks/{id}/terminate", _verb("terminate"))
    app.router.add_get("/tasks/{id}/attempts", attempts)
    app.router.add_get("/tasks/{id}/events", events)


@Operation(query=(lists.Limit, lists.Filters, Filters), answers={200: shapes.TaskPage}, problems=(422, 503))
async def index(request: web.Request) -> web.StreamResponse:
    """List tasks, newest first: one's own, and for an administrator everybody's."""
    values = requests.query(request, "service", "user", *lists.PARAMETERS, repeatable=lists.REPEATABLE)
    user = values["user"][0] if "user" in values else request[CALLER].scope
    return await lists.page(request, values, user, values["service"][0] if "service" in values else None)


@Operation(
    headers=(requests.Waiting, requests.Keyed),
    body=StartRequest,
    answers={202: shapes.Task},
    problems=(404, *answers.STARTED_PROBLEMS),
    sends=("Location", "Idempotency-Replayed", *answers.SENDS),
)
async def start(request: web.Request) -> web.StreamResponse:
    """Start a task of any service, with a priority, labels and a retry policy of its own, now or later.

    202 means that it is on disk. With a wait, the answer comes when it rests.
    """
    requests.query(request)
    supervisor = request.app[SUPERVISOR]
    asked = await requests.json_body(request)
    body = _START.check(asked)
    service = supervisor.service(body.service)
    if supervisor.is_stream(service):
        raise Invalid([Fault("/service", f"its work is the body of a request: use POST /{service}/start")])
    due_at = body.start_at()
    try:
        fresh = await supervisor.start(
            service,
            body.params,
            request[CALLER].user,
            priority=body.priority,
            labels=body.labels,
            retry=None if body.retry is None else body.retry.over(supervisor.registry.handlers[service].retry),
            due_at=due_at,
            key=requests.key(request, asked),
        )
    except Invalid as error:
        raise Invalid([Fault("/params" + fault.pointer, fault.message) for fault in error.faults]) from None
    return await answers.started(request, fresh)


@Operation(
    path=(requests.OfTask,),
    headers=(digests.Wanting,),
    answers={200: shapes.Task},
    problems=_READ_PROBLEMS,
    sends=answers.PROGRESS,
)
async def show(request: web.Request) -> web.StreamResponse:
    """Show a task as it is now."""
    requests.query(request)
    return answers.task(request, await answers.found(request))


@Operation(path=(requests.OfTask,), answers={204: None}, problems=(*_READ_PROBLEMS, 409, 507))
async def delete(request: web.Request) -> web.StreamResponse:
    """Delete a completed task: its record, its files and its log."""
    requests.query(request)
    caller = request[CALLER]
    task_id = requests.task_id(request.match_info["id"])
    await request.app[SUPERVISOR].delete(task_id, caller.scope, by=caller.user)
    return web.Response(status=204)


@Operation(
    path=(requests.OfTask,), query=(lists.Limit, lists.Before), answers={200: shapes.Attempts}, problems=_READ_PROBLEMS
)
async def attempts(request: web.Request) -> web.StreamResponse:
    """List a task's attempts, oldest first: how each ended, and what it used."""
    after, limit = _after(request)
    task = await answers.found(request)
    rows = await request.app[SUPERVISOR].store.attempts(task.id, after, limit + 1)
    cursor = str(rows[limit - 1].attempt) if len(rows) > limit else None
    page: shapes.Attempts = {"items": [views.attempt(row) for row in rows[:limit]], "next": cursor}
    return requests.answer(request, page)


@Operation(
    path=(requests.OfTask,), query=(lists.Limit, lists.Before), answers={200: shapes.Events}, problems=_READ_PROBLEMS
)
async def events(request: web.Request) -> web.StreamResponse:
    """List what happened to a task, oldest first."""
    after, limit = _after(request)
    task = await answers.found(request)
    rows = await request.app[SUPERVISOR].store.events(task.id, after, limit + 1)
    cursor = str(rows[limit - 1].id) if len(rows) > limit else None
    page: shapes.Events = {"items": [views.event(row) for row in rows[:limit]], "next": cursor}
    return requests.answer(request, page)


def _after(request: web.Request) -> tuple[int, int]:
    """After which number a page begins, and how many items it may have. Raises `Problem` (422)."""
    values = requests.query(request, "limit", "cursor")
    return lists.before(values) or 0, lists.limit(values)


def _verb(verb: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    act = answers.VERBS[verb]

    @Operation(
        path=(requests.OfTask,),
        headers=(requests.Waiting,),
        answers=answers.TOLD[verb],
        problems=answers.TOLD_PROBLEMS,
        sends=answers.SENDS,
    )
    async def told(request: web.Request) -> web.StreamResponse:
        requests.query(request)
        return await act(request, requests.task_id(request.match_info["id"]))

    told.__name__, told.__doc__ = verb, act.__doc__
    return told


@replace(streams.RESUMING, path=(requests.OfTask,), query=())
async def resume(request: web.Request) -> web.StreamResponse:
    """Let the task go on where it stopped; that of a stream service with more of its data.

    With a wait, the answer comes when it rests again. A stream service's may bring data, the body, from Upload-Offset
    on: 200 when it is durable. Without both, only a pause is lifted: 200, for the task then awaits its data.
    """
    requests.query(request)
    task = await answers.found(request)
    if task.stream:
        return await streams.resume(request, task)
    return await answers.resume(request, task.id)
