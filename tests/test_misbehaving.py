"""Handlers that do wrong: each is ended and its error told as it was, and nobody else notices."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio
from harness import Json, Server, squares, until
from verb_tools import attempts, history, log, mistakes, nothing_left, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOREVER = {"steps": 1_000_000}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here: what one of them does to it, the next ones feel."""
    async with playing(tmp_path_factory.mktemp("misbehaving"), INTERMISSION_MAX_RUNNING="24") as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def neighbour(server: Server) -> AsyncIterator[str]:
    """A task that runs beside each test and is served as if nothing were: it goes on, and so do the server's processes.

    A supervisor or fork server that had died, or lost this task's child, would show as another pid or attempt.
    """
    before = (server.pid, server.fork_server.pid)
    task_id = await server.launch("steps", FOREVER)
    await until(lambda: has_written(server, task_id, 1))
    yield task_id
    more = written(server, task_id) + 1
    await until(lambda: has_written(server, task_id, more))
    task = await server.task(task_id)
    assert (task["status"], task["attempt"]) == ("running", 1)
    assert (await server.ask("GET", "/health")).json["status"] == "ok"
    answer = await server.verb(task_id, "pause")
    n = answer.json["checkpoint"]["state"]["n"]
    assert await server.file(task_id, "lines.txt") == squares(n)
    assert (server.pid, server.fork_server.pid) == before
    assert mistakes(server) == []
    await server.verb(task_id, "terminate")
    await nothing_left(server)


def written(server: Server, task_id: str) -> int:
    """Bytes that ``steps`` has written by now, announced or not."""
    path = server.data / "tasks" / task_id / "files" / "lines.txt"
    return path.stat().st_size if path.exists() else 0


async def has_written(server: Server, task_id: str, least: int) -> bool:
    """Whether it has written so many."""
    return written(server, task_id) >= least


# Faults that a retry may mend.


@dataclass(frozen=True)
class Told:
    """What must be told of a fault: in the error, and of the process itself where that is certain."""

    kind: str
    type: str | None
    message: str
    exit_code: int | None = None
    signal: str | None = None
    process: tuple[int | None, str | None] | None = None


BROKEN = "the child broke the protocol of its pipe: "
RAISED = (1, None)
FAULTS = {
    "raise": Told("exception", "ValueError", "this cannot be", process=RAISED),
    "unprintable": Told("exception", "UnprintableError", "<UnprintableError whose text cannot be had>", process=RAISED),
    "unencodable": Told("exception", "FileNotFoundError", r"caf\udce9.csv", process=RAISED),
    "group": Told("exception", "ExceptionGroup", "several (2 sub-exceptions)", process=RAISED),
    "thread": Told("exception", "RuntimeError", "checkpoint() was called off the main thread", process=RAISED),
    "deaf_stderr": Told("exception", "ValueError", "this cannot be", process=RAISED),
    "no_streams": Told("exception", "ValueError", "this cannot be", process=RAISED),
    "exit": Told("exit", "SystemExit", "3", exit_code=3, process=(3, None)),
    "os_exit": Told("exit", None, "its process exited with 0", exit_code=0, process=(0, None)),
    "segv": Told("signal", None, "its process was killed by SIGSEGV", signal="SIGSEGV", process=(None, "SIGSEGV")),
    "abort": Told("signal", None, "its process was killed by SIGABRT", signal="SIGABRT", process=(None, "SIGABRT")),
    "garbage": Told("protocol", None, BROKEN, process=(None, "SIGKILL")),
    "garbage_and_leave": Told("protocol", None, BROKEN),
    "huge": Told("protocol", None, f"{BROKEN}a message of 2147483647 bytes", process=(None, "SIGKILL")),
    "forged": Told("protocol", None, BROKEN, process=(None, "SIGKILL")),
    "flood": Told("protocol", None, f"{BROKEN}more than"),
    "half": Told("exit", None, "its process exited with 0", exit_code=0, process=(0, None)),
}


