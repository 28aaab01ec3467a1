"""What servers of this kind are known to do wrong, one scenario each: none of it can happen here."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import psutil
import pytest
import pytest_asyncio
from harness import Server, problem, seeded, squares
from upload_tools import data, flowing, newest, resume, sha256, upload
from verb_tools import nothing_left, playing, tasks

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = "id,name\n" + "".join(f"{n},name {n}\n" for n in range(200_000))
EXTRACT = {"source": "rows", "where": {"id": {"gt": 10}}}
EXTRACTED = "id,name\n" + "".join(f"{n},name {n}\n" for n in range(11, 200_000))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server, with a source."""
    async with playing(folder := tmp_path_factory.mktemp("known")) as running:
        (folder / "sources" / "rows.csv").write_text(ROWS)
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


async def test_1_two_starts_by_one_user_at_once(server: Server) -> None:
    """Each is a task of its own: neither replaces the other, and the server stands."""
    pid = server.pid
    first, second = await asyncio.gather(*(server.launch("extract", EXTRACT) for _ in range(2)))
    assert first != second
    for task_id in (first, second):
        await server.until_status(task_id, "completed")
        assert await server.file(task_id, "rows.csv") == EXTRACTED.encode()
    assert psutil.Process(pid).is_running()


async def test_2_a_pause_before_the_first_row(server: Server) -> None:
    """Paused before it has done anything, a task begins at the beginning when it is resumed."""
    task_id = await server.launch("extract", EXTRACT)
    assert (await server.verb(task_id, "pause")).json["status"] in {"paused", "completed"}
    await server.verb(task_id, "resume")
    await server.until_status(task_id, "completed")
    assert await server.file(task_id, "rows.csv") == EXTRACTED.encode()


