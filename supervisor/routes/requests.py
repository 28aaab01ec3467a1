"""What a request says, checked: its body, its query, its preferences. And how JSON is answered."""

import asyncio
import hashlib
import json
import re
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Final

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Handler
from pydantic import Field, with_config
from typing_extensions import TypedDict

from intermission.handlers.schema import Invalid, loads
from intermission.state.models import Key
from intermission.supervisor.errors import UnknownTaskError
from intermission.supervisor.routes import bodies
from intermission.supervisor.routes.problems import Problem, misfit
from intermission.supervisor.routes.shapes import ID_PATTERN, TaskId

MAX_BODY_BYTES: Final = 1 << 20
BODY_WITHIN_S: Final = 60.0
"""How long a body may take that is no data of an upload."""
MAX_WAIT_S: Final = 60.0
_ID: Final = re.compile(ID_PATTERN)
_WAIT: Final = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d+)"?(?=\s*(?:[,;]|$))', re.ASCII | re.IGNORECASE)
_KEY: Final = re.compile(r"[!-~]{1,255}")
_CONTINUE: Final = "100-continue"
_MOST_BYTES: Final = {"Content-Type": 1 << 10, "Host": 1 << 10}
"""What aiohttp and urllib parse, and how long it may be: with a whole line of 24 KiB that took them up to 0.5 s."""


@web.middleware
async def bound(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a header that is long beyond all use, before anybody parses it. Raises `Problem` (400)."""
    for name, most in _MOST_BYTES.items():
        if any(len(given) > most for given in request.headers.getall(name, [])):
            raise Problem(400, "malformed-header", f"{name} may have {most} bytes at most")
    return await handler(request)


async def later(request: web.Request) -> web.StreamResponse | None:
    """What a route does with Expect, in place of aiohttp's 100: nothing yet. It says `go_on` once it wants the body.

    So whatever is refused is refused before the client sends it.
    """
    if request.headers["Expect"].lower() == _CONTINUE:
        return None
    detail = f"the only expectation that can be met is {_CONTINUE}"
    response = Problem(417, "expectation-failed", detail).response()
    response.force_close()
    return response


async def go_on(request: web.Request) -> None:
    """Ask for the body, where the client waits to be asked (RFC 9110, section 10.1.1)."""
    if request.headers.get("Expect", "").lower() == _CONTINUE and request.version >= HttpVersion11:
        await interim(request, b"HTTP/1.1 100 Continue\r\n\r\n")


async def brings_nothing(request: web.Request, within_s: float) -> bool:
    """Whether its body is empty, which of a chunked one only its beginning tells; what has begun is of no use then.

    Raises `Problem` (400, 408).
    """
    if not bodies.is_chunked(request):
        return not bodies.has_body(request)
    try:
        async with asyncio.timeout(within_s):
            await go_on(request)
            return not await request.content.readany()
    except TimeoutError:
        raise Problem(408, "idle", "nothing came of the body for too long") from None
    except (ConnectionError, web.RequestPayloadError):
        raise Problem(400, "malformed-body", "the body broke off, or is not what its Transfer-Encoding says") from None


async def interim(request: web.Request, head: bytes) -> None:
    """Send an interim answer (1xx), before the answer. Raises ConnectionError."""
    await request.writer.write(head)
    request.writer.output_size = 0  # as aiohttp does: the answer has not begun with it


class OfTask(TypedDict):
    """In the address of a task."""

    id: TaskId


@with_config(use_attribute_docstrings=True)
class OneOf(TypedDict, total=False):
    """Which of the caller's tasks is meant."""

    task: TaskId
    """Its id. Without it, one's only task of this service that can be told so."""


@with_config(use_attribute_docstrings=True)
class Waiting(TypedDict, total=False):
    """What a request may say about waiting (RFC 7240)."""

    Prefer: str
    """`wait=N`: answer after N seconds (60 at most) if it has not come to rest before."""


Keyed = TypedDict(
    "Keyed",
    {
        "Idempotency-Key": Annotated[
            str,
            Field(pattern=r"^[!-~]{1,255}$", description="The same start sent again within a day finds the first one"),
        ]
    },
    total=False,
)


def key(request: web.Request, asked: object) -> Key | None:
    """What the client calls this start, of all that it asks for. Raises `Problem` (400)."""
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise Problem(
            400, "malformed-header", "Idempotency-Key must be one word of 1 to 255 printable ASCII characters"
        )
    text = json.dumps([request.path, asked], sort_keys=True, default=str)
    return Key(given[0], hashlib.sha256(text.encode()).hexdigest())


async def json_body(request: web.Request, files: Sequence[str] = ()) -> Any:
    """The body as parsed JSON; an empty one is an empty object. Raises `Problem` (400, 408, 413, 415).

    ``files`` are the types of what could have been sent instead.
    """
    text = await _body(request)
    if not text.strip():
        return {}
    kind = request.content_type
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        said = f"it is {kind}" if "Content-Type" in request.headers else "it has no Content-Type"
        instead = f", or a file as {', '.join(files[:-1])} or {files[-1]}" if files else ""
        detail = f"the body must be JSON, and {said}: send application/json{instead}"
        raise Problem(415, "unsupported-media-type", detail)
    try:
        return loads(text)
    except Invalid as error:
        raise Problem(400, "malformed-json", f"the body is {error.faults[0].message}") from None


async def _body(request: web.Request) -> bytes:
    announced = request.content_length
    if announced is not None and announced > MAX_BODY_BYTES:  # told now, not after a megabyte of it
        raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, announced)
    bodies.check_encoding(request)
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            await go_on(request)
            return await request.read()
    except TimeoutError:
        detail = f"the body must be complete within {BODY_WITHIN_S:g} s: send it again"
        raise Problem(408, "body-too-slow", detail) from None
    except web.RequestPayloadError:
        raise Problem(400, "malformed-body", "the body is not what its Transfer-Encoding says") from None
    except ConnectionError:  # there is nobody left to read this, but it is no mistake of ours either
        raise Problem(400, "malformed-body", "the body broke off") from None


