"""The launcher of this machine: runs the fork server, talks to it, and outlives it.

If the fork server dies its children get SIGKILL from the kernel, and what they leave is adopted by the supervisor,
which ends it, tells each child's attempt that it is lost, and starts another fork server.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from typing import Final, assert_never

import structlog

from intermission.supervisor.process import tree, wire
from intermission.supervisor.process.launcher import Child, Exit, LaunchError

_log = structlog.get_logger()
_MODULE: Final = "intermission.supervisor.process.forkserver"
_RESTART_WAITS_S: Final = (0.0, 0.1, 0.5, 2.0, 5.0)
"""Before the n-th start in a row of a fork server that dies without having forked."""


class LocalLauncher:
    """Implements `Launcher` with one fork server."""

    def __init__(
        self,
        modules: Sequence[str],
        *,
        keep_fds: Sequence[int],
        environment: dict[str, str],
        started: Callable[[tree.Process], None],
    ) -> None:
        """``keep_fds`` are inherited by the fork server (the generation's lock); ``started`` is told of each one."""
        self._modules = list(modules)
        self._keep_fds = tuple(keep_fds)
        self._environment = environment
        self._started = started
        self._children: dict[int, Child] = {}
        self._number = 0
        self._server: _ForkServerProcess | None = None
        self._up = asyncio.Event()
        self._closing = False
        self._mourning: asyncio.Task[None] | None = None

    async def open(self) -> wire.Hello:
        """See `Launcher.open`."""
        tree.become_subreaper()
        return await self._start()

    async def launch(self, service: str, folder: str) -> Child:
        """See `Launcher.launch`."""
        while self._server is None:
            await self._up.wait()
        self._number += 1
        number = self._number
        child = Child(number, lambda: self._end(number))
        self._children[number] = child
        near, far = Pipe()
        sock = socket.socket(fileno=os.dup(near.fileno()))
        near.close()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: child, sock=sock)
            if not self._order(wire.Launch(number, service, folder), far.fileno()):  # it died while we connected
                self._children.pop(number, None)
                child.over(Exit(lost="the fork server died"))
        finally:
            # Kept open here, the far end would hide the child's death from us.
            far.close()
        return child

    def _end(self, number: int) -> None:
        self._order(wire.End(number))

    async def close(self) -> None:
        """See `Launcher.close`."""
        self._closing = True
        if self._server is not None:
            self._server.hang_up()
        if self._mourning is not None:
            await self._mourning

    def _order(self, order: wire.Order, fd: int | None = None) -> bool:
        if self._server is None:
            return False
        self._server.send(order, fd)
        return True

    async def _start(self) -> wire.Hello:
        server = _ForkServerProcess(self._hear, self._keep_fds, self._environment)
        self._mourning = asyncio.create_task(self._mourn(server))
        self._started(server.process)
        server.send(wire.Setup(self._modules))
        hello = await server.hello
        if hello is None:
            message = "the fork server died while it imported the handlers; its last words are in the log above"
            raise LaunchError(message)
        self._server = server
        self._up.set()
        return hello

    async def _mourn(self, server: "_ForkServerProcess") -> None:
        """Wait for a fork server's death, end what it leaves, and start the next."""
        await server.died.wait()
        self._server = None
        self._up.clear()
        await asyncio.to_thread(tree.end_children)
        server.close()
        forked = bool(self._children)
        for child in list(self._children.values()):
            child.over(Exit(lost="the fork server died"))
        self._children.clear()
        if not self._closing and server.was_up:
            _log.error("the fork server died; its children are ended and another is started", pid=server.process.pid)
            self._restarting = asyncio.create_task(self._restart(forked=forked))

    async def _restart(self, *, forked: bool) -> None:
        for wait_s in _RESTART_WAITS_S if forked else _RESTART_WAITS_S[1:]:
            await asyncio.sleep(wait_s)
            try:
                await self._start()
            except (LaunchError, OSError) as error:
                _log.error("the fork server does not start", error=str(error))
            else:
                return
        _log.critical("no fork server can be started: tasks stay pending until this server is restarted")

    def _hear(self, news: wire.News) -> None:
        match news:
            case wire.Hello():
                pass
            case wire.Launched():
                if child := self._children.get(news.child):
                    child.launched(news)
            case wire.LaunchFailed():
                if child := self._children.pop(news.child, None):
                    child.over(Exit(lost=news.message))
            case wire.Ended():
                if child := self._children.pop(news.child, None):
                    child.over(_exit(news))
            case never:
                assert_never(never)


class _ForkServerProcess:
    """One fork server: its process, its socket and its death."""

    def __init__(self, hear: Callable[[wire.News], None], keep_fds: Sequence[int], environment: dict[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._hear = hear
        self._outgoing: deque[tuple[bytes, int | None]] = deque()
        self.hello: asyncio.Future[wire.Hello | None] = self._loop.create_future()
        self.died = asyncio.Event()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())],
                pass_fds=(theirs.fileno(), *keep_fds),
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        process = tree.look(self._popen.pid)
        if process is None:
            message = "the fork server could not be started"
            raise LaunchError(message)
        self.process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._on_death)
        self._loop.add_reader(self._socket, self._on_news)

    @property
    def was_up(self) -> bool:
        """Whether it ever got as far as being ready."""
        return self.hello.done() and self.hello.result() is not None

    def send(self, order: wire.Order, fd: int | None = None) -> None:
        """Queue an order; the descriptor is duplicated, so the caller may close it at once."""
        self._outgoing.append((wire.encode(order), None if fd is None else os.dup(fd)))
        self._on_writable()

    def hang_up(self) -> None:
        """Close the socket: the fork server ends all its children and itself."""
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()

    def close(self) -> None:
        """Let go of what is left of it."""
        if self._socket.fileno() >= 0:
            self._on_news()  # what it said before it died
        if self._socket.fileno() >= 0:
            self.hang_up()
        for _, fd in self._outgoing:
            if fd is not None:
                os.close(fd)
        self._outgoing.clear()

    def _on_writable(self) -> None:
        while self._outgoing:
            data, fd = self._outgoing[0]
            try:
                socket.send_fds(self._socket, [data], [] if fd is None else [fd])
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._on_writable)
                return
            except OSError:  # it is dying; `_on_death` follows
                return
            self._outgoing.popleft()
            if fd is not None:
                os.close(fd)
        self._loop.remove_writer(self._socket)

    def _on_news(self) -> None:
        while True:
            try:
                data = self._socket.recv(wire.MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.hang_up()
                return
            news = wire.decode_news(data)
            if isinstance(news, wire.Hello) and not self.hello.done():
                self.hello.set_result(news)
            self._hear(news)

    def _on_death(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._popen.wait()
        if not self.hello.done():
            self.hello.set_result(None)
        self.died.set()


def _exit(news: wire.Ended) -> Exit:
    return Exit(
        exit_code=news.exit_code,
        signal=news.signal,
        cpu_s=news.cpu_s,
        peak_memory_bytes=news.peak_memory_bytes,
        killed=tuple(news.killed),
    )
