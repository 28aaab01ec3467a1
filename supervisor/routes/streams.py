"""Stream services: the way of a request's body to the child, and what the end of it is answered.

The body goes into the child's pipe, past us where a `Tap` can be put on it and otherwise block by block, so a child
that writes slowly slows the client. However it ends, the answer says how far the data is durable (``Upload-Offset``).
"""

import asyncio
import base64
import binascii
import contextlib
import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, Final

from aiohttp import web
from aiohttp.multipart import content_disposition_filename, parse_content_disposition
from pydantic import Field, with_config
from typing_extensions import TypedDict

from intermission.handlers.body import MAX_SIZE
from intermission.handlers.digest import CHECKSUM_MISMATCH
from intermission.handlers.schema import Invalid
from intermission.handlers.upload import DigestMismatch
from intermission.state.models import Task, Tombstone
from intermission.state.status import Reason, Status
from intermission.supervisor.attempt import Attempt
from intermission.supervisor.core import Delivery, Start, announced, received
from intermission.supervisor.errors import GoneError, SupervisorError
from intermission.supervisor.inputs import UPLOAD
from intermission.supervisor.routes import answers, requests, shapes
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.operation import Operation
from intermission.supervisor.routes.problems import Problem
from intermission.supervisor.routes.tap import Tap

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
    fast: bool
    """Whether bodies may go past us, inside the kernel."""


LIMITS: Final = web.AppKey("limits", Limits)


class End(Enum):
    """How a body ended."""

    WHOLE = auto()
    PARTIAL = auto()
    BROKEN = auto()
    IDLE = auto()
    TOO_LONG = auto()
    TAKEN_OVER = auto()


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
    headers=(Announcing, requests.Keyed),
    body="application/octet-stream",
    answers={200: shapes.Task, 201: shapes.Task, 202: shapes.Task},
    problems=(400, 408, 409, 410, 411, 413, 415, 422, 503, 507),
    sends=("Location", "Idempotency-Replayed", *answers.PROGRESS),
)
async def start(request: web.Request, service: str) -> web.StreamResponse:
    """Start a task of this service; the body is its data, of any type.

    201 when the last byte is durable, 200 when it was paused before. With Upload-Length and no body it is only created.
    """
    began, size = await _create(request, service)
    fresh = began.task
    if began.replayed or _is_to_come(request):
        return answers.task(request, fresh, 201, Location=f"/tasks/{fresh.id}", **answers.replayed(began))
    return await _told(request, await deliver(request, fresh, Delivery(), size), created=True)


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
    if "Idempotency-Key" in request.headers:
        detail = "a start with a file cannot be repeated by its key: upload the file, then start with its upload"
        raise Problem(400, "key-not-taken", detail)
    began, size = await _create(request, UPLOAD)
    brought = await deliver(request, began.task, Delivery(), size)
    if brought.task.status is not Status.COMPLETED:
        return await _told(request, brought, created=True)
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    try:
        start = await supervisor.start(service, {field: f"upload:{brought.task.id}"}, caller.user)
    except (Invalid, SupervisorError):
        await supervisor.delete(brought.task.id, caller.scope, by=caller.user)  # nobody asked for it alone
        raise
    return await answers.started(request, start)


async def _create(request: web.Request, service: str) -> tuple[Start, int | None]:
    """Create a task for the body; how long that will be."""
    values = requests.query(request, "filename")
    supervisor, body, length = request.app[SUPERVISOR], body_length(request), count(request, "Upload-Length")
    if body is None and not is_chunked(request) and length is None:
        detail = "send the data as the body, or Upload-Length without a body to announce it"
        raise Problem(411, "length-required", detail)
    size = body if length is None else length
    _check_media(request)
    await check_size(request, size, body)
    info = {
        "filename": values["filename"][0] if "filename" in values else _filename(request),
        "media_type": request.content_type,
        "size_bytes": size,
        "sha256": _digest(request),
    }
    return await supervisor.start(service, info, request[CALLER].user, key=requests.key(request, info)), size


def _is_to_come(request: web.Request) -> bool:
    """Whether there is no body now, but a length of data."""
    return bool(count(request, "Upload-Length")) and not has_body(request)


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
    offset = count(request, "Upload-Offset")
    if offset is None:
        if has_body(request):
            raise Problem(400, "offset-required", "say with Upload-Offset at which byte of the data this body begins")
        return await answers.resume(request, task.id)
    _check_media(request)
    size = announced(task)
    await check_size(request, size, body_length(request), offset, task.id)
    return await _told(request, await deliver(request, task, Delivery(offset=offset), size), created=False)


def body_length(request: web.Request) -> int | None:
    """How long the body will be; None where it does not say."""
    return request.content_length if "Content-Length" in request.headers else None


def is_chunked(request: web.Request) -> bool:
    """Whether only its end will tell how long the body was."""
    return "chunked" in request.headers.get("Transfer-Encoding", "").lower()


def has_body(request: web.Request) -> bool:
    """Whether bytes come with it, as far as its head can tell."""
    return bool(body_length(request)) or is_chunked(request)


def count(request: web.Request, name: str) -> int | None:
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
    check_encoding(request)


