"""The start of an upload that is sent again under its Idempotency-Key: its client has no offset, and sends all of it.

What is here already is compared with what comes, and the rest goes on behind that. So a client whose connection broke
needs to do nothing but try again, and one that gives another file the same key is told so.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

from intermission.handlers.digest import Checksum
from intermission.handlers.inputs import CONTENT
from intermission.state.models import Task
from intermission.state.status import Status
from intermission.supervisor.errors import HeldError, KeyReusedError, OffsetError
from intermission.supervisor.inputs import UPLOAD
from intermission.supervisor.routes import delivery, outcome, resource
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.multipart import CutError
from intermission.supervisor.routes.outcome import Brought, End
from intermission.supervisor.routes.pace import Pace, TooSlowError
from intermission.supervisor.routes.sources import DifferentError, Rest, Source
from intermission.supervisor.routes.upload_limits import LIMITS
from intermission.supervisor.stream import Delivery, announced, received

_BLOCK_BYTES: Final = 1 << 20


async def deliver(request: web.Request, task: Task, source: Source, checksum: tuple[str, bytes] | None) -> Brought:
    """As `delivery.deliver`, with all of the data from its first byte; one that still brings it is taken over from.

    Raises also `KeyReusedError` for other data, `HeldError`, and `OffsetError` where a part is here that nothing can be
    compared with: the service keeps no file, or ``checksum`` is of the whole body and only the rest would be taken.
    """
    rest, is_kept = Rest(source), task.service == UPLOAD
    while True:
        task = await resource.vacant(request, task)
        place, is_complete = received(task), task.status is Status.COMPLETED
        if task.is_held:
            raise HeldError(task, place)
        if place and not is_complete and (checksum is not None or not is_kept):
            raise OffsetError(task, place)
        try:
            if is_complete and not is_kept:
                return Brought(task, End.WHOLE, request.app[LIMITS])
            if is_complete:
                await _verify(request, task, rest, checksum)
                return Brought(task, End.WHOLE, request.app[LIMITS])
            await _compare(request, task, rest)
            bringing = Delivery(offset=place, checksum=checksum, lifts=False)
            return await delivery.deliver(request, task, bringing, source=rest)
        except DifferentError:
            raise KeyReusedError(task.id) from None
        except OffsetError:
            continue  # one more request with all of it has brought some meanwhile


async def _verify(request: web.Request, task: Task, rest: Rest, checksum: tuple[str, bytes] | None) -> None:
    """See that what comes is the file. Raises `DifferentError`, and as `_compare`."""
    if json.loads(task.params)["sha256"] is not None:
        return  # both have announced it, and it was verified
    pace = await _compare(request, task, rest)
    with _worded(request, task):
        if rest.at_hand() or await pace.wait(rest.more()):
            raise DifferentError
    content = request.app[SUPERVISOR].places.output(task.id, CONTENT)
    if checksum is not None and not await asyncio.to_thread(_gives, content, Checksum(*checksum)):
        raise DifferentError


async def _compare(request: web.Request, task: Task, rest: Rest) -> Pace:
    """See that what is here of the data is what comes; how slowly that may go on.

    Raises `DifferentError`, and `Problem` where the body does not come to its end.
    """
    limits = request.app[LIMITS]
    pace = Pace(limits.idle_s, limits.min_rate)
    with _worded(request, task):
        await rest.ready()
        is_there = await rest.skip(request.app[SUPERVISOR].places.output(task.id, CONTENT), received(task), pace)
    if not is_there and (task.status is Status.COMPLETED or announced(task) is None):
        raise DifferentError  # its end is another
    return pace


@contextmanager
def _worded(request: web.Request, task: Task) -> Iterator[None]:
    """Have a body that breaks off be answered as one is whose bytes are taken. Raises `Problem` then."""
    try:
        yield
    except TimeoutError as error:
        end = End.SLOW if isinstance(error, TooSlowError) else End.IDLE
    except CutError:
        end = End.CUT
    except (ConnectionError, web.RequestPayloadError):
        end = End.BROKEN
    else:
        return
    raise outcome.cut_short(Brought(task, end, request.app[LIMITS]))


def _gives(content: Path, checksum: Checksum) -> bool:
    """Whether the file comes to it."""
    with content.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum.update(block)
    return checksum.fits()
