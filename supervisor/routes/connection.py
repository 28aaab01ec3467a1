"""What stands between a client's connection and aiohttp, for the ends that aiohttp makes too soon or too late.

A client may say that it sends no more once its requests are out (``shutdown(SHUT_WR)``; ``nc -N`` does): aiohttp takes
that for its farewell, closes, and forgets what it has read already. Here what came whole is answered first.

And what a client still sends when it has been answered is read for a while, or it would meet a reset in place of the
answer. aiohttp bounds that in time; here it is bounded in bytes too.

A client that begins a request, or only a connection, must come to the end of the head: aiohttp would wait for an hour.

A body whose framing breaks is told so: aiohttp would have its reader wait for more.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

from aiohttp import StreamReader, web
from aiohttp.http import HttpProcessingError, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.typedefs import Handler

from intermission.supervisor.routes.connections import Connections
from intermission.supervisor.routes.problems import Problem

HEAD_WITHIN_S: Final = 30.0
"""How long the head of a request may take from its first byte, or, of the first one, from the connection on."""
MOST_UNWANTED_BYTES: Final = 256 << 20
"""How much of a body that nobody wants is read before the connection is closed."""
LAST_BYTES: Final = web.RequestKey("last_bytes", bytes)
"""Of the body of a request whose connection was lost: what nobody had taken yet."""
_READ_BYTES: Final = 512 << 10
"""At a time, in place of half of that, which is what asyncio takes: aiohttp's buffer holds as much, in fewer turns."""


class Http(web.RequestHandler):
    """aiohttp's protocol, but what is no HTTP is refused as all else is, and no error of ours to be logged."""

    __slots__ = ("_body", "_rest", "held")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._body: StreamReader | None = None
        """Of the request under way."""
        self._rest: StreamReader | None = None
        """Stands for what follows what is no HTTP: that is thrown away, for nobody can tell what it is."""
        self.held = False
        """Somebody else reads the connection: aiohttp, which would go on whenever its buffer is empty, does not."""

    @contextmanager
    def answering(self, body: StreamReader) -> Iterator[None]:
        """While the request is under way that this is the body of."""
        self._body = body
        if self._messages:
            self._check_body()
        else:  # its parser may have stopped before the next, as it counts one whose body came late for ever
            self.data_received(b"")
        try:
            yield
        finally:
            self._body = None

    def data_received(self, data: bytes) -> None:
        """See aiohttp's."""
        if self.is_lost:
            return
        super().data_received(data)
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            # As a body that does not end: aiohttp reads on for a while when it has answered, as it does for others.
            self._rest = StreamReader(self, _READ_BYTES, loop=self._loop)
            error, _ = self._messages.pop()
            self._messages.append((error, self._rest))
        self._check_body()

    def _check_body(self) -> None:
        """Tell a body that its framing is broken: aiohttp refuses that as it would what is behind the body."""
        body = self._body
        if body is not None and not body.is_eof() and self._messages:  # nothing else can be behind one without an end
            body.set_exception(web.RequestPayloadError())
            body.feed_eof()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """See aiohttp's."""
        if not self.held:
            super().resume_reading(resume_parser)

    def finish(self) -> None:
        """Close when what has come is answered; aiohttp's `close` would forget the requests that wait."""
        if self._rest is not None:
            self._rest.feed_eof()
        elif not self._messages:
            self.close()

    @property
    def is_lost(self) -> bool:
        """Whether what came is no HTTP, so that nothing follows the answer to that."""
        return self._rest is not None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request."""
        return self._waiter is not None and not self._waiter.done()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See aiohttp's; ``message`` is what its parser found."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        if isinstance(exc, LineTooLong):
            problem = Problem(431, "head-too-large", "a line of the request's head is too long; send less in it")
        else:
            detail = f"this is no request of HTTP: {(message or '').partition(chr(10))[0].rstrip(':').lower()}"
            problem = Problem(400, "malformed-request", detail)
        response = problem.response()
        _sign(response)
        response.headers["Connection"] = "close"  # aiohttp answers in HTTP/1.0, which would go without saying it
        response.force_close()
        return response


async def sign(_: web.Request, response: web.StreamResponse) -> None:
    """Say who answers, but not what it is made of: whose versions these are is nobody's business."""
    _sign(response)


def _sign(response: web.StreamResponse) -> None:
    response.headers["Server"] = "intermission"