def check(error: Json, told: Told, attempt: int) -> None:
    """The error is the one that must be told."""
    assert (error["kind"], error["type"]) == (told.kind, told.type)
    assert error["message"].startswith(told.message), error
    assert (error["exit_code"], error["signal"], error["attempt"]) == (told.exit_code, told.signal, attempt)
    if told.type is not None:
        assert told.type in error["traceback"]
    else:
        assert error["traceback"] is None


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_fault_that_passes(server: Server, kind: str) -> None:
    """Each error costs one of the budget and the task is tried again, from its checkpoint, until it succeeds."""
    task_id = await server.launch("faulty", {"kind": kind, "attempts": 2})
    task = await server.until_status(task_id, "completed", "failed")
    assert (task["status"], task["attempt"], task["errors_left"]) == ("completed", 3, 1)
    assert (task["result"], task["error"], task["reason"]) == ({"n": 3}, None, None)
    made = await attempts(server, task_id)
    assert [attempt["outcome"] for attempt in made] == ["errored", "errored", "completed"]
    for number, attempt in enumerate(made[:2], 1):
        check(attempt["error"], FAULTS[kind], number)
        if (process := FAULTS[kind].process) is not None:
            assert (attempt["exit_code"], attempt["signal"]) == process
    steps = [event for event, _ in await history(server, task_id)]
    assert steps == ["created", *["claimed", "errored", "due"] * 2, "claimed", "completed"]


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_fault_that_stays(server: Server, kind: str) -> None:
    """When the budget is used up the task has failed with its last error, resumable from its last checkpoint."""
    task_id = await server.launch("faulty", {"kind": kind})
    task = await server.until_status(task_id, "completed", "failed")
    assert (task["status"], task["reason"], task["attempt"], task["errors_left"]) == ("failed", "exhausted", 3, 0)
    assert (task["due_at"], task["child"], task["allowed"]) == (None, None, ["resume", "terminate"])
    assert task["finished_at"]
    assert task["checkpoint"]["state"] == {"n": 3}
    check(task["error"], FAULTS[kind], 3)
    made = await attempts(server, task_id)
    assert [attempt["outcome"] for attempt in made] == ["errored", "errored", "exhausted"]
    assert made[2]["error"] == task["error"]


async def test_garbage_as_a_last_word(server: Server) -> None:
    """Garbage that is heard after the death of who sent it ends its attempt too; nobody waits for ever."""
    ids = await asyncio.gather(
        *(server.launch("faulty", {"kind": "garbage_and_leave", "attempts": 2}) for _ in range(60))
    )
    for task_id in ids:
        await server.until_status(task_id, "completed")
        errors = [attempt["error"] for attempt in (await attempts(server, task_id))[:2]]
        assert [error["kind"] for error in errors] == ["protocol", "protocol"]


async def test_half_a_message_and_then_silence(server: Server) -> None:
    """A child that stops in the middle of a message holds up nobody; paused it is forced, and resumed it goes on."""
    task_id = await server.launch("faulty", {"kind": "half_and_stay", "attempts": 1})
    await server.until(task_id, lambda task: task["checkpoint"])
    answer = await server.verb(task_id, "pause")
    assert (answer.status, answer.json["status"], answer.json["reason"]) == (200, "paused", "forced")
    assert answer.json["errors_left"] == 3
    assert (await server.verb(task_id, "resume")).status == 202
    assert (await server.until_status(task_id, "completed"))["result"] == {"n": 2}


async def test_waiting_for_a_retry(server: Server) -> None:
    """Between an error and the next attempt the task is retrying: it says why, when it is due, and what is left."""
    task_id = await server.launch("patient")
    task = await server.until_status(task_id, "retrying")
    assert (task["reason"], task["attempt"], task["errors_left"], task["child"]) == (None, 1, 2, None)
    assert datetime.fromisoformat(task["due_at"]) > datetime.fromisoformat(task["started_at"])
    assert task["allowed"] == ["pause", "resume", "terminate"]
    check(task["error"], Told("exception", "ValueError", "not yet"), 1)
    assert task["finished_at"] is None
    (attempt,) = await attempts(server, task_id)
    assert attempt["error"] == task["error"]


