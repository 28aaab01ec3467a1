"""Stream services, whose tasks' work is the body of requests: they are started and resumed with it.

However a body ends, the answer says how far the data is durable (``Upload-Offset``).
"""

import asyncio
from typing import Annotated, Final

from aiohttp import web
from pydantic import Field, with_config
from typing_extensions import TypedDict

from intermission.handlers.body import MAX_SIZE
from intermission.handlers.registry import AnyHandler
from intermission.handlers.schema import Invalid
from intermission.state.models import Task
from intermission.state.status import Event, Reason, Status
from intermission.supervisor.core import Start
from intermission.supervisor.errors import ConflictError, OffsetError, SupervisorError
from intermission.supervisor.inputs import UPLOAD
from intermission.supervisor.routes import (
    again,
    answers,
    bodies,
    delivery,
    digests,
    multipart,
    outcome,
    requests,
    resource,
    resumable,
    shapes,
    sources,
    upload_limits,
)
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.operation import File, Operation
from intermission.supervisor.routes.problems import Problem
from intermission.supervisor.stream import Delivery, announced, received

_ANY_FILE: Final = ("application/octet-stream", multipart.MEDIA_TYPE)
"""They say nothing of the file."""


@with_config(use_attribute_docstrings=True)
class Naming(TypedDict, total=False):
    """What is said of the data in the address."""

    filename: shapes.Text
    """What it is called; without it, what Content-Disposition says, of a form's file that in the form."""


_Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Announcing = TypedDict(
    "Announcing",
    {
        "Upload-Length": Annotated[_Size, Field(description="How many bytes there are in all")],
        "Content-Disposition": Annotated[str, Field(description="`attachment; filename=…`")],
    },
    total=False,
)
Continuing = TypedDict(
    "Continuing",
    {"Upload-Offset": Annotated[_Size, Field(description="At which byte of the data this body begins")]},
    total=False,
)


def file_types(handler: AnyHandler) -> tuple[str, ...]:
    """The types of a body that is a file for this service. One has to be given: without it the body may be JSON."""
    return () if handler.body is None else (*handler.body_types, *_ANY_FILE)


@Operation(query=(Naming,), answers={204: None}, problems=(422,), sends=("Accept-Patch", "Upload-Limit"))
async def options_of_start(request: web.Request) -> web.StreamResponse:
    """Tell that uploads that start here can be resumed, and what limits them."""
    requests.query(request, "filename")
    return web.Response(status=204, headers=resumable.support(request))


@Operation(
    query=(Naming,),
    headers=(
        *(Announcing, digests.Announcing, digests.Covering, digests.Wanting),
        *(requests.Keyed, resumable.Speaking),
    ),
    body=("application/octet-stream", multipart.MEDIA_TYPE),
    answers={200: shapes.Task, 201: shapes.Task, 202: shapes.Task},
    problems=(400, 408, 409, 410, 411, 413, 415, 422, 423, 503, 507),
    sends=("Location", "Idempotency-Replayed", *answers.PROGRESS, *resumable.SENDS),
    interims=resumable.CREATING,
)
async def start(request: web.Request, service: str) -> web.StreamResponse:
    """Start a task of this service; the body is its data, of any type, or a form with nothing but one file.

    201 when the last byte is durable, 200 when it was paused before. With Upload-Length and no body it is only created.
    With Upload-Complete it is a resumable upload: 104 and the 201 of one that is not complete say where it goes on.
    """
    if service == UPLOAD and resumable.creates(request):
        values = requests.query(request, "filename")
        return await resumable.create(request, {"filename": values["filename"][0]} if values else {})
    checksum = digests.of_content(request)
    began, source = await _create(request, service)
    fresh = began.task
    if _is_to_come(request):
        return answers.task(request, fresh, 201, Location=f"/tasks/{fresh.id}", **answers.replayed(began))
    if began.replayed:
        brought = await again.deliver(request, fresh, source, checksum)
    else:
        brought = await delivery.deliver(request, fresh, Delivery(checksum=checksum), source=source, created=True)
    answer = await _told(request, brought, created=True)
    answer.headers.update(answers.replayed(began))
    return answer


@Operation(
    query=(Naming,),
    headers=(requests.Waiting, Announcing, digests.Announcing, digests.Covering, digests.Wanting),
    body=File,
    answers={200: shapes.Task, 201: shapes.Task, 202: shapes.Task},
    problems=(400, 408, 409, 410, 411, 413, 415, 422, 503, 507),
    sends=("Location", *answers.SENDS),
)
async def start_with_file(request: web.Request, service: str, field: str) -> web.StreamResponse:
    """Start a task of this service with a file: the body, which is kept as an upload of one's own.

    202 and the task when the whole file is there; until then what is said is said of the upload: 201 where by its
    announced length more is to come, 200 where it was paused. It takes no Idempotency-Key: to have one, upload the
    file, then start with its upload.
    """
    if _is_to_come(request):
        raise Problem(411, "length-required", "send the file as the body; to send it later, start with its upload then")
    if "Idempotency-Key" in request.headers:
        detail = "a start with a file cannot be repeated by its key: upload the file, then start with its upload"
        raise Problem(400, "key-not-taken", detail)
    checksum = digests.of_content(request)
    began, source = await _create(request, UPLOAD)
    bringing = Delivery(checksum=checksum)
    brought = await delivery.deliver(request, began.task, bringing, source=source, created=True)
    if brought.task.status is not Status.COMPLETED:
        return await _told(request, brought, created=True)
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    try:
        start = await supervisor.start(service, {field: f"upload:{brought.task.id}"}, caller.user)
    except (Invalid, SupervisorError):
        await supervisor.delete(brought.task.id, caller.scope, by=caller.user)  # nobody asked for it alone
        raise
    return await answers.started(request, start)


