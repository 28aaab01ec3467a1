"""The ring of a body, both of its ends: exact whatever the pieces, bounded, and no child can harm the server by it."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator

import pytest
from harness import seeded

from intermission.supervisor.process.body import Body
from intermission.supervisor.process.incoming import Incoming
from intermission.supervisor.process.ring import RING_BYTES, Ring

WHOLE = 4 * RING_BYTES + 12_345


@contextlib.contextmanager
def ring() -> Iterator[tuple[Body, Incoming, int]]:
    """Both ends, and the descriptor by which the child hears that it is to stop."""
    body, (heard, said) = Body(), os.pipe()
    incoming = Incoming(heard, *(os.dup(end) for end in body.ends))
    try:
        yield body, incoming, said
    finally:
        body.close()
        os.close(heard)
        with contextlib.suppress(OSError):
            os.close(said)


def read(incoming: Incoming, size: int) -> bytes:
    """So much of what comes, block by block, as a child does."""
    got = bytearray()
    while len(got) < size:
        assert not incoming.wait_for_ring()
        got += incoming.from_ring()
    return bytes(got)


@pytest.mark.parametrize("most", [7, 1000, 65_536, RING_BYTES - 1, RING_BYTES, RING_BYTES + 1, 3 * RING_BYTES])
async def test_what_comes_out_is_what_went_in(most: int) -> None:
    """Pieces of every size, read while more is written: at each place of the ring, and at its end."""
    chance = seeded()
    content = chance.randbytes(min(WHOLE, 20_000 * most))
    with ring() as (body, incoming, _):
        reading = asyncio.create_task(asyncio.to_thread(read, incoming, len(content)))
        at = 0
        while at < len(content):
            size = chance.randint(1, most)
            await body.write(content[at : at + size])
            at += size
        async with asyncio.timeout(20):
            assert await reading == content
        assert body.written == incoming.copied == len(content)


async def test_slow_bytes_stay_in_the_same_place() -> None:
    """What is taken before more comes is written over: a slow upload never touches more than it needs."""
    with ring() as (body, incoming, said):
        os.close(said)  # so that no wait below is one
        seen = Ring(body.ends[0])
        for n in range(2000):
            await body.write(b"%4d" % n * 256)
            assert incoming.wait_for_ring()
            assert incoming.from_ring() == b"%4d" % n * 256
            assert incoming.wait_for_ring(), "who waits is done with it"
        assert not any(seen.memory[1024:])
        seen.close()


async def test_bounded() -> None:
    """What nobody takes stops the writer, until it is taken or nothing more may come."""
    with ring() as (body, incoming, _):
        writing = asyncio.create_task(body.write(bytes(RING_BYTES + 1)))
        done, _ = await asyncio.wait({writing}, timeout=0.2)
        assert not done
        assert body.written == RING_BYTES
        assert read(incoming, 1) == bytes(RING_BYTES // 2)
        assert read(incoming, 1) == bytes(RING_BYTES // 2)
        await asyncio.wait_for(writing, 5)
        await body.write(bytes(RING_BYTES // 2 - 1))
        writing = asyncio.create_task(body.write(bytes(2)))
        await asyncio.sleep(0)
        body.finish()
        with pytest.raises(BrokenPipeError):
            await asyncio.wait_for(writing, 5)
        with pytest.raises(BrokenPipeError):
            await body.write(b"more")


async def test_a_wait_ends_for_a_word() -> None:
    """A child that waits for bytes hears what it is told; the bytes are there afterwards."""
    with ring() as (body, incoming, said):
        threading.Timer(0.05, os.close, (said,)).start()
        assert await asyncio.to_thread(incoming.wait_for_ring)
        await body.write(b"still")
        assert incoming.wait_for_ring()
        assert incoming.from_ring() == b"still"


async def test_the_size_is_sealed() -> None:
    """Memory that became shorter would kill the server at the next byte."""
    with ring() as (body, _, _):
        for size in (0, 2 * RING_BYTES):
            with pytest.raises(PermissionError):
                os.ftruncate(body.ends[0], size)


async def test_a_child_that_lies() -> None:
    """Whatever it counts and writes, the server puts each byte into the ring, and waits for no room that there is."""
    with ring() as (body, incoming, _):
        seen = Ring(body.ends[0])
        for start in (2**64 - 1, 12_345, 0):
            os.eventfd_write(body.ends[2], 2**63)
            seen.restart(start)
            async with asyncio.timeout(5):
                await body.write(bytes(RING_BYTES // 2))
        seen.close()
        assert incoming.wait_for_ring() is False


async def test_nothing_is_left_open() -> None:
    """Closed at each stage: handed on or not, ended or not, once or twice."""
    with ring():  # what a first one opens for good
        pass
    before = os.listdir("/proc/self/fd")
    for passed_on in (False, True):
        for finish in (False, True):
            body = Body()
            if passed_on:
                body.passed_on()
            if finish:
                body.finish()
            body.close()
            body.close()
    assert os.listdir("/proc/self/fd") == before
