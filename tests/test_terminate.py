"""Terminate: the whole tree is dead, the effects are undone, nothing is left but a tombstone; in any status."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import jwt
import psutil
import pytest
import pytest_asyncio
from harness import Answer, Json, Server, problem, seeded, send, serving, until
from verb_tools import TOYS, attempts, nothing_left, paused, playing, strays, tasks

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOREVER = {"steps": 1_000_000}
SECRET = "a secret that only the server and its operator know"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for the tests here that need no settings of their own."""
    handlers = f"{TOYS},fault_toys"
    async with playing(tmp_path_factory.mktemp("terminate"), INTERMISSION_HANDLERS=handlers) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


def rows(server: Server, task_id: str) -> dict[str, int]:
    """How many rows of each table name a task in any column, in the database file itself."""
    found = {}
    with closing(sqlite3.connect(f"file:{server.data}/intermission.db?mode=ro", uri=True)) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")]
            where = " OR ".join(f"instr({column}, ?)" for column in columns)
            (count,) = db.execute(f"SELECT count(*) FROM {table} WHERE {where}", [task_id] * len(columns)).fetchone()
            if count:
                found[table] = count
    return found


def pids(receipt: Json) -> list[int]:
    """Of the processes that a receipt names."""
    return sorted(process["pid"] for process in receipt["processes"])


async def gone(server: Server, answer: Answer) -> Json:
    """The receipt of a task that has just been terminated, once it is seen that nothing else of it is left."""
    assert answer.status == 200, answer.body
    task_id, receipt = answer.json["id"], answer.json["receipt"]
    assert answer.json["status"] == "terminated"
    assert (receipt["survivors"], receipt["cleaned"]) == (0, True)
    assert [pid for pid in pids(receipt) if psutil.pid_exists(pid)] == []
    assert list(server.data.rglob(f"*{task_id}*")) == []
    assert rows(server, task_id) == {"tombstones": 1}
    assert task_id not in [task["id"] for task in await tasks(server)]
    assert problem(await server.ask("GET", f"/tasks/{task_id}"), 410, "gone")["receipt"] == receipt
    return receipt if isinstance(receipt, dict) else {}


def notes(path: Path) -> list[Json]:
    """What ``noted``'s clean has written down."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lines(path: Path) -> list[str]:
    """The lines of a file; none if there is none."""
    return path.read_text().splitlines() if path.exists() else []


# In every status.


async def test_while_it_waits_for_its_turn(server: Server, tmp_path: Path) -> None:
    """A task that never ran is gone at once: no process, no file, and no `clean`, for there is nothing to undo."""
    for _ in range(16):
        await server.until_status(await server.launch("steps", FOREVER), "running")
    task_id = await server.launch("noted", {"path": str(tmp_path / "notes")})
    assert rows(server, task_id)["tasks"] == 1
    receipt = await gone(server, await server.verb(task_id, "terminate"))
    assert (receipt["processes"], receipt["files_deleted"]) == ([], 0)
    assert list(tmp_path.iterdir()) == []


async def test_while_it_runs(server: Server, tmp_path: Path) -> None:
    """Its process is killed where it is, and named in the receipt; `clean` runs in another one with the last state."""
    path = tmp_path / "notes"
    task_id = await server.launch("noted", {"path": str(path)})
    task = await server.until_progress(task_id)
    assert rows(server, task_id)["checkpoints"] == 1
    receipt = await gone(server, await server.verb(task_id, "terminate"))
    assert pids(receipt) == [task["child"]["pid"]]
    assert receipt["processes"][0]["name"] == "noted"
    assert receipt["files_deleted"] >= 3  # the log and two slots
    (note,) = notes(path)
    assert (note["attempt"], note["resumed"]) == (2, True)
    assert note["n"] >= task["progress"]["done"]
    assert note["pid"] != task["child"]["pid"]
    assert len(lines(path.with_suffix(".pids"))) == 1


async def test_while_it_pauses(server: Server) -> None:
    """A person's last word counts: the grace of a pause is not waited for."""
    task_id = await server.launch("gate", {"mark": "/nonexistent"})
    task = await server.until(task_id, lambda task: task["child"] and task["progress"])
    assert (await server.verb(task_id, "pause", wait_s=0)).json["status"] == "pausing"
    waiting = asyncio.create_task(server.verb(task_id, "pause"))
    receipt = await gone(server, await server.verb(task_id, "terminate"))
    assert pids(receipt) == [task["child"]["pid"]]
    answer = await waiting
    assert (answer.status, answer.json["status"]) in {(202, "terminating"), (410, 410)}


