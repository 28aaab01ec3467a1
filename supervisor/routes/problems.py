"""Every error that a client sees: one table from exceptions to RFC 9457, applied by one middleware."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from intermission.handlers.schema import Fault, Invalid
from intermission.state.store import StoreError, StoreFullError, UnreadableError
from intermission.supervisor.errors import (
    AmbiguousError,
    ConflictError,
    CrowdedError,
    ForgottenError,
    GoneError,
    HandlerError,
    HeldError,
    InUseError,
    KeyReusedError,
    LengthError,
    NoneEligibleError,
    NoSpaceError,
    OffsetError,
    QuotaError,
    StuckError,
    UnavailableError,
    UnknownServiceError,
    UnknownTaskError,
)
from intermission.supervisor.routes import views

_TYPE: Final = "https://intermission.dev/problems/"
_REGISTERED_TYPE: Final = "https://iana.org/assignments/http-problem-types#"
_REGISTERED: Final = frozenset({"mismatching-upload-offset", "completed-upload", "inconsistent-upload-length"})
"""What has the same name everywhere."""
_DETAILS: Final = {
    HTTPStatus.NOT_FOUND: "there is nothing at this address",
    HTTPStatus.METHOD_NOT_ALLOWED: "this address does not take {method}; see Allow for what it takes",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the body is larger than 1 MiB; send less, or refer to larger input by name",
}
_PLAIN: Final[dict[type[Exception], tuple[int, str]]] = {
    UnknownServiceError: (404, "unknown-service"),
    UnknownTaskError: (404, "unknown-task"),
    ForgottenError: (410, "gone"),
    NoneEligibleError: (404, "none-eligible"),
    AmbiguousError: (409, "several-tasks"),
    InUseError: (409, "in-use"),
    QuotaError: (507, "quota"),
    KeyReusedError: (422, "key-reused"),
    OffsetError: (409, "offset"),
    HeldError: (423, "held"),
    LengthError: (400, "length"),
    UnavailableError: (503, "unavailable"),
    HandlerError: (500, "internal"),
    StuckError: (503, "unavailable"),
    CrowdedError: (503, "crowded"),
    NoSpaceError: (507, "no-space"),
    StoreFullError: (507, "no-space"),
}
_log = structlog.get_logger()


@dataclass
class Problem(Exception):  # noqa: N818 -- the RFC's own word
    """An answer that is an error. ``slug`` is its stable identifier, ``detail`` a sentence that says what to do."""

    status: int
    slug: str
    detail: str
    members: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def telling(self, more: Mapping[str, str]) -> "Problem":
        """The same with more headers."""
        return replace(self, headers={**self.headers, **more})

    def response(self) -> web.Response:
        """The answer as it is sent."""
        retry = {"Retry-After": "1"} if self.status == HTTPStatus.SERVICE_UNAVAILABLE else {}
        body = {
            "type": (_REGISTERED_TYPE if self.slug in _REGISTERED else _TYPE) + self.slug,
            "title": self.slug.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }
        return web.Response(
            body=msgspec.json.encode(body),
            status=self.status,
            content_type="application/problem+json",
            headers={"Cache-Control": "no-store", **retry, **self.headers},
        )


def misfit(faults: list[dict[str, str]], what: str) -> Problem:
    """Something that does not fit, with every fault."""
    return Problem(422, "invalid", f"{what}: see errors for each fault", {"errors": faults})


def misplaced(error: OffsetError | HeldError) -> Problem:
    """Bytes that are not taken where they would go, or not now, with where the data goes on."""
    task, offset = error.task, error.offset
    members = {"id": task.id, "task_status": task.status, "allowed": task.allowed, "offset": offset}
    return Problem(*_PLAIN[type(error)], str(error), members, {"Upload-Offset": str(offset)})


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what was raised into an answer. What nobody expected is logged whole and told in one sentence."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        response = _of_http(error, request).response()
    except Exception as error:  # noqa: BLE001 -- the border: nothing unexpected may reach a client as it is
        problem = _of(error)
        if problem is None:
            _log.exception("a request failed", method=request.method, path=request.path)
            problem = Problem(500, "internal", "the server made a mistake; its log says more")
        response = problem.response()
    return response


def _of_http(error: web.HTTPException, request: web.Request) -> Problem:
    status = HTTPStatus(error.status)
    detail = _DETAILS.get(status, status.description or status.phrase).format(method=request.method)
    kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    return Problem(status, status.phrase.lower().replace(" ", "-"), detail, headers=kept)


def _of(error: Exception) -> Problem | None:
    """The table."""
    said = str(error)
    match error:
        case Problem():
            problem = error
        case Invalid():
            problem = misfit([_fault(fault) for fault in error.faults], "the params do not fit")
        case ConflictError(task=task):
            problem = Problem(
                409, "not-now", said, {"id": task.id, "task_status": task.status, "allowed": task.allowed}
            )
        case AmbiguousError(task_ids=ids) | InUseError(task_ids=ids):
            problem = Problem(*_PLAIN[type(error)], said, {"tasks": ids})
        case OffsetError() | HeldError():
            problem = misplaced(error)
        case QuotaError(usage=usage):
            problem = Problem(*_PLAIN[type(error)], said, {**views.usage(usage, error.quota)})
        case GoneError():
            problem = Problem(410, "gone", said, _remains(error))
        case StoreError() if not isinstance(error, StoreFullError):
            problem = _of_store(error)
        case _ if type(error) in _PLAIN:
            problem = Problem(*_PLAIN[type(error)], said)
        case _:
            return None
    return problem


def _of_store(error: StoreError) -> Problem:
    if isinstance(error, UnreadableError):
        _log.error("what is stored of a task cannot be read", error=str(error))
        detail = "what is stored of this task cannot be read; whoever runs the server finds in its log what to mend"
        return Problem(500, "damaged", detail)
    _log.error("the store did not answer", error=str(error))
    return Problem(503, "store", "the database does not answer; try again")


def _fault(fault: Fault) -> dict[str, str]:
    return {"pointer": fault.pointer, "detail": fault.message}


def _remains(error: GoneError) -> dict[str, Any]:
    stone = error.tombstone
    receipt = None if stone.receipt is None else views.receipt(stone.receipt)
    return {"id": stone.id, "service": stone.service, "gone_at": views.time(stone.gone_at), "receipt": receipt}
