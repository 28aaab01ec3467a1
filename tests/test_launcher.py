"""Our end of a child's pipe, where what arrives arrives in an order that no real child can be made to keep."""

import asyncio
import os
import socket
from multiprocessing import Pipe

import pytest

from intermission.supervisor.process import wire
from intermission.supervisor.process.launcher import Child, Exit

GARBAGE = wire.frame(b"garbage!")


def connected() -> tuple[Child, socket.socket, asyncio.Event]:
    """A child's end here, the far end of its pipe, and whether its tree was to be ended."""
    near, far = Pipe()
    ended = asyncio.Event()
    return Child(near, ended.set), socket.socket(fileno=os.dup(far.fileno())), ended


async def heard(child: Child) -> list[wire.Report]:
    """Every report until there are no more."""
    async with asyncio.timeout(5):
        return [report async for report in child.reports()]


@pytest.mark.parametrize("death_first", [True, False])
async def test_garbage_around_a_death(*, death_first: bool) -> None:
    """Whichever is heard first, what was said in order is heard, the fault is told, and nobody waits for more."""
    child, far, ended = connected()
    with far:
        if death_first:
            child.over(Exit(exit_code=0))
        far.send(wire.frame(wire.encode(wire.Ready())) + GARBAGE + wire.frame(wire.encode(wire.Dirty())))
        reports = asyncio.create_task(heard(child))
        if not death_first:
            async with asyncio.timeout(5):
                await ended.wait()
            assert not reports.done(), "its tree is not known to be dead"
            child.over(Exit(exit_code=0))
        assert await reports == [wire.Ready()]
    assert ended.is_set()
    assert child.exit.exit_code == 0
    assert child.exit.fault is not None
    assert child.exit.fault.startswith("the child broke the protocol of its pipe")


@pytest.mark.parametrize("death_first", [True, False])
async def test_what_was_said_before_a_death_is_heard(*, death_first: bool) -> None:
    """The end comes when both are there: the news of the death and the end of the pipe."""
    child, far, ended = connected()
    with far:
        far.send(wire.frame(wire.encode(wire.Completed("7"))))
        if death_first:
            child.over(Exit(exit_code=0))
    reports = asyncio.create_task(heard(child))
    if not death_first:
        child.over(Exit(exit_code=0))
    assert await reports == [wire.Completed("7")]
    assert child.exit == Exit(exit_code=0)
    assert not ended.is_set()


@pytest.mark.parametrize("unread", [False, True])
async def test_telling_one_that_is_gone_loses_nothing_that_it_said(*, unread: bool) -> None:
    """A child completes and exits; in the same instant it is told something. Its report is heard all the same."""
    child, far, _ = connected()
    if unread:
        child.send(wire.PauseRequest())
    far.send(wire.frame(wire.encode(wire.Completed("7"))))
    far.close()
    for _ in range(3):
        child.send(wire.Committed(3))  # before our loop has come to read
    child.over(Exit(exit_code=0))
    assert await heard(child) == [wire.Completed("7")]


async def test_more_is_told_than_the_pipe_holds() -> None:
    """A large beginning waits for the child to read it, in order with what comes after it."""
    child, far, _ = connected()
    large = wire.frame(b"x" * 3_000_000)
    child.send(wire.PauseRequest())
    child._untold += large
    child.send(wire.Committed(7))
    expected = wire.frame(wire.encode(wire.PauseRequest())) + large + wire.frame(wire.encode(wire.Committed(7)))
    read = b""
    while len(read) < len(expected):
        await asyncio.sleep(0)
        far.setblocking(False)
        try:
            read += far.recv(1 << 20)
        except BlockingIOError:
            continue
    assert read == expected
    far.close()
    child.over(Exit(exit_code=0))
    assert await heard(child) == []