async def test_while_it_is_paused(server: Server, tmp_path: Path) -> None:
    """There is no process to kill; `clean` gets exactly the state that the task paused with."""
    task_id = await paused(server, "noted", {"path": str(tmp_path / "notes")})
    state = (await server.task(task_id))["checkpoint"]["state"]
    receipt = await gone(server, await server.verb(task_id, "terminate"))
    assert receipt["processes"] == []
    assert [note["n"] for note in notes(tmp_path / "notes")] == [state["n"]]


async def test_while_it_waits_for_a_retry(server: Server, tmp_path: Path) -> None:
    """It is not tried again."""
    task_id = await server.launch("noted", {"path": str(tmp_path / "notes"), "trouble": "raise"})
    await server.until_status(task_id, "retrying")
    assert (await gone(server, await server.verb(task_id, "terminate")))["processes"] == []
    assert [(note["n"], note["attempt"]) for note in notes(tmp_path / "notes")] == [(1, 2)]


async def test_when_it_has_failed(server: Server) -> None:
    """A failed task is terminated like any other."""
    task_id = await server.launch("faulty", {"kind": "fatal"})
    await server.until_status(task_id, "failed")
    assert (await gone(server, await server.verb(task_id, "terminate")))["processes"] == []


async def test_when_it_has_completed(server: Server) -> None:
    """A completed task is not terminated but deleted: 409, and it stays."""
    task_id = await server.launch("steps", {"steps": 1})
    before = await server.until_status(task_id, "completed")
    said = problem(await server.verb(task_id, "terminate"), 409, "not-now")
    assert (said["task_status"], said["allowed"]) == ("completed", ["delete"])
    assert await server.task(task_id) == before


async def test_at_every_moment_of_its_beginning(server: Server) -> None:
    """Right after its start, wherever it is: pending, claimed, forked or running."""
    chance = seeded()
    for _ in range(40):
        task_id = await server.launch("steps", {**FOREVER, "delay_s": 0.001})
        if chance.random() < 0.7:
            await asyncio.sleep(chance.uniform(0, 0.02))  # to hit another moment, not to wait for anything
        receipt = await gone(server, await server.verb(task_id, "terminate"))
        assert len(receipt["processes"]) <= 1
        assert server.descendants() == []


async def test_by_many_at_once(server: Server, tmp_path: Path) -> None:
    """Everybody gets the same receipt, and `clean` runs once."""
    path = tmp_path / "effect"
    hold = Path(f"{path}.hold")
    hold.touch()
    task_id = await server.launch("held", {"path": str(path)})
    await server.until_progress(task_id)
    assert (await server.verb(task_id, "terminate", wait_s=0)).status == 202
    task = await server.task(task_id)
    assert (task["status"], task["reason"], task["allowed"]) == ("terminating", None, [])
    for verb in ("pause", "resume"):
        assert problem(await server.verb(task_id, verb), 409, "not-now")["allowed"] == []
    waiting = [asyncio.create_task(server.verb(task_id, "terminate")) for _ in range(5)]
    again = await server.verb(task_id, "terminate", wait_s=0)
    assert (again.status, again.json["status"]) == (202, "terminating")
    hold.unlink()
    receipt = await gone(server, await waiting[0])
    assert [(answer.status, answer.json["receipt"]) for answer in await asyncio.gather(*waiting)] == [
        (200, receipt)
    ] * 5
    assert len(lines(Path(f"{path}.cleans"))) == 1
    assert problem(await server.verb(task_id, "terminate"), 410, "gone")["receipt"] == receipt


async def test_a_client_that_does_not_wait_for_the_answer(server: Server) -> None:
    """Once it is asked for it happens, whoever has gone meanwhile."""
    task_id = await server.launch("forest")
    await server.until_progress(task_id, 4)
    asking = asyncio.create_task(server.verb(task_id, "terminate"))
    await server.until(task_id, lambda task: task["status"] in {"terminating", 410})
    asking.cancel()
    await server.until(task_id, lambda task: task["status"] == 410)
    assert strays(server) == []


async def test_it_wins_over_work_that_is_done_later(server: Server, tmp_path: Path) -> None:
    """The first commit counts: a task that completes after terminate was accepted is cleaned and deleted all the same.

    The fork server is stopped meanwhile, so that the task can reach its end.
    """
    mark = tmp_path / "go"
    task_id = await server.launch("gate", {"mark": str(mark)})
    task = await server.until(task_id, lambda task: task["child"] and task["progress"])
    fork_server = server.fork_server
    fork_server.suspend()
    try:
        assert (await server.verb(task_id, "terminate", wait_s=0)).status == 202
        mark.touch()

        async def done() -> bool:
            return psutil.Process(task["child"]["pid"]).status() == psutil.STATUS_ZOMBIE

        await until(done)
    finally:
        fork_server.resume()
    await server.until(task_id, lambda task: task["status"] == 410)
    receipt = (await server.task(task_id))["receipt"]
    assert receipt["processes"] == [], "it had ended by itself; nobody killed it"


