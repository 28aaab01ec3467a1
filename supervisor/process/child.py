"""The far side: what runs in a child, from the fork to its exit. Everything it knows arrives in one `Begin`."""

import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final, NoReturn

from intermission.handlers.registry import AnyHandler
from intermission.handlers.schema import Invalid
from intermission.supervisor.process import fault, tree, wire
from intermission.supervisor.process.incoming import Incoming
from intermission.supervisor.process.live import LiveTask

LOG_NAME: Final = "log"
_TEMPORARY_NAME: Final = "tmp"


def main(handler: AnyHandler, pipe: Connection, *body: int) -> NoReturn:
    """Run one attempt and leave; ``body`` are the descriptors that a stream service's body comes through.

    Never returns: what belongs to the fork server must not run twice.
    """
    code = 1
    try:
        begin = wire.decode_request(pipe.recv_bytes(wire.MAX_REQUEST_BYTES))
        if not isinstance(begin, wire.Begin):
            raise TypeError(begin)  # noqa: TRY301 -- the border check of our own protocol
        report = _attempt(handler, begin, pipe, Incoming(pipe.fileno(), *body) if body else None)
        _clear(_temporary(begin.folder))
        _flush()
        if report is not None:
            pipe.send_bytes(wire.encode(report))
        code = report.exit_code or 1 if isinstance(report, wire.Errored) else 0
    except (EOFError, BrokenPipeError):
        pass  # the supervisor is gone, and so is everybody whom this could be told
    except BaseException:  # noqa: BLE001 -- the last frame of the process: its log is the only place left to say it
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _redirect(folder: str) -> None:
    """Point what is printed at the task's log, by descriptor, so that C code and subprocesses print there too.

    Standard input is the fork server's, which has none.
    """
    log = os.open(f"{folder}/{LOG_NAME}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    temporary = _temporary(folder)
    _clear(temporary)  # an attempt that was killed could not
    with contextlib.suppress(FileExistsError):
        os.mkdir(temporary)
    os.environ["TMPDIR"] = tempfile.tempdir = temporary


def _temporary(folder: str) -> str:
    return f"{folder}/{_TEMPORARY_NAME}"


def _clear(temporary: str) -> None:
    """Remove the folder if anything is in it; an empty one stays, as to remove it costs more than to look.

    So does what cannot be removed: it fails no task.
    """
    with contextlib.suppress(OSError, RecursionError):  # of a thousand folders, one in the other
        if os.listdir(temporary):
            shutil.rmtree(temporary, ignore_errors=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a full disk; or a stream that the handler has put there
            stream.flush()


def _attempt(handler: AnyHandler, begin: wire.Begin, pipe: Connection, body: Incoming | None) -> wire.Report | None:
    """Run the handler; what to report as its end, or None if it has paused, which is reported already."""
    try:
        _redirect(begin.folder)
        task = LiveTask(handler, begin, pipe, body)
    except (Invalid, LookupError) as error:
        message = fault.sendable(str(error))[: wire.MAX_TEXT]
        return wire.Errored("exception", type(error).__name__, message, refusal="state_unreadable")
    except Exception as error:  # noqa: BLE001 -- a full disk; or the author's types, which may raise anything
        return _errored(error, stream=handler.stream)
    pipe.send_bytes(wire.encode(wire.Ready()))
    try:
        if begin.kind == "clean":
            for clean in handler.cleans:
                _by_itself(clean, task)
            return wire.Completed("null")
        result = _by_itself(handler.run, task)
        return None if task.stopped else task.complete(result)
    except BaseException as error:  # noqa: BLE001 -- whatever a handler raises is reported, SystemExit and Paused too
        if task.stopped:
            return None  # it said that it stops: what it raises on its way out changes nothing
        with contextlib.suppress(OSError):
            task.sync()
        return _errored(error, stream=handler.stream)


def _by_itself(function: Callable[[LiveTask], object], task: LiveTask) -> object:
    """What the author's function returns or raises. A process that it forked and did not end leaves here, unheard."""
    code = 0
    try:
        return function(task)
    except SystemExit as error:
        code = fault.exit_code(error)
        raise
    except BaseException as error:
        code = 1
        if task.copied:
            traceback.print_exception(error)
        raise
    finally:
        if task.copied:
            _flush()
            os._exit(code)


def _errored(error: BaseException, *, stream: bool) -> wire.Errored:
    if not isinstance(error, SystemExit):
        with contextlib.suppress(Exception):  # a full disk must not hide what it has caused
            traceback.print_exception(error)
    return fault.errored(error, stream=stream)


def prepare_streams() -> None:
    """Have text that cannot be printed escaped, not raised. Once in the fork server, so that no child pays for it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def detach_from_fork_server(parent: int, name: str) -> None:
    """What a fresh fork does first: die with its parent, own a session, and have the signals of a new program."""
    tree.die_with_parent(parent)
    tree.become_subreaper()
    os.setsid()
    _step_back()
    tree.set_name(name)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _step_back() -> None:
    """Take the processor from nobody just by waking up: not from the server, and not from a task that computes.

    Beside 200 slow uploads, each of which wakes a few times a second, a fast one was half as fast at times; and nobody
    waits for a task in the milliseconds that this may cost it. Its share of the processor is the same.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):  # a sandbox that does not let it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