def query(request: web.Request, *known: str, repeatable: Collection[str] = ()) -> dict[str, list[str]]:
    """The query's values by name. Raises `Problem` (422) with every name that is unknown or repeated."""
    faults = []
    values = {name: [str(value) for value in request.query.getall(name)] for name in request.query}
    for name, given in values.items():
        if name not in known:
            may = f"there are: {', '.join(known)}" if known else "there are none here"
            faults.append({"parameter": name, "detail": f"Unknown parameter; {may}"})
        elif len(given) > 1 and name not in repeatable:
            faults.append({"parameter": name, "detail": "Given more than once"})
        elif any("\ufffd" in value or "\x00" in value for value in given):  # how aiohttp reads what is no UTF-8
            faults.append({"parameter": name, "detail": "Not text in UTF-8"})
    if faults:
        raise misfit(faults, "the query does not fit")
    return values


def integer(values: dict[str, list[str]], name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query. Raises `Problem` (422)."""
    if name not in values:
        return default
    text = values[name][0]
    number = int(text) if re.fullmatch(r"\d{1,10}", text, re.ASCII) else -1
    if not least <= number <= most:
        detail = f"Must be a whole number from {least} to {most}"
        raise misfit([{"parameter": name, "detail": detail}], "the query does not fit")
    return number


def task_id(text: str) -> str:
    """A task's id. Raises `UnknownTaskError` for what cannot be one."""
    if not _ID.fullmatch(text):
        raise UnknownTaskError(repr(text[:64]))
    return text


def wait_s(request: web.Request, default: float) -> float:
    """How long the client would wait (RFC 7240), at most `MAX_WAIT_S`. A preference that is none is left aside."""
    asked = _asked_wait_s(request)
    return default if asked is None else asked


def answer(request: web.Request, body: object, status: int = 200, **headers: str) -> web.Response:
    """A JSON answer, saying which wait was applied."""
    sent = {"Cache-Control": "no-store", **headers}
    if (asked := _asked_wait_s(request)) is not None and request.method == "POST":
        sent["Preference-Applied"] = f"wait={asked:.0f}"
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        content_type="application/json",
        headers=sent,
    )


def _asked_wait_s(request: web.Request) -> float | None:
    found = _WAIT.search(",".join(request.headers.getall("Prefer", ())))
    return min(float(found[1]), MAX_WAIT_S) if found else None
