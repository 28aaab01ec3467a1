"""Clients that bring next to nothing are told so, and what came is kept. A slow server is not their fault."""

import asyncio
import signal
from pathlib import Path

import pytest
from harness import Answer, Server, problem, send
from upload_tools import MIB, WAYS, Sending, begin, chunk, data, newest, resume, sha256
from verb_tools import playing

IDLE_S = 0.8
WINDOW_S = 3 * IDLE_S
PART_S = 0.1
CONTENT = data(40 * MIB)
SOME = 3 * MIB


@pytest.fixture(params=["direct", "copied"])
def way(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of an impatient server, whose uploads go the fast way or are copied."""
    return {
        **WAYS[request.param],
        "INTERMISSION_UPLOAD_IDLE_S": str(IDLE_S),
        "INTERMISSION_UPLOAD_MIN_RATE": "1000",
    }


async def dribbled(sending: Sending, size: int, for_s: float, *, framed: bool = False) -> Answer | None:
    """Send so many bytes each tenth of a second; the answer, if one comes within that time."""
    loop, answering = asyncio.get_running_loop(), asyncio.create_task(sending.answer(for_s + 20))
    end = loop.time() + for_s
    while loop.time() < end:
        part = CONTENT[sending.sent : sending.sent + size]
        sending.writer.write(chunk(part) if framed else part)
        sending.sent += size
        done, _ = await asyncio.wait({answering}, timeout=PART_S)
        if done:
            return answering.result()
    answering.cancel()
    await asyncio.wait({answering})
    return None


async def byte_by_byte(server: Server, length: int | None) -> None:
    """Bring one byte each tenth of a second: that is refused, and then all the rest is taken."""
    sending = await begin(server, "/upload/start", length=length)
    answer = await dribbled(sending, 1, 4 * WINDOW_S, framed=length is None)
    assert answer is not None
    said = problem(answer, 408, "too-slow")
    assert f"fewer than 1000 bytes a second came for {WINDOW_S:g} s" in said["detail"]
    assert 0 < said["offset"] <= sending.sent
    task = await server.task(said["id"])
    assert (task["status"], task["reason"]) == ("paused", "disconnected")
    whole = CONTENT[: length or SOME]
    assert (await resume(server, task["id"], whole, said["offset"])).json["result"]["sha256"] == sha256(whole)


async def just_fast_enough(server: Server) -> None:
    """Slow, but not too slow, goes on through the windows; then silence is what it always was."""
    sending = await begin(server, "/upload/start", length=SOME)
    assert await dribbled(sending, 400, 2.5 * WINDOW_S) is None
    problem(await sending.answer(), 408, "idle")


async def test_next_to_nothing(tmp_path: Path, way: dict[str, str]) -> None:
    """Each byte within the time that may pass without one: 408 says the least rate, and every byte that came is kept.

    In a body that could go the fast way, in one that is too short for it, and in one of unknown length.
    """
    async with playing(tmp_path, **way) as server:
        await asyncio.gather(
            *(byte_by_byte(server, length) for length in (SOME, 100_000, None)), just_fast_enough(server)
        )


async def test_without_a_least_rate(tmp_path: Path, way: dict[str, str]) -> None:
    """0: only silence ends it."""
    async with playing(tmp_path, **way | {"INTERMISSION_UPLOAD_MIN_RATE": "0"}) as server:
        sending = await begin(server, "/upload/start", length=SOME)
        assert await dribbled(sending, 1, 1.5 * WINDOW_S) is None
        problem(await sending.answer(), 408, "idle")


async def test_a_slow_server_is_not_the_clients_fault(tmp_path: Path, way: dict[str, str]) -> None:
    """A child that takes nothing for longer than the window: the client, who waits with it, is not ended for it."""
    async with playing(tmp_path, **way) as server:
        sending = await begin(server, "/upload/start", length=len(CONTENT))
        answering, hurry = asyncio.create_task(sending.answer(within_s=60)), asyncio.Event()

        async def bring() -> None:
            while sending.sent < len(CONTENT):
                await sending.send(CONTENT[sending.sent : sending.sent + 20_000])
                await asyncio.wait({hurried}, timeout=PART_S)

        hurried = asyncio.create_task(hurry.wait())
        bringing = asyncio.create_task(bring())
        while not (task_id := await newest(server)):
            pass
        task = await server.until_progress(task_id)
        send(task["child"]["pid"], signal.SIGSTOP)
        hurry.set()
        done, _ = await asyncio.wait({answering, bringing}, timeout=1.5 * WINDOW_S)
        assert not done, "the client has to wait, and is let"
        send(task["child"]["pid"], signal.SIGCONT)
        await bringing
        assert (await answering).json["result"]["sha256"] == sha256(CONTENT)
