"""SIGKILL of a child at named places: it is free, the next attempt goes on from the checkpoint, nothing is doubled."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from fault_tools import TOYS, child, outcomes, place, until_lines, until_place
from harness import Server, problem, seeded, send, squares
from verb_tools import attempts, events, nothing_left, numbers, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOREVER = {"steps": 1_000_000}
THREE = b"0\n1\n2\n"


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that kills the next child before it has said a word."""
    return tmp_path_factory.mktemp("marks") / "die"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, mark: Path) -> AsyncIterator[Server]:
    """One server for every test here."""
    settings = {"INTERMISSION_HANDLERS": TOYS, "TOYS_DIE_BEFORE_READY": str(mark)}
    async with playing(tmp_path_factory.mktemp("killed"), **settings) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


# Before, between and after the checkpoints.


async def test_before_it_is_ready(server: Server, mark: Path) -> None:
    """A child that dies before its first word is a loss like any other; the second one does the work."""
    mark.touch()
    task_id = await server.launch("steps", {"steps": 5, "delay_s": 0})
    task = await server.until_status(task_id, "completed", "failed")
    assert (task["status"], task["attempt"], task["errors_left"], task["error"]) == ("completed", 2, 4, None)
    first, _ = await attempts(server, task_id)
    assert (first["outcome"], first["signal"]) == ("lost", "SIGKILL")
    assert await server.file(task_id, "lines.txt") == squares(5)


@pytest.mark.parametrize("at", ["first", "last"])
async def test_before_the_first_checkpoint_and_after_the_last(server: Server, at: str) -> None:
    """What was saved is not done again, what was not saved is, and neither costs a retry."""
    task_id = await server.launch("doomed", {"at": at, "attempts": 2})
    task = await server.until_status(task_id, "completed", "failed")
    assert (task["status"], task["result"], task["attempt"], task["errors_left"]) == ("completed", {"n": 3}, 3, 4)
    assert await outcomes(server, task_id) == ["lost", "lost", "completed"]
    assert await server.file(task_id, "lines.txt") == THREE


async def test_after_it_has_reported_that_it_is_done(server: Server) -> None:
    """Its last word counts, however it died after that: completed, in one attempt."""
    task_id = await server.launch("doomed", {"at": "reported"})
    task = await server.until_status(task_id, "completed", "failed", "pending", "retrying")
    assert (task["status"], task["result"], task["attempt"]) == ("completed", {"n": 3}, 1)
    (attempt,) = await attempts(server, task_id)
    assert (attempt["outcome"], attempt["signal"]) == ("completed", "SIGKILL")
    assert await server.file(task_id, "lines.txt") == THREE


async def test_at_any_instant_of_a_run(server: Server) -> None:
    """Killed again and again wherever it happens to be, it ends with exactly the file of an undisturbed run."""
    chance = seeded()
    task_id = await server.launch("steps", {"steps": 600, "delay_s": 0.002})
    pid = None
    for _ in range(25):
        await until_place(server, task_id, place(server, task_id) + chance.randint(1, 10))
        pid = await child(server, task_id, other_than=pid)
        send(pid)
    task = await server.until_status(task_id, "completed")
    assert (task["attempt"], task["errors_left"]) == (26, 4)
    assert await outcomes(server, task_id) == ["lost"] * 25 + ["completed"]
    assert await server.file(task_id, "lines.txt") == squares(600)


# On the way into a pause.


async def test_between_the_checkpoint_and_the_exit_of_a_pause(server: Server, tmp_path: Path) -> None:
    """It has said that it stops, so it is paused, at that checkpoint; and it goes on from there, and again."""
    mark = tmp_path / "mark"
    task_id = await server.launch("last_words", {"mark": str(mark)})
    reached = 0
    for attempt in (1, 2, 3):
        await server.until_progress(task_id, reached + 3)
        answer = await server.verb(task_id, "pause")
        assert (answer.status, answer.json["status"], answer.json["reason"]) == (200, "paused", "requested")
        reached = int(mark.read_text())
        assert (answer.json["attempt"], answer.json["checkpoint"]["state"]) == (attempt, {"n": reached})
        assert await server.file(task_id, "lines.txt") == numbers(reached)
        assert (await server.verb(task_id, "resume")).status == 202