async def test_3_a_resume_repeats_no_row(server: Server) -> None:
    """Paused again and again in the middle of its rows, each row is there once."""
    chance = seeded()
    task_id = await server.launch("extract", EXTRACT)
    for _ in range(8):
        done = chance.randint(1, len(ROWS) // 10)
        before = ((await server.task(task_id))["progress"] or {}).get("done", 0)
        task = await server.until(
            task_id, lambda task, n=before + done: (task["progress"] or {}).get("done", 0) >= n or task["result"]
        )
        if task["result"] or (await server.verb(task_id, "pause")).json.get("status") != "paused":
            break
        assert (await server.verb(task_id, "resume")).status == 202
    await server.until_status(task_id, "completed")
    assert await server.file(task_id, "rows.csv") == EXTRACTED.encode()


async def test_4_a_pause_that_races_with_progress(server: Server) -> None:
    """Progress never changes the status back: what is paused stays paused, at the progress that it had."""
    task_id = await server.launch("steps", {"steps": 10_000_000, "delay_s": 0})
    await server.until_progress(task_id, 1000)
    paused = (await server.verb(task_id, "pause")).json
    assert paused["status"] == "paused"
    assert paused["progress"]["done"] == paused["checkpoint"]["state"]["n"]
    for _ in range(20):
        assert await server.task(task_id) == paused
    assert await server.file(task_id, "lines.txt") == squares(paused["progress"]["done"])


async def test_5_a_start_beside_a_paused_task(server: Server) -> None:
    """The paused one is neither forgotten nor continued by it."""
    first = await server.launch("steps", {"steps": 1_000_000})
    await server.until_progress(first, 1)
    paused = (await server.verb(first, "pause")).json
    second = await server.launch("steps", {"steps": 3, "delay_s": 0})
    await server.until_status(second, "completed")
    assert await server.task(first) == paused


async def test_6_a_client_that_drops_its_upload(server: Server) -> None:
    """No process is left, and the upload can be resumed."""
    content = data(2_000_000)
    sending, task_id = await flowing(server, content, 1_000_000)
    [process] = server.descendants()
    sending.abort()
    await server.until_status(task_id, "paused")
    assert not process.is_running()
    assert (await resume(server, task_id, content, 1_000_000)).json["result"]["sha256"] == sha256(content)


async def test_7_a_terminate_after_an_earlier_pause(server: Server) -> None:
    """Paused, resumed, and then terminated: gone, with its process."""
    task_id = await server.launch("steps", {"steps": 1_000_000})
    await server.until_progress(task_id, 1)
    await server.verb(task_id, "pause")
    await server.verb(task_id, "resume")
    task = await server.until(task_id, lambda task: task["child"])
    assert (await server.verb(task_id, "terminate")).status == 200
    assert not psutil.pid_exists(task["child"]["pid"])
    assert not (server.data / "tasks" / task_id).exists()


async def test_8_a_size_that_lies(server: Server) -> None:
    """Too small is refused, too large waits for the rest; neither is completed as if it were whole."""
    problem(await upload(server, b"12345", Upload_Length="3"), 413, "too-long")
    answer = await upload(server, b"12345", Upload_Length="8")
    assert (answer.json["status"], answer.json["result"]) == ("paused", None)


async def test_9_a_path_for_a_name(server: Server) -> None:
    """A name with ``../`` in it writes and reads nothing outside of the task's own folder."""
    before = sorted(os.listdir(server.data)), sorted(os.listdir(server.data.parent))
    answer = await upload(server, b"evil", "?filename=..%2F..%2F..%2Fevil.txt")
    assert answer.status == 201
    assert (sorted(os.listdir(server.data)), sorted(os.listdir(server.data.parent))) == before
    problem(await server.ask("POST", "/extract/start", json={"source": "../intermission"}), 422, "invalid")


async def test_10_a_restart_with_paused_and_running_tasks(tmp_path: Path) -> None:
    """Nothing is lost: what was paused is paused, what was running goes on from its place."""
    async with playing(tmp_path) as server:
        paused = await server.launch("steps", {"steps": 1_000_000})
        running = await server.launch("steps", {"steps": 150})
        for task_id in (paused, running):
            await server.until_progress(task_id, 5)
        kept = (await server.verb(paused, "pause")).json
        await server.kill()
        await server.start()
        assert await server.task(paused) == kept
        assert (await server.until_status(running, "completed"))["attempt"] == 2
        assert await server.file(running, "lines.txt") == squares(150)


async def test_11_a_stop_with_children_at_work(tmp_path: Path) -> None:
    """SIGTERM: every child saves its place, none is left, and the next start carries on."""
    async with playing(tmp_path) as server:
        ids = [await server.launch("steps", {"steps": 150}) for _ in range(4)]
        for task_id in ids:
            await server.until_progress(task_id, 5)
        assert await server.stop() == 0
        assert server.survivors() == []
        await server.start()
        for task_id in ids:
            await server.until_status(task_id, "completed")
            assert await server.file(task_id, "lines.txt") == squares(150)


@pytest.mark.parametrize("limit", ["-1", '"5"', "1.5", "true", "null", "1e400", "NaN", "[]", "9" * 30])
async def test_12_nonsense_in_numbers(server: Server, limit: str) -> None:
    """A client's mistake, told as one; nothing is started."""
    before = await tasks(server, service="counter")
    headers = {"Content-Type": "application/json"}
    answer = await server.ask("POST", "/counter/start", data=f'{{"limit": {limit}}}', headers=headers)
    assert answer.status in {400, 422}
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert await tasks(server, service="counter") == before


async def test_13_the_id_of_another_user(tmp_path: Path) -> None:
    """Who is not its user can do nothing with a task's id, nor with an upload's."""
    secret = "a secret of thirty-two bytes or more"
    async with playing(tmp_path, INTERMISSION_JWT_SECRET=secret) as server:
        assert server.session is not None

        def be(user: str) -> None:
            token = jwt.encode({"sub": user, "exp": 4e9}, secret, "HS256")
            server.session.headers["Authorization"] = f"Bearer {token}"  # type: ignore[union-attr]

        be("anna")
        task_id = await server.launch("steps", {"steps": 1_000_000})
        kept = (await upload(server, b"anna's", Upload_Length="10")).json
        be("bert")
        for verb in ("pause", "resume", "terminate"):
            problem(await server.verb(task_id, verb), 404, "unknown-task")
            problem(await server.ask("POST", f"/steps/{verb}?task={task_id}"), 404, "unknown-task")
        problem(await resume(server, kept["id"], b"anna's more", 6), 404, "unknown-task")
        problem(await server.ask("GET", f"/tasks/{kept['id']}/files/content"), 404, "unknown-task")
        assert (await server.ask("GET", "/tasks")).json["items"] == []
        be("anna")
        assert await server.task(kept["id"]) == kept
        assert (await server.verb(task_id, "terminate")).status == 200


async def test_14_several_verbs_at_once(server: Server) -> None:
    """Pauses, resumes and a terminate on top of each other: each is answered, and the last word is the terminate's."""
    task_id = await server.launch("steps", {"steps": 1_000_000})
    await server.until_progress(task_id, 1)
    answers = await asyncio.gather(
        *(server.verb(task_id, verb) for verb in ["pause", "resume"] * 5), server.verb(task_id, "terminate")
    )
    assert {answer.status for answer in answers} <= {200, 202, 409, 410}
    await server.until(task_id, lambda task: task["status"] == 410)


async def test_15_a_start_that_is_refused_leaves_nothing(server: Server) -> None:
    """No row, no folder and no process of a start whose params do not fit, or whose upload never came."""
    before = sorted(os.listdir(server.data / "tasks")), await newest(server)
    problem(await server.ask("POST", "/extract/start", json={"source": "nowhere", "columns": []}), 422, "invalid")
    problem(await upload(server, b"x", Content_Encoding="gzip"), 415, "unsupported-media-type")
    assert (sorted(os.listdir(server.data / "tasks")), await newest(server)) == before
    assert server.descendants() == []


async def test_16_a_client_that_does_not_wait_for_its_answer(server: Server) -> None:
    """A pause or terminate whose client has gone is carried out all the same."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    for verb, end in (("pause", "paused"), ("terminate", 410)):
        task_id = await server.launch("steps", {"steps": 1_000_000})
        await server.until_progress(task_id, 1)
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST /tasks/{task_id}/{verb} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        writer.close()
        await writer.wait_closed()
        await server.until(task_id, lambda task, end=end: task["status"] == end)
