"""One generation of processes at a time on a data folder, and on a database.

The supervisor holds an ``flock`` on each and its fork server inherits them, so they are free only when both are gone: a
start right after ``kill -9`` waits until the old trees are dead. Children do not inherit them. The database has one of
its own because it may be anywhere: a second server on it would take the first one's running tasks for lost.

What still runs of an earlier generation (its fork server was frozen, or killed together with the supervisor) is found
by a mark that every process below a fork server has: a number of the data folder's own as its soft limit on file locks,
which Linux has not looked at since 2.4.25 (getrlimit(2)). A process hands its limits on through fork and exec, whatever
environment, session and descriptors it gives away. Not found is only what sets that very limit, as ``su`` may, or runs
as another user, whom we could not end anyway.
"""

import contextlib
import fcntl
import json
import os
import re
import resource
import secrets
import select
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import structlog

from intermission.supervisor.process import tree
from intermission.supervisor.process.slot import boot_id

_RLIMIT_LOCKS: Final = 10
"""Not among the names of `resource`, as nobody has a use for it."""
_PATIENCE_S: Final = 5.0
_RECORD_BYTES: Final = 512
"""More than two processes take."""
_log = structlog.get_logger()


class OccupiedError(Exception):
    """Another server uses the data folder or the database; the message says which."""


@dataclass(frozen=True, slots=True)
class _Identity:
    pid: int
    ticks: int
    boot: str

    def lives(self) -> bool:
        return self.boot == boot_id() and tree.is_same(self.pid, self.ticks)


class Generation:
    """The claim on a data folder and a database, from its taking until this process ends."""

    def __init__(self, data_dir: Path, database: Path) -> None:
        """Take both when an earlier generation has ended. Raises `OccupiedError` if one lives, or OSError."""
        data_dir.mkdir(parents=True, exist_ok=True)
        self._record = data_dir / "generation.json"
        self._supervisor = _identity(os.getpid())
        with contextlib.ExitStack() as locks:
            folder = _opened(data_dir / "lock", locks)
            self._take(folder, data_dir)
            # Beside the file that a link leads to, where SQLite has its own neighbours of it too.
            beside = _opened(Path(f"{os.path.realpath(database)}-lock"), locks)
            _take_database(beside, database)
            self.fds = (folder, beside)
            self._mark = _mark(data_dir)
            self._sweep()
            self._write(None)
            self._locks = locks.pop_all()

    def adopt(self, process: tree.Process) -> None:
        """Mark a fork server that has forked nothing yet, and remember who holds the locks beside us."""
        try:
            _, hard = resource.prlimit(process.pid, _RLIMIT_LOCKS)
            resource.prlimit(process.pid, _RLIMIT_LOCKS, (self._mark, hard))
        except (OSError, ValueError) as error:  # a sandbox; or somebody did set a limit, and a hard one
            _log.warning("what a task leaves behind will not be found after a kill", error=str(error))
        try:
            self._write(_Identity(process.pid, process.ticks, boot_id()))
        except OSError as error:  # a full disk must not keep a fork server from being replaced
            _log.warning("the fork server could not be recorded", error=error.strerror, pid=process.pid)

    def release(self) -> None:
        """Let go, at the end of an orderly stop."""
        self._locks.close()

    def _take(self, lock: int, data_dir: Path) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not _locked(lock):
            supervisor, fork_server = self._read()
            if supervisor is not None and supervisor.lives():
                raise OccupiedError(
                    f"another server (pid {supervisor.pid}) is running on {data_dir}; stop it or choose another folder"
                )
            if fork_server is not None and fork_server.lives():
                _await_end(fork_server, _PATIENCE_S)
                deadline = time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline:
                raise OccupiedError(f"{data_dir} is locked by another program; stop it or choose another folder")
            # Between a death and the closing of its files, or between a lock and its record: milliseconds.
            time.sleep(0.005)

    def _sweep(self) -> None:
        """End whatever an earlier generation left, until nothing with its mark runs."""
        ours = {os.getpid(), os.getppid()}  # marked, if the server is started by what a task has left
        while left := [p for p in tree.with_limit(_RLIMIT_LOCKS, self._mark) if p.pid not in ours]:
            tree.signal_all((p.pid for p in left), signal.SIGKILL)
            for process in left:
                _await_end(_Identity(process.pid, process.ticks, boot_id()), 1.0)

    def _read(self) -> tuple[_Identity | None, _Identity | None]:
        with contextlib.suppress(OSError, ValueError, TypeError):
            record = json.loads(self._record.read_text(encoding="utf-8"))
            fork_server = record["fork_server"]
            return _Identity(**record["supervisor"]), _Identity(**fork_server) if fork_server else None
        return None, None

    def _write(self, fork_server: _Identity | None) -> None:
        record = {"supervisor": asdict(self._supervisor), "fork_server": asdict(fork_server) if fork_server else None}
        # In place, in one write and always as long: that needs no room on a full disk, and no SIGKILL cuts it.
        fd = os.open(self._record, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, json.dumps(record).ljust(_RECORD_BYTES).encode(), 0)
        finally:
            os.close(fd)


def _opened(lock: Path, until: contextlib.ExitStack) -> int:
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until.callback(os.close, fd)
    return fd


def _locked(lock: int) -> bool:
    """Whether it is ours now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_database(lock: int, database: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not _locked(lock):
        if time.monotonic() > deadline:
            raise OccupiedError(
                f"another server keeps its tasks in {database}; stop it or set another INTERMISSION_DATABASE_URL"
            )
        time.sleep(0.005)  # it may be on its way out, as in `Generation._take`


def _identity(pid: int) -> _Identity:
    process = tree.look(pid)
    return _Identity(pid, process.ticks if process else 0, boot_id())


def _mark(data_dir: Path) -> int:
    """What all processes on this very folder have in common: in a copy of it the file is another, and so is its mark.

    Otherwise a server on a backup would take the children of a server on the original for leftovers of its own.
    """
    fd = os.open(data_dir / "mark", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(fd, "r+", encoding="ascii", errors="replace") as file:
        stat = os.fstat(fd)
        here = f"{stat.st_dev}-{stat.st_ino}"
        if kept := re.fullmatch(rf"{here}-([0-9a-f]{{16}})", file.read()):
            return int(kept[1], 16)
        fresh = 1 << 60 | secrets.randbits(60)  # more than anybody would set as a limit, and less than a signed 64 bits
        file.seek(0)
        file.truncate()
        file.write(f"{here}-{fresh:x}")
    return fresh


def _await_end(identity: _Identity, patience_s: float) -> None:
    """Wait until the process has ended; kill it when patience runs out."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        if not identity.lives():
            return
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(patience_s * 1000):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll.poll(patience_s * 1000)
    finally:
        os.close(pidfd)
