"""Resume: from the last checkpoint, exactly; whatever stopped the task, and however often."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from harness import Server, problem, seeded
from verb_tools import attempts, events, history, nothing_left, numbers, paused, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOREVER = {"steps": 1_000_000}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with playing(tmp_path_factory.mktemp("resume")) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


def walked(steps: int) -> tuple[bytes, str]:
    """What ``walker`` writes, and the digest that it ends with."""
    lines, digest = [], ""
    for n in range(1, steps + 1):
        digest = hashlib.sha256(f"{digest}{n}".encode()).hexdigest()
        lines.append(f"{n} {digest}\n")
    return "".join(lines).encode(), digest


# From its place, exactly.


async def test_it_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    """The second attempt begins with the state of the first one's last checkpoint; nothing is repeated or left out."""
    mark = tmp_path / "hurry"
    task_id = await paused(server, "walker", {"steps": 200, "mark": str(mark)})
    before = await server.task(task_id)
    mark.touch()
    answer = await server.verb(task_id, "resume")
    assert answer.status == 202
    assert answer.json["status"] in {"pending", "running"}
    assert (answer.json["reason"], answer.json["checkpoint"]) == (None, before["checkpoint"])
    task = await server.until_status(task_id, "completed")
    assert (task["attempt"], task["errors_left"], task["started_at"]) == (2, 4, before["started_at"])
    # One checkpoint for each step that was left, and one for the end: none of them was done again.
    left = 200 - before["progress"]["done"]
    assert task["checkpoint"]["sequence"] == before["checkpoint"]["sequence"] + left + 1
    text, digest = walked(200)
    assert await server.file(task_id, "lines.txt") == text
    assert task["result"] == {"n": 200, "digest": digest}
    assert [attempt["outcome"] for attempt in await attempts(server, task_id)] == ["stopped", "completed"]
    expected = ["resume", "claimed", "completed"]
    assert [event for event, _ in await history(server, task_id)][-3:] == expected


async def test_each_item_that_is_committed(server: Server) -> None:
    """A handler that commits each item goes on after the last one that it committed."""
    task_id = await paused(server, "committer", FOREVER)
    for _ in range(3):
        done = (await server.task(task_id))["progress"]["done"]
        await server.verb(task_id, "resume")
        await server.until_progress(task_id, done + 5)
        assert (await server.verb(task_id, "pause")).status == 200
    done = (await server.task(task_id))["progress"]["done"]
    assert await server.file(task_id, "lines.txt") == numbers(done)


async def test_a_state_comes_back_as_it_was(server: Server) -> None:
    """Every shape that a state may have survives, and each attempt knows its number and that it was resumed."""
    task_id = await server.launch("diary", {"attempts": 4})
    for n in (1, 2, 3):
        await server.until_progress(task_id, n)
        assert (await server.verb(task_id, "pause")).status == 200
        assert (await server.verb(task_id, "resume")).status == 202
    task = await server.until_status(task_id, "completed")
    assert task["result"] == {
        "entries": [[1, False], [2, True], [3, True], [4, True]],
        "text": "ä \u2028 \U0001f600 \x00",
        "numbers": {"": -0.1, "big": 1e300},
        "nothing": None,
    }


async def test_what_was_written_after_the_checkpoint_is_cut(server: Server) -> None:
    """Outputs are cut back to their lengths at the checkpoint, each to its own."""
    params = {"files": {"a.bin": 1000, "b.bin": 7}, "more": 5000, "fail": True}
    task_id = await server.launch("writer", params)
    await server.until_status(task_id, "failed")
    folder = server.data / "tasks" / task_id / "files"
    assert [(folder / name).stat().st_size for name in ("a.bin", "b.bin")] == [6000, 5007]
    assert (await server.verb(task_id, "resume")).status == 202
    await server.until(task_id, lambda task: task["status"] == "failed" and task["attempt"] == 2)
    whole = (b"0123456789abcdef" * 63)[:1000]
    assert await server.file(task_id, "a.bin") == whole + whole
    assert await server.file(task_id, "b.bin") == b"0123456" * 2


async def test_a_file_that_no_checkpoint_knows_is_removed(server: Server) -> None:
    """What an attempt began to write and never saved is not there for the next one."""
    task_id = await server.launch("untidy")
    assert (await server.until_status(task_id, "completed"))["result"] == {"names": ["kept.txt"]}
    assert await server.file(task_id, "kept.txt") == b"kept\n"


