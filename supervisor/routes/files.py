"""What a task wrote: its files as of the checkpoint, and its log."""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import structlog
from aiohttp import web
from pydantic import Field, with_config
from typing_extensions import TypedDict

from intermission.handlers.inputs import CONTENT
from intermission.supervisor.routes import answers, digests, follow, requests, sendfile, views
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.operation import Operation
from intermission.supervisor.routes.problems import Problem
from intermission.supervisor.routes.threads import to_its_end

_BLOCK_BYTES: Final = 256 << 10
_MOST_LINES: Final = 100_000
_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII | re.IGNORECASE)
_HEADERS: Final = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "no-cache",
    # Whatever is in it, and however somebody gets a browser to show it, it runs nothing and has no origin.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
_PROBLEMS: Final = (404, 410, 416, 422, 503)
_log = structlog.get_logger()


class OfFile(TypedDict):
    """In the address of a task's file."""

    name: str


class Part(TypedDict, total=False):
    """Which part is wanted."""

    Range: Annotated[str, Field(description="Only a part (RFC 9110): `bytes=0-99`, `bytes=100-`, `bytes=-100`")]


Version = TypedDict(
    "Version",
    {
        "If-Range": Annotated[
            str, Field(description="An ETag: the part if the file is still this one, else the whole")
        ],
        "If-Match": Annotated[str, Field(description="An ETag: 412 if the file is not this one any more")],
        "If-None-Match": Annotated[str, Field(description="An ETag: 304 if the file is still this one")],
    },
    total=False,
)


@with_config(use_attribute_docstrings=True)
class Tail(TypedDict, total=False):
    """How much of a log is wanted."""

    tail: Annotated[int, Field(ge=1, le=_MOST_LINES)]
    """Only so many of its last lines."""
    follow: Annotated[int, Field(ge=0, le=1)]
    """1: as server-sent events, until the task rests."""


def add(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/tasks/{id}/files/{name}", file)
    app.router.add_get("/tasks/{id}/log", log)


@Operation(
    path=(requests.OfTask, OfFile),
    headers=(Part, Version, digests.Wanting),
    answers={200: "*/*", 206: "*/*", 304: None},
    problems=(*_PROBLEMS, 412),
    sends=("ETag", "Content-Range", *digests.SENDS),
)
async def file(request: web.Request) -> web.StreamResponse:
    """Download one of a task's files, as of its last checkpoint.

    It is exactly as long as the checkpoint says: what is behind that may yet be taken back.
    """
    requests.query(request)
    task = await answers.found(request)
    outputs = task.checkpoint.outputs if task.checkpoint else {}
    name = request.match_info["name"]
    if name not in outputs:
        there = ", ".join(sorted(outputs)) or "none yet"
        raise Problem(404, "unknown-file", f"the task has no file of this name; its files: {there}")
    headers = {
        "Content-Type": views.media_type(task, name),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(views.saved_as(task, name))}",
        # What is before a checkpoint never changes, so the length says it all.
        "ETag": f'"{task.id}-{outputs[name]}"',
        **(digests.of_file(request, task) if name == CONTENT else {}),
    }
    path = request.app[SUPERVISOR].places.output(task.id, name)
    try:
        return await _send(request, path, lambda _: (0, outputs[name]), headers)
    except FileNotFoundError:
        raise Problem(404, "unknown-file", "the file is not there any more: its task is being deleted") from None


@Operation(
    path=(requests.OfTask,),
    query=(Tail,),
    headers=(Part, follow.Reached),
    answers={200: ("text/plain", "text/event-stream"), 206: "text/plain"},
    problems=_PROBLEMS,
    sends=("Content-Range",),
)
async def log(request: web.Request) -> web.StreamResponse:
    """Show what a task printed, and with `follow` what it will print.

    Followed, each line is a server-sent event whose id is the offset behind it. When the task rests there is a last
    event, `end`, with its status; a stream that stops without it was cut off, and goes on at `Last-Event-ID`.
    """
    values = requests.query(request, "tail", "follow")
    lines = requests.integer(values, "tail", 0, 1, _MOST_LINES)
    following = requests.integer(values, "follow", 0, 0, 1)
    reached = follow.last_event(request)
    task = await answers.found(request)
    path = request.app[SUPERVISOR].places.log(task.id)
    if following:
        offset = await asyncio.to_thread(_tail, path, lines) if reached is None else reached
        return await follow.follow(request, task.id, offset)

    def part(fd: int) -> tuple[int, int]:
        size = os.fstat(fd).st_size
        return (_last_lines(fd, size, lines) if lines else 0), size

    headers = {"Content-Type": "text/plain; charset=utf-8"}
    try:
        return await _send(request, path, part, headers)
    except FileNotFoundError:  # it never ran
        return web.Response(headers=_HEADERS | headers | {"Content-Length": "0"})  # which HEAD would lack