async def test_at_any_instant_of_a_pause(server: Server) -> None:
    """However close the two come, the task is paused, with a file that ends at its checkpoint, and can go on."""
    chance = seeded()
    task_id = await server.launch("steps", {"steps": 400, "delay_s": 0.001})
    pid = None
    for _ in range(20):
        await until_place(server, task_id, place(server, task_id) + 1)
        pid = await child(server, task_id, other_than=pid)
        pausing = asyncio.create_task(server.verb(task_id, "pause"))
        if chance.random() < 0.8:
            await asyncio.sleep(chance.uniform(0, 0.01))  # to hit another moment, not to wait for anything
        send(pid)
        answer = await pausing
        task = answer.json
        assert (answer.status, task["status"], task["reason"]) == (200, "paused", "requested")
        assert (task["errors_left"], task["error"]) == (4, None)
        assert await server.file(task_id, "lines.txt") == squares(task["checkpoint"]["state"]["n"])
        assert (await server.verb(task_id, "resume")).status == 202
    await server.until_status(task_id, "completed")
    assert await server.file(task_id, "lines.txt") == squares(400)


# In the middle of a message.


async def test_stopped_in_the_middle_of_a_message(server: Server, tmp_path: Path) -> None:
    """Half a message holds up nobody: others run, start and pause meanwhile; killed, it is lost and carried on."""
    mark = tmp_path / "half"
    task_id = await server.launch("torn", {"path": str(mark)})
    await until_lines(mark)
    pid = await child(server, task_id)
    send(pid, signal.SIGSTOP)
    other = await server.launch("steps", FOREVER)
    await server.until_progress(other, 3)
    assert (await server.verb(other, "pause")).status == 200
    assert (await server.task(task_id))["status"] == "running"
    send(pid)
    task = await server.until_status(task_id, "completed", "failed", "retrying")
    assert (task["status"], task["result"], task["errors_left"]) == ("completed", {"n": 2}, 4)
    assert await outcomes(server, task_id) == ["lost", "completed"]


async def test_a_pause_of_one_that_is_stopped_in_the_middle_of_a_message(server: Server, tmp_path: Path) -> None:
    """It cannot answer, so it is ended when its grace is over, and paused at its checkpoint; half a word is none."""
    mark = tmp_path / "half"
    task_id = await server.launch("torn", {"path": str(mark)})
    await until_lines(mark)
    send(await child(server, task_id), signal.SIGSTOP)
    task = (await server.verb(task_id, "pause")).json
    assert (task["status"], task["reason"], task["checkpoint"]["state"]) == ("paused", "forced", {"n": 1})
    assert task["error"] is None
    assert (await server.verb(task_id, "resume")).status == 202
    assert (await server.until_status(task_id, "completed"))["result"] == {"n": 2}


# Again and again at one place.


async def test_five_losses_at_one_checkpoint_fail_it_and_a_resume_begins_anew(server: Server) -> None:
    """Two are free, the third and the fourth wait, the fifth is the end: failed, ``lost``, and resumable."""
    task_id = await server.launch("doomed", {"at": "first", "attempts": 6})
    for losses, wait_s in ((3, 1), (4, 2)):
        task = await server.until(task_id, lambda task, n=losses: task["attempt"] == n and task["status"] == "pending")
        *_, last = await attempts(server, task_id)
        waits = datetime.fromisoformat(task["due_at"]) - datetime.fromisoformat(last["ended_at"])
        assert (waits.total_seconds(), task["errors_left"]) == (pytest.approx(wait_s, abs=0.002), 4)
    task = await server.until_status(task_id, "failed")
    assert (task["reason"], task["attempt"], task["errors_left"]) == ("lost", 5, 4)
    assert "lost 5 times at the same checkpoint" in task["error"]["message"]
    assert task["allowed"] == ["resume", "terminate"]
    assert await outcomes(server, task_id) == ["lost"] * 4 + ["refused"]
    assert (await server.verb(task_id, "resume")).status == 202
    task = await server.until_status(task_id, "completed", "failed")
    assert (task["status"], task["attempt"]) == ("completed", 7), "the sixth loss was the first of a new count"
    assert await server.file(task_id, "lines.txt") == THREE


