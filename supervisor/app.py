"""The server, wired in one place and unwound in reverse. Reading `_running` is reading the architecture."""

import asyncio
import contextlib
import errno
import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import structlog
from aiohttp import web

from intermission.handlers import registry
from intermission.state.models import Quota
from intermission.state.sqlite import SqliteStore
from intermission.state.store import StoreError
from intermission.supervisor import memory
from intermission.supervisor.config import Config
from intermission.supervisor.core import Supervisor
from intermission.supervisor.crowd import Crowd
from intermission.supervisor.logs import Seldom
from intermission.supervisor.places import Places
from intermission.supervisor.process import ring, wire
from intermission.supervisor.process.generation import Generation, OccupiedError
from intermission.supervisor.process.launcher import LaunchError
from intermission.supervisor.process.local import LocalLauncher
from intermission.supervisor.routes.application import make_app
from intermission.supervisor.routes.connection import Connection, Http
from intermission.supervisor.routes.connections import Connections
from intermission.supervisor.routes.direct import FAST
from intermission.supervisor.threads import staffed

_OLDEST_KERNEL: Final = (5, 4)
_FDS_PER_CHILD: Final = 4
_FDS_PER_UPLOAD: Final = 9
"""Its pipe, the ring of its body, both also as its child gets them, and the client's socket twice."""
_FDS_PER_CONNECTION: Final = 2
"""The client's socket, and what is read for it: a file that it gets, a log that it follows."""
_FDS_BESIDE: Final = 256
_CONNECTIONS: Final = 4096
"""As many may be open beside those of uploads, where the limit of descriptors has room for them."""
_LEAST_CONNECTIONS: Final = 32
"""As many as are among what is beside."""
_DAY_S: Final = 86_400.0
_SYNCS_AT_ONCE: Final = 8
"""More would not make a disk faster; a journal takes what comes together in one commit."""
_REMOVALS_AT_ONCE: Final = 4
"""Two large folders are gone sooner one after the other, but a small one should seldom wait for several of them."""
_CALLS_AT_ONCE: Final = min(32, (os.cpu_count() or 1) + 4)
"""As many as asyncio would have at the most."""
_LAST_ANSWERS_S: Final = 1.0
_BACKLOG: Final = 128
_LINGER_S: Final = 2.0
"""How long the rest of a body that is refused is read and dropped, so that its client hears the answer. A browser
reads it only once it has sent everything or can send no more: so late its user may see somebody else's pause."""
_MOST_OF_A_LINE: Final = 24 << 10
"""In the head of a request. More than the longest name and the longest list of parts that an upload may have, so that
what is too long for us gets an answer of ours."""
_NOT_ACCEPTED: Final = "socket.accept() out of system resource"
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
_log = structlog.get_logger()


class StartError(Exception):
    """The server cannot start; the message says why and what to do."""


def serve(config: Config) -> int:
    """Run the server until SIGTERM or SIGINT; the exit code."""
    try:
        _check_platform()
        connections = Connections(_raise_descriptor_limit(config))
        memory.keep_freed()
        asyncio.run(_serve(config, connections))
    except (StartError, OccupiedError, LaunchError, StoreError) as error:
        sys.stderr.write(f"intermission: {error}\n")
        return 1
    return 0


async def _serve(config: Config, connections: Connections) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Complaints())
    for number in _STOPPING:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    try:
        async with contextlib.AsyncExitStack() as stack:
            address = await _unless(stop, stack.enter_async_context(_running(config, connections)))
            if address is not None:
                _log.info("listening", address=address, data_dir=str(config.data_dir), max_running=config.max_running)
                await stop.wait()
            _log.info("stopping", drain_s=config.drain_s)
    finally:
        # The end of the loop, and that of the interpreter, give the signals back to the system, and a second one would
        # then kill us in the middle of our own end: from here on they are ignored.
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)