async def _send(
    request: web.Request, path: Path, part: Callable[[int], tuple[int, int]], headers: dict[str, str]
) -> web.StreamResponse:
    """Send from the first to the second offset of ``part``, or the range of it that was asked for.

    Raises FileNotFoundError.
    """
    sent = _HEADERS | headers
    etag = sent.get("ETag")
    if etag is not None:
        if not _names(",".join(request.headers.getall("If-Match", ["*"])), etag):
            detail = "the file is not the one that If-Match names; ask without it for what it is now"
            raise Problem(412, "precondition-failed", detail, headers={"ETag": etag})
        if _names(request.headers.get("If-None-Match", "").replace("W/", ""), etag):  # compared weakly
            return web.Response(status=304, headers=sent)
    fd = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        start, stop = await to_its_end(part, fd)
        size = stop - start
        asked = _range(request, size, etag)
        first, last = asked or (0, size)
        response = web.StreamResponse(status=206 if asked else 200, headers=sent)
        if asked:
            response.headers["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
        response.content_length = last - first
        await response.prepare(request)
        if request.method != "HEAD":
            await _copy(request, response, fd, start + first, start + last)
        return response
    finally:
        os.close(fd)


async def _copy(request: web.Request, response: web.StreamResponse, fd: int, offset: int, end: int) -> None:
    """The bytes from the one to the other offset.

    Where they end too soon the connection is broken off: once the head is sent, nothing else tells the client so.
    """
    fault = "it is shorter than it should be"
    try:
        if sendfile.can(request):
            offset = await sendfile.send(request, fd, offset, end)
        else:
            while offset < end and (block := await to_its_end(os.pread, fd, _BLOCK_BYTES, offset)):
                await response.write(block[: end - offset])
                offset += len(block)
    except ConnectionError:  # the client went away
        return
    except OSError as error:
        fault = str(error)
    if offset < end and request.transport is not None:
        _log.error("a file could not be sent whole", path=request.path, error=fault)
        request.transport.abort()


def _range(request: web.Request, size: int, etag: str | None) -> tuple[int, int] | None:
    """The part that was asked for as its begin and end; None for the whole (RFC 9110, section 14).

    Also None for what is no range or several: a server may leave those aside. Raises `Problem` (416).
    """
    if request.method != "GET" or request.headers.get("If-Range", etag) != etag:
        return None
    match = _RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    if match is None or match.groups() == ("", "") or (match[1] and match[2] and int(match[1]) > int(match[2])):
        return None
    if match[1]:
        first, last = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    else:
        first, last = max(size - int(match[2]), 0), size
    if first >= last:
        detail = f"there are {size} bytes, and none of them is in that range"
        raise Problem(416, "range-not-satisfiable", detail, headers={"Content-Range": f"bytes */{size}"})
    return first, last


def _names(header: str, etag: str) -> bool:
    """Whether it names this entity tag, compared strongly: a weak one never is it."""
    tags = [tag.strip() for tag in header.split(",")]
    return etag in tags or "*" in tags


def _tail(path: Path, lines: int) -> int:
    """Where the last so many lines of a log begin; 0 lines are all of them."""
    if not lines:
        return 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # it has not run yet
        return 0
    try:
        return _last_lines(fd, os.fstat(fd).st_size, lines)
    finally:
        os.close(fd)


def _last_lines(fd: int, size: int, lines: int) -> int:
    """Where the last so many lines begin. Reads from the end, so that a long log costs no more than a short one."""
    begin, left = size, lines + 1  # the newline that ends the line before counts too
    while begin:
        start = max(begin - _BLOCK_BYTES, 0)
        block = os.pread(fd, begin - start, start)
        end = len(block) - (begin == size and block.endswith(b"\n"))
        while (at := block.rfind(b"\n", 0, end)) >= 0:
            left -= 1
            if left == 1:
                return start + at + 1
            end = at
        begin = start
    return 0