async def test_the_third_loss_has_it_launched_alone(server: Server, tmp_path: Path) -> None:
    """It may be what kills the others: it waits until nothing runs, and nothing is launched beside it."""
    hold = tmp_path / "hold"
    hold.touch()
    beside = await server.launch("steps", FOREVER)
    await server.until_progress(beside)
    task_id = await server.launch("doomed", {"at": "first", "attempts": 3, "hold": str(hold)})
    due = await server.until(task_id, lambda task: task["attempt"] == 3 and task["status"] == "pending")
    assert due["due_at"] is not None
    task = await server.until(task_id, lambda task: task["due_at"] is None)
    assert task["status"] == "pending", "its time had come, and another was running"
    assert (await server.verb(beside, "pause")).status == 200
    await server.until_status(task_id, "running")
    behind = await server.launch("steps", {"steps": 1, "delay_s": 0})
    assert (await server.verb(beside, "resume")).status == 202
    await child(server, task_id)
    assert (await server.task(behind))["status"] == "pending"
    assert (await server.verb(task_id, "pause")).status == 200  # beyond the place at which it was lost
    asked = (await events(server, task_id))["pause"]
    await server.until_status(behind, "completed")
    await server.until_status(beside, "running")
    for one in (behind, beside):
        assert (await events(server, one))["claimed"] > asked
    hold.unlink()
    assert (await server.verb(task_id, "resume")).status == 202
    await server.until_status(task_id, "completed")
    assert await outcomes(server, task_id) == ["lost"] * 3 + ["stopped", "completed"]
    assert (await server.task(beside))["status"] == "running", "it has got over it, and needs not be alone any more"


async def test_it_is_alone_only_until_it_has_got_over_the_place(server: Server, tmp_path: Path) -> None:
    """With a checkpoint beyond it the others go on at once, though it is not nearly done."""
    hold = tmp_path / "hold"
    task_id = await server.launch("doomed", {"at": "first", "attempts": 3, "hold": str(hold), "then": 600})
    hold.touch()
    await server.until(task_id, lambda task: task["attempt"] == 4 and task["child"])
    behind = [await server.launch("steps", {"steps": 1, "delay_s": 0}) for _ in range(3)]
    assert {(await server.task(one))["status"] for one in behind} == {"pending"}
    hold.unlink()
    for one in behind:
        await server.until_status(one, "completed")
    task = await server.task(task_id)
    assert (task["status"], task["attempt"], task["checkpoint"]["sequence"]) == ("running", 4, 3)


async def test_losses_at_different_checkpoints_are_not_counted_together(server: Server) -> None:
    """A pattern is several losses at one place; a task that gets on is launched again at once, however often."""
    task_id = await server.launch("steps", {"steps": 30, "delay_s": 0.005})
    pid = None
    for _ in range(6):
        await until_place(server, task_id, place(server, task_id) + 1)
        pid = await child(server, task_id, other_than=pid)
        send(pid)
    task = await server.until_status(task_id, "completed", "failed")
    assert (task["status"], task["attempt"]) == ("completed", 7)


# While it cleans up.


async def test_a_clean_that_is_killed_runs_again(server: Server, tmp_path: Path) -> None:
    """Killed in the middle, twice, it is run a third time: the effect is undone and the answer is a receipt."""
    effect = tmp_path / "effect"
    cleans, hold = Path(f"{effect}.cleans"), Path(f"{effect}.hold")
    hold.touch()
    task_id = await server.launch("held", {"path": str(effect)})
    await server.until_progress(task_id, 3)
    waiting = asyncio.create_task(server.verb(task_id, "terminate"))
    for run in (1, 2):
        await until_lines(cleans, run)
        (cleaning,) = (process for process in server.descendants() if process.name() == "held")
        if run == 1:
            cleaning.suspend()  # a stopped one can be killed as well
        cleaning.kill()
    await until_lines(cleans, 3)
    assert (await server.task(task_id))["status"] == "terminating"
    hold.unlink()
    answer = await waiting
    assert (answer.status, answer.json["receipt"]["survivors"]) == (200, 0)
    assert not effect.exists()
    assert len(set(cleans.read_text().split())) == 1, "each was given the last state"
    problem(await server.ask("GET", f"/tasks/{task_id}"), 410, "gone")
    assert not (server.data / "tasks" / task_id).exists()