def _late_head() -> bytes:
    """What is said where aiohttp knows of no request yet, and so of nobody to answer."""
    detail = f"the head of a request must be complete within {HEAD_WITHIN_S:g} s: send it again"
    response = Problem(408, "head-too-slow", detail).response()
    _sign(response)
    body = cast("bytes", response.body)
    fields = {**response.headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """One connection, on its way to aiohttp's protocol."""

    def __init__(self, http: Http, others: Connections) -> None:
        self._http = http
        self._others = others
        self._transport: asyncio.Transport | None = None
        self._request: web.Request | None = None
        self._unwanted: int | None = None
        self._begun = False
        """Whether something has come of a head."""
        self._due: float | None = None
        """When the head must be complete; None where none has begun."""
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        """Whether the client has said that it sends no more."""
        self._endless = False
        """Whether the request under way is answered for as long as its client listens."""

    @contextmanager
    def answering(self, request: web.Request) -> Iterator[None]:
        """While this request is under way."""
        self._request = request
        self._begun, self._due = False, None  # its head has come; the timer is left to find that out
        self._others.busy(self)
        if self._ended:
            self._finish()
        try:
            with self._http.answering(request.content):
                yield
        finally:
            self._request, self._endless = None, False
            self._others.idle(self)

    def stream(self) -> None:
        """Answer what is under way until its client has gone, and nothing but its end tells of that."""
        self._endless = True
        if self._ended:
            self._finish()

    def refuse(self) -> None:
        """Take little more, and answer none of it."""
        self._unwanted = MOST_UNWANTED_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.max_size = _READ_BYTES  # type: ignore[attr-defined]  # asyncio's own, which others may not have
        if not self._others.enter(self):
            self.drop()
            return
        self._http.connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._unwanted is None and self._http.is_lost:
            self.refuse()
        if self._unwanted is not None:
            self._unwanted -= len(data)
            if self._unwanted < 0:
                self._close()
                return
        elif self._request is None:
            self._begun = True
            if self._due is None:
                self._await_head()
        self._http.data_received(data)

    def eof_received(self) -> bool:
        """No more will come. What has come just now is a request in the loop's next turn: decide then."""
        asyncio.get_running_loop().call_soon(self._end)
        return True

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """The client has read."""
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed. What has come of a body by then is kept, where aiohttp would not give it out any more."""
        self._transport = None
        request = self._request
        if request is not None and request.content.exception() is None and not request.content.is_eof():
            with suppress(RuntimeError):  # somebody waits for more, so there is nothing
                request[LAST_BYTES] = request.content.read_nowait()
        if self._timer is not None:
            self._timer.cancel()
        self._others.leave(self)
        self._http.connection_lost(exc)

    def drop(self) -> None:
        """Close it at once, whatever the client has not read yet."""
        if self._transport is not None:
            self._transport.abort()

    def _await_head(self) -> None:
        """From now on it must come in time. One timer does for all requests that come before it is up."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + HEAD_WITHIN_S
        if self._timer is None:
            self._timer = loop.call_at(self._due, self._check_head)

    def _check_head(self) -> None:
        """Look whether a head is late: who has sent some of it is told, who has sent nothing is not."""
        self._timer = None
        loop, transport = asyncio.get_running_loop(), self._transport
        if self._due is None or transport is None:
            return
        if loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._check_head)
            return
        if self._begun and not transport.is_closing():
            transport.write(_late_head())
        if transport.get_write_buffer_size():  # it reads as little as it sends
            transport.abort()
        else:
            transport.close()

    def _end(self) -> None:
        self._ended = True
        self._finish()

    def _finish(self) -> None:
        """Let what came whole be the last; close at once where nothing did, or where it is answered without end."""
        request = self._request
        whole = request is None or (request.content.is_eof() and not self._endless)
        refused = self._unwanted is not None and not self._http.is_lost
        if self._http.is_idle or refused or not whole:
            self._close()
        else:
            self._http.finish()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def stays(request: web.Request) -> None:
    """Say that the answer goes on until the client has gone."""
    if (connection := _of(request)) is not None:
        connection.stream()


@web.middleware
async def attend(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Have the connection know what is under way on it, and that no more is wanted of what is answered early."""
    connection = _of(request)
    if connection is None:
        return await handler(request)
    with connection.answering(request):
        response = await handler(request)
    if request.content.exception() is not None:  # nothing can follow what is broken
        response.force_close()
    elif not (response.prepared or request.content.is_eof()):
        # The rest of the body is thrown away for a while, so that the client hears this before the connection closes.
        response.force_close()
        connection.refuse()
    return response


def _of(request: web.Request) -> Connection | None:
    """None where it has been lost meanwhile."""
    connection = None if request.transport is None else request.transport.get_protocol()
    return connection if isinstance(connection, Connection) else None
