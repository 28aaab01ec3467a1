"""What a request's head says of its body: how long it is, what it is called, how it is packed."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from aiohttp import web

from intermission.handlers.body import MAX_SIZE
from intermission.supervisor.routes.problems import Problem

_NUMBER: Final = re.compile(r"\d{1,19}", re.ASCII)
_KIND: Final = re.compile(r"\s*([!#$%&'*+\-.^_`|~\w]+)\s*", re.ASCII)
_PARAMETER: Final = re.compile(
    r""";\s*([!#$%&'*+\-.^_`|~\w]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;"]+)\s*""", re.ASCII | re.DOTALL
)
_QUOTED_PAIR: Final = re.compile(r'\\(["\\])')
"""A backslash before anything else is one: that is how browsers send names of Windows."""
_EXTENDED: Final = re.compile(r"(utf-8|iso-8859-1)'[^']*'([^']*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Head:
    """What is said of a file before its first byte."""

    filename: str | None
    media_type: str


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


def offset_required() -> Problem:
    """That nobody can tell where a body goes."""
    return Problem(400, "offset-required", "say with Upload-Offset at which byte of the data this body begins")


def filename(request: web.Request) -> str | None:
    """What Content-Disposition calls it."""
    given = request.headers.get("Content-Disposition", "").encode("utf-8", "surrogateescape")
    return named(disposition(text(given))[1], "filename")


def text(said: bytes) -> str:
    """What a client has written, which does not have to say how: UTF-8, or else what HTTP once took it for."""
    try:
        return said.decode()
    except UnicodeDecodeError:
        return said.decode("latin-1")


def disposition(header: str) -> tuple[str, dict[str, str]]:
    """A Content-Disposition's kind and parameters (RFC 6266), as they were said; empty for what is none.

    aiohttp's own drops the slashes that a name begins with, and writes what it cannot read to our log.
    """
    kind = _KIND.match(header)
    if kind is None:
        return "", {}
    parameters, at = dict[str, str](), kind.end()
    while match := _PARAMETER.match(header, at):
        name, value, at = match[1].lower(), match[2], match.end()
        if name in parameters:
            return "", {}
        parameters[name] = _QUOTED_PAIR.sub(r"\1", value[1:-1]) if value.startswith('"') else value
    return (kind[1].lower(), parameters) if header[at:].strip(" \t;") == "" else ("", {})


def named(parameters: Mapping[str, str], name: str) -> str | None:
    """A parameter, in its extended form (RFC 8187) if it has one that can be read."""
    match = _EXTENDED.fullmatch(parameters.get(f"{name}*", ""))
    if match:
        with contextlib.suppress(UnicodeDecodeError):
            return unquote(match[2], match[1], "strict")
    return parameters.get(name)


def check_encoding(request: web.Request) -> None:
    """Refuse a body that is packed: what is counted and kept are its bytes. Raises `Problem` (415, 501)."""
    coding = ",".join(request.headers.getall("Transfer-Encoding", ["chunked"]))
    if coding.strip().lower() != "chunked":  # aiohttp undoes the last of several, and leaves the others in the bytes
        raise Problem(501, "unknown-transfer-coding", "the only Transfer-Encoding that is understood is chunked")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        detail = "the body has a Content-Encoding: send it as it is"
        raise Problem(415, "unsupported-media-type", detail, headers={"Accept-Encoding": "identity"})
