"""What a request's head says of its body: how long it is, what it is called, how it is packed."""

import re
from typing import Final

from aiohttp import web
from aiohttp.multipart import content_disposition_filename, parse_content_disposition

from intermission.handlers.body import MAX_SIZE
from intermission.supervisor.routes.problems import Problem

_NUMBER: Final = re.compile(r"\d{1,19}", re.ASCII)


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


def filename(request: web.Request) -> str | None:
    """What Content-Disposition calls it."""
    _, parameters = parse_content_disposition(request.headers.get("Content-Disposition"))
    return content_disposition_filename(parameters)


def check_encoding(request: web.Request) -> None:
    """Refuse a body that is packed: what is counted and kept are its bytes. Raises `Problem` (415)."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported-media-type", "the body has a Content-Encoding: send the file as it is")
