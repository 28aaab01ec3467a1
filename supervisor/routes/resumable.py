"""Resumable Uploads for HTTP (draft-ietf-httpbis-resumable-upload), as of its interop versions 6 and 8.

A start that says with Upload-Complete whether its body ends the data; then HEAD, GET, PATCH and DELETE at the upload's
own address, which is that of tus too. Its headers are structured fields (RFC 9651): one that has another value is as
if it were not there.
"""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from aiohttp import HttpVersion11, web
from pydantic import Field
from typing_extensions import TypedDict

from intermission.state.models import Task
from intermission.state.status import Reason, Status
from intermission.supervisor.errors import HeldError, LengthError, OffsetError
from intermission.supervisor.inputs import UPLOAD
from intermission.supervisor.routes import (
    answers,
    bodies,
    delivery,
    digests,
    outcome,
    requests,
    resource,
    upload_limits,
)
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.problems import Problem, misplaced
from intermission.supervisor.stream import Delivery, agreed_length, announced, received

VERSIONS: Final = (6, 8)
MEDIA_TYPE: Final = "application/partial-upload"
SENDS: Final = ("Upload-Complete", "Upload-Limit")
APPENDING: Final = {104: ("Upload-Draft-Interop-Version", "Upload-Offset")}
CREATING: Final = {104: (*APPENDING[104], "Location", "Upload-Limit")}
"""What interim answers send."""
_LARGEST: Final = 10**15 - 1
"""The largest integer that a structured field can have."""
_BARE: Final = (
    r"(?:-?\d{1,12}\.\d{1,3}|@?-?\d{1,15}|\?[01]|:[A-Za-z0-9+/=]*:"
    r"""|%?"(?:[ !#-\[\]-~]|\\["\\])*"|[A-Za-z*][\w!#$%&'*+.^`|~:/-]*)"""
)
_PARAMETERS: Final = rf"(?:; *[a-z*][a-z0-9_.*-]*(?:={_BARE})?)*"
_COUNT: Final = re.compile(rf" *(\d{{1,15}}){_PARAMETERS} *", re.ASCII)
_BOOLEAN: Final = re.compile(rf" *\?([01]){_PARAMETERS} *", re.ASCII)

_Version = Annotated[
    str,
    Field(description="`6` or `8`: this draft of resumable uploads for HTTP; 104 tells the address, and how far it is"),
]
Versioned = TypedDict("Versioned", {"Upload-Draft-Interop-Version": _Version}, total=False)
Speaking = TypedDict(
    "Speaking",
    {
        "Upload-Complete": Annotated[str, Field(description="`?1` if this body ends the data, `?0` if not")],
        "Upload-Draft-Interop-Version": _Version,
    },
    total=False,
)


def speaks(request: web.Request) -> bool:
    """Whether a request to the address of uploads, or of one, is of this protocol; what is of neither is tus's."""
    if "Tus-Resumable" in request.headers:
        return False
    return _version(request) is not None or _is_complete(request) is not None or request.method == "GET"


def creates(request: web.Request) -> bool:
    """Whether a start is to be resumable."""
    return "Tus-Resumable" not in request.headers and _is_complete(request) is not None


def support(request: web.Request) -> dict[str, str]:
    """What an answer to OPTIONS says of this protocol."""
    return {"Accept-Patch": MEDIA_TYPE, **_limit(request)}


async def create(request: web.Request, described: Mapping[str, Any]) -> web.StreamResponse:
    """Create an upload, and take its first bytes if some come along. ``described``: what else is known of the file."""
    complete = _is_complete(request)
    if complete is None:
        raise _incomplete_head()
    if request.content_type.startswith("multipart/"):
        raise Problem(415, "unsupported-media-type", "a form cannot be resumed: send the file itself as the body")
    bodies.check_encoding(request)
    info = {
        "filename": bodies.filename(request),
        "media_type": "application/octet-stream" if request.content_type == MEDIA_TYPE else request.content_type,
        **digests.asked(request),
        **described,
        "size_bytes": _length(request, 0, complete=complete),
    }
    size, checksum = info["size_bytes"], digests.of_content(request)
    with _worded(request, 0):
        upload_limits.check_crowd(request)
        await _check_size(request, size)
        key = requests.key(request, info)
        info["open_ended"] = True  # whatever is asked for, so that a key means what it did before this was said
        supervisor, brings = request.app[SUPERVISOR], bodies.has_body(request)
        began = await supervisor.start(UPLOAD, info, request[CALLER].user, key=key, brings=brings)
        task = await resource.vacant(request, began.task) if began.replayed else began.task
        location, more = resource.location(request, task.id), answers.replayed(began)
        interims = _interims(request, task, {"Location": location, **_limit(request, task)})
        if began.replayed and task.status is Status.COMPLETED:
            return _completed(request, task, location, more)
        if began.replayed or not (complete or brings):
            if interims is not None:
                await interims.began()
            return _created(request, task, location, more)
        bringing = Delivery(checksum=checksum)
        brought = await delivery.deliver(
            request, task, bringing, created=True, open_ended=not complete, interims=interims
        )
        return await _told(request, brought, location, complete=complete)