async def test_a_clean_that_is_always_killed_fails_for_good_with_everything_kept(
    server: Server, tmp_path: Path
) -> None:
    """Five times, the last ones with a wait before: it is parked for a person to look at; terminate may try again."""
    effect = tmp_path / "effect"
    die, cleans = Path(f"{effect}.die"), Path(f"{effect}.cleans")
    die.touch()
    task_id = await server.launch("held", {"path": str(effect)})
    await server.until_progress(task_id, 3)
    asked = time.monotonic()
    answer = await server.verb(task_id, "terminate")
    assert (answer.status, answer.json["status"], answer.json["reason"]) == (202, "failed", "clean_failed")
    assert time.monotonic() - asked >= 3
    assert answer.json["allowed"] == ["terminate"]
    assert cleans.read_text().count("\n") == 5
    assert effect.exists()
    assert (server.data / "tasks" / task_id / "slot.0").exists()
    die.unlink()
    assert (await server.verb(task_id, "terminate")).status == 200
    assert not effect.exists()


async def test_a_clean_does_not_need_the_outputs(server: Server, tmp_path: Path) -> None:
    """A server that was killed in the middle of deleting them goes on: `clean` gets the last state all the same."""
    effect = tmp_path / "effect"
    cleans = Path(f"{effect}.cleans")
    task_id = await server.launch("held", {"path": str(effect)})
    await server.until_progress(task_id, 3)
    assert (await server.verb(task_id, "pause")).status == 200
    n = (await server.task(task_id))["checkpoint"]["state"]["n"]
    folder = server.data / "tasks" / task_id
    for left in ("files/lines.txt", "slot.0", "slot.1"):
        (folder / left).unlink()
    assert (await server.verb(task_id, "resume")).status == 202
    assert (await server.until_status(task_id, "failed"))["reason"] == "state_unreadable"
    answer = await server.verb(task_id, "terminate")
    assert (answer.status, answer.json.get("reason")) == (200, None)
    assert cleans.read_text() == f"{n}\n"
    assert not effect.exists()
    assert not folder.exists()


async def test_its_descendants_go_with_it(server: Server) -> None:
    """What a killed child had started (sessions, daemons, deaf ones) is dead before the next attempt begins."""
    task_id = await server.launch("forest")
    await server.until_progress(task_id, 4)
    pid = await child(server, task_id)
    below = psutil.Process(pid).children(recursive=True)
    assert len(below) >= 4
    send(pid)
    await server.until(task_id, lambda task: task["attempt"] == 2)
    assert [process for process in below if process.is_running()] == []


# What it leaves.


@pytest.mark.parametrize("dies", [True, False])
async def test_temporary_files_end_with_their_attempt(server: Server, *, dies: bool) -> None:
    """The next one begins without those of one that was killed, and a completed task keeps none."""
    task_id = await server.launch("messy", {"dies": dies})
    task = await server.until_status(task_id, "completed")
    assert (task["attempt"], task["result"]) == (1 + dies, {"names": []})
    assert not (server.data / "tasks" / task_id / "tmp").exists()


async def test_temporary_files_that_cannot_be_removed(server: Server) -> None:
    """Folders nested too deeply for that fail no task."""
    task_id = await server.launch("messy", {"folders": 1100, "dies": False})
    task = await server.until_status(task_id, "completed", "failed")
    assert (task["status"], task["attempt"]) == ("completed", 1)
    remover = await asyncio.create_subprocess_exec("rm", "-rf", server.data / "tasks" / task_id / "tmp")
    assert await remover.wait() == 0  # pytest could not either
