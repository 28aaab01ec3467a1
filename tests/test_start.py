"""Start: what is accepted is never lost, runs in its turn and never beside too many, in a world that is its own."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import jwt
import pytest
import pytest_asyncio
from harness import Server, serving, squares
from verb_tools import TOYS, attempts, events, launched, log, nothing_left, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a secret of the server, which no child may see"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for the tests here that need no settings of their own."""
    async with playing(tmp_path_factory.mktemp("start")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server that runs one task at a time."""
    async with playing(tmp_path_factory.mktemp("narrow"), INTERMISSION_MAX_RUNNING="1") as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server, narrow: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)
    await nothing_left(narrow)


async def claims(server: Server, ids: list[str]) -> list[int]:
    """When each was claimed, on a scale that all tasks share."""
    return [(await events(server, task_id))["claimed"] for task_id in ids]


# Whose turn it is.


async def test_first_come_first_served(narrow: Server, tmp_path: Path) -> None:
    """With room for one, tasks run one after the other in the order in which they were accepted."""
    ahead = await narrow.launch("gate", {"mark": str(tmp_path / "go")})
    kinds = [("steps", {"steps": 2}), ("printer", {"n": 0}), ("single", {"delay_s": 0.0}), ("counter", {"limit": 3})]
    ids = [await narrow.launch(*kind) for kind in kinds * 4]
    await narrow.until_status(ahead, "running")
    (tmp_path / "go").touch()
    for task_id in ids:
        await narrow.until_status(task_id, "completed")
    history = [await events(narrow, task_id) for task_id in [ahead, *ids]]
    for one, following in pairwise(history):
        assert one["completed"] < following["claimed"]


async def test_priority_goes_first(narrow: Server, tmp_path: Path) -> None:
    """A higher priority is claimed earlier, first come first served among equals, and it takes nobody's place."""
    ahead = await narrow.launch("gate", {"mark": str(tmp_path / "go")})
    await narrow.until_status(ahead, "running")
    priorities = [0, -5, 1000, 3, 0, 3, -1000]
    ids = [await launched(narrow, "printer", {"n": 0}, priority=priority) for priority in priorities]
    assert (await narrow.task(ahead))["status"] == "running"
    (tmp_path / "go").touch()
    for task_id in ids:
        await narrow.until_status(task_id, "completed")
    at = await claims(narrow, ids)
    assert sorted(range(7), key=lambda n: at[n]) == sorted(range(7), key=lambda n: -priorities[n])


async def test_a_service_with_a_limit_of_its_own(server: Server) -> None:
    """Tasks of a service with ``max_running`` wait for each other, and those of others do not wait for them."""
    ids = [await server.launch("single", {"delay_s": 0.02}) for _ in range(6)]
    blocking = await server.launch("single", {"delay_s": 600})
    behind = await server.launch("single", {"delay_s": 0})
    other = await server.launch("printer", {"n": 0})
    await server.until_status(other, "completed")
    await server.until_status(blocking, "running")
    history = [await events(server, task_id) for task_id in [*ids, blocking]]
    for one, following in pairwise(history):
        assert one["completed"] < following["claimed"]
    assert (await server.task(behind))["status"] == "pending"
    assert (await server.verb(blocking, "pause")).status == 200
    await server.until_status(behind, "completed")


async def test_many_starts_at_once(tmp_path: Path) -> None:
    """Sixty starts at the same moment with room for four: all complete, and never more than four at once."""
    async with playing(tmp_path, INTERMISSION_MAX_RUNNING="4") as server:
        params = {"steps": 5, "delay_s": 0.002}
        ids = await asyncio.gather(*(server.launch("census", params) for _ in range(60)))
        tasks = [await server.until_status(task_id, "completed", within_s=40) for task_id in ids]
        most = [task["result"]["most"] for task in tasks]
        assert max(most) <= 4
        assert max(most) > 1, "they never ran beside each other"
        assert [task["attempt"] for task in tasks] == [1] * 60


# Accepted is never lost.


async def test_an_answer_means_on_disk(tmp_path: Path) -> None:
    """``kill -9`` of the server right after its answer: at the next start the task is there, and runs to its end."""
    async with serving(tmp_path, INTERMISSION_HANDLERS=TOYS) as server:
        ids = []
        for _ in range(4):
            answers = await asyncio.gather(*(server.launch("steps", {"steps": 5, "delay_s": 0}) for _ in range(3)))
            await server.kill()
            ids += answers
            await server.start()
        for task_id in ids:
            task = await server.until_status(task_id, "completed")
            assert task["params"] == {"steps": 5, "delay_s": 0, "mark": None}
            assert await server.file(task_id, "lines.txt") == squares(5)
            numbers = [attempt["attempt"] for attempt in await attempts(server, task_id)]
            assert numbers == list(range(1, task["attempt"] + 1))
        assert await server.stop() == 0
        assert server.survivors() == []


# The world of a child.


async def test_everything_printed_is_in_the_log(server: Server) -> None:
    """Print, stderr, the bare descriptor, a subprocess and ``task.log`` are all there, whole and in order."""
    task_id = await server.launch("printer", {"n": 300})
    await server.until_status(task_id, "completed")
    lines = (await log(server, task_id)).splitlines()
    assert lines[:4] == ["from print", "from stderr", "from the descriptor", "from a subprocess"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO from the log", lines[4])
    assert lines[5:] == [f"{'x' * 1000} {n}" for n in range(300)]


async def test_a_log_goes_on_through_attempts(server: Server) -> None:
    """What an attempt printed is kept, and the next one's comes after it."""
    task_id = await server.launch("faulty", {"attempts": 2})
    await server.until_status(task_id, "completed")
    assert (await log(server, task_id)).count("ValueError: this cannot be") == 2


async def test_an_own_process_in_an_own_session(server: Server) -> None:
    """A child is a process of its own below the fork server, named for its service, in a session of its own."""
    task_id = await server.launch("deaf")
    task = await server.until(task_id, lambda task: task["child"])
    pid = task["child"]["pid"]
    await server.until_progress(task_id)
    assert os.getsid(pid) == pid
    assert pid in [process.pid for process in server.fork_server.children()]
    assert Path(f"/proc/{pid}/comm").read_text() == "deaf\n"


async def test_it_takes_the_processor_from_nobody(server: Server) -> None:
    """A task that wakes up waits for its turn; the server, and what forks the tasks, does not."""
    task_id = await server.launch("steps", {"steps": 10_000})
    task = await server.until_progress(task_id)
    assert os.sched_getscheduler(task["child"]["pid"]) == os.SCHED_BATCH
    assert os.sched_getscheduler(server.pid) == os.sched_getscheduler(server.fork_server.pid) == os.SCHED_OTHER
    await server.verb(task_id, "terminate")


async def test_a_child_sees_its_own_world(tmp_path: Path) -> None:
    """TMPDIR is in the task's folder, the folder it runs in is the server's, and no setting is in its environment."""
    async with playing(tmp_path, INTERMISSION_JWT_SECRET=SECRET) as server:
        assert server.session is not None
        token = jwt.encode({"sub": "u", "exp": 4e9}, SECRET, "HS256")
        server.session.headers["Authorization"] = f"Bearer {token}"
        task_id = await server.launch("world")
        world = (await server.until_status(task_id, "completed"))["result"]
    folder = tmp_path / "tasks" / task_id
    assert Path(world["temporary"]) == Path(world["made_in"])
    assert Path(world["temporary"]).is_relative_to(folder)
    assert Path(world["temporary"]).is_dir()
    assert Path(world["cwd"]) == Path(__file__).parent
    assert [name for name in world["environ"] if name.startswith("INTERMISSION_")] == []
    assert SECRET not in json.dumps(world)
    assert world["environ"]["PATH"] == os.environ["PATH"]


async def test_a_child_inherits_no_foreign_descriptor(server: Server, tmp_path: Path) -> None:
    """A child holds its log, its pipe and its own files, whatever runs beside it; what it starts only the first."""
    for _ in range(3):
        await server.until_progress(await server.launch("gate", {"mark": str(tmp_path / "go")}))
    task_id = await server.launch("world")
    world = (await server.until_status(task_id, "completed"))["result"]
    folder = server.data / "tasks" / task_id
    held = dict(world["descriptors"])
    assert held.pop("0") == "/dev/null"
    assert held.pop("1") == held.pop("2") == str(folder / "log")
    kinds = sorted(target if target.startswith("/") else target.partition(":")[0] for target in held.values())
    assert kinds == [str(folder / "files" / "lines.txt"), str(folder / "slot.0"), "socket"]
    passed = {number: target for number, target in world["passed_on"].items() if number not in "012"}
    assert passed == {}


async def test_the_environment_cannot_be_read_from_outside_either(server: Server) -> None:
    """What a child was started with, as the kernel shows it, has no setting."""
    await server.until_progress(await server.launch("deaf"))
    (child,) = server.descendants()
    entries = Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
    assert any(entry.startswith(b"PATH=") for entry in entries)
    assert [entry for entry in entries if entry.startswith(b"INTERMISSION_")] == []


async def test_modules_that_fail_at_length(tmp_path: Path) -> None:
    """However many bytes a character has, and whether or not it can be sent: the others work, and the log says why."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for n in range(20):
        (folder / f"unusable{n}.py").write_text("raise RuntimeError(chr(0x1F600) * 5000 + chr(0xDC80))\n")
    names = [f"unusable{n}" for n in range(20)]
    settings = {"INTERMISSION_HANDLERS": ",".join(["toys", *names]), "PYTHONPATH": str(folder)}
    async with serving(tmp_path / "data", **settings) as server:
        told = [record for line in server.log if "cannot be used" in line and (record := json.loads(line))]
        assert [record["module"] for record in told] == names
        assert all(record["error"].endswith(chr(0x1F600) + r"\udc80") for record in told)
        await server.until_status(await server.launch("steps", {"steps": 1}), "completed")
        assert await server.stop() == 0
