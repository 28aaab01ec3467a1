"""Idempotency-Key: a start that is sent again finds the first, however it is sent again."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from harness import Answer, Json, Server, problem
from upload_tools import upload
from verb_tools import nothing_left, playing, tasks

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with playing(tmp_path_factory.mktemp("keys")) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


async def start(server: Server, key: str, body: Json, path: str = "/steps/start") -> Answer:
    """A start with a key."""
    return await server.ask("POST", path, json=body, headers={"Idempotency-Key": key})


@pytest.mark.parametrize(
    ("path", "body"),
    [("/steps/start", {"steps": 3}), ("/tasks", {"service": "steps", "params": {"steps": 3}, "labels": {"a": "b"}})],
)
async def test_the_same_start_again(server: Server, path: str, body: Json) -> None:
    """It is answered with the first one's task as it is by then, and no other is made."""
    first = await start(server, f"again {path}".replace(" ", "-"), body, path)
    assert first.status == 202
    assert "Idempotency-Replayed" not in first.headers
    await server.until_status(first.json["id"], "completed")
    before = len(await tasks(server))
    again = await start(server, f"again-{path}", dict(reversed(body.items())), path)
    assert (again.status, again.headers["Idempotency-Replayed"]) == (202, "true")
    assert again.headers["Location"] == first.headers["Location"]
    assert (again.json["id"], again.json["status"]) == (first.json["id"], "completed")
    assert len(await tasks(server)) == before


async def test_many_at_once(server: Server) -> None:
    """Of twenty at the same moment one makes the task."""
    answers = await asyncio.gather(*(start(server, "many", {"steps": 2}) for _ in range(20)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 19


async def test_another_start_with_the_same_key(server: Server) -> None:
    """Is a mistake, and says so; nothing is started."""
    first = await start(server, "other", {"steps": 2})
    before = len(await tasks(server))
    for path, body in (("/steps/start", {"steps": 4}), ("/printer/start", {"n": 0}), ("/tasks", {"service": "steps"})):
        said = problem(await start(server, "other", body, path), 422, "key-reused")
        assert first.json["id"] in said["detail"]
    assert len(await tasks(server)) == before


async def test_a_refused_start_does_not_use_it_up(server: Server) -> None:
    """What was never accepted can be sent again, mended, with the same key."""
    problem(await start(server, "mended", {"steps": "three"}), 422, "invalid")
    answer = await start(server, "mended", {"steps": 3})
    assert (answer.status, "Idempotency-Replayed" in answer.headers) == (202, False)


async def test_of_a_task_that_is_gone(server: Server) -> None:
    """410 with what is left of it, not a second one; and what to do about it."""
    first = await start(server, "gone", {"steps": 1_000_000})
    assert (await server.verb(first.json["id"], "terminate")).status == 200
    gone = problem(await start(server, "gone", {"steps": 1_000_000}), 410, "gone")
    assert gone["id"] == first.json["id"]
    assert "under another key" in gone["detail"]


async def test_of_a_task_that_is_forgotten(tmp_path: Path) -> None:
    """A task is kept for less long than its key: a start says so, and not that there is none of the name."""
    async with playing(tmp_path, INTERMISSION_RETENTION_DAYS=f"{1 / 86_400:.12f}") as brief:
        first = await start(brief, "brief", {"steps": 1, "delay_s": 0})
        await brief.until(first.json["id"], lambda task: task["status"] == 404)
        forgotten = problem(await start(brief, "brief", {"steps": 1, "delay_s": 0}), 410, "gone")
        assert first.json["id"] in forgotten["detail"]
        assert "under another key" in forgotten["detail"]
        problem(await start(brief, "brief", {"steps": 2}), 422, "key-reused")


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "\xe9"])
async def test_what_is_no_key(server: Server, key: str) -> None:
    """A clear 400."""
    answer = await server.exactly(
        "POST /steps/start", f"Idempotency-Key: {key}", "Content-Type: application/json", body=b"{}"
    )
    problem(answer, 400, "malformed-header")


async def test_an_upload(server: Server) -> None:
    """Sent again it is not taken a second time: the answer is the first one's task, and where it goes on."""
    first = await upload(server, b"data", Idempotency_Key="up", Upload_Length="8")
    again = await upload(server, b"data", Idempotency_Key="up", Upload_Length="8")
    assert (again.status, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert (again.json["id"], again.headers["Upload-Offset"]) == (first.json["id"], "4")
    problem(await upload(server, b"data", Idempotency_Key="up", Upload_Length="9"), 422, "key-reused")


async def test_a_file_as_a_body(server: Server) -> None:
    """Is two steps, which no key can repeat as one: refused, and nothing is kept of it."""
    before = len(await tasks(server))
    headers = {"Content-Type": "text/csv", "Idempotency-Key": "file"}
    problem(await server.ask("POST", "/csv/start", data=b"a\n1\n", headers=headers), 400, "key-not-taken")
    assert len(await tasks(server)) == before


async def test_through_a_kill(server: Server) -> None:
    """A key is on disk with its task."""
    first = await start(server, "killed", {"steps": 5})
    await server.kill()
    await server.start()
    again = await start(server, "killed", {"steps": 5})
    assert (again.json["id"], again.headers["Idempotency-Replayed"]) == (first.json["id"], "true")


async def test_for_a_day(server: Server) -> None:
    """An older one is unknown again, and old ones do not stay."""
    first = await start(server, "old", {"steps": 2})
    assert await server.stop() == 0
    with sqlite3.connect(server.data / "intermission.db") as database:
        database.execute("UPDATE start_keys SET at = at - 86401")
        (old,) = database.execute("SELECT count(*) FROM start_keys").fetchone()
    database.close()
    await server.start()
    again = await start(server, "old", {"steps": 2})
    assert (again.json["id"] != first.json["id"], "Idempotency-Replayed" in again.headers) == (True, False)
    with sqlite3.connect(f"file:{server.data}/intermission.db?mode=ro", uri=True) as database:
        (left,) = database.execute("SELECT count(*) FROM start_keys").fetchone()
    database.close()
    assert left <= max(old - 3, 1)
