"""The way of a request's body to the child of a stream service's task.

The child reads it from the connection itself, where it can (`Direct`), and otherwise it goes block by block through
memory that both have; so a child that writes slowly slows the client. However it ends, what it came to says how far the
data is durable.
"""

import asyncio
import contextlib
from dataclasses import replace
from typing import Final, Protocol

from aiohttp import web

from intermission.state.models import Task
from intermission.state.status import Reason
from intermission.supervisor.attempt import Attempt
from intermission.supervisor.core import Supervisor
from intermission.supervisor.errors import SupervisorError, there
from intermission.supervisor.routes import direct, shapes, views
from intermission.supervisor.routes.allowance import Allowance
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.multipart import CutError
from intermission.supervisor.routes.outcome import ENDS_WITHIN_S, Brought, End, refuse_mismatch
from intermission.supervisor.routes.pace import Pace, TooSlowError
from intermission.supervisor.routes.problems import Problem
from intermission.supervisor.routes.sources import Raw, Source
from intermission.supervisor.routes.upload_limits import LIMITS
from intermission.supervisor.stream import Delivery, announced, received

_TOLD_EACH_S: Final = 1.0
"""How often a client that wants to know hears, at most, how much is durable."""


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
    *,
    source: Source | None = None,
    created: bool = False,
    open_ended: bool = False,
    interims: Interims | None = None,
) -> Brought:
    """Have the body go to a child until either ends; what it came to.

    The last byte ends data whose length is known, and otherwise the end of the body does so, unless that is
    ``open_ended``. A task that this very request has ``created`` is gone again if its body is refused.
    Raises as `Supervisor.connect` and `refuse_mismatch`, and `GoneError`.
    """
    supervisor, caller = request.app[SUPERVISOR], request[CALLER]
    source = Raw(request) if source is None else source
    connection = direct.connection(request, source.fast_bytes) if request.app[direct.FAST] else None
    delivery = replace(delivery, end=delivery.offset + source.fast_bytes, connection=connection)
    try:
        attempt = await supervisor.connect(task.id, caller.scope, caller.user, delivery)
    except SupervisorError:
        # Its client does not know of it. With a key, another request may have been told that this is its task.
        if created and "Idempotency-Key" not in request.headers:
            await supervisor.withdraw(task, by=caller.user)
        raise
    size = announced(attempt.task)  # as it is now: another request may have told it since this one looked
    left = None if size is None else size - delivery.offset
    pumping = _pump(request, source, attempt, left, delivery, open_ended=open_ended, interims=interims)
    pump = asyncio.create_task(pumping)
    settled = asyncio.create_task(attempt.settled.wait())
    beside = {settled} if interims is None else {settled, asyncio.create_task(_tell(attempt, interims))}
    try:
        await asyncio.wait({pump, settled}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({settled}, timeout=ENDS_WITHIN_S)
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
        now = there(await supervisor.wait_gone(task.id, ENDS_WITHIN_S))
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
    except (OSError, web.RequestPayloadError) as error:
        # Its framing broke, or the client went away, the child did, or nothing more can be opened.
        broken = End.MALFORMED if isinstance(error, web.RequestPayloadError) else End.BROKEN
        end = End.WHOLE if taken == left and not open_ended else broken
    except Problem as problem:
        end, fault = End.BROKEN, problem
    attempt.intake.end({End.WHOLE: None, End.PARTIAL: Reason.AWAITING_DATA}.get(end, Reason.DISCONNECTED))
    return end, fault
