"""What a task wrote: its files as of the checkpoint, and its log."""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from aiohttp import web

from intermission.supervisor.routes import answers, requests, views
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.problems import Problem

_BLOCK_BYTES: Final = 256 << 10
_MOST_LINES: Final = 100_000
_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


def add(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/tasks/{id}/files/{name}", file)
    app.router.add_get("/tasks/{id}/log", log)


async def file(request: web.Request) -> web.StreamResponse:
    """One of a task's files, exactly as long as its checkpoint says: what is behind that may yet be taken back."""
    requests.query(request)
    task = await answers.found(request)
    outputs = task.checkpoint.outputs if task.checkpoint else {}
    name = request.match_info["name"]
    if name not in outputs:
        there = ", ".join(sorted(outputs)) or "none yet"
        raise Problem(404, "unknown-file", f"the task has no file of this name; its files: {there}")
    headers = {
        "Content-Type": views.media_type(name),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}",
        # What is before a checkpoint never changes, so the length says it all.
        "ETag": f'"{task.id}-{outputs[name]}"',
    }
    path = request.app[SUPERVISOR].places.output(task.id, name)
    return await _send(request, path, lambda fd: (0, min(outputs[name], os.fstat(fd).st_size)), headers)


async def log(request: web.Request) -> web.StreamResponse:
    """What a task printed, the whole or the last ``?tail=`` lines."""
    values = requests.query(request, "tail")
    lines = requests.integer(values, "tail", 0, 1, _MOST_LINES)
    task = await answers.found(request)

    def part(fd: int) -> tuple[int, int]:
        size = os.fstat(fd).st_size
        return (_last_lines(fd, size, lines) if lines else 0), size

    headers = {"Content-Type": "text/plain; charset=utf-8"}
    return await _send(request, request.app[SUPERVISOR].places.log(task.id), part, headers)


async def _send(
    request: web.Request, path: Path, part: Callable[[int], tuple[int, int]], headers: dict[str, str]
) -> web.StreamResponse:
    """Send from the first to the second offset of ``part``, or the range of it that was asked for."""
    sent = {"Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache", **headers}
    etag = sent.get("ETag")
    if etag is not None and _names(request.headers.get("If-None-Match", ""), etag):
        return web.Response(status=304, headers=sent)
    try:
        fd = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # nothing printed yet, nothing written yet
        return web.Response(headers=sent)
    try:
        start, stop = await asyncio.to_thread(part, fd)
        size = stop - start
        asked = _range(request, size, etag)
        first, last = asked or (0, size)
        response = web.StreamResponse(status=206 if asked else 200, headers=sent)
        if asked:
            response.headers["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
        response.content_length = last - first
        await response.prepare(request)
        if request.method != "HEAD":
            await _copy(fd, start + first, start + last, response)
        return response
    finally:
        os.close(fd)


async def _copy(fd: int, offset: int, end: int, response: web.StreamResponse) -> None:
    while offset < end:
        block = await asyncio.to_thread(os.pread, fd, min(_BLOCK_BYTES, end - offset), offset)
        if not block:  # shorter than it was: break the connection off rather than send less than was promised
            raise ConnectionAbortedError
        await response.write(block)
        offset += len(block)


def _range(request: web.Request, size: int, etag: str | None) -> tuple[int, int] | None:
    """The part that was asked for as its begin and end; None for the whole (RFC 9110, section 14).

    Also None for what is no range or several: a server may leave those aside. Raises `Problem` (416).
    """
    if request.headers.get("If-Range", etag) != etag:
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
    """Whether If-None-Match names this entity tag, compared weakly."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or "*" in tags


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
