"""Starts with a time and a retry policy of their own (``POST /tasks``)."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from harness import Json, Server, pointers, problem, serving
from verb_tools import attempts, history, launched, nothing_left, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOYS: Final = "toys,verb_toys,fault_toys"
ERRING: Final = {"kind": "raise"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with playing(tmp_path_factory.mktemp("later"), INTERMISSION_HANDLERS=TOYS) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


def at(text: str) -> float:
    """A time of the API as Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


async def refused(server: Server, **body: Any) -> set[str]:
    """Where a start that does not fit is wrong."""
    answer = await server.ask("POST", "/tasks", json={"service": "counter", "params": {"limit": 1}, **body})
    said: Json = problem(answer, 422, "invalid")
    return pointers(said)


# Later.


async def test_it_starts_when_it_is_due(server: Server) -> None:
    """Not before, and soon after, though something that is due much later was waited for."""
    far = await launched(server, "counter", {"limit": 1}, delay_s=1000)
    asked = time.time()
    near = await launched(server, "counter", {"limit": 1}, delay_s=0.7)
    waiting = await server.task(near)
    assert (waiting["status"], waiting["attempt"], waiting["child"]) == ("pending", 0, None)
    assert asked + 0.69 <= at(waiting["due_at"]) <= time.time() + 0.7
    done = await server.until_status(near, "completed")
    assert at(done["started_at"]) >= at(waiting["due_at"])
    assert done["due_at"] is None
    assert (await server.task(far))["status"] == "pending"


