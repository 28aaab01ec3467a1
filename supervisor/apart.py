"""Runs what the server itself needs of a service's code: apart, so that its faults stop nobody else.

A start needs the validators, the checks and the references that a handler's author wrote. They may raise anything, or
wait for ever for a file server that is gone. So each service has a few threads of its own, which nobody joins, not even
the end of the server: one whose calls all hang has no starts, but every other one has.
"""

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Final, TypeVar, TypeVarTuple

import structlog

from intermission.handlers.schema import Invalid
from intermission.supervisor.errors import HandlerError, StuckError, UnavailableError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_AT_ONCE: Final = 8
"""Calls of one service; one that hangs is among them until it returns."""
_WITHIN_S: Final = 10.0
"""How long a call may take, with the wait for its turn."""
_log = structlog.get_logger()


class Apart:
    """See the module."""

    def __init__(self) -> None:
        self._rooms = defaultdict[str, _Room](_Room)

    async def run(self, service: str, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """What a call returns. Raises `Invalid` as it does, and `HandlerError` for whatever else it raises.

        Raises `StuckError` where it does not return in time, and `UnavailableError` where no thread can be had.
        """
        room = self._rooms[service]
        try:
            async with asyncio.timeout(_WITHIN_S):
                await room.turn.acquire()
                return await room.begin(service, partial(call, *args))
        except TimeoutError:
            _log.error("the code of a service does not return", service=service, within_s=_WITHIN_S)
            raise StuckError(service, _WITHIN_S) from None


class _Room:
    """The threads of one service."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(_AT_ONCE)
        self._calls = SimpleQueue[Callable[[], None]]()
        self._idle = 0

    def begin(self, service: str, call: Callable[[], T]) -> asyncio.Future[T]:
        """Begin a call, whose turn it is; its outcome, for which nobody has to wait."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def ended(tell: Callable[[], None]) -> None:
            self._idle += 1
            self.turn.release()
            if not outcome.done():
                tell()

        def work() -> None:
            tell: Callable[[], None]
            try:
                with guarded(service):
                    tell = partial(outcome.set_result, call())
            except (Invalid, HandlerError) as error:
                tell = partial(outcome.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped meanwhile
                loop.call_soon_threadsafe(ended, tell)

        self._have_thread()
        self._calls.put(work)
        return outcome

    def _have_thread(self) -> None:
        if self._idle:
            self._idle -= 1
            return
        try:
            # Not one of an executor's: the interpreter joins those at its end, whatever they do.
            threading.Thread(target=self._work, daemon=True).start()
        except RuntimeError as error:
            self.turn.release()
            raise UnavailableError("no thread can be started now; try again in a moment") from error

    def _work(self) -> None:
        while True:
            self._calls.get()()


@contextlib.contextmanager
def guarded(service: str) -> Iterator[None]:
    """Have whatever a service's code raises be a `HandlerError`, but for `Invalid`; the log has it whole.

    A SystemExit or KeyboardInterrupt would end the server, and a StopIteration can be told to no future.
    """
    try:
        yield
    except Invalid:
        raise
    except BaseException as error:
        _log.error("the code of a service made a mistake", service=service, exc_info=error)
        raise HandlerError(service, error) from error