async def show(request: web.Request, task: Task) -> web.StreamResponse:
    """Tell how far an upload is; a request that still brings it bytes is stopped, and they are kept."""
    requests.query(request)
    return web.Response(status=204, headers=state(request, await resource.vacant(request, task)))


async def append(request: web.Request, task: Task) -> web.StreamResponse:
    """Go on with an upload: the body, from Upload-Offset on; a request that still brings it bytes is stopped."""
    requests.query(request)
    if request.content_type != MEDIA_TYPE:
        raise Problem(415, "unsupported-media-type", f"what is appended must come as {MEDIA_TYPE}")
    bodies.check_encoding(request)
    complete, offset = _is_complete(request), _count(request, "Upload-Offset")
    if complete is None:
        raise _incomplete_head()
    if offset is None:
        raise bodies.offset_required()
    checksum = digests.of_content(request)
    digests.check_announced(request, task)
    resource.check_takes_bytes(task)
    with _worded(request, offset):
        task = await resource.vacant(request, task)
        if offset != (place := received(task)):
            raise OffsetError(task, place)
        if task.status is Status.COMPLETED:
            return await _again(request, task, complete=complete)
        length = _length(request, offset, complete=complete)
        size = agreed_length(task, length)
        await _check_size(request, size, offset, task.id)
        if not (complete or bodies.has_body(request) or checksum) and resource.stays(task, size):
            return web.Response(status=204, headers=state(request, task))
        bringing = Delivery(offset=offset, length=length, checksum=checksum, lifts=False)
        brought = await delivery.deliver(
            request, task, bringing, open_ended=not complete, interims=_interims(request, task)
        )
        return await _told(request, brought, None, complete=complete)


async def delete(request: web.Request, task: Task) -> web.StreamResponse:
    """Have nothing be left of an upload."""
    requests.query(request)
    return await resource.delete(request, task)


def state(request: web.Request, task: Task) -> dict[str, str]:
    """How far it is, in headers; and what it has come to, if that is wanted."""
    length = announced(task)
    return {
        "Cache-Control": "no-store",
        "Upload-Offset": str(received(task)),
        "Upload-Complete": "?1" if task.status is Status.COMPLETED else "?0",
        **({} if length is None else {"Upload-Length": str(length)}),
        **digests.wanted(request, task),
        **_limit(request, task),
    }


# What a request says.


def _item(request: web.Request, name: str, pattern: re.Pattern[str]) -> str | None:
    match = pattern.fullmatch(",".join(request.headers.getall(name, [])))
    return None if match is None else match[1]


def _count(request: web.Request, name: str) -> int | None:
    text = _item(request, name, _COUNT)
    return None if text is None else int(text)


def _is_complete(request: web.Request) -> bool | None:
    text = _item(request, "Upload-Complete", _BOOLEAN)
    return None if text is None else text == "1"


def _version(request: web.Request) -> int | None:
    version = _count(request, "Upload-Draft-Interop-Version")
    return version if version in VERSIONS else None


def _body(request: web.Request) -> int | None:
    """How long its body will be; one without a word about it has none."""
    return None if bodies.is_chunked(request) else bodies.body_length(request) or 0


def _length(request: web.Request, offset: int, *, complete: bool) -> int | None:
    """How many bytes there are in all, as far as a request says so. Raises `Problem`."""
    said, body = _count(request, "Upload-Length"), _body(request)
    whole = offset + body if complete and body is not None else None
    if said is not None and whole is not None and said != whole:
        raise _inconsistent(f"Upload-Length says that the data has {said} bytes in all, and it would end at {whole}")
    return whole if said is None else said


async def _check_size(request: web.Request, size: int | None, offset: int = 0, task_id: str | None = None) -> None:
    """As `upload_limits.check_size`; but that more comes than was announced has a name of its own here."""
    body = _body(request)
    if size is not None and offset + (body or 0) > size:
        raise _inconsistent(f"the data has {size} bytes in all, and this body would end at byte {offset + (body or 0)}")
    await upload_limits.check_size(request, size, body, offset, task_id)


# What it is told.


class Interims:
    """What the client hears while its body comes: 104, Upload Resumption Supported."""

    def __init__(self, request: web.Request, version: int, offset: int, created: Mapping[str, str]) -> None:
        self._request = request
        self._version = version
        self._told = offset
        self._created = created

    async def began(self) -> None:
        """Tell where it can be resumed, if it is new."""
        if self._created:
            await self._send(self._created)

    async def durable(self, offset: int) -> None:
        """Tell that so many bytes need not be sent again; not to a client that has not read what it was told before."""
        transport = self._request.transport
        if offset > self._told and transport is not None and not transport.get_write_buffer_size():
            self._told = offset
            await self._send({"Upload-Offset": str(offset)})

    async def _send(self, headers: Mapping[str, str]) -> None:
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        version = f"Upload-Draft-Interop-Version: {self._version}\r\n"
        head = "".join(["HTTP/1.1 104 Upload Resumption Supported\r\n", version, *lines, "\r\n"])
        await requests.interim(self._request, head.encode())


