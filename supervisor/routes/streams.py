"""Stream services: the way of a request's body to the child, and what the end of it is answered.

The body is copied block by block into the child's pipe, so a child that writes slowly slows the client. However it
ends, the answer says how far the data is durable (``Upload-Offset``).
"""

import asyncio
import base64
import binascii
import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, Final

from aiohttp import StreamReader, web
from aiohttp.multipart import content_disposition_filename, parse_content_disposition
from pydantic import Field, with_config
from typing_extensions import TypedDict

from intermission.handlers.body import MAX_SIZE
from intermission.handlers.schema import Invalid
from intermission.handlers.upload import DigestMismatch
from intermission.state.models import Task, Tombstone
from intermission.state.status import Reason, Status
from intermission.supervisor.attempt import Attempt
from intermission.supervisor.core import received
from intermission.supervisor.errors import GoneError, SupervisorError
from intermission.supervisor.inputs import UPLOAD
from intermission.supervisor.routes import answers, requests, shapes
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.operation import Operation
from intermission.supervisor.routes.problems import Problem

_ENDS_WITHIN_S: Final = 15.0
"""More than a pause's grace and the end of a tree; what is not so by then is answered as it is."""
FILE_TYPES: Final = ("text/csv", "application/jsonl", "application/x-ndjson", "application/octet-stream")
"""Of a body that is a file, for a service that takes one: it has to be said, or JSON without its type would be one."""
_NUMBER: Final = re.compile(r"\d{1,19}", re.ASCII)
_SHA256: Final = re.compile(r"(?:^|,)\s*sha-256\s*=\s*([^,]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one upload may do."""

    max_bytes: int | None
    idle_s: float


LIMITS: Final = web.AppKey("limits", Limits)


class _End(Enum):
    """How a body ended."""

    WHOLE = auto()
    PARTIAL = auto()
    BROKEN = auto()
    IDLE = auto()
    TOO_LONG = auto()


@with_config(use_attribute_docstrings=True)
class Naming(TypedDict, total=False):
    """What is said of the data in the address."""

    filename: shapes.Text
    """What it is called; without it, what Content-Disposition says."""


_Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Announcing = TypedDict(
    "Announcing",
    {
        "Upload-Length": Annotated[_Size, Field(description="How many bytes there are in all")],
        "Content-Disposition": Annotated[str, Field(description="`attachment; filename=…`")],
        "Repr-Digest": Annotated[str, Field(description="What the bytes must come to (RFC 9530): `sha-256=:…:`")],
    },
    total=False,
)
Continuing = TypedDict(
    "Continuing",
    {"Upload-Offset": Annotated[_Size, Field(description="At which byte of the data this body begins")]},
    total=False,
)


@Operation(
    query=(Naming,),
    headers=(Announcing,),
    body="application/octet-stream",
    answers={200: shapes.Task, 201: shapes.Task, 202: shapes.Task},
    problems=(400, 408, 409, 410, 411, 413, 415, 422, 503, 507),
    sends=("Location", *answers.PROGRESS),
)
async def start(request: web.Request, service: str) -> web.StreamResponse:
    """Start a task of this service; the body is its data, of any type.

    201 when the last byte is durable, 200 when it was paused before. With Upload-Length and no body it is only created.
    """
    fresh, size = await _create(request, service)
    if _is_to_come(request):
        return answers.task(request, fresh, 201, Location=f"/tasks/{fresh.id}")
    return await _told(request, await _receive(request, fresh, size, 0), created=True)


@Operation(
    query=(Naming,),
    headers=(requests.Waiting, Announcing),
    body=FILE_TYPES,
    answers={200: shapes.Task, 201: shapes.Task, 202: shapes.Task},
    problems=(400, 408, 409, 410, 411, 413, 415, 422, 503, 507),
    sends=("Location", *answers.SENDS),
)
async def start_with_file(request: web.Request, service: str, field: str) -> web.StreamResponse:
    """Start a task of this service with a file: the body, which is kept as an upload of one's own.

    202 and the task when the whole file is there; until then what is said is said of the upload: 201 where by its
    announced length more is to come, 200 where it was paused.
    """
    if _is_to_come(request):
        raise Problem(411, "length-required", "send the file as the body; to send it later, start with its upload then")
    fresh, size = await _create(request, UPLOAD)
    brought = await _receive(request, fresh, size, 0)
    if brought.task.status is not Status.COMPLETED:
        return await _told(request, brought, created=True)
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    try:
        fresh = await supervisor.start(service, {field: f"upload:{fresh.id}"}, caller.user)
    except (Invalid, SupervisorError):
        await supervisor.delete(brought.task.id, caller.scope, by=caller.user)  # nobody asked for it alone
        raise
    return await answers.started(request, fresh)


async def _create(request: web.Request, service: str) -> tuple[Task, int | None]:
    """Create a task for the body; how long that will be."""
    values = requests.query(request, "filename")
    supervisor, announced, length = request.app[SUPERVISOR], _announced(request), _header(request, "Upload-Length")
    if announced is None and not _is_chunked(request) and length is None:
        detail = "send the data as the body, or Upload-Length without a body to announce it"
        raise Problem(411, "length-required", detail)
    size = announced if length is None else length
    _check_media(request)
    await _check_size(request, size, announced)
    info = {
        "filename": values["filename"][0] if "filename" in values else _filename(request),
        "media_type": request.content_type,
        "size_bytes": size,
        "sha256": _digest(request),
    }
    return await supervisor.start(service, info, request[CALLER].user), size


def _is_to_come(request: web.Request) -> bool:
    """Whether there is no body now, but a length of data."""
    return bool(_header(request, "Upload-Length")) and not _announced(request) and not _is_chunked(request)


@Operation(
    query=(requests.OneOf,),
    headers=(requests.Waiting, Continuing),
    body="application/octet-stream",
    answers={200: shapes.Task, 202: shapes.Task},
    problems=(400, 404, 408, 409, 410, 413, 415, 422, 503, 507),
    sends=answers.SENDS,
)
async def resume(request: web.Request, task: Task) -> web.StreamResponse:
    """Go on with the task's data: the body, from Upload-Offset on.

    Without both, only a pause is lifted.
    """
    announced, offset = _announced(request), _header(request, "Upload-Offset")
    if offset is None:
        if announced or _is_chunked(request):
            raise Problem(400, "offset-required", "say with Upload-Offset at which byte of the data this body begins")
        return await answers.resume(request, task.id)
    _check_media(request)
    size = json.loads(task.params)["size_bytes"]
    await _check_size(request, size, announced, offset)
    return await _told(request, await _receive(request, task, size, offset), created=False)


def _announced(request: web.Request) -> int | None:
    """How long the body will be; None where it does not say."""
    return request.content_length if "Content-Length" in request.headers else None


def _is_chunked(request: web.Request) -> bool:
    return "chunked" in request.headers.get("Transfer-Encoding", "").lower()


def _header(request: web.Request, name: str) -> int | None:
    """A header that is a count of bytes. Raises `Problem` (400)."""
    given = request.headers.getall(name, [])
    if not given:
        return None
    if len(given) > 1 or not _NUMBER.fullmatch(given[0]) or int(given[0]) > MAX_SIZE:
        raise Problem(400, "malformed-header", f"{name} must be one whole number of bytes, from 0 to {MAX_SIZE}")
    return int(given[0])


def _check_media(request: web.Request) -> None:
    if request.content_type.startswith("multipart/"):
        raise Problem(415, "unsupported-media-type", "multipart is not taken: send the file itself as the body")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported-media-type", "the body has a Content-Encoding: send the file as it is")


async def _check_size(request: web.Request, size: int | None, announced: int | None, offset: int = 0) -> None:
    """Refuse what cannot fit before a byte of it is taken. Raises `Problem` (413, 507)."""
    supervisor, most = request.app[SUPERVISOR], request.app[LIMITS].max_bytes
    end = offset + (announced or 0)
    if size is not None and end > size:
        detail = f"the data has {size} bytes in all, and this body would end at byte {end}: send the rest, no more"
        raise Problem(413, "too-long", detail, headers={"Upload-Length": str(size)})
    if most is not None and max(end, size or 0) > most:
        raise Problem(413, "too-large", f"at most {most} bytes are taken, and this would be {max(end, size or 0)}")
    free = (await asyncio.to_thread(shutil.disk_usage, supervisor.places.tasks)).free
    if (wanted := (end if size is None else size) - offset) > free:
        raise Problem(507, "no-space", f"there is no space for {wanted} bytes: {free} are left; try again later")


def _filename(request: web.Request) -> str | None:
    _, parameters = parse_content_disposition(request.headers.get("Content-Disposition"))
    return content_disposition_filename(parameters)


def _digest(request: web.Request) -> str | None:
    """The SHA-256 that the client announces (RFC 9530), in hexadecimal. Raises `Problem` (400)."""
    match = _SHA256.search(",".join(request.headers.getall("Repr-Digest", [])))
    if match is None:
        return None
    text = match[1].strip()
    digest = b""
    with contextlib.suppress(binascii.Error, ValueError):
        digest = base64.b64decode(text.strip(":"), validate=True)
    if len(digest) != 32 or not (text.startswith(":") and text.endswith(":")):  # noqa: PLR2004 -- SHA-256 has so many
        detail = "the sha-256 of Repr-Digest must be 32 bytes in base64 between two colons"
        raise Problem(400, "malformed-header", detail)
    return digest.hex()


@dataclass(frozen=True, slots=True)
class _Brought:
    """What became of a task and of the body that was for it."""

    task: Task
    end: _End


async def _receive(request: web.Request, task: Task, size: int | None, offset: int) -> _Brought:
    """Have the body go to a child until either ends. Raises `GoneError`."""
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    attempt = await supervisor.connect(task.id, caller.scope, caller.user, offset)
    pump = asyncio.create_task(_pump(request, attempt, None if size is None else size - offset, offset))
    settled = asyncio.create_task(attempt.settled.wait())
    try:
        await asyncio.wait({pump, settled}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({settled}, timeout=_ENDS_WITHIN_S)
    finally:
        # Whatever ended the request, its child must hear that nothing more comes.
        attempt.end_body(Reason.DISCONNECTED)
        pump.cancel()
        settled.cancel()
        await asyncio.wait({pump, settled})
    end = _End.BROKEN if pump.cancelled() else pump.result()
    found = await supervisor.wait(task.id, lambda now: now.status is not Status.TERMINATING, _ENDS_WITHIN_S)
    if isinstance(found, Tombstone):
        raise GoneError(found)
    return _Brought(found, end)


async def _pump(request: web.Request, attempt: Attempt, left: int | None, offset: int) -> _End:
    """Copy the body into the pipe; how it ended."""
    limits = request.app[LIMITS]
    bound = left if left is not None or limits.max_bytes is None else limits.max_bytes - offset
    taken, end = 0, _End.BROKEN
    try:
        async for block in _blocks(request.content, limits.idle_s):
            if bound is not None and taken + len(block) > bound:
                await attempt.write(block[: bound - taken])
                end = _End.TOO_LONG
                break
            await attempt.write(block)
            taken += len(block)
        else:
            end = _End.WHOLE if left in {None, taken} else _End.PARTIAL
    except TimeoutError:
        end = _End.IDLE
    except (ConnectionError, web.RequestPayloadError):  # the client went away, or the child did
        end = _End.BROKEN
    attempt.end_body({_End.WHOLE: None, _End.PARTIAL: Reason.AWAITING_DATA}.get(end, Reason.DISCONNECTED))
    return end


async def _blocks(content: StreamReader, idle_s: float) -> AsyncIterator[bytes]:
    """What has come, as it comes. Raises TimeoutError when nothing does for so long."""
    while True:
        block = content.read_nowait()
        if not block:
            async with asyncio.timeout(idle_s):
                block = await content.readany()
        if not block:
            return
        yield block


async def _told(request: web.Request, brought: _Brought, *, created: bool) -> web.StreamResponse:
    """What a task that has come to this is answered with. Raises `Problem` where its data is not what was to come."""
    task, end = brought.task, brought.end
    match task.status, task.reason:
        case (Status.COMPLETED, _) | (Status.PAUSED, Reason.AWAITING_DATA):
            location = {"Location": f"/tasks/{task.id}"} if created else {}
            return answers.task(request, task, 201 if created else 200, **location)
        case Status.FAILED, _:
            raise await _failed(request, task)
        case Status.PAUSED, Reason.NO_SPACE:
            raise _broken_off(task, 507, "no-space", "there is no space left")
        case Status.PAUSED, Reason.DISCONNECTED if end is _End.IDLE:
            raise _broken_off(task, 408, "idle", "nothing came for too long")
        case Status.PAUSED, Reason.DISCONNECTED if end is _End.TOO_LONG:
            raise await _overrun(request, task)
        case Status.PAUSED, Reason.DISCONNECTED:
            raise _broken_off(task, 503, "interrupted", "the data could not be taken to its end")
        case Status.PAUSED, _:
            return answers.task(request, task)
        case _:
            return answers.task(request, task, 202)


def _broken_off(task: Task, status: int, slug: str, what: str) -> Problem:
    """The request did not get to its end; what is durable is kept."""
    offset = received(task)
    return Problem(
        status,
        slug,
        f"{what}; {offset} bytes are kept: resume with Upload-Offset: {offset} and the bytes from there",
        {"id": task.id, "task_status": task.status, "allowed": task.allowed, "offset": offset},
        {"Upload-Offset": str(offset)},
    )


async def _overrun(request: web.Request, task: Task) -> Problem:
    """More came than was announced, or than is taken; in the second case nothing is kept, for it could never end."""
    if json.loads(task.params)["size_bytes"] is not None:
        return _broken_off(task, 413, "too-long", "the body is longer than was announced")
    await _discard(request, task)
    return Problem(413, "too-large", f"at most {request.app[LIMITS].max_bytes} bytes are taken; nothing is kept")


async def _failed(request: web.Request, task: Task) -> Problem:
    """The handler cannot do with the data what it should."""
    said = task.error.message if task.error else "the data cannot be used"
    if task.error is None or task.error.type != DigestMismatch.__name__:
        return Problem(422, "failed", said, {"id": task.id, "task_status": task.status, "allowed": task.allowed})
    await _discard(request, task)
    return Problem(422, "digest-mismatch", f"{said}; nothing is kept: send it again")


async def _discard(request: web.Request, task: Task) -> None:
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    await supervisor.terminate(task.id, caller.scope, by=caller.user)
    await supervisor.wait(task.id, lambda now: now.status is not Status.TERMINATING, _ENDS_WITHIN_S)