async def test_a_hundred_times(server: Server, tmp_path: Path) -> None:
    """Paused and resumed a hundred times at moments of chance a task writes what an undisturbed one writes."""
    chance, mark = seeded(), tmp_path / "hurry"
    params = {"steps": 20_000, "delay_s": 0.002, "mark": str(mark)}
    task_id = await server.launch("walker", params)
    for _ in range(100):
        if chance.random() < 0.9:
            await server.until(task_id, lambda task: task["child"])
        await asyncio.sleep(chance.uniform(0, 0.02))  # to hit another moment, not to wait for anything
        answer = await server.verb(task_id, "pause")
        assert (answer.status, answer.json["reason"]) == (200, "requested")
        assert (await server.verb(task_id, "resume")).status == 202
    mark.touch()
    disturbed = await server.until_status(task_id, "completed")
    other_id = await server.launch("walker", params)
    undisturbed = await server.until_status(other_id, "completed")
    assert (disturbed["errors_left"], undisturbed["attempt"]) == (4, 1)
    assert disturbed["attempt"] > 50  # some of the pauses met it before it ran
    assert disturbed["result"] == undisturbed["result"]
    assert await server.file(task_id, "lines.txt") == await server.file(other_id, "lines.txt") == walked(20_000)[0]


async def test_many_at_once(server: Server, tmp_path: Path) -> None:
    """Ten tasks are resumed at the same moment, and each goes on from its own place."""
    mark = tmp_path / "hurry"
    ids = [await server.launch("walker", {"steps": 200 + n, "mark": str(mark)}) for n in range(10)]
    for task_id in ids:
        await server.until_progress(task_id)
    for answer in await asyncio.gather(*(server.verb(task_id, "pause") for task_id in ids)):
        assert answer.status == 200
    mark.touch()
    for answer in await asyncio.gather(*(server.verb(task_id, "resume") for task_id in ids)):
        assert answer.status == 202
    for n, task_id in enumerate(ids):
        await server.until_status(task_id, "completed")
        assert await server.file(task_id, "lines.txt") == walked(200 + n)[0]


async def test_it_waits_for_its_turn(server: Server) -> None:
    """A resumed task takes nobody's place: it is pending until there is one."""
    task_id = await paused(server, "counter", {"limit": 10**6, "delay_s": 0.001})
    crowd = [await server.launch("steps", FOREVER) for _ in range(16)]
    for other in crowd:
        await server.until_status(other, "running")
    assert (await server.verb(task_id, "resume")).json["status"] == "pending"
    assert (await server.task(crowd[0]))["status"] == "running"
    assert (await server.verb(crowd[0], "pause")).status == 200
    await server.until_status(task_id, "running")
    assert (await events(server, task_id))["claimed"] > (await events(server, crowd[0]))["stopped"]


async def test_with_a_wait(server: Server) -> None:
    """With ``Prefer: wait`` the answer comes when the task rests again."""
    task_id = await paused(server, "diary", {"attempts": 2})
    answer = await server.verb(task_id, "resume", wait_s=20)
    assert (answer.status, answer.json["status"]) == (202, "completed")


async def test_without_naming_it(server: Server) -> None:
    """The caller's only task of the service that can be resumed is meant; none is 404, several are a 409."""
    said = problem(await server.ask("POST", "/diary/resume"), 404, "none-eligible")
    assert "resume" in said["detail"]
    first = await paused(server, "diary", {"attempts": 2})
    running = await server.launch("diary", {"attempts": 2})
    await server.until_progress(running)
    answer = await server.ask("POST", "/diary/resume")
    assert (answer.status, answer.json["id"]) == (202, first)
    await server.until_status(first, "completed")
    both = [await paused(server, "diary", {"attempts": 2}) for _ in range(2)]
    said = problem(await server.ask("POST", "/diary/resume"), 409, "several-tasks")
    assert sorted(said["tasks"]) == sorted(both)
    assert [(await server.task(task_id))["status"] for task_id in both] == ["paused", "paused"]


# In every status.


async def test_twice_at_once(server: Server) -> None:
    """Of many who resume it at the same moment one did; the others hear that it is not paused any more."""
    task_id = await paused(server, "steps", FOREVER)
    answers = await asyncio.gather(*(server.verb(task_id, "resume") for _ in range(6)))
    assert sorted(answer.status for answer in answers) == [202] + [409] * 5
    await server.until_status(task_id, "running")
    assert [event for event, _ in await history(server, task_id)].count("resume") == 1
    assert (await server.task(task_id))["attempt"] == 2
    assert len(server.descendants()) == 1