async def test_an_attempt_is_not_made_before_it_is_due(server: Server) -> None:
    """Each retry waits for its time, by itself and not because somebody looks."""
    task_id = await server.launch("hasty")
    due = []
    for n in (1, 2):
        task = await server.until(task_id, lambda task, n=n: task["status"] == "retrying" and task["attempt"] == n)
        due.append(datetime.fromisoformat(task["due_at"]))
    task = await server.until_status(task_id, "failed")
    assert (task["reason"], task["attempt"]) == ("exhausted", 3)
    began = [datetime.fromisoformat(attempt["started_at"]) for attempt in await attempts(server, task_id)]
    assert all(start >= at for start, at in zip(began[1:], due, strict=True))


# Faults that no retry can mend.


@pytest.mark.parametrize(
    ("service", "params", "told"),
    [
        ("faulty", {"kind": "fatal"}, Told("exception", "Fatal", "line 7: no such country")),
        ("faulty", {"kind": "state_type"}, Told("exception", "Unencodable", "")),
        ("unwritable", {}, Told("exception", "Unencodable", "")),
        ("liar", {}, Told("exception", "Unencodable", "the handler returned str, which is not the result")),
        ("boaster", {"n": 1 << 20}, Told("exception", "Unencodable", f"the result has {(1 << 20) + 2} bytes")),
    ],
)
async def test_a_fault_for_good(server: Server, service: str, params: Json, told: Told) -> None:
    """It has failed at once, whatever is left of its budget; what it saved before is kept."""
    task_id = await server.launch(service, params)
    task = await server.until_status(task_id, "completed", "failed", "retrying")
    assert (task["status"], task["reason"], task["attempt"], task["result"]) == ("failed", "exhausted", 1, None)
    assert task["checkpoint"]["sequence"] == 1
    assert task["allowed"] == ["resume", "terminate"]
    check(task["error"], told, 1)
    assert task["error"]["message"] in await log(server, task_id)
    assert [attempt["outcome"] for attempt in await attempts(server, task_id)] == ["exhausted"]


async def test_the_largest_result(server: Server) -> None:
    """A result of exactly the limit is kept whole."""
    task_id = await server.launch("boaster", {"n": (1 << 20) - 2})
    assert (await server.until_status(task_id, "completed", "failed"))["result"] == "x" * ((1 << 20) - 2)


async def test_the_largest_state(server: Server) -> None:
    """A state of exactly the limit is saved; with one byte more nothing is, and the error says so."""
    most = (1 << 20) - len('{"text":""}')
    fits = await server.launch("big", {"n": most})
    assert len((await server.until_status(fits, "completed"))["checkpoint"]["state"]["text"]) == most
    task_id = await server.launch("big", {"n": most + 1})
    task = await server.until_status(task_id, "retrying", "completed", "failed")
    assert (task["status"], task["checkpoint"]) == ("retrying", None)
    check(task["error"], Told("exception", "ValueError", f"the state has {(1 << 20) + 1} bytes"), 1)


# What is said of the progress is kept, or refused; it never costs a checkpoint.


@pytest.mark.parametrize(
    ("kind", "progress"),
    [("decimal", (2.5, 5, None)), ("true", (1, 3, "7")), ("huge", (1e30, 1e31, None))],
)
async def test_progress_of_every_kind(server: Server, kind: str, progress: tuple[float, ...]) -> None:
    """Whatever can be read as a number is one, and the checkpoint that it came with is there for the next attempt."""
    task_id = await server.launch("teller", {"kind": kind})
    task = await server.until_status(task_id, "completed", "failed")
    assert (task["result"], task["errors_left"]) == ({"n": 2}, 1)
    assert tuple(task["progress"][name] for name in ("done", "total", "unit")) == progress


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kind": "word"}, "could not convert string to float"),
        ({"kind": "long"}, "the checkpoint has"),
        ({"kind": "true", "outputs": 11_000}, "the checkpoint has"),
    ],
)
async def test_a_checkpoint_that_could_not_be_read_again(server: Server, params: Json, message: str) -> None:
    """It is refused with an error, and the one before it still counts."""
    task_id = await server.launch("teller", params)
    task = await server.until_status(task_id, "completed", "failed", within_s=40)
    assert task["result"] == {"n": 1}
    errors = [attempt["error"] for attempt in await attempts(server, task_id) if attempt["error"]]
    assert [error["message"][: len(message)] for error in errors] == [message]


# Limits.


