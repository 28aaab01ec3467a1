"""The way of a request's body to the child of a stream service's task.

The child reads it from the connection itself, where it can (`Direct`), and otherwise it goes block by block through
memory that both have; so a child that writes slowly slows the client. However it ends, what it came to says how far the
data is durable.
"""

import asyncio
import contextlib
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Protocol

from aiohttp import web

from intermission.handlers.digest import CHECKSUM_MISMATCH
from intermission.handlers.upload import DigestMismatch
from intermission.state.models import Task
from intermission.state.status import Reason, Status
from intermission.supervisor.attempt import Attempt
from intermission.supervisor.core import Delivery, Supervisor, received
from intermission.supervisor.errors import SupervisorError, there
from intermission.supervisor.routes import digests, direct, requests, shapes, views
from intermission.supervisor.routes.allowance import Allowance
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.bodies import body_length, has_body
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.multipart import CutError
from intermission.supervisor.routes.pace import Pace, TooSlowError, window_s
from intermission.supervisor.routes.problems import Problem

_TOLD_EACH_S: Final = 1.0
"""How often a client that wants to know hears, at most, how much is durable."""
_ENDS_WITHIN_S: Final = 15.0
"""More than a pause's grace and the end of a tree; what is not so by then is answered as it is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one upload may do."""

    max_bytes: int | None
    idle_s: float
    min_rate: int
    """In bytes a second; see `intermission.supervisor.routes.pace`."""
    fast: bool
    """Whether bodies may go past us, inside the kernel."""


LIMITS: Final = web.AppKey("limits", Limits)


class End(Enum):
    """How a body ended."""

    WHOLE = auto()
    PARTIAL = auto()
    BROKEN = auto()
    CUT = auto()
    """The request came whole, but what its body packs the data in did not."""
    IDLE = auto()
    SLOW = auto()
    TOO_LONG = auto()
    QUOTA = auto()
    TAKEN_OVER = auto()


def check_crowd(request: web.Request) -> None:
    """Refuse the body of a new upload while no place is free: else it would be created only to wait.

    Raises `CrowdedError`.
    """
    if has_body(request):
        request.app[SUPERVISOR].crowd.check(request[CALLER].user)


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


@dataclass(frozen=True, slots=True)
class Brought:
    """What a task has come to by the body that was for it, and how that ended."""

    task: Task
    end: End
    limits: Limits
    fault: Problem | None = None
    """What shows that the body is not of the kind that it was taken for, so that nothing of it may be kept."""
    usage: shapes.Usage | None = None
    """What its user's uploads come to, where that is why no more was taken."""


class Source(Protocol):
    """Where the data comes from that a body brings."""

    @property
    def fast_bytes(self) -> int:
        """How many bytes of the connection are nothing but data, so that they may go past us."""

    async def ready(self) -> None:
        """Ask for it, where the client waits to be asked."""

    def at_hand(self) -> bytes:
        """What is here already."""

    async def more(self) -> bytes:
        """What comes next; nothing at the end. Raises ConnectionError, and `Problem` as `Brought.fault`."""