async def test_what_cannot_be_resumed(server: Server, tmp_path: Path) -> None:
    """Pending, running, pausing, completed: 409 with what is possible, and the task is left as it was."""
    running = await server.launch("single", {"delay_s": 600})
    await server.until_progress(pausing := await server.launch("gate", {"mark": str(tmp_path / "never")}))
    await server.verb(pausing, "pause", wait_s=0)
    await server.until_status(running, "running")
    pending = await server.launch("single")
    completed = await server.launch("steps", {"steps": 1})
    for task_id, status, allowed in (
        (pending, "pending", ["pause", "terminate"]),
        (running, "running", ["pause", "terminate"]),
        (pausing, "pausing", ["terminate"]),
        (completed, "completed", ["delete"]),
    ):
        before = await server.until_status(task_id, status)
        said = problem(await server.verb(task_id, "resume"), 409, "not-now")
        assert (said["task_status"], said["allowed"]) == (status, allowed)
        after = await server.task(task_id)
        assert (after["status"], after["attempt"], after["allowed"]) == (status, before["attempt"], allowed)


async def test_one_that_waits_for_a_retry(server: Server) -> None:
    """A retrying task is tried again now, and not when it would have been due; its budget stays as it is."""
    task_id = await server.launch("patient")
    task = await server.until_status(task_id, "retrying")
    assert task["due_at"] > task["created_at"]
    answer = await server.verb(task_id, "resume")
    assert (answer.status, answer.json["due_at"], answer.json["errors_left"]) == (202, None, 2)
    task = await server.until_status(task_id, "completed")
    assert (task["result"], task["attempt"], task["errors_left"], task["error"]) == ({"n": 2}, 2, 2, None)


async def test_one_that_failed(server: Server) -> None:
    """A failed task goes on from its last checkpoint with a fresh budget, as often as somebody resumes it."""
    task_id = await server.launch("faulty", {"attempts": 7})
    for round_ in (1, 2):
        task = await server.until(task_id, lambda task: task["status"] == "failed")
        assert (task["reason"], task["errors_left"], task["attempt"]) == ("exhausted", 0, 3 * round_)
        assert task["checkpoint"]["state"] == {"n": 3 * round_}
        assert task["allowed"] == ["resume", "terminate"]
        assert task["finished_at"]
        answer = await server.verb(task_id, "resume")
        assert answer.status == 202
        now = answer.json
        assert (now["errors_left"], now["error"], now["reason"], now["finished_at"]) == (3, None, None, None)
    task = await server.until_status(task_id, "completed")
    assert (task["attempt"], task["errors_left"], task["result"]) == (8, 2, {"n": 8})
    outcomes = [attempt["outcome"] for attempt in await attempts(server, task_id)]
    assert outcomes == ["errored", "errored", "exhausted"] * 2 + ["errored", "completed"]


async def test_one_that_broke_a_limit(server: Server) -> None:
    """A limit counts for each attempt anew: resumed, a task may run as long as the first time."""
    task_id = await server.launch("greedy")
    first = await server.until_status(task_id, "failed")
    assert (first["reason"], first["errors_left"]) == ("limit_wall", 4)
    assert (await server.verb(task_id, "resume")).status == 202
    task = await server.until(task_id, lambda task: task["attempt"] == 2 and task["status"] == "failed")
    assert task["reason"] == "limit_wall"
    assert (await attempts(server, task_id))[1]["error"]["attempt"] == 2


async def test_one_that_met_a_full_disk(server: Server, tmp_path: Path) -> None:
    """Paused for want of space, it goes on when there is some; that was no error."""
    mark = tmp_path / "space"
    task_id = await server.launch("full", {"mark": str(mark)})
    task = await server.until_status(task_id, "paused")
    assert (task["reason"], task["errors_left"], task["error"]["type"]) == ("no_space", 4, "OSError")
    mark.touch()
    assert (await server.verb(task_id, "resume")).status == 202
    assert (await server.until_status(task_id, "completed"))["result"] == {"n": 2}


async def test_one_whose_clean_failed(server: Server, tmp_path: Path) -> None:
    """A task that is half undone does not go on: 409, and only terminate is possible."""
    path = tmp_path / "effect"
    task_id = await server.launch("effect", {"path": str(path), "clean_errors": 3})
    await server.until(task_id, lambda task: task["checkpoint"])
    await server.verb(task_id, "terminate")
    before = await server.until_status(task_id, "failed")
    assert (before["reason"], before["allowed"]) == ("clean_failed", ["terminate"])
    said = problem(await server.verb(task_id, "resume"), 409, "not-now")
    assert (said["task_status"], said["allowed"]) == ("failed", ["terminate"])
    assert problem(await server.ask("POST", "/effect/resume"), 404, "none-eligible")
    assert await server.task(task_id) == before
    assert (await server.verb(task_id, "terminate")).status == 200