async def test_at_a_time_in_any_zone(server: Server) -> None:
    """A time is an instant: what counts is when it is, not how it is written."""
    moment = datetime.now(UTC) + timedelta(seconds=0.5)
    texts = [
        moment.isoformat(),
        moment.isoformat().replace("+00:00", "Z"),
        moment.isoformat().replace("+00:00", "z").replace("T", "t"),
        moment.astimezone(timezone(timedelta(hours=5, minutes=45))).isoformat(),
        moment.astimezone(timezone(-timedelta(hours=11))).isoformat(),
    ]
    ids = [await launched(server, "counter", {"limit": 1}, due_at=text) for text in texts]
    shown = {(await server.task(task_id))["due_at"] for task_id in ids}
    assert shown == {moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
    for task_id in ids:
        done = await server.until_status(task_id, "completed")
        assert at(done["started_at"]) >= moment.timestamp() - 0.001


@pytest.mark.parametrize(
    "later",
    [{"delay_s": 0}, {"due_at": "2001-01-01T00:00:00Z"}, {"due_at": "0001-01-01T00:00:00+23:59"}, {"delay_s": None}],
)
async def test_what_is_past_is_now(server: Server, later: Json) -> None:
    """It starts like any other."""
    answer = await server.ask("POST", "/tasks", json={"service": "counter", "params": {"limit": 1}, **later})
    assert (answer.status, answer.json["due_at"]) == (202, None)
    await server.until_status(answer.json["id"], "completed")


@pytest.mark.parametrize(
    "text",
    [
        *("2030-01-31T08:00:00", "2030-01-31", "2030-01-31 08:00:00Z", "2030-02-31T08:00:00Z", "2030-01-31T25:00:00Z"),
        *("2030-01-31T08:00Z", "20300131T080000Z", "2030-01-31T08:00:00+0100", "tomorrow", "", "1924905600"),
        *("9999-12-31T23:59:59-23:59", "2030-01-31T08:00:60Z", "２０３０-01-31T08:00:00Z", 1924905600, True, ["x"]),  # noqa: RUF001 -- digits of another script are none
    ],
)
async def test_what_is_no_time(server: Server, text: object) -> None:
    """RFC 3339 with its zone, and within ten years; nothing is started."""
    assert await refused(server, due_at=text) == {"/due_at"}


@pytest.mark.parametrize("delay", [-1, 1e9, "5", True, [5]])
async def test_what_is_no_delay(server: Server, delay: object) -> None:
    """Seconds, none negative, and within ten years."""
    assert await refused(server, delay_s=delay) == {"/delay_s"}


async def test_not_both(server: Server) -> None:
    """Nobody could say which of the two holds."""
    assert await refused(server, delay_s=5, due_at="2030-01-31T08:00:00Z") == {"/due_at"}


async def test_told_before_it_is_due(server: Server) -> None:
    """Paused and resumed it starts at its time all the same; terminated it never ran."""
    paused, terminated = [await launched(server, "counter", {"limit": 1}, delay_s=1000) for _ in range(2)]
    due = (await server.task(paused))["due_at"]
    for _ in range(2):
        for verb, status in (("pause", "paused"), ("resume", "pending")):
            answer = await server.verb(paused, verb)
            assert (answer.json["status"], answer.json["due_at"]) == (status, due)
    assert (await server.task(paused))["attempt"] == 0
    receipt = (await server.verb(terminated, "terminate")).json["receipt"]
    assert (receipt["processes"], receipt["files_deleted"]) == ([], 0)


async def test_resumed_before_it_is_due(server: Server) -> None:
    """It starts then, though something that is due much later was waited for."""
    await launched(server, "counter", {"limit": 1}, delay_s=1000)
    task_id = await launched(server, "counter", {"limit": 1}, delay_s=0.8)
    due = at((await server.verb(task_id, "pause")).json["due_at"])
    assert (await server.verb(task_id, "resume")).json["status"] == "pending"
    done = await server.until_status(task_id, "completed")
    assert due <= at(done["started_at"]) + 0.001
    assert at(done["started_at"]) < due + 10


async def test_resumed_when_it_was_due(server: Server) -> None:
    """A pause outlasts the time; then a resume is what it waits for, and it starts at once."""
    task_id = await launched(server, "counter", {"limit": 1}, delay_s=0.3)
    due = at((await server.verb(task_id, "pause")).json["due_at"])
    await asyncio.sleep(due - time.time() + 0.2)
    assert (await server.task(task_id))["status"] == "paused"
    answer = await server.verb(task_id, "resume")
    assert (answer.status, answer.json["due_at"]) == (202, None)
    assert (await server.until_status(task_id, "completed"))["attempt"] == 1


async def test_a_wait_of_ours_ends_with_a_resume(server: Server) -> None:
    """What waits to be tried again is tried at once: only a time that somebody has given is kept."""
    task_id = await launched(server, "fragile", {})
    await server.until_status(task_id, "retrying")
    assert (await server.verb(task_id, "pause")).json["due_at"] is None
    assert (await server.verb(task_id, "resume", wait_s=20)).json["status"] == "completed"


async def test_what_is_due_later_takes_no_place(tmp_path: Path) -> None:
    """With room for one, those that may run do, whatever waits for its time, and of whatever priority."""
    async with playing(tmp_path, INTERMISSION_MAX_RUNNING="1") as narrow:
        later = [await launched(narrow, "counter", {"limit": 1}, delay_s=0.6, priority=9) for _ in range(3)]
        now = [await launched(narrow, "counter", {"limit": 1}) for _ in range(3)]
        for task_id in [*now, *later]:
            await narrow.until_status(task_id, "completed")
        started = [at((await narrow.task(task_id))["started_at"]) for task_id in [*now, *later]]
        assert max(started[:3]) < min(started[3:])


async def test_it_is_kept_through_a_lost_server(tmp_path: Path) -> None:
    """``kill -9``: what was due meanwhile starts at once, the rest at its time."""
    async with serving(tmp_path) as server:
        soon, later = [await launched(server, "counter", {"limit": 1}, delay_s=delay) for delay in (0.4, 2.5)]
        due = at((await server.task(later))["due_at"])
        await server.kill()
        await asyncio.sleep(0.5)  # a time that passes while there is no server
        await server.start()
        await server.until_status(soon, "completed")
        done = await server.until_status(later, "completed")
        assert at(done["started_at"]) >= due - 0.001
        assert await server.stop() == 0


# Again.


async def test_errors_of_its_own(server: Server) -> None:
    """The task's own policy holds, not its handler's three errors; it is shown whole, and not in lists."""
    task_id = await launched(server, "faulty", ERRING, retry={"errors": 5, "base_s": 0.001, "cap_s": 0.002})
    task = await server.until_status(task_id, "failed")
    assert task["retry"] == {"errors": 5, "base_s": 0.001, "cap_s": 0.002}
    assert (task["reason"], task["errors_left"], task["attempt"]) == ("exhausted", 0, 5)
    assert [attempt["outcome"] for attempt in await attempts(server, task_id)] == ["errored"] * 4 + ["exhausted"]
    (listed,) = (item for item in (await server.ask("GET", "/tasks")).json["items"] if item["id"] == task_id)
    assert "retry" not in listed


async def test_a_resume_gives_its_own_budget_back(server: Server) -> None:
    """Fresh, and as large as the start said."""
    task_id = await launched(server, "faulty", ERRING, retry={"errors": 2, "base_s": 0})
    await server.until_status(task_id, "failed")
    await server.verb(task_id, "resume")
    task = await server.until(task_id, lambda task: task["status"] == "failed" and task["attempt"] > 2)
    assert task["attempt"] == 4


async def test_waits_of_its_own(server: Server) -> None:
    """A handler that waits for years after an error is asked not to."""
    task_id = await launched(server, "fragile", {}, retry={"base_s": 0.01})
    task = await server.until_status(task_id, "completed")
    assert task["retry"] == {"errors": 4, "base_s": 0.01, "cap_s": 1e8}
    assert ("errored", "retrying") in await history(server, task_id)


async def test_none_of_its_own(server: Server) -> None:
    """The handler's holds, and is not claimed to be the task's."""
    task_id = await launched(server, "faulty", ERRING, retry=None)
    task = await server.until_status(task_id, "failed")
    assert (task["retry"], task["attempt"]) == (None, 3)


@pytest.mark.parametrize(
    ("retry", "wrong"),
    [
        ({"errors": 0, "base_s": -1, "cap_s": 1e10}, {"/retry/errors", "/retry/base_s", "/retry/cap_s"}),
        ({"errors": 1.5, "x": 1}, {"/retry/errors", "/retry/x"}),
        ({"errors": True, "base_s": "1"}, {"/retry/errors", "/retry/base_s"}),
        ({"errors": 1001}, {"/retry/errors"}),
        (3, {"/retry"}),
        ([], {"/retry"}),
    ],
)
async def test_what_is_no_policy(server: Server, retry: object, wrong: set[str]) -> None:
    """Every fault of it, and nothing is started."""
    assert await refused(server, retry=retry) == wrong