class Raw:
    """The data is the body."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.at_hand, self.more = request.content.read_nowait, request.content.readany

    @property
    def fast_bytes(self) -> int:
        """All, if it says how many."""
        return body_length(self._request) or 0

    async def ready(self) -> None:
        """Ask for it, where the client waits to be asked."""
        await requests.go_on(self._request)


class Nothing:
    """There is no data, only its end; the body, if there is one, is not asked for."""

    fast_bytes = 0

    async def ready(self) -> None:
        """Do nothing."""

    def at_hand(self) -> bytes:
        """Nothing."""
        return b""

    async def more(self) -> bytes:
        """The end."""
        return b""


class Interims(Protocol):
    """A client that is told something before the answer. Both raise ConnectionError."""

    async def began(self) -> None:
        """Its body is about to be taken."""

    async def durable(self, offset: int) -> None:
        """So much of the data is so by now."""


async def deliver(
    request: web.Request,
    task: Task,
    delivery: Delivery,
    size: int | None,
    *,
    source: Source | None = None,
    created: bool = False,
    open_ended: bool = False,
    interims: Interims | None = None,
) -> Brought:
    """Have the body go to a child until either ends; what it came to.

    ``size`` is that of the whole data. Its last byte ends the data, and without a size the end of the body does so,
    unless that is ``open_ended``. A task that this very request has ``created`` is gone again if its body is refused.
    Raises as `Supervisor.connect` and `refuse_mismatch`, and `GoneError`.
    """
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    source = Raw(request) if source is None else source
    connection = direct.connection(request, source.fast_bytes) if request.app[LIMITS].fast else None
    delivery = replace(delivery, end=delivery.offset + source.fast_bytes, connection=connection)
    try:
        attempt = await supervisor.connect(task.id, caller.scope, caller.user, delivery)
    except SupervisorError:
        # Its client does not know of it. With a key, another request may have been told that this is its task.
        if created and "Idempotency-Key" not in request.headers:
            await supervisor.withdraw(task, by=caller.user)
        raise
    left = None if size is None else size - delivery.offset
    pumping = _pump(request, source, attempt, left, delivery, open_ended=open_ended, interims=interims)
    pump = asyncio.create_task(pumping)
    settled = asyncio.create_task(attempt.settled.wait())
    beside = {settled} if interims is None else {settled, asyncio.create_task(_tell(attempt, interims))}
    try:
        await asyncio.wait({pump, settled}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({settled}, timeout=_ENDS_WITHIN_S)
    finally:
        # Whatever ended the request, its child must hear that nothing more comes.
        attempt.intake.end(Reason.DISCONNECTED)
        for one in (pump, *beside):
            one.cancel()
        await asyncio.wait({pump, *beside})
    end, fault = (End.BROKEN, None) if pump.cancelled() else pump.result()
    limits = request.app[LIMITS]
    if attempt.intake.handed_over:  # what is here is another request's by now, whatever this one's fault
        end, fault = End.TAKEN_OVER, None
    if attempt.outcome is None:
        now = there(await supervisor.wait_gone(task.id, _ENDS_WITHIN_S))
    else:  # not as it is by now: another request may be bringing more already
        now = attempt.outcome
        await refuse_mismatch(request, now)
    return Brought(now, end, limits, fault, await _usage(supervisor, task, end))


async def _usage(supervisor: Supervisor, task: Task, end: End) -> shapes.Usage | None:
    if end is not End.QUOTA:
        return None
    return views.usage(await supervisor.store.usage(task.user), supervisor.quota)


async def _tell(attempt: Attempt, interims: Interims) -> None:
    """Say how much is durable each time that it is more, but not all the time."""
    with contextlib.suppress(ConnectionError):  # that the client has gone is noticed where its bytes are awaited
        while await attempt.saved.wait():
            attempt.saved.clear()
            await interims.durable(received(attempt))
            await asyncio.sleep(_TOLD_EACH_S)


async def _pump(
    request: web.Request,
    source: Source,
    attempt: Attempt,
    left: int | None,
    delivery: Delivery,
    *,
    open_ended: bool,
    interims: Interims | None,
) -> tuple[End, Problem | None]:
    """Have the data go to the child; how it ended, and the fault that was in it."""
    limits = request.app[LIMITS]
    bound = limits.max_bytes if left is None else delivery.offset + left
    counted = delivery.end if left is None else delivery.offset + left
    allowance = Allowance(request.app[SUPERVISOR], attempt.task, bound, counted)
    pace = Pace(limits.idle_s, limits.min_rate)
    way = direct.Direct(request, pace)
    fast = source.fast_bytes if bound is None else min(source.fast_bytes, bound - delivery.offset)
    taken, end, fault = 0, End.BROKEN, None
    try:
        await source.ready()
        if interims is not None:
            await interims.began()
        while True:
            block = source.at_hand()
            if not block:
                taken += await way.flow(attempt.intake, fast - taken)
                block = await pace.wait(source.more())
            pace.came(len(block))
            if not block:
                end = End.WHOLE if left in {None, taken} and not open_ended else End.PARTIAL
                break
            allowed = await allowance.up_to(delivery.offset + taken + len(block)) - delivery.offset - taken
            await attempt.intake.write(block[:allowed])
            if allowed < len(block):
                end = End.QUOTA if allowance.used_up else End.TOO_LONG
                break
            taken += len(block)
    except TimeoutError as error:
        end = End.SLOW if isinstance(error, TooSlowError) else End.IDLE
    except CutError:
        end = End.CUT
    except (OSError, web.RequestPayloadError):  # the client went away, the child did, or nothing more can be opened
        end = End.WHOLE if taken == left and not open_ended else End.BROKEN
    except Problem as problem:
        end, fault = End.BROKEN, problem
    attempt.intake.end({End.WHOLE: None, End.PARTIAL: Reason.AWAITING_DATA}.get(end, Reason.DISCONNECTED))
    return end, fault


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
        case _ if end is End.TAKEN_OVER:
            told = (409, "taken-over", "another request for this upload has taken the place of this one")
        case _ if end is End.IDLE:
            told = (408, "idle", "nothing came for too long")
        case _ if end is End.CUT:
            told = (400, "malformed-form", "the form ends before its closing boundary")
        case _ if end is End.SLOW:
            limits = brought.limits
            what = f"fewer than {limits.min_rate} bytes a second came for {window_s(limits.idle_s):g} s"
            told = (408, "too-slow", what)
        case _ if end is End.QUOTA:
            told = (507, "quota", "more than that would be more than one user may have stored")
        case _ if end is End.TOO_LONG:
            told = (413, "too-long", "the body is longer than it may be")
        case _:
            told = (503, "interrupted", "the data could not be taken to its end")
    offset = received(task)
    return Problem(
        *told[:2],
        f"{told[2]}; {offset} bytes are kept: resume with Upload-Offset: {offset} and the bytes from there",
        {"id": task.id, "task_status": task.status, "allowed": task.allowed, "offset": offset, **(brought.usage or {})},
        {"Upload-Offset": str(offset), **more},
    )


def too_large(request: web.Request) -> Problem:
    """That more came than is taken, of what did not say how long it would be."""
    return Problem(413, "too-large", f"at most {request.app[LIMITS].max_bytes} bytes are taken; nothing is kept")


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
    await supervisor.wait_gone(task.id, _ENDS_WITHIN_S)
