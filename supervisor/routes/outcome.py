"""What a body has come to, and how its client is told where that is not what it wanted."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from aiohttp import web

from intermission.handlers.digest import CHECKSUM_MISMATCH
from intermission.handlers.upload import DigestMismatch
from intermission.state.models import Task
from intermission.state.status import Reason, Status
from intermission.supervisor.routes import digests, shapes
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.pace import window_s
from intermission.supervisor.routes.problems import Problem
from intermission.supervisor.routes.upload_limits import UploadLimits
from intermission.supervisor.stream import received

ENDS_WITHIN_S: Final = 15.0
"""More than a pause's grace and the end of a tree; what is not so by then is answered as it is."""


class End(Enum):
    """How a body ended."""

    WHOLE = auto()
    PARTIAL = auto()
    BROKEN = auto()
    MALFORMED = auto()
    """It is not what its Transfer-Encoding says."""
    CUT = auto()
    """The request came whole, but what its body packs the data in did not."""
    IDLE = auto()
    SLOW = auto()
    TOO_LONG = auto()
    QUOTA = auto()
    TAKEN_OVER = auto()


_TOLD: Final = {
    End.MALFORMED: (400, "malformed-body", "the body is not what its Transfer-Encoding says"),
    End.CUT: (400, "malformed-form", "the form ends before its closing boundary"),
    End.IDLE: (408, "idle", "nothing came for too long"),
    End.TOO_LONG: (413, "too-long", "the body is longer than it may be"),
    End.QUOTA: (507, "quota", "more than that would be more than one user may have stored"),
    End.TAKEN_OVER: (409, "taken-over", "another request for this upload has taken the place of this one"),
}


@dataclass(frozen=True, slots=True)
class Brought:
    """What a task has come to by the body that was for it, and how that ended."""

    task: Task
    end: End
    limits: UploadLimits
    fault: Problem | None = None
    """What shows that the body is not of the kind that it was taken for, so that nothing of it may be kept."""
    usage: shapes.Usage | None = None
    """What its user's uploads come to, where that is why no more was taken."""


def cut_short(brought: Brought, mismatch: tuple[int, str] = (422, "digest-mismatch")) -> Problem:
    """What a request is answered with whose data was not taken to its end; what is durable is kept.

    ``mismatch``: the protocol's status and slug for a body that is not what was announced.
    """
    task, end, more = brought.task, brought.end, dict[str, str]()
    match task.status, task.reason:
        case Status.FAILED, _:
            said = task.error.message if task.error else "the data cannot be used"
            return Problem(422, "failed", said, {"id": task.id, "task_status": task.status, "allowed": task.allowed})
        case Status.PAUSED, Reason.NO_SPACE:
            told = (507, "no-space", f"the disk takes no more ({task.error.message if task.error else 'it is full'})")
        case _ if task.error is not None and task.error.type == CHECKSUM_MISMATCH:
            said = "nothing of this body is kept, for it does not give what was announced"
            told, more = (*mismatch, said), digests.WANTED_OF_CONTENT
        case _ if end is End.SLOW:
            limits = brought.limits
            what = f"fewer than {limits.min_rate} bytes a second came for {window_s(limits.idle_s):g} s"
            told = (408, "too-slow", what)
        case _:
            told = _TOLD.get(end, (503, "interrupted", "the data could not be taken to its end"))
    offset = received(task)
    return Problem(
        *told[:2],
        f"{told[2]}; {offset} bytes are kept: resume with Upload-Offset: {offset} and the bytes from there",
        {"id": task.id, "task_status": task.status, "allowed": task.allowed, "offset": offset, **(brought.usage or {})},
        {"Upload-Offset": str(offset), **more},
    )


async def refuse_mismatch(request: web.Request, task: Task) -> None:
    """Keep nothing of an upload that did not come to the digest that was announced. Raises `Problem` (422) then."""
    if task.status is Status.FAILED and task.error is not None and task.error.type == DigestMismatch.__name__:
        await discard(request, task)
        detail = f"{task.error.message}; nothing is kept: send it again"
        raise Problem(422, "digest-mismatch", detail, headers=digests.WANTED)


async def discard(request: web.Request, task: Task) -> None:
    """Have nothing of it be kept."""
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    await supervisor.terminate(task.id, caller.scope, by=caller.user)
    await supervisor.wait_gone(task.id, ENDS_WITHIN_S)
