"""The fork server: one small single-threaded process that forks the children, reaps them and ends their trees.

It is started by exec, imports the handler modules once, and then only reacts: to orders on its socket and to SIGCHLD.
It never waits for one child in place, and when its socket closes (the supervisor is gone, however) it kills all that
it forked or adopted and leaves. It is the real parent, so ``wait4`` tells it how each child died and what it used.

Why a stray can be told from a root: every child is a subreaper, so as long as it lives its orphans are adopted by
itself. A child of the fork server that it did not fork has therefore outlived its root, and must go.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final, NoReturn, assert_never

from intermission.handlers.registry import BUILT_IN, AnyHandler, Registry, load
from intermission.supervisor.process import child, pages, tree, wire
from intermission.supervisor.process.slot import boot_id

_MOST_KILLED: Final = 1000
"""Processes that a report names; a fork bomb has more, and a packet has an end."""
_MOST_FAILURES: Final = 20
_MOST_ENDS: Final = 5
"""What a child is given: its pipe, and a stream service's the ring of the body and the client's connection."""


@dataclass(slots=True)
class _Root:
    """A child that we forked, until its whole tree is dead."""

    number: int
    pid: int
    ticks: int
    session: int
    ending: bool = False
    exit: tuple[int, float, int] | None = None
    """Wait status, CPU seconds and peak memory in bytes, once reaped."""
    killed: dict[int, tree.Process] = field(default_factory=dict)
    strays: set[int] = field(default_factory=set)


class ForkServer:
    """The state of the process, and its loop."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._control.setblocking(False)
        self._outgoing: deque[bytes] = deque()
        self._registry = Registry()
        self._roots: dict[int, _Root] = {}
        self._by_pid: dict[int, _Root] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._wake, select.POLLIN)

    def run(self) -> None:
        """React until the socket closes, then leave nothing behind."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        unsettled = False
        while True:
            events = dict(self._poll.poll(1 if unsettled else None))
            if self._wake in events:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            if self._control.fileno() in events and not self._take_orders():
                break
            unsettled = self._reap()
            if not self._flush():
                break
        tree.end_children()

    # Orders.

    def _take_orders(self) -> bool:
        """Carry out what has arrived; False when the supervisor is gone."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, wire.MAX_PACKET_BYTES, _MOST_ENDS)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not data:
                return False
            order = wire.decode_order(data)
            match order:
                case wire.Setup():
                    self._set_up(order)
                case wire.Launch():
                    self._launch(order, fds)
                case wire.End():
                    self._end(order.child)
                case never:
                    assert_never(never)

    def _set_up(self, setup: wire.Setup) -> None:
        self._registry = load([*BUILT_IN, *setup.modules])
        # From here on it hears the socket close, and is needed for what it will have forked.
        tree.outlive_parent()
        child.prepare_streams()
        boot_id()  # read once, for every child
        failures = [wire.ImportFailure(f.module, f.error) for f in self._registry.failures[:_MOST_FAILURES]]
        # What the imports made lives for good: out of the collector's sight it stays shared with every child.
        gc.collect()
        gc.freeze()
        pages.collapse()
        self._tell(wire.Hello(self._registry.modules, failures, threading.active_count() - 1))

    def _launch(self, order: wire.Launch, ends: list[int]) -> None:
        handler = self._registry.handlers.get(order.service)
        if handler is None:
            _close(ends)
            self._tell(wire.LaunchFailed(order.child, f"there is no handler for {order.service!r}"))
            return
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _close(ends)
            self._tell(wire.LaunchFailed(order.child, f"cannot fork: {error.strerror}", error.errno))
            return
        if pid == 0:
            self._become_child(handler, order, ends, parent)
        _close(ends)
        process = tree.look(pid)  # ours, so at the worst a zombie: it is there
        ticks, started_at = (process.ticks, process.started_at) if process else (0, 0.0)
        root = _Root(order.child, pid, ticks, session=pid)
        self._roots[order.child] = self._by_pid[pid] = root
        self._tell(wire.Launched(order.child, pid, ticks, started_at))

    def _become_child(self, handler: AnyHandler, order: wire.Launch, ends: list[int], parent: int) -> NoReturn:
        """Leave everything of the fork server behind, keep its own ends, and run."""
        try:
            signal.set_wakeup_fd(-1)
            child.detach_from_fork_server(parent, order.service)
            self._control.detach()  # closed below by number: the object must not close a number that is in use again
            first = 3
            for fd in sorted(ends):
                os.closerange(first, fd)
                # It arrived without that; programs that a handler starts must not hold it.
                os.set_inheritable(fd, False)
                first = fd + 1
            os.closerange(first, os.sysconf("SC_OPEN_MAX"))
            child.main(handler, Connection(ends[0]), *ends[1:])
        finally:
            os._exit(70)

    # Ends.

    def _end(self, number: int) -> None:
        root = self._roots.get(number)
        if root is None or root.ending:
            return  # its end is told already, or under way
        root.ending = True
        if root.exit is None:
            root.killed = tree.stop(root.pid)
            tree.signal_all(root.killed, signal.SIGKILL)

    def _reap(self) -> bool:
        """Reap whoever is dead, hunt strays, report finished ends; True if it should look again without a signal."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            root = self._by_pid.pop(pid, None)
            if root is not None:
                root.exit = (status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
        unsettled = self._hunt() if any(root.exit for root in self._roots.values()) else False
        for root in [r for r in self._roots.values() if r.exit and not r.strays]:
            del self._roots[root.number]
            self._tell(_ended(root))
        return unsettled

    def _hunt(self) -> bool:
        """Kill what outlived its root, and blame it on that root; True while more keeps turning up."""
        dead = [root for root in self._roots.values() if root.exit]
        for _ in range(20):
            strays = [pid for pid in tree.children(os.getpid()) if pid not in self._by_pid]
            known = {pid for root in dead for pid in root.strays}
            for root in dead:
                root.strays.intersection_update(strays)
            fresh = [pid for pid in strays if pid not in known]
            for pid in fresh:
                self._blame(pid, dead)
            tree.signal_all(fresh, signal.SIGKILL)
            if not fresh:
                return False
        return True

    def _blame(self, pid: int, dead: list[_Root]) -> None:
        """Hold back the report of the root that a stray descends from; of every candidate if it cannot be told."""
        process = tree.look(pid)
        if process is None:
            return
        blamed = [root for root in dead if pid in root.killed or process.session == root.session] or dead
        for root in blamed:
            root.strays.add(pid)
            root.killed.setdefault(pid, process)

    # News.

    def _tell(self, news: wire.News) -> None:
        self._outgoing.append(wire.encode(news))

    def _flush(self) -> bool:
        """Send what can be sent now; the rest waits for the socket, not the other way round. False: nobody is there."""
        while self._outgoing:
            try:
                self._control.send(self._outgoing[0])
            except BlockingIOError:
                break
            except ConnectionError:
                return False
            self._outgoing.popleft()
        self._poll.modify(self._control, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        return True


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _ended(root: _Root) -> wire.Ended:
    status, cpu_s, peak = root.exit or (0, 0.0, 0)
    signalled = os.WIFSIGNALED(status)
    # A zombie had ended by itself before we came; it is no work of ours, and the receipt must not say so.
    killed = [p for p in root.killed.values() if p.state not in tree.DEAD]
    return wire.Ended(
        child=root.number,
        exit_code=None if signalled else os.waitstatus_to_exitcode(status),
        signal=os.WTERMSIG(status) if signalled else None,
        cpu_s=cpu_s,
        peak_memory_bytes=peak,
        killed=[wire.Killed(p.pid, p.name, p.started_at) for p in killed[:_MOST_KILLED]],
    )


def main() -> None:
    """``python -m intermission.supervisor.process.forkserver FD PID``: the socket to the supervisor, and its pid."""
    # While it imports it is deaf. An import that takes long, or for ever, must not keep the data folder locked.
    tree.die_with_parent(int(sys.argv[2]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A signal to the whole group is for the supervisor: it drains, and needs us for that.
        signal.signal(number, signal.SIG_IGN)
    tree.become_subreaper()
    tree.set_name("im-forkserver")
    sys.path.append(os.getcwd())
    ForkServer(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
