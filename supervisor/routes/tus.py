"""``/upload/files``: tus 1.0.0 (https://tus.io/protocols/resumable-upload), whose uploads are tasks like all others.

Each PATCH is an attempt. HEAD, PATCH and DELETE stop a request that still hangs: what they tell is what comes next.
An upload has one address: what speaks the other protocol there is passed on to `resumable`.
"""

import base64
import binascii
import functools
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from email.utils import formatdate
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from intermission.handlers.body import MAX_SIZE
from intermission.handlers.digest import CHECKSUM_MISMATCH, CHECKSUMS
from intermission.state.models import Task
from intermission.state.status import RESTING, Reason, Status
from intermission.supervisor.core import Start
from intermission.supervisor.errors import GoneError, HeldError, OffsetError, UnknownTaskError, there
from intermission.supervisor.inputs import UPLOAD
from intermission.supervisor.routes import (
    answers,
    bodies,
    delivery,
    digests,
    outcome,
    proxies,
    requests,
    resource,
    resumable,
    shapes,
    sources,
    upload_limits,
)
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.operation import Operation
from intermission.supervisor.routes.problems import Problem, misplaced
from intermission.supervisor.routes.resource import PATH
from intermission.supervisor.routes.shapes import ID_PATTERN
from intermission.supervisor.stream import Delivery, agreed_length, announced, received

VERSION: Final = "1.0.0"
MEDIA_TYPE: Final = "application/offset+octet-stream"
_EXTENSIONS: Final = (
    *("creation", "creation-with-upload", "creation-defer-length"),
    *("checksum", "expiration", "termination", "concatenation"),
)
_JOINED_WITHIN_S: Final = 5.0
"""How long the creation of one that is made of parts waits until they are joined; it is answered in any case."""
_MISMATCH: Final = (460, "checksum-mismatch")
_LENGTHS: Final = ("Upload-Length", "Upload-Defer-Length")
_FINAL: Final = "final;"
_ONE: Final = re.compile(rf"{PATH}/({ID_PATTERN})")
_KEY: Final = re.compile(r"[!-+\--~]+")
_MEDIA: Final = re.compile(r"[\w.+-]{1,127}/[\w.+-]{1,127}", re.ASCII)

_SENDS: Final = (
    *("Upload-Offset", "Upload-Length", "Upload-Defer-Length"),
    *("Upload-Metadata", "Upload-Concat", "Upload-Expires"),
    *digests.SENDS,
)

_Route = Callable[[web.Request, Task], Awaitable[web.StreamResponse]]
_Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]
_Length = Annotated[_Size, Field(description="How many bytes there are in all")]
_Checksum = Annotated[str, Field(description=f"What this body gives: {' or '.join(CHECKSUMS)}, a space, base64")]
Speaking = TypedDict(
    "Speaking",
    {
        "Tus-Resumable": Annotated[
            Literal["1.0.0"], Field(description="The version of tus; left out by clients of the other protocol")
        ]
    },
    total=False,
)
Creating = TypedDict(
    "Creating",
    {
        "Upload-Length": _Length,
        "Upload-Defer-Length": Annotated[Literal["1"], Field(description="In its place: the length comes later")],
        "Upload-Metadata": Annotated[str, Field(description="Keys, each with a space and its value in base64; commas")],
        "Upload-Concat": Annotated[str, Field(description="`partial`, or `final;` and the URLs of parts")],
        "Upload-Checksum": _Checksum,
    },
    total=False,
)
Bringing = TypedDict(
    "Bringing",
    {
        "Upload-Offset": Annotated[_Size, Field(description="At which byte of the data this body begins")],
        "Upload-Length": _Length,
        "Upload-Checksum": _Checksum,
    },
    total=False,
)
Overriding = TypedDict(
    "Overriding",
    {"X-HTTP-Method-Override": Annotated[Literal["HEAD", "PATCH", "DELETE"], Field(description="What to do")]},
    total=False,
)


def add(app: web.Application) -> None:
    """Add the routes."""
    one = f"{PATH}/{{id}}"
    app.router.add_options(PATH, options)
    app.router.add_options(one, options_of_one)
    app.router.add_post(PATH, create, expect_handler=requests.later)
    app.router.add_get(one, head)
    app.router.add_patch(one, patch, expect_handler=requests.later)
    app.router.add_delete(one, delete)
    app.router.add_post(one, overridden, expect_handler=requests.later)
    app.on_response_prepare.append(_mark)