def check_encoding(request: web.Request) -> None:
    """Refuse a body that is packed: what is counted and kept are its bytes. Raises `Problem` (415)."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported-media-type", "the body has a Content-Encoding: send the file as it is")


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
class Brought:
    """What a task has come to by the body that was for it, and how that ended."""

    task: Task
    end: End


async def deliver(
    request: web.Request, task: Task, delivery: Delivery, size: int | None, *, open_ended: bool = False
) -> Brought:
    """Have the body go to a child until either ends; what it came to.

    ``size`` is that of the whole data. Without one the end of the body is that of the data, unless it is
    ``open_ended``. Raises as `Supervisor.connect`, and `GoneError`.
    """
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    attempt = await supervisor.connect(task.id, caller.scope, caller.user, delivery)
    left = None if size is None else size - delivery.offset
    pump = asyncio.create_task(_pump(request, attempt, left, delivery.offset, open_ended=open_ended))
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
    end = End.BROKEN if pump.cancelled() else pump.result()
    if attempt.outcome is not None:  # not as it is by now: another request may be bringing more already
        return Brought(attempt.outcome, End.TAKEN_OVER if attempt.handed_over else end)
    found = await supervisor.wait(task.id, lambda now: now.status is not Status.TERMINATING, _ENDS_WITHIN_S)
    if isinstance(found, Tombstone):
        raise GoneError(found)
    return Brought(found, end)


async def _pump(request: web.Request, attempt: Attempt, left: int | None, offset: int, *, open_ended: bool) -> End:
    """Have the body go into the pipe; how it ended."""
    limits = request.app[LIMITS]
    bound = left if left is not None or limits.max_bytes is None else limits.max_bytes - offset
    known = (body_length(request) or 0) if limits.fast else 0
    tap, fast = Tap(request), known if bound is None else min(known, bound)
    taken, end = 0, End.BROKEN
    try:
        await requests.go_on(request)
        while True:
            block = request.content.read_nowait()
            if not block:
                taken += await tap.flow(attempt, fast - taken)
                async with asyncio.timeout(limits.idle_s):
                    block = await request.content.readany()
            if not block:
                end = End.WHOLE if taken == left or (left is None and not open_ended) else End.PARTIAL
                break
            if bound is not None and taken + len(block) > bound:
                await attempt.write(block[: bound - taken])
                end = End.TOO_LONG
                break
            await attempt.write(block)
            taken += len(block)
    except TimeoutError:
        end = End.IDLE
    except (ConnectionError, web.RequestPayloadError):  # the client went away, or the child did
        end = End.BROKEN
    attempt.end_body({End.WHOLE: None, End.PARTIAL: Reason.AWAITING_DATA}.get(end, Reason.DISCONNECTED))
    return end


async def _told(request: web.Request, brought: Brought, *, created: bool) -> web.StreamResponse:
    """What a task that has come to this is answered with. Raises `Problem` where its data is not what was to come."""
    task, end = brought.task, brought.end
    match task.status, task.reason:
        case (Status.COMPLETED, _) | (Status.PAUSED, Reason.AWAITING_DATA):
            location = {"Location": f"/tasks/{task.id}"} if created else {}
            return answers.task(request, task, 201 if created else 200, **location)
        case Status.FAILED, _ if task.error is not None and task.error.type == DigestMismatch.__name__:
            await discard(request, task)
            raise Problem(422, "digest-mismatch", f"{task.error.message}; nothing is kept: send it again")
        case Status.PAUSED, Reason.DISCONNECTED if end is End.TOO_LONG and announced(task) is None:
            await discard(request, task)  # it could never end
            most = request.app[LIMITS].max_bytes
            raise Problem(413, "too-large", f"at most {most} bytes are taken; nothing is kept")
        case (Status.FAILED, _) | (Status.PAUSED, Reason.NO_SPACE | Reason.DISCONNECTED):
            raise cut_short(brought)
        case Status.PAUSED, _:
            return answers.task(request, task)
        case _:
            return answers.task(request, task, 202)


def cut_short(brought: Brought) -> Problem:
    """What a request is answered with whose data was not taken to its end; what is durable is kept."""
    task, end = brought.task, brought.end
    match task.status, task.reason:
        case Status.FAILED, _:
            said = task.error.message if task.error else "the data cannot be used"
            return Problem(422, "failed", said, {"id": task.id, "task_status": task.status, "allowed": task.allowed})
        case Status.PAUSED, Reason.NO_SPACE:
            told = (507, "no-space", "there is no space left")
        case _ if task.error is not None and task.error.type == CHECKSUM_MISMATCH:
            told = (
                460,
                "checksum-mismatch",
                "nothing of this body is kept, for its checksum is not what was announced",
            )
        case _ if end is End.TAKEN_OVER:
            told = (409, "taken-over", "another request for this upload has taken the place of this one")
        case _ if end is End.IDLE:
            told = (408, "idle", "nothing came for too long")
        case _ if end is End.TOO_LONG:
            told = (413, "too-long", "the body is longer than it may be")
        case _:
            told = (503, "interrupted", "the data could not be taken to its end")
    offset = received(task)
    return Problem(
        *told[:2],
        f"{told[2]}; {offset} bytes are kept: resume with Upload-Offset: {offset} and the bytes from there",
        {"id": task.id, "task_status": task.status, "allowed": task.allowed, "offset": offset},
        {"Upload-Offset": str(offset)},
    )


async def discard(request: web.Request, task: Task) -> None:
    """Have nothing of it be kept."""
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    await supervisor.terminate(task.id, caller.scope, by=caller.user)
    await supervisor.wait(task.id, lambda now: now.status is not Status.TERMINATING, _ENDS_WITHIN_S)
