"""Pause: at the next checkpoint, with everything up to it and nothing after; in any status, and against any handler."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from harness import Server, problem, seeded, send, squares
from verb_tools import attempts, history, nothing_left, numbers, paused, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOREVER = {"steps": 1_000_000}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with playing(tmp_path_factory.mktemp("pause")) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


def on_disk(server: Server, task_id: str, name: str = "lines.txt") -> bytes:
    """A file as it is, whatever the checkpoint says of it."""
    return (server.data / "tasks" / task_id / "files" / name).read_bytes()


# What a pause is.


async def test_at_the_next_checkpoint(server: Server) -> None:
    """The answer is 200 and says paused; then the process is gone and the file ends exactly at the checkpoint."""
    task_id = await server.launch("steps", FOREVER)
    task = await server.until(task_id, lambda task: task["child"] and task["progress"])
    process = psutil.Process(task["child"]["pid"])
    answer = await server.verb(task_id, "pause")
    assert not process.is_running()
    assert answer.status == 200
    task = answer.json
    assert (task["status"], task["reason"], task["child"]) == ("paused", "requested", None)
    assert task["allowed"] == ["resume", "terminate"]
    n = task["checkpoint"]["state"]["n"]
    assert n == task["progress"]["done"] > 0
    assert await server.file(task_id, "lines.txt") == on_disk(server, task_id) == squares(n)
    (attempt,) = await attempts(server, task_id)
    assert (attempt["outcome"], attempt["exit_code"], attempt["signal"]) == ("stopped", 0, None)
    assert (await history(server, task_id))[-2:] == [("pause", "pausing"), ("stopped", "paused")]


async def test_what_finally_writes_is_not_counted(server: Server, tmp_path: Path) -> None:
    """``finally`` runs; what it writes comes after the checkpoint, is no part of the file and is cut by the resume."""
    mark = tmp_path / "go"
    task_id = await server.launch("gate", {"mark": str(mark), "then": "checkpoint"})
    await server.until_progress(task_id)
    assert (await server.verb(task_id, "pause", wait_s=0)).json["status"] == "pausing"
    mark.touch()
    task = await server.until_status(task_id, "paused")
    assert (task["reason"], task["progress"]["done"]) == ("requested", 2)
    assert on_disk(server, task_id) == b"1\n2\nfrom finally\n"
    assert await server.file(task_id, "lines.txt") == b"1\n2\n"
    await server.verb(task_id, "resume")
    await server.until_status(task_id, "completed")
    assert await server.file(task_id, "lines.txt") == b"1\n2\n3\n4\nfrom finally\n"


async def test_pausing_is_not_paused(server: Server, tmp_path: Path) -> None:
    """Until the checkpoint the status is pausing, with a child, and a second pause waits for the same end."""
    mark = tmp_path / "go"
    task_id = await server.launch("gate", {"mark": str(mark), "then": "checkpoint"})
    await server.until_progress(task_id)
    first = await server.verb(task_id, "pause", wait_s=0)
    assert first.status == 202
    assert (first.json["status"], first.json["reason"]) == ("pausing", "requested")
    assert first.json["child"]
    assert first.json["allowed"] == ["terminate"]
    waiting = [asyncio.create_task(server.verb(task_id, "pause")) for _ in range(3)]
    again = await server.verb(task_id, "pause", wait_s=0)
    assert (again.status, again.json["status"]) == (202, "pausing")
    assert problem(await server.verb(task_id, "resume"), 409, "not-now")["allowed"] == ["terminate"]
    mark.touch()
    for answer in await asyncio.gather(*waiting):
        assert (answer.status, answer.json["status"]) == (200, "paused")
    assert [event for event, _ in await history(server, task_id)].count("pause") == 1


async def test_a_sleeping_task_wakes(server: Server) -> None:
    """``task.sleep`` ends at once: nobody waits for the ten minutes that it was to take."""
    task_id = await paused(server, "steps", {"steps": 2, "delay_s": 600})
    assert (await server.task(task_id))["reason"] == "requested"
    assert await server.file(task_id, "lines.txt") == squares(1)


async def test_at_a_commit(server: Server) -> None:
    """A handler that only ever commits is paused at one of its commits."""
    task_id = await paused(server, "committer", FOREVER)
    task = await server.task(task_id)
    assert task["reason"] == "requested"
    assert await server.file(task_id, "lines.txt") == on_disk(server, task_id) == numbers(task["progress"]["done"])


async def test_ten_at_once(server: Server) -> None:
    """Ten tasks are paused at the same moment, each at its own checkpoint."""
    ids = [await server.launch("steps", {**FOREVER, "delay_s": 0.001}) for _ in range(10)]
    for task_id in ids:
        await server.until_progress(task_id)
    answers = await asyncio.gather(*(server.verb(task_id, "pause") for task_id in ids))
    assert [answer.status for answer in answers] == [200] * 10
    assert server.descendants() == []
    for answer in answers:
        assert await server.file(answer.json["id"], "lines.txt") == squares(answer.json["checkpoint"]["state"]["n"])


# In every status.


async def test_while_it_waits_for_its_turn(server: Server) -> None:
    """A pending task is paused at once and makes no attempt; resumed, it runs as if nothing had been."""
    ahead = await server.launch("single", {"delay_s": 600})
    task_id = await server.launch("single", {"delay_s": 0})
    await server.until_status(ahead, "running")
    answer = await server.verb(task_id, "pause", wait_s=0)
    assert (answer.status, answer.json["status"], answer.json["attempt"]) == (200, "paused", 0)
    assert (await server.verb(ahead, "pause")).status == 200
    assert (await server.verb(task_id, "resume")).status == 202
    assert (await server.until_status(task_id, "completed"))["result"] == {"n": 1}


async def test_at_every_moment_of_its_beginning(server: Server) -> None:
    """Paused right after its start, a task is paused, wherever it was: pending, claimed, forked or running."""
    chance = seeded()
    ids = []
    for _ in range(40):
        task_id = await server.launch("steps", {**FOREVER, "delay_s": 0.001})
        if chance.random() < 0.7:
            await asyncio.sleep(chance.uniform(0, 0.02))  # to hit another moment, not to wait for anything
        answer = await server.verb(task_id, "pause")
        assert (answer.status, answer.json["status"]) == (200, "paused")
        assert answer.json["reason"] == "requested"
        ids.append(task_id)
    assert server.descendants() == []
    for task_id in ids:
        task = await server.task(task_id)
        assert len(await attempts(server, task_id)) == task["attempt"] <= 1
        if task["files"]:
            assert await server.file(task_id, "lines.txt") == squares(task["checkpoint"]["state"]["n"])


async def test_while_it_waits_for_a_retry(server: Server) -> None:
    """A retrying task is paused at once: it is not due any more, and keeps its error and what is left of its budget."""
    task_id = await server.launch("patient")
    await server.until_status(task_id, "retrying")
    answer = await server.verb(task_id, "pause", wait_s=0)
    assert answer.status == 200
    task = answer.json
    assert (task["status"], task["reason"], task["due_at"]) == ("paused", "requested", None)
    assert (task["error"]["message"], task["errors_left"]) == ("not yet", 2)


async def test_when_there_is_nothing_to_pause(server: Server) -> None:
    """A paused task is paused: 200. One that completed or failed cannot be: 409 with what is possible."""
    before = await server.task(await paused(server, "steps", FOREVER))
    answer = await server.verb(before["id"], "pause")
    assert (answer.status, answer.json) == (200, before)

    completed = await server.launch("steps", {"steps": 1})
    failed = await server.launch("faulty", {"kind": "fatal"})
    for task_id, status, allowed in (
        (completed, "completed", ["delete"]),
        (failed, "failed", ["resume", "terminate"]),
    ):
        before = await server.until_status(task_id, status)
        said = problem(await server.verb(task_id, "pause"), 409, "not-now")
        assert (said["task_status"], said["allowed"]) == (status, allowed)
        assert await server.task(task_id) == before


async def test_the_work_may_be_done_first(server: Server, tmp_path: Path) -> None:
    """A task that returns before it sees the request is completed; the pause is answered with 202 and that."""
    mark = tmp_path / "go"
    task_id = await server.launch("gate", {"mark": str(mark)})
    await server.until_progress(task_id)
    assert (await server.verb(task_id, "pause", wait_s=0)).json["status"] == "pausing"
    waiting = asyncio.create_task(server.verb(task_id, "pause"))
    mark.touch()
    answer = await waiting
    assert (answer.status, answer.json["status"], answer.json["result"]) == (202, "completed", {"n": 1})
    assert (answer.json["reason"], answer.json["child"]) == (None, None)


async def test_race_with_the_end(server: Server) -> None:
    """Paused around the moment of its completion a task is the one or the other, and its file is whole."""
    chance = seeded()
    ends = {"completed": 0, "paused": 0}
    for _ in range(30):
        steps = 15
        task_id = await server.launch("steps", {"steps": steps, "delay_s": 0.001})
        await server.until_progress(task_id, chance.randint(1, 12))  # before the first there is no file yet
        answer = await server.verb(task_id, "pause")
        assert answer.status in {200, 202, 409}
        task = await server.task(task_id)
        ends[task["status"]] += 1
        n = steps if task["status"] == "completed" else task["checkpoint"]["state"]["n"]
        assert await server.file(task_id, "lines.txt") == squares(n)
        if task["status"] == "paused":
            assert (await server.verb(task_id, "resume")).status == 202
            await server.until_status(task_id, "completed")
            assert await server.file(task_id, "lines.txt") == squares(steps)


# Against handlers that do not play along.


async def test_one_that_does_not_listen(server: Server) -> None:
    """No checkpoint within the grace: its tree is ended, and it is paused at its last checkpoint, for ``forced``."""
    task_id = await paused(server, "deaf")
    task = await server.task(task_id)
    assert (task["reason"], task["checkpoint"]["state"]) == ("forced", {"n": 1})
    assert await server.file(task_id, "lines.txt") == b"saved\n"
    (attempt,) = await attempts(server, task_id)
    assert (attempt["outcome"], attempt["signal"]) == ("stopped", "SIGKILL")


async def test_one_that_holds_the_interpreter(server: Server) -> None:
    """Within C code that holds the GIL nothing can be told; its grace counts all the same."""
    task_id = await server.launch("gil")
    await server.until(task_id, lambda task: task["checkpoint"])
    answer = await server.verb(task_id, "pause")
    assert (answer.status, answer.json["reason"]) == (200, "forced")


async def test_one_that_is_stopped_by_a_signal(server: Server) -> None:
    """A process that somebody has stopped cannot save its place; it is ended when its grace is over."""
    task_id = await server.launch("deaf")
    task = await server.until(task_id, lambda task: task["child"] and task["checkpoint"])
    send(task["child"]["pid"], signal.SIGSTOP)
    answer = await server.verb(task_id, "pause")
    assert (answer.status, answer.json["reason"]) == (200, "forced")


async def test_one_that_swallows_the_pause(server: Server) -> None:
    """A bare ``except`` around a checkpoint changes nothing: it has saved its place, and is ended when it stays."""
    task_id = await paused(server, "swallower")
    task = await server.task(task_id)
    assert (task["reason"], task["error"]) == ("requested", None)
    assert task["checkpoint"]["state"]["n"] == task["progress"]["done"] > 0


@pytest.mark.parametrize("kind", ["group", "error", "exit", "return", "os_exit"])
async def test_one_that_leaves_in_another_way(server: Server, kind: str) -> None:
    """Once it has said that it stops it has paused, whatever it raises or returns on its way out."""
    task_id = await paused(server, "wrapper", {"kind": kind})
    task = await server.task(task_id)
    assert (task["status"], task["reason"], task["error"], task["result"]) == ("paused", "requested", None, None)
    assert task["errors_left"] == 4


async def test_one_that_dies_after_its_last_word(server: Server, tmp_path: Path) -> None:
    """Killed between its checkpoint and its exit it has paused, at that checkpoint, and is no error."""
    mark = tmp_path / "mark"
    task_id = await paused(server, "last_words", {"mark": str(mark)})
    task = await server.task(task_id)
    assert (task["status"], task["reason"], task["error"]) == ("paused", "requested", None)
    assert task["checkpoint"]["state"]["n"] == int(mark.read_text())
    assert await server.file(task_id, "lines.txt") == numbers(int(mark.read_text()))
    (attempt,) = await attempts(server, task_id)
    assert (attempt["outcome"], attempt["signal"]) == ("stopped", "SIGKILL")


async def test_one_that_breaks_a_limit_on_its_way_out(server: Server) -> None:
    """Once it has said that it stops it has paused, though it leaves later than it might have run."""
    task_id = await server.launch("lingerer")
    await server.until_progress(task_id)
    answer = await server.verb(task_id, "pause")
    assert (answer.status, answer.json["status"], answer.json["reason"]) == (200, "paused", "requested")


async def test_one_that_is_killed_before_it_has_heard(server: Server) -> None:
    """Killed from outside while it is pausing a task is paused: stopped is what was asked for, and no error."""
    task_id = await server.launch("gate", {"mark": "/nonexistent"})
    task = await server.until(task_id, lambda task: task["child"] and task["progress"])
    assert (await server.verb(task_id, "pause", wait_s=0)).json["status"] == "pausing"
    os.kill(task["child"]["pid"], signal.SIGKILL)
    task = await server.until_status(task_id, "paused")
    assert (task["reason"], task["error"], task["errors_left"]) == ("requested", None, 3)
    assert await server.file(task_id, "lines.txt") == b"1\n"


async def test_one_that_errs_first(server: Server, tmp_path: Path) -> None:
    """An error while it is pausing is kept and counted, but not retried: paused is what was asked for."""
    mark = tmp_path / "go"
    task_id = await server.launch("gate", {"mark": str(mark), "then": "raise"})
    await server.until_progress(task_id)
    await server.verb(task_id, "pause", wait_s=0)
    mark.touch()
    task = await server.until_status(task_id, "paused", "retrying", "failed")
    assert (task["status"], task["reason"], task["errors_left"]) == ("paused", "errored", 2)
    assert (task["error"]["type"], task["error"]["message"]) == ("ValueError", "while it was to pause")
    assert task["checkpoint"]["state"] == {"n": 1}


async def test_one_whose_last_error_it_is(server: Server, tmp_path: Path) -> None:
    """The error that uses up the budget fails it, pausing or not."""
    mark = tmp_path / "go"
    task_id = await server.launch("gate", {"mark": str(mark), "then": "raise"})
    for left in (2, 1, 0):
        await server.until_progress(task_id, 3 - left)
        await server.verb(task_id, "pause", wait_s=0)
        mark.touch()
        task = await server.until_status(task_id, "paused", "failed")
        assert task["errors_left"] == left
        mark.unlink()
        if left:
            assert (await server.verb(task_id, "resume")).status == 202
    assert (task["status"], task["reason"]) == ("failed", "exhausted")
    assert [attempt["outcome"] for attempt in await attempts(server, task_id)] == ["errored", "errored", "exhausted"]