async def _create(request: web.Request, service: str) -> tuple[Start, sources.Source]:
    """Create a task for the body; and where its data comes from."""
    values = requests.query(request, "filename")
    body, size = bodies.body_length(request), bodies.count(request, "Upload-Length")
    if body is None and not bodies.is_chunked(request) and size is None:
        detail = "send the data as the body, or Upload-Length without a body to announce it"
        raise Problem(411, "length-required", detail)
    upload_limits.check_crowd(request)
    source: sources.Source
    if request.content_type == multipart.MEDIA_TYPE:
        source = form = _form(request)
        await upload_limits.check_size(request, size, form.least_bytes)
        head = await _head(request, form)
    else:
        source, size = sources.Raw(request), body if size is None else size
        _check_media(request)
        await upload_limits.check_size(request, size, body)
        head = bodies.Head(bodies.filename(request), request.content_type)
    info = {
        "filename": values["filename"][0] if "filename" in values else head.filename,
        "media_type": head.media_type,
        "size_bytes": size,
        **digests.asked(request),
    }
    key = requests.key(request, info)
    supervisor, brings = request.app[SUPERVISOR], bodies.has_body(request)
    return await supervisor.start(service, info, request[CALLER].user, key=key, brings=brings), source


def _form(request: web.Request) -> multipart.Form:
    """What the body says that it is. Raises `Problem` (400, 415)."""
    bodies.check_encoding(request)
    if digests.are_announced(request):
        detail = "the digest would be that of the form, not of its file: send the file itself to have it verified"
        raise Problem(400, "digest-of-form", detail)
    requests.key(request, None)  # refused before the form is asked for, though what it stands for is in the form
    return multipart.Form(request)


async def _head(request: web.Request, form: multipart.Form) -> bodies.Head:
    """What a form says of its file; until that has come there is no task. Raises `Problem` (400, 408, 415, 422)."""
    try:
        async with asyncio.timeout(request.app[upload_limits.LIMITS].idle_s):
            return await form.begin()
    except TimeoutError:
        raise Problem(408, "idle", "the form's file did not begin in time; nothing is kept") from None
    except (ConnectionError, web.RequestPayloadError):  # there is nobody left to read this
        raise Problem(400, "malformed-body", "the body broke off") from None


def _is_to_come(request: web.Request) -> bool:
    """Whether there is no body now, but a length of data."""
    return bool(bodies.count(request, "Upload-Length")) and not bodies.has_body(request)


RESUMING: Final = Operation(
    query=(requests.OneOf,),
    headers=(requests.Waiting, Continuing, digests.Covering, digests.Wanting),
    body="application/octet-stream",
    answers={200: shapes.Task, 202: shapes.Task},
    problems=(400, 404, 408, 409, 410, 413, 415, 422, 503, 507),
    sends=answers.SENDS,
)
"""A resume, which may bring data."""


@RESUMING
async def resume(request: web.Request, task: Task) -> web.StreamResponse:
    """Go on with the task's data: the body, from Upload-Offset on.

    Without a body, only a pause is lifted; and what has all of its data then needs no more to be completed. Where it is
    so already, a body of nothing at its end is answered with the task. Data of unknown length ends with any body, be it
    of nothing (Content-Length: 0): a request without one does not end it.
    """
    offset = bodies.count(request, "Upload-Offset")
    if offset is None:
        if bodies.has_body(request):
            raise bodies.offset_required()
        return await answers.resume(request, task.id)
    _check_media(request)
    digests.check_announced(request, task)
    bringing = Delivery(offset=offset, checksum=digests.of_content(request))
    task = await resource.vacant(request, task)
    if task.status is Status.COMPLETED:
        if offset != received(task) or bodies.has_body(request):
            raise ConflictError(task, Event.RESUME)
        return answers.task(request, task)  # only the answer was lost, to a client or to the last generation
    if offset != (place := received(task)):  # first of all: from a wrong place every size would be wrong
        raise OffsetError(task, place)
    size = announced(task)
    if size is None and bodies.body_length(request) is None and not bodies.is_chunked(request):
        return await answers.resume(request, task.id)
    await upload_limits.check_size(request, size, bodies.body_length(request), offset, task.id)
    return await _told(request, await delivery.deliver(request, task, bringing), created=False)


def _check_media(request: web.Request) -> None:
    if request.content_type.startswith("multipart/"):
        detail = (
            "multipart is taken only as a form that starts an upload: send the file, or the rest of it, as the body"
        )
        raise Problem(415, "unsupported-media-type", detail)
    bodies.check_encoding(request)


async def _told(request: web.Request, brought: outcome.Brought, *, created: bool) -> web.StreamResponse:
    """What a task that has come to this is answered with. Raises `Problem` where its data is not what was to come."""
    task, end = brought.task, brought.end
    location = {"Location": f"/tasks/{task.id}"} if created else {}
    match task.status, task.reason:
        case (Status.COMPLETED, _) | (Status.PAUSED, Reason.AWAITING_DATA):
            return answers.task(request, task, 201 if created else 200, **location)
        case Status.PAUSED, Reason.DISCONNECTED if brought.fault is not None:
            await outcome.discard(request, task)
            raise brought.fault
        case Status.PAUSED, Reason.DISCONNECTED if end is outcome.End.TOO_LONG and announced(task) is None:
            await outcome.discard(request, task)  # it could never end
            raise upload_limits.too_large(request)
        case (Status.FAILED, _) | (Status.PAUSED, Reason.NO_SPACE | Reason.DISCONNECTED):
            raise outcome.cut_short(brought).telling(location)
        case Status.PAUSED, _:
            return answers.task(request, task, 200, **location)
        case _:
            return answers.task(request, task, 202, **location)