async def test_race_with_the_end(server: Server) -> None:
    """Around the moment of its completion it is the one or the other: gone, or completed and whole."""
    chance = seeded()
    for _ in range(30):
        task_id = await server.launch("steps", {"steps": 15, "delay_s": 0.001})
        await server.until(task_id, lambda task: task["child"] or task["status"] == "completed")
        await asyncio.sleep(chance.uniform(0.01, 0.03))  # to hit another moment, not to wait for anything
        answer = await server.verb(task_id, "terminate")
        if answer.status == 409:
            assert (await server.task(task_id))["result"] == {"n": 15}
        else:
            await gone(server, answer)


# Trees.


async def grown(server: Server, task_id: str) -> list[psutil.Process]:
    """Every process of a ``forest``, once it stands: the root and what it started, each in its place."""
    found: list[psutil.Process] = []

    async def stands() -> bool:
        try:
            found[:] = [one for one in server.descendants() if one.status() != psutil.STATUS_ZOMBIE]
            sessions = {os.getsid(one.pid) for one in found}
        except (psutil.Error, ProcessLookupError):  # one that only makes others has gone between the two looks
            return False
        # The daemon stands when who made its session has gone; before, that one would be taken for it.
        orphaned = sessions - {one.pid for one in found}
        return len(found) == 5 and len(sessions) == 3 and len(orphaned) == 1 and any(map(_ignores_sigterm, found))

    await server.until_progress(task_id, 4)
    await until(stands, what=lambda: str(found))
    return found