class _Complaints:
    """What goes wrong in the loop itself."""

    def __init__(self) -> None:
        self._seldom = Seldom()

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log it as asyncio does, but not each of the hundred times a second that it tries to accept a connection."""
        if context["message"] == _NOT_ACCEPTED:
            self._seldom.warning("no connection can be accepted", error=str(context["exception"]))
        else:
            loop.default_exception_handler(context)


async def _unless(stop: asyncio.Event, start: Coroutine[object, object, str]) -> str | None:
    """What ``start`` returns; None if we are to stop before it does, once it has been undone."""
    starting, stopping = asyncio.create_task(start), asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    starting.cancel()
    try:
        return await starting
    except asyncio.CancelledError:
        return None


@contextlib.asynccontextmanager
async def _running(config: Config, connections: Connections) -> AsyncIterator[str]:
    """Everything from the data folder to the open port."""
    places = _places(config)
    generation = _claim(config.data_dir, config.database_path)
    sys.path.append(os.getcwd())  # where a user's handler modules are; last, so that nothing there hides a library
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(generation.release)
        store = SqliteStore(config.database_path)
        await store.open()
        stack.push_async_callback(store.close)
        launcher = LocalLauncher(
            config.handlers,
            keep_fds=generation.fds,
            started=generation.adopt,
        )
        stack.push_async_callback(launcher.close)
        handlers = _import(await launcher.open())
        syncs = stack.enter_context(_threads(_SYNCS_AT_ONCE, "sync"))
        removals = stack.enter_context(_threads(_REMOVALS_AT_ONCE, "removal"))
        asyncio.get_running_loop().set_default_executor(_threads(_CALLS_AT_ONCE, "call"))
        supervisor = Supervisor(
            store,
            launcher,
            handlers,
            places,
            syncs=syncs,
            removals=removals,
            max_running=config.max_running,
            crowd=Crowd(config.max_uploads, config.max_user_uploads),
            quota=Quota(bytes=config.max_user_bytes, unfinished=config.max_user_unfinished),
            keep_s=config.retention_days * _DAY_S,
            uploads_s=config.upload_expires_days * _DAY_S,
        )
        app = make_app(supervisor, config)
        _log.info("uploads", way="direct" if app[FAST] else "copied")
        runner = web.AppRunner(app, shutdown_timeout=_LAST_ANSWERS_S)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        port = stack.enter_context(contextlib.ExitStack())
        # Before the port closes: who waits for a pause gets its answer, and a load balancer sees that we are not ready.
        stack.push_async_callback(supervisor.drain, config.drain_s)
        address = await _listen(runner, config, connections, port)
        await supervisor.open()  # after the port: one that is taken must be noticed before anything is launched
        yield address


def _threads(count: int, name: str) -> ThreadPoolExecutor:
    try:
        return staffed(count, name)
    except RuntimeError as error:
        raise StartError(f"the server needs {count} threads more, and the system refuses them: {error}") from None


def _places(config: Config) -> Places:
    try:
        for folder in (config.data_dir, config.tasks_dir, config.sources_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = config.data_dir / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        message = f"the data folder {config.data_dir} cannot be written to: {error.strerror}; set INTERMISSION_DATA_DIR"
        raise StartError(message) from None
    for path, setting in ((config.database_path, "DATABASE_URL"), (config.directory_path, "DIRECTORY_URL")):
        if not os.access(path.parent, os.W_OK | os.X_OK):
            message = f"the folder {path.parent} cannot be written to; set INTERMISSION_{setting}"
            raise StartError(message)
    return Places(tasks=config.tasks_dir, sources=config.sources_dir, directory=config.directory_path)


def _claim(data_dir: Path, database: Path) -> Generation:
    try:
        return Generation(data_dir, database)
    except OSError as error:
        message = f"the data folder {data_dir} and the database {database} cannot be claimed: {error}"
        raise StartError(message) from None


def _import(hello: wire.Hello) -> registry.Registry:
    """Import what the fork server could import, for the types; a failure there is a warning here."""
    for failure in hello.failures:
        _log.error("a handler module cannot be used", module=failure.module, error=failure.error)
    if hello.threads:
        _log.warning("handler modules started threads, which children will not have", threads=hello.threads)
    handlers = registry.load(hello.modules)
    _log.info("handlers", services=sorted(handlers.handlers))
    return handlers


async def _listen(runner: web.AppRunner, config: Config, connections: Connections, port: contextlib.ExitStack) -> str:
    """The address, on which requests come from now on until ``port`` is closed."""
    manager = cast("web.Server", runner.server)  # it has been set up
    loop = asyncio.get_running_loop()

    def connected() -> Connection:
        http = Http(
            manager,
            loop=loop,
            lingering_time=_LINGER_S,
            auto_decompress=False,
            max_line_size=_MOST_OF_A_LINE,
            max_field_size=_MOST_OF_A_LINE,
        )
        return Connection(http, connections)

    try:
        server = await loop.create_server(connected, config.host, config.port, backlog=_BACKLOG)
    except socket.gaierror as error:
        raise StartError(f"cannot listen on {config.host}: {error.strerror}; set INTERMISSION_HOST") from None
    except OSError as error:
        said = os.strerror(error.errno or 0)  # asyncio wraps it in a sentence of its own
        remedy = "INTERMISSION_HOST" if error.errno == errno.EADDRNOTAVAIL else "INTERMISSION_PORT"
        raise StartError(f"cannot listen on {config.host}:{config.port}: {said}; set {remedy}") from None
    port.callback(server.close)
    host, number = server.sockets[0].getsockname()[:2]
    return f"http://[{host}]:{number}" if ":" in host else f"http://{host}:{number}"


def _check_platform() -> None:
    """Refuse by name what cannot work, instead of failing later in a strange place."""
    if sys.platform != "linux":
        message = f"Intermission needs Linux (subreapers, pidfds, /proc); this is {sys.platform}"
        raise StartError(message)
    release = platform.release()
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if version < _OLDEST_KERNEL:
        message = f"Intermission needs Linux 5.4 or later; this kernel is {release}"
        raise StartError(message)
    if not hasattr(os, "pidfd_open"):
        raise StartError("this Python was built without os.pidfd_open (on an older Linux than this): use another build")
    if not ring.works():
        raise StartError("Intermission needs the C library's memfd_create: glibc 2.27 or later, or musl")
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        message = (
            "this kernel does not list children in /proc (CONFIG_PROC_CHILDREN): trees cannot be ended for certain"
        )
        raise StartError(message)


def _raise_descriptor_limit(config: Config) -> int:
    """Room for a pipe and a few files per child; refused here, not by a start that fails at the thousandth.

    How many connections may be open, so that this room stays free.
    """
    needed = config.max_running * _FDS_PER_CHILD + config.max_uploads * _FDS_PER_UPLOAD + _FDS_BESIDE
    wanted = needed + _CONNECTIONS * _FDS_PER_CONNECTION
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in limits)
    if needed > hard:
        settings = f"INTERMISSION_MAX_RUNNING={config.max_running} with INTERMISSION_MAX_UPLOADS={config.max_uploads}"
        raise StartError(f"{settings} needs {needed} file descriptors, and the limit is {hard}")
    if wanted > soft:
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    return config.max_uploads + _LEAST_CONNECTIONS + (min(soft, wanted) - needed) // _FDS_PER_CONNECTION
