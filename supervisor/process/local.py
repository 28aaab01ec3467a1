"""The launcher of this machine: runs the fork server, talks to it, and outlives it.

If the fork server dies its children get SIGKILL from the kernel, and what they leave is adopted by the supervisor,
which ends it, tells each child's attempt that it is lost, and starts another fork server, however often that takes.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from multiprocessing import Pipe
from typing import Final, assert_never

import structlog

from intermission.supervisor.process import tree, wire
from intermission.supervisor.process.launcher import Child, Exit, LaunchError

_log = structlog.get_logger()
_MODULE: Final = "intermission.supervisor.process.forkserver"
_RESTART_WAITS_S: Final = (0.0, 0.1, 0.5, 2.0, 5.0)
"""Before the n-th start in a row of a fork server that dies without having forked; then always the last of them."""
_CLOSE_PATIENCE_S: Final = 1.0
"""How long an orderly end of the fork server may take; 300 children need 0.12 s."""


class LocalLauncher:
    """Implements `Launcher` with one fork server."""

    def __init__(
        self,
        modules: Sequence[str],
        *,
        keep_fds: Sequence[int],
        started: Callable[[tree.Process], None],
    ) -> None:
        """``keep_fds`` are inherited by the fork server (the generation's locks); ``started`` is told of each one."""
        self._modules = list(modules)
        self._keep_fds = tuple(keep_fds)
        self._started = started
        self._children: dict[int, Child] = {}
        self._number = 0
        self._server: _ForkServerProcess | None = None
        """The one that takes orders: its imports are done, and it is not known to be dead."""
        self._latest: _ForkServerProcess | None = None
        self._up = asyncio.Event()
        self._closing = False
        self._mourning: asyncio.Task[None] | None = None
        self._restarting: asyncio.Task[None] | None = None

    async def open(self) -> wire.Hello:
        """See `Launcher.open`."""
        tree.become_subreaper()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        return await self._start()

    async def launch(self, service: str, body: Sequence[int] = ()) -> Child:
        """See `Launcher.launch`."""
        while self._server is None:
            if self._closing:
                raise LaunchError("the server is stopping")
            await self._up.wait()
        near, far = Pipe()
        with far:  # kept open here, it would hide the child's death from us
            self._number += 1
            number = self._number
            child = self._children[number] = Child(near, lambda: self._end(number))
            try:
                self._order(wire.Launch(number, service), [far.fileno(), *body])
            except OSError:
                del self._children[number]
                child.hang_up()
                raise
        return child

    def _end(self, number: int) -> None:
        self._order(wire.End(number))

    async def close(self) -> None:
        """See `Launcher.close`."""
        self._closing = True
        if self._restarting is not None:
            self._restarting.cancel()
        if self._latest is not None:
            self._latest.hang_up()
            try:
                async with asyncio.timeout(_CLOSE_PATIENCE_S):
                    await self._latest.died.wait()
            except TimeoutError:
                _log.warning("the fork server does not end; it is killed", pid=self._latest.process.pid)
                self._latest.kill()
        if self._mourning is not None:
            await self._mourning

    def _reap(self) -> None:
        """Some child of ours has died. All but the fork server are adopted: as a container's first process we are init.

        What somebody left running there who came in from outside (``docker exec``) is not ours to end, only to reap.
        """
        tree.reap_adopted(keep=() if self._latest is None else (self._latest.process.pid,))

    def _order(self, order: wire.Order, fds: Sequence[int] = ()) -> None:
        if self._server is not None:
            self._server.send(order, fds)

    async def _start(self) -> wire.Hello:
        server = self._latest = _ForkServerProcess(self._hear, self._keep_fds)
        mourning = self._mourning = asyncio.create_task(self._mourn(server))
        self._started(server.process)
        server.send(wire.Setup(self._modules))
        hello = await server.hello
        if hello is None:
            # It ends every child of ours: the next fork server must not be one of them yet. And whoever cancels this
            # start must not cancel the mourning with it, as a plain await would.
            await asyncio.wait((mourning,))
            raise LaunchError(
                "the fork server died while it imported the handlers; its last words are in the log above"
            )
        self._server = server
        self._up.set()
        return hello

    async def _mourn(self, server: "_ForkServerProcess") -> None:
        """Wait for a fork server's death, end what it leaves, and start the next."""
        await server.died.wait()
        was_up = self._server is server
        self._server = None
        self._up.clear()
        await asyncio.to_thread(tree.end_children)
        server.close()
        forked = bool(self._children)
        for child in list(self._children.values()):
            child.over(Exit(lost="the fork server died"))
        self._children.clear()
        if was_up and not self._closing:
            _log.error("the fork server died; its children are ended and another is started", pid=server.process.pid)
            self._restarting = asyncio.create_task(self._restart(forked=forked))

    async def _restart(self, *, forked: bool) -> None:
        waits = _RESTART_WAITS_S if forked else _RESTART_WAITS_S[1:]
        for wait_s in chain(waits, repeat(waits[-1])):
            await asyncio.sleep(wait_s)
            try:
                await self._start()
            except (LaunchError, OSError) as error:
                _log.error("the fork server does not start; tasks wait until it does", error=str(error))
            else:
                return

    def _hear(self, news: wire.News) -> None:
        match news:
            case wire.Hello():
                pass
            case wire.Launched():
                if child := self._children.get(news.child):
                    child.launched(news)
            case wire.LaunchFailed():
                if child := self._children.pop(news.child, None):
                    if news.errno is None:
                        child.over(Exit(lost=news.message))
                    else:
                        child.refused(OSError(news.errno, news.message))
            case wire.Ended():
                if child := self._children.pop(news.child, None):
                    child.over(_exit(news))
            case never:
                assert_never(never)


class _ForkServerProcess:
    """One fork server: its process, its socket and its death."""

    def __init__(self, hear: Callable[[wire.News], None], keep_fds: Sequence[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._hear = hear
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()
        self.hello: asyncio.Future[wire.Hello | None] = self._loop.create_future()
        self.died = asyncio.Event()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(), *keep_fds),
                stdin=subprocess.DEVNULL,
                env=_without_settings(),
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

    def send(self, order: wire.Order, fds: Sequence[int] = ()) -> None:
        """Send an order, or queue it; the caller may close the descriptors at once. Raises OSError if it cannot be."""
        data = wire.encode(order)
        if self._outgoing or not self._sent(data, fds):
            self._outgoing.append((data, _duplicates(fds)))
            self._loop.add_writer(self._socket, self._on_writable)

    def hang_up(self) -> None:
        """Close the socket: the fork server ends all its children and itself. Safe to call twice."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def kill(self) -> None:
        """SIGKILL, where it does not end by itself."""
        if not self.died.is_set():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of what is left of it."""
        if self._socket.fileno() >= 0:
            self._on_news()  # what it said before it died
        self.hang_up()
        for _, fds in self._outgoing:
            for fd in fds:
                os.close(fd)
        self._outgoing.clear()

    def _on_writable(self) -> None:
        while self._outgoing and self._sent(*self._outgoing[0]):
            _, fds = self._outgoing.popleft()
            for fd in fds:
                os.close(fd)
        if not self._outgoing:
            self._loop.remove_writer(self._socket)

    def _sent(self, data: bytes, fds: Sequence[int]) -> bool:
        """False where it has to wait."""
        try:
            socket.send_fds(self._socket, [data], fds)
        except BlockingIOError:
            return False
        except OSError:  # it is dying; `_on_death` follows
            pass
        return True

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


def _without_settings() -> dict[str, str]:
    """Our environment without our settings, which hold secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith("INTERMISSION_")}


def _duplicates(fds: Sequence[int]) -> list[int]:
    """All of them, or none and an OSError."""
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))  # noqa: PERF401 -- those before one that fails must be known
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return made


def _exit(news: wire.Ended) -> Exit:
    return Exit(
        exit_code=news.exit_code,
        signal=news.signal,
        cpu_s=news.cpu_s,
        peak_memory_bytes=news.peak_memory_bytes,
        killed=tuple(news.killed),
    )