@pytest.mark.parametrize(
    ("service", "params", "reason", "kind"),
    [
        ("glutton", {"mebibytes": 300, "hold_s": 600.0}, "limit_memory", "limit"),
        ("glutton", {"spin_s": 600.0}, "limit_cpu", "limit"),
        ("greedy", {}, "limit_wall", "limit"),
        ("babbler", {"n": 65}, "limit_log", "limit"),
        ("stuck", {}, "stalled", "stall"),
    ],
)
async def test_a_limit(server: Server, service: str, params: Json, reason: str, kind: str) -> None:
    """Over it the tree is ended and the task has failed, without a retry; it can be resumed."""
    task_id = await server.launch(service, params)
    task = await server.until_status(task_id, "completed", "failed", "retrying")
    assert (task["status"], task["reason"], task["attempt"]) == ("failed", reason, 1)
    assert (task["errors_left"], task["allowed"]) == (4, ["resume", "terminate"])
    assert task["checkpoint"]["sequence"] == 1
    error = task["error"]
    assert (error["kind"], error["type"], error["attempt"], error["traceback"]) == (kind, None, 1, None)
    assert error["message"]
    (attempt,) = await attempts(server, task_id)
    assert (attempt["outcome"], attempt["signal"], attempt["error"]) == ("refused", "SIGKILL", error)
    if reason == "limit_memory":
        assert attempt["peak_memory_bytes"] > 300 << 20
    if reason == "limit_cpu":
        assert attempt["cpu_s"] > 0.5


async def test_below_its_limits(server: Server) -> None:
    """What a task may use it may use."""
    task_id = await server.launch("glutton", {"mebibytes": 100, "spin_s": 0.2, "hold_s": 1.2})
    assert (await server.until_status(task_id, "completed", "failed"))["result"] == {"n": 100 << 20}


async def test_a_log_that_is_full_already(server: Server, tmp_path: Path) -> None:
    """Resumed or cleaned, a task whose log is over the limit may print a little more; it is not ended at once again."""
    path = tmp_path / "notes"
    task_id = await server.launch("chatter", {"path": str(path)})
    task = await server.until_status(task_id, "failed")
    assert task["reason"] == "limit_log"
    size = len((await server.ask("GET", f"/tasks/{task_id}/log")).body)
    assert size > 64 << 20
    path.touch()
    assert (await server.verb(task_id, "resume")).status == 202
    # The clock by which it is looked at ticks each second; this attempt lives for two of them.
    task = await server.until(task_id, lambda task: task["attempt"] == 2 and task["progress"]["done"] == 3)
    assert task["status"] == "running"
    answer = await server.verb(task_id, "terminate", wait_s=20)
    assert (answer.status, answer.json["receipt"]["cleaned"]) == (200, True)
    assert path.read_text() == "cleaned"


async def test_a_full_disk_under_the_log(server: Server) -> None:
    """What cannot be printed for want of space is no fault of the task: it is paused until there is some."""
    task_id = await server.launch("talker")
    task = await server.until_status(task_id, "paused", "retrying", "failed")
    assert (task["status"], task["reason"], task["errors_left"]) == ("paused", "no_space", 4)
    assert (task["error"]["kind"], task["error"]["type"]) == ("exception", "OSError")
    assert (await server.verb(task_id, "resume")).status == 202
    assert (await server.until_status(task_id, "completed", "failed", "retrying"))["result"] == {"n": 2}


# All of it at once.


async def test_all_at_once(server: Server, neighbour: str) -> None:
    """Every fault at the same moment, and floods: starts, status and health are answered all the while."""
    kinds = [*FAULTS, *["flood"] * 3]
    ids = await asyncio.gather(*(server.launch("faulty", {"kind": kind}) for kind in kinds))
    await server.launch("babbler", {"n": 65})
    await server.launch("forest")

    async def over() -> bool:
        async with asyncio.timeout(5):  # for a round of answers, and far above what they take
            probe = await server.launch("counter", {"limit": 3})
            assert (await server.ask("GET", "/health")).json["status"] == "ok"
            assert (await server.task(neighbour))["status"] == "running"
            await server.until_status(probe, "completed")
        return all([(await server.task(task_id))["status"] == "failed" for task_id in ids])

    await until(over, within_s=40)
