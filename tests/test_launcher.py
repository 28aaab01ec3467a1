"""Our end of a child's pipe, where what arrives arrives in an order that no real child can be made to keep."""

import asyncio
import socket

import pytest

from intermission.supervisor.process import wire
from intermission.supervisor.process.launcher import Child, Exit

GARBAGE = wire.frame(b"garbage!")


async def connected() -> tuple[Child, socket.socket, asyncio.Event]:
    """A child's end here, the far end of its pipe, and whether its tree was to be ended."""
    near, far = socket.socketpair()
    ended = asyncio.Event()
    child = Child(7, ended.set)
    await asyncio.get_running_loop().create_unix_connection(lambda: child, sock=near)
    return child, far, ended


async def heard(child: Child) -> list[wire.Report]:
    """Every report until there are no more."""
    async with asyncio.timeout(5):
        return [report async for report in child.reports()]


@pytest.mark.parametrize("death_first", [True, False])
async def test_garbage_around_a_death(*, death_first: bool) -> None:
    """Whichever is heard first, what was said in order is heard, the fault is told, and nobody waits for more."""
    child, far, ended = await connected()
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
    child, far, ended = await connected()
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