async def _mark(request: web.Request, response: web.StreamResponse) -> None:
    """Say which version this is; errors that never reach a route say so too."""
    if (request.path == PATH or request.path.startswith(f"{PATH}/")) and not resumable.speaks(request):
        response.headers["Tus-Resumable"] = VERSION


def _or(other: _Route) -> Callable[[_Route], Callable[[web.Request], Awaitable[web.StreamResponse]]]:
    """The route of an upload that there is: the ``other`` for its protocol, this one for clients of this version."""

    def either(route: _Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        @functools.wraps(route)
        async def checked(request: web.Request) -> web.StreamResponse:
            task = await resource.found(request)
            if resumable.speaks(request):
                return await other(request, task)
            _check(request)
            return await route(request, task)

        return checked

    return either


def _check(request: web.Request) -> None:
    """Refuse clients of another version; of none too, but for HEAD. Raises `Problem` (412, 422)."""
    given = request.headers.get("Tus-Resumable")
    if given != VERSION and not (given is None and request.method == "HEAD"):
        detail = f"this is tus {VERSION}: say so with Tus-Resumable"
        raise Problem(412, "tus-version", detail, headers={"Tus-Version": VERSION})
    requests.query(request)


_OPTIONS: Final = Operation(
    answers={204: None},
    problems=(422,),
    sends=(
        *("Tus-Version", "Tus-Extension", "Tus-Checksum-Algorithm", "Tus-Max-Size"),
        *("Accept-Patch", "Upload-Limit"),
    ),
)


@_OPTIONS
async def options(request: web.Request) -> web.StreamResponse:
    """Tell which version and extensions of tus there are."""
    requests.query(request)
    most = request.app[upload_limits.LIMITS].max_bytes
    headers = {
        "Tus-Version": VERSION,
        "Tus-Extension": ",".join(_EXTENSIONS),
        "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
        **({} if most is None else {"Tus-Max-Size": str(most)}),
        **resumable.support(request),
    }
    return web.Response(status=204, headers=headers)


@replace(_OPTIONS, path=(requests.OfTask,), problems=(404, 410, 422))
async def options_of_one(request: web.Request) -> web.StreamResponse:
    """Tell the same at the address of an upload."""
    await resource.found(request)
    return await options(request)


@Operation(
    headers=(
        *(Speaking, Creating, resumable.Speaking, requests.Keyed),
        *(digests.Announcing, digests.Covering, digests.Wanting),
    ),
    body=(MEDIA_TYPE, resumable.MEDIA_TYPE),
    answers={201: None},
    problems=(400, 408, 409, 410, 412, 413, 415, 422, 423, 460, 503, 507),
    sends=("Location", "Idempotency-Replayed", *_SENDS, *resumable.SENDS),
    interims=resumable.CREATING,
)
async def create(request: web.Request) -> web.StreamResponse:
    """Create an upload, and take its first bytes if some come along.

    With Upload-Complete instead of Tus-Resumable it is one by the draft of resumable uploads for HTTP; what is complete
    at once is answered with the task.
    """
    if resumable.speaks(request):
        requests.query(request)
        return await resumable.create(request, _described(request))
    _check(request)
    if "X-HTTP-Method-Override" in request.headers:
        raise Problem(400, "malformed-header", "X-HTTP-Method-Override is not taken here")
    concat = request.headers.get("Upload-Concat")
    if concat is not None and concat.startswith(_FINAL):
        return await _join(request, concat)
    if concat not in {None, "partial"}:
        raise _malformed_concat()
    size, deferred = bodies.count(request, "Upload-Length"), _is_deferred(request)
    if (size is None) is not deferred:
        detail = "say how long the data is with Upload-Length, or with Upload-Defer-Length: 1 that you will"
        raise Problem(400, "length", detail)
    bytes_come = bodies.has_body(request)
    if bytes_come:
        _check_media(request)
    upload_limits.check_crowd(request)
    checksum = _checksum(request)
    info = {**_described(request), **digests.asked(request), "size_bytes": size, "concat": concat}
    await upload_limits.check_size(request, size, bodies.body_length(request))
    began, location = await _begun(request, info)
    fresh = began.task
    if began.replayed:
        return _answer(request, await _ended(request, fresh), 201, location)
    if not bytes_come and size != 0:
        return _answer(request, fresh, 201, location)
    bringing = Delivery(checksum=checksum)
    brought = await delivery.deliver(request, fresh, bringing, created=True, open_ended=deferred)
    if brought.task.error is not None and brought.task.error.type == CHECKSUM_MISMATCH:
        await outcome.discard(request, fresh)  # a client that is refused does not expect that something is left
        detail = "nothing is kept, for the checksum is not what was announced"
        raise Problem(*_MISMATCH, detail, headers=digests.WANTED_OF_CONTENT)
    return _told(request, brought, 201, location)


async def _join(request: web.Request, concat: str) -> web.StreamResponse:
    """Create an upload that is made of parts. Raises `Problem` (400, 413, 507)."""
    if any(name in request.headers for name in _LENGTHS) or bodies.has_body(request):
        raise Problem(400, "length", "what is made of parts has their length: send neither one nor a body")
    parts = [await _part(request, url) for url in concat.removeprefix(_FINAL).split(" ") if url]
    if not parts:
        raise _malformed_concat()
    size = sum(received(part) for part in parts)
    await upload_limits.check_size(request, size, None)
    supervisor = request.app[SUPERVISOR]
    info = {
        **_described(request),
        **digests.asked(request),
        "size_bytes": size,
        "concat": concat,
        "parts": [f"upload:{part.id}" for part in parts],
    }
    began, location = await _begun(request, info)
    found = there(await supervisor.wait(began.task.id, lambda now: now.status in RESTING, _JOINED_WITHIN_S))
    await outcome.refuse_mismatch(request, found)
    return _answer(request, found, 201, location)


async def _begun(request: web.Request, info: dict[str, Any]) -> tuple[Start, dict[str, str]]:
    """A new upload, or that of the same creation before; and the headers that tell where it is. Raises as `start`."""
    supervisor, key = request.app[SUPERVISOR], requests.key(request, info)
    began = await supervisor.start(UPLOAD, info, request[CALLER].user, key=key, brings=bodies.has_body(request))
    return began, {"Location": resource.location(request, began.task.id), **answers.replayed(began)}


async def _part(request: web.Request, text: str) -> Task:
    """A part that is complete, by its URL, relative or of this server. Raises `Problem` (400)."""
    if not text.isascii():  # no URL, and `urlsplit` would normalize it, which takes the square of its length
        raise _malformed_concat()
    try:
        url = urlsplit(text)
    except ValueError:
        raise _malformed_concat() from None
    match = _ONE.fullmatch(url.path)
    if (
        match is None
        or url.query
        or url.fragment
        or url.netloc not in {"", request.host, urlsplit(proxies.origin(request) or "").netloc}
    ):
        raise _malformed_concat()
    try:
        task = await request.app[SUPERVISOR].of_service(UPLOAD, match[1], request[CALLER].scope)
    except (GoneError, UnknownTaskError):
        raise Problem(400, "part", f"there is no upload {match[1]} of yours") from None
    if task.status is not Status.COMPLETED or json.loads(task.params).get("concat") != "partial":
        raise Problem(400, "part", f"{match[1]} is {task.status}: parts are partial uploads that are completed")
    return task


def _malformed_concat() -> Problem:
    detail = f"Upload-Concat must be partial, or final; and the URLs of parts, which begin with {PATH}/"
    return Problem(400, "malformed-header", detail)


@_or(resumable.show)
@Operation(
    path=(requests.OfTask,),
    headers=(Speaking, resumable.Versioned, digests.Wanting),
    answers={200: None, 204: None},
    problems=(404, 410, 412, 422, 503),
    sends=(*_SENDS, *resumable.SENDS),
)
async def head(request: web.Request, task: Task) -> web.StreamResponse:
    """Tell how far an upload is; a request that still brings it bytes is stopped, and they are kept.

    tus has HEAD alone. Without Tus-Resumable, GET is as HEAD is by the draft of resumable uploads for HTTP: 204.
    """
    speaks = "Tus-Resumable" in request.headers
    task = await (_ended if speaks else resource.vacant)(request, task)
    # Who says neither may speak the other, which will not have a version any more when it is a standard.
    return _answer(request, task, 200, None if speaks else resumable.state(request, task))


async def _ended(request: web.Request, task: Task) -> Task:
    """The upload, once no other request brings it bytes; complete, if by tus it is, and nobody will send more.

    It is not so yet if its child or we were killed before that was written.
    """
    task = await resource.vacant(request, task)
    if task.status is not Status.PAUSED or task.is_held or received(task) != announced(task):
        return task
    ending = Delivery(offset=received(task), lifts=False)
    return (await delivery.deliver(request, task, ending, source=sources.Nothing())).task


@_or(resumable.append)
@Operation(
    path=(requests.OfTask,),
    headers=(Speaking, Bringing, resumable.Speaking, digests.Covering, digests.Wanting),
    body=(MEDIA_TYPE, resumable.MEDIA_TYPE),
    answers={200: shapes.Task, 204: None},
    problems=(400, 403, 404, 408, 409, 410, 412, 413, 415, 422, 423, 460, 503, 507),
    sends=(*_SENDS, *resumable.SENDS),
    interims=resumable.APPENDING,
)
async def patch(request: web.Request, task: Task) -> web.StreamResponse:
    """Go on with an upload: the body, from Upload-Offset on; a request that still brings it bytes is stopped.

    By the draft of resumable uploads for HTTP, only Upload-Complete: ?1 makes it complete; 200 is the task then.
    """
    _check_media(request)
    offset, length = bodies.count(request, "Upload-Offset"), bodies.count(request, "Upload-Length")
    checksum = _checksum(request)
    if offset is None:
        raise bodies.offset_required()
    digests.check_announced(request, task)
    resource.check_takes_bytes(task)
    task = await resource.vacant(request, task)
    if offset != (place := received(task)):
        raise OffsetError(task, place)
    size = agreed_length(task, length)
    await upload_limits.check_size(request, size, bodies.body_length(request), offset, task.id)
    if task.status is Status.COMPLETED:
        if not await requests.brings_nothing(request, request.app[upload_limits.LIMITS].idle_s):
            raise Problem(413, "too-long", "the data is complete: there is nothing to be added")
        return _answer(request, task, 204)
    if not (offset == size or bodies.has_body(request) or checksum) and resource.stays(task, size):
        return _answer(request, task, 204)
    bringing = Delivery(offset=offset, length=length, checksum=checksum, lifts=False)
    brought = await delivery.deliver(request, task, bringing, open_ended=size is None)
    return _told(request, brought, 204, {})


@_or(resumable.delete)
@Operation(
    path=(requests.OfTask,),
    headers=(Speaking, resumable.Versioned),
    answers={202: None, 204: None},
    problems=(404, 409, 410, 412, 422, 503, 507),
)
async def delete(request: web.Request, task: Task) -> web.StreamResponse:
    """Have nothing be left of an upload: a complete one is deleted, any other terminated."""
    return await resource.delete(request, task)


_OVERRIDES: Final = {"HEAD": head, "PATCH": patch, "DELETE": delete}


@Operation(
    path=(requests.OfTask,),
    headers=(Speaking, Overriding, Bringing, resumable.Speaking, digests.Covering, digests.Wanting),
    body=(MEDIA_TYPE, resumable.MEDIA_TYPE),
    answers={200: shapes.Task, 202: None, 204: None},
    problems=(400, 403, 404, 405, 408, 409, 410, 412, 413, 415, 422, 423, 460, 503, 507),
    sends=(*_SENDS, *resumable.SENDS),
    interims=resumable.APPENDING,
)
async def overridden(request: web.Request) -> web.StreamResponse:
    """Do what X-HTTP-Method-Override says, for clients that can only GET and POST."""
    await resource.found(request)
    method = request.headers.get("X-HTTP-Method-Override")
    if method is None:
        raise web.HTTPMethodNotAllowed("POST", ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH"))
    if method not in _OVERRIDES:
        raise Problem(400, "malformed-header", f"X-HTTP-Method-Override must be one of {', '.join(_OVERRIDES)}")
    return await _OVERRIDES[method](request)


def _is_deferred(request: web.Request) -> bool:
    given = request.headers.getall("Upload-Defer-Length", [])
    if given not in ([], ["1"]):
        raise Problem(400, "malformed-header", "Upload-Defer-Length can only be 1")
    return bool(given)


def _check_media(request: web.Request) -> None:
    if request.content_type != MEDIA_TYPE:
        raise Problem(415, "unsupported-media-type", f"the bytes of an upload must come as {MEDIA_TYPE}")
    bodies.check_encoding(request)


def _checksum(request: web.Request) -> tuple[str, bytes] | None:
    """What the body must give, by which algorithm; only one is verified. Raises `Problem` (400)."""
    given = request.headers.getall("Upload-Checksum", [])
    if not given:
        return digests.of_content(request)
    if len(given) > 1 or "Content-Digest" in request.headers:
        detail = "one checksum of a body is verified: send one Upload-Checksum, or Content-Digest in its place"
        raise Problem(400, "unverified-digest", detail)
    name, _, text = given[0].partition(" ")
    if name not in CHECKSUMS:
        raise Problem(400, "unknown-checksum", f"Upload-Checksum can be checked with {', '.join(CHECKSUMS)}")
    digest = _base64(text)
    if digest is None or len(digest) != CHECKSUMS[name]:
        detail = f"Upload-Checksum must be {name}, a space and {CHECKSUMS[name]} bytes in base64"
        raise Problem(400, "malformed-header", detail)
    return name, digest


def _described(request: web.Request) -> dict[str, Any]:
    """What Upload-Metadata says of the file, and the header itself. Raises `Problem` (400)."""
    text = ",".join(request.headers.getall("Upload-Metadata", []))
    if not text:
        return {}
    values: dict[str, bytes] = {}
    for pair in text.split(","):
        key, _, packed = pair.strip(" ").partition(" ")
        value = _base64(packed)
        if not _KEY.fullmatch(key) or key in values or value is None:
            detail = (
                "Upload-Metadata must be keys, each given once and with a space and its value in base64, and commas"
            )
            raise Problem(400, "malformed-header", detail)
        values[key] = value
    name = values.get("filename", values.get("name"))
    media_type = values.get("filetype", values.get("type", b"")).decode(errors="replace")
    return {
        "metadata": text,
        "filename": None if name is None else name.decode(errors="replace"),
        **({"media_type": media_type} if _MEDIA.fullmatch(media_type) else {}),
    }


def _base64(text: str) -> bytes | None:
    """Its bytes; None for what is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _told(request: web.Request, brought: outcome.Brought, status: int, headers: dict[str, str]) -> web.StreamResponse:
    """What a task that has come to this is answered with. Raises `Problem` where not all of the body was taken."""
    task = brought.task
    if task.status is Status.COMPLETED or task.reason is Reason.AWAITING_DATA:
        return _answer(request, task, status, headers)
    if task.is_held and task.status is Status.PAUSED:
        problem = misplaced(HeldError(task, received(task)))
    else:
        problem = outcome.cut_short(brought, _MISMATCH)
    raise problem.telling({**headers, **_expiry(task)})


def _answer(request: web.Request, task: Task, status: int, more: dict[str, str] | None = None) -> web.Response:
    """How far it is, in headers; and what it has come to, if that is wanted."""
    length, info = announced(task), json.loads(task.params)
    kept = {"Upload-Metadata": info.get("metadata"), "Upload-Concat": info.get("concat")}
    headers = {
        "Cache-Control": "no-store",
        "Upload-Offset": str(received(task)),
        **({"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}),
        **{name: value for name, value in kept.items() if value is not None},
        **_expiry(task),
        **digests.wanted(request, task),
        **(more or {}),
    }
    return web.Response(status=status, headers=headers)


def _expiry(task: Task) -> dict[str, str]:
    """When it is gone if nobody goes on with it."""
    expires = task.status is Status.PAUSED and task.due_at is not None
    return {"Upload-Expires": formatdate(task.due_at, usegmt=True)} if expires else {}