def _ignores_sigterm(process: psutil.Process) -> bool:
    status = dict(line.split(":\t") for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return bool(int(status["SigIgn"], 16) >> (signal.SIGTERM - 1) & 1)


async def test_a_tree(server: Server) -> None:
    """A child, one in a session of its own, a daemon, one that ignores signals: all dead, all named in the receipt."""
    task_id = await server.launch("forest")
    tree = await grown(server, task_id)
    receipt = await gone(server, await server.verb(task_id, "terminate"))
    assert pids(receipt) == sorted(process.pid for process in tree)
    assert all(process["name"] and process["started_at"] for process in receipt["processes"])
    assert strays(server) == []


async def test_trees_beside_each_other(server: Server) -> None:
    """Of two trees at once each receipt names its own, and a third one is left alone."""
    first = await server.launch("forest")
    first_tree = await grown(server, first)
    others = [await server.launch("forest") for _ in range(2)]
    for other in others:
        await server.until_progress(other, 4)
    answer = await server.verb(first, "terminate")
    assert pids(await gone(server, answer)) == sorted(process.pid for process in first_tree)
    left = await server.until_progress(others[0], 4)
    assert left["status"] == "running"
    assert {(await server.task(other))["attempt"] for other in others} == {1}
    answers = await asyncio.gather(*(server.verb(other, "terminate") for other in others))
    for one in answers:
        await gone(server, one)
    assert strays(server) == []


async def test_a_tree_that_is_stopped(server: Server) -> None:
    """Stopped processes are killed too, the root and what it started."""
    task_id = await server.launch("forest")
    tree = await grown(server, task_id)
    for process in tree:
        send(process.pid, signal.SIGSTOP)
    receipt = await gone(server, await server.verb(task_id, "terminate"))
    assert pids(receipt) == sorted(process.pid for process in tree)


@pytest.mark.parametrize("repetition", range(3))
async def test_a_program_that_forks_while_it_is_ended(server: Server, repetition: int) -> None:  # noqa: ARG001
    """Two forks a millisecond, each a daemon in a session of its own: not one survives, and the receipt names them."""
    task_id = await server.launch("forest", {"bomb": True})
    root = psutil.Process((await server.until_progress(task_id))["child"]["pid"])

    async def many() -> bool:
        return len(root.children()) >= 20  # adopted ones, which last: each had a parent that has ended

    await until(many)
    receipt = await gone(server, await server.verb(task_id, "terminate", wait_s=30))
    assert strays(server) == []
    assert len(receipt["processes"]) >= 20


@pytest.mark.parametrize("bomb", [False, True])
async def test_a_pause_ends_its_tree_too(server: Server, *, bomb: bool) -> None:
    """What a task has started does not outlive its pause; resumed, it may start it again."""
    task_id = await server.launch("forest", {"bomb": bomb})
    if bomb:
        await server.until_progress(task_id)
    else:
        await grown(server, task_id)
    answer = await server.verb(task_id, "pause", wait_s=30)
    assert (answer.status, answer.json["reason"]) == (200, "requested")
    assert strays(server) == []
    files = [path for path in (server.data / "tasks" / task_id).rglob("*") if path.is_file()]
    receipt = await gone(server, await server.verb(task_id, "terminate"))
    assert (receipt["processes"], receipt["files_deleted"]) == ([], len(files))


@pytest.mark.parametrize("bomb", [False, True])
async def test_an_end_ends_its_tree_too(server: Server, *, bomb: bool) -> None:
    """When a task is completed nothing runs that it has started."""
    task_id = await server.launch("forest", {"bomb": bomb, "finish": True})
    await server.until_status(task_id, "completed")
    assert strays(server) == []


# Undoing.


async def test_an_effect_is_undone(server: Server, tmp_path: Path) -> None:
    """What the handler did outside is taken back before the answer says terminated."""
    path = tmp_path / "effect"
    task_id = await server.launch("effect", {"path": str(path)})
    await server.until(task_id, lambda task: task["checkpoint"])
    assert path.exists()
    await gone(server, await server.verb(task_id, "terminate"))
    assert not path.exists()


async def test_an_undoing_that_errs_is_tried_again(server: Server, tmp_path: Path) -> None:
    """Two errors are mended by a third try, each in a process of its own."""
    path = tmp_path / "effect"
    task_id = await server.launch("effect", {"path": str(path), "clean_errors": 2})
    await server.until(task_id, lambda task: task["checkpoint"])
    await gone(server, await server.verb(task_id, "terminate"))
    assert len(lines(Path(f"{path}.cleans"))) == 3
    assert not path.exists()


async def test_an_undoing_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    """What `clean` commits is the state that its next try begins with."""
    path = tmp_path / "notes"
    task_id = await paused(server, "noted", {"path": str(path), "trouble": "clean"})
    n = (await server.task(task_id))["checkpoint"]["state"]["n"]
    await gone(server, await server.verb(task_id, "terminate"))
    seen = notes(path)
    assert [note["n"] for note in seen] == [n, n + 1000, n + 2000]
    assert [note["attempt"] for note in seen] == [2, 3, 4]
    assert len({note["pid"] for note in seen}) == 3


async def test_an_undoing_that_fails_for_good(server: Server, tmp_path: Path) -> None:
    """After three tries everything is kept for a person to look at; terminate can be asked for again."""
    path = tmp_path / "effect"
    task_id = await server.launch("effect", {"path": str(path), "clean_errors": 4})
    await server.until(task_id, lambda task: task["checkpoint"])
    answer = await server.verb(task_id, "terminate")
    assert answer.status == 202
    task = answer.json
    assert (task["status"], task["reason"], task["allowed"]) == ("failed", "clean_failed", ["terminate"])
    error = task["error"]
    assert (error["kind"], error["type"], error["message"]) == ("exception", "RuntimeError", "the mail server is away")
    assert (error["attempt"], task["attempt"]) == (4, 4)
    assert task["checkpoint"]["state"]["n"] > 0
    made = await attempts(server, task_id)
    assert [attempt["kind"] for attempt in made] == ["run", "clean", "clean", "clean"]
    assert [attempt["outcome"] for attempt in made] == ["terminate", *["errored"] * 3]
    assert [(attempt["error"] or {}).get("message") for attempt in made] == [None, *["the mail server is away"] * 3]
    assert len(lines(Path(f"{path}.cleans"))) == 3
    assert path.exists()
    assert b"the mail server is away" in (await server.ask("GET", f"/tasks/{task_id}/log")).body
    assert rows(server, task_id)["checkpoints"] == 1

    await gone(server, await server.verb(task_id, "terminate"))
    assert len(lines(Path(f"{path}.cleans"))) == 5
    assert not path.exists()


async def test_an_undoing_that_hangs(tmp_path: Path) -> None:
    """Each try has a limit of time; after three of them the task is parked, and none of them still runs.

    The limit is a minute, which this server has shortened.
    """
    path = tmp_path / "effect"
    async with playing(tmp_path / "data", INTERMISSION_HANDLERS="toys,short_toys") as server:
        task_id = await server.launch("effect", {"path": str(path), "hang": True})
        await server.until(task_id, lambda task: task["checkpoint"])
        answer = await server.verb(task_id, "terminate")
        assert answer.status == 202
        task = answer.json
        assert (task["status"], task["reason"]) == ("failed", "clean_failed")
        assert task["error"]["kind"] == "limit"
        assert [attempt["kind"] for attempt in await attempts(server, task_id)] == ["run", *["clean"] * 3]
        assert path.exists()
        assert strays(server) == []


async def test_while_the_database_is_locked(server: Server, tmp_path: Path) -> None:
    """What cannot be written now is written when it can be: nobody has to ask again, and `clean` does not run again."""
    path = tmp_path / "effect"
    hold = Path(f"{path}.hold")
    hold.touch()
    task_id = await server.launch("held", {"path": str(path)})
    await server.until_progress(task_id)
    await server.verb(task_id, "terminate", wait_s=0)

    async def cleaning() -> bool:
        return len(lines(Path(f"{path}.cleans"))) == 1

    await until(cleaning)
    with closing(sqlite3.connect(server.data / "intermission.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        hold.unlink()
        event = "a terminated task cannot be finished yet"

        async def refused() -> bool:
            return any(event in line for line in server.log)

        await until(refused)
        assert (await server.task(task_id))["status"] == "terminating"
        db.execute("ROLLBACK")
    await server.until(task_id, lambda task: task["status"] == 410)
    assert rows(server, task_id) == {"tombstones": 1}
    assert len(lines(Path(f"{path}.cleans"))) == 1
    assert (await server.task(task_id))["receipt"]["files_deleted"] >= 3


async def test_folders_that_cannot_be_written_to(tmp_path: Path) -> None:
    """A handler may leave read-only folders (an unpacked archive has them); they are deleted with all that is in them.

    As root, nothing is read-only: then the server runs without root's privileges.
    """
    before = ("setpriv", "--bounding-set=-all") if os.geteuid() == 0 else ()
    settings = {"INTERMISSION_HANDLERS": TOYS}
    server = await Server(tmp_path / "data", settings, before=before).start()
    try:
        task_id = await server.launch("hoarder")
        await server.until_progress(task_id)
        receipt = await gone(server, await server.verb(task_id, "terminate"))
        assert receipt["files_deleted"] >= 2
    finally:
        await server.close()


@pytest.fixture
def _no_deep_folders(server: Server) -> Iterator[None]:
    """Leave none where the server did: pytest, whose folders go later, cannot remove them either."""
    yield
    subprocess.run(["rm", "-rf", *(server.data / "tasks").glob("*/tmp/*/folder")], check=True)


@pytest.mark.usefixtures("_no_deep_folders")
async def test_folders_deeper_than_a_path_is_long(server: Server) -> None:
    """However deep a handler has nested folders, all are deleted, and the receipt counts what was in them."""
    task_id = await server.launch("nester", {"depth": 2500})
    await server.until_progress(task_id)
    receipt = await gone(server, await server.verb(task_id, "terminate"))
    assert receipt["files_deleted"] >= 2500


@pytest.mark.usefixtures("_no_deep_folders")
async def test_a_completed_task_with_such_folders(server: Server) -> None:
    """DELETE takes them away as well."""
    task_id = await server.launch("nester", {"depth": 2500, "finish": True})
    await server.until_status(task_id, "completed")
    assert (await server.ask("DELETE", f"/tasks/{task_id}")).status == 204
    assert list(server.data.rglob(f"*{task_id}*")) == []


async def test_who_it_was(tmp_path: Path) -> None:
    """The tombstone names who asked, and not whose task it was, also when the server was killed before it was done."""
    path = tmp_path / "effect"
    hold = Path(f"{path}.hold")
    hold.touch()
    settings = {"INTERMISSION_HANDLERS": f"{TOYS},fault_toys", "INTERMISSION_JWT_SECRET": SECRET}
    async with serving(tmp_path / "data", **settings) as server:
        assert server.session is not None
        server.session.headers["Authorization"] = token("anna")
        task_id = await server.launch("held", {"path": str(path)})
        await server.until_progress(task_id)
        admin = {"Authorization": token("root", "admin"), "Prefer": "wait=0"}
        answer = await server.ask("POST", f"/tasks/{task_id}/terminate", headers=admin)
        assert answer.status == 202
        await server.kill()
        hold.unlink()
        await server.start()
        await server.until(task_id, lambda task: task["status"] == 410)
        with closing(sqlite3.connect(f"file:{server.data}/intermission.db?mode=ro", uri=True)) as db:
            assert db.execute("SELECT user, gone_by FROM tombstones").fetchall() == [("anna", "root")]


def token(user: str, scope: str = "") -> str:
    """What a user sends to say who they are."""
    return "Bearer " + jwt.encode({"sub": user, "scope": scope, "exp": 4e9}, SECRET, "HS256")