def _interims(request: web.Request, task: Task, created: Mapping[str, str] | None = None) -> Interims | None:
    """Nothing for a client that did not ask: to many an interim answer that they do not know is the final one."""
    version = _version(request)
    if version is None or request.version < HttpVersion11:
        return None
    return Interims(request, version, received(task), created or {})


async def _told(
    request: web.Request, brought: outcome.Brought, created: str | None, *, complete: bool
) -> web.StreamResponse:
    """What a task that has come to this is answered with. Raises `Problem` where its data is not what was to come."""
    task, end = brought.task, brought.end
    if end is outcome.End.TOO_LONG:
        await outcome.discard(request, task)
        if (length := announced(task)) is not None:
            raise _inconsistent(f"more came than the {length} bytes that were announced; nothing is kept")
        raise upload_limits.too_large(request)
    if task.status is Status.COMPLETED:
        return _completed(request, task, created)
    if task.is_held and task.status is Status.PAUSED:
        problem = _held(HeldError(task, received(task)))
    elif task.reason is not Reason.AWAITING_DATA:
        problem = outcome.cut_short(brought)
    elif complete:
        problem = _inconsistent(f"the data has {announced(task)} bytes in all, and the body ended before")
    elif created is not None:
        return _created(request, task, created)
    else:
        return web.Response(status=204, headers=state(request, task))
    where = {} if created is None else {"Location": created}
    raise problem.telling({**state(request, task), **where})


def _created(
    request: web.Request, task: Task, location: str, more: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """The answer of a start whose data is still to come, or its rest."""
    said = {"Location": location, "Upload-Complete": "?0", **_limit(request, task), **(more or {})}
    return answers.task(request, task, 201, **said)


def _completed(
    request: web.Request, task: Task, created: str | None = None, more: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """The answer of the start, now that all of the data is there."""
    headers = {"Upload-Complete": "?1", **(more or {})}
    if created is not None:  # of a plain start, what it would have said without this protocol
        headers["Location"] = created if request.path == resource.PATH else f"/tasks/{task.id}"
    return answers.task(request, task, 200 if created is None else 201, **headers)


async def _again(request: web.Request, task: Task, *, complete: bool) -> web.StreamResponse:
    """What is said to whoever appends to a complete upload; the same as before if only the answer was lost."""
    if not await requests.brings_nothing(request, request.app[upload_limits.LIMITS].idle_s):
        raise _inconsistent(f"the upload is complete with {received(task)} bytes: there is nothing to be added")
    if not complete:
        raise Problem(400, "completed-upload", "the upload is complete, and stays so")
    _length(request, received(task), complete=True)
    return _completed(request, task)


def _limit(request: web.Request, task: Task | None = None) -> dict[str, str]:
    """What the draft has a name for, of what limits an upload."""
    most = request.app[upload_limits.LIMITS].max_bytes
    known = {} if most is None else {"max-size": min(most, _LARGEST)}
    if task is not None and task.status is Status.PAUSED and task.due_at is not None:
        known["max-age"] = max(int(task.due_at - time.time()), 0)
    said = ", ".join(f"{name}={value}" for name, value in known.items())
    return {"Upload-Limit": said or "min-size=0"}


@contextlib.contextmanager
def _worded(request: web.Request, offset: int) -> Iterator[None]:
    """Have errors say what the draft wants them to say."""
    try:
        yield
    except OffsetError as error:
        raise _mismatch(error, offset) from None
    except LengthError as error:
        raise _inconsistent(str(error)) from None
    except HeldError as error:
        raise _held(error) from None
    except Problem as problem:
        if problem.status == web.HTTPRequestEntityTooLarge.status_code:
            raise problem.telling(_limit(request)) from None
        if problem.slug == "digest-mismatch" and "Upload-Complete" not in problem.headers:
            # All of the data came, and is not what it was to be: it would be no use to resume it.
            raise problem.telling({"Upload-Complete": "?1"}) from None
        raise


def _mismatch(error: OffsetError, offset: int) -> Problem:
    problem = misplaced(error)
    members = {**problem.members, "expected-offset": error.offset, "provided-offset": offset}
    # ?1 would say that this is what came of the upload, not a mistake about where it goes on.
    more = {} if error.task.status is Status.COMPLETED else {"Upload-Complete": "?0"}
    return Problem(409, "mismatching-upload-offset", problem.detail, members, {**problem.headers, **more})


def _held(error: HeldError) -> Problem:
    return misplaced(error).telling({"Upload-Complete": "?0"})


def _inconsistent(why: str) -> Problem:
    return Problem(400, "inconsistent-upload-length", why)


def _incomplete_head() -> Problem:
    return Problem(400, "completeness-required", "say with Upload-Complete: ?1 that this body ends the data, or ?0")
