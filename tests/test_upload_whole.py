"""Uploads of which every byte has come, and whose client or server was gone before they were complete."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness import Server, problem, send, until
from ietf_tools import Client, task_id
from upload_tools import MIB, WAYS, Sending, begin, chunk, data, digests, newer, newest, resume, sha256
from verb_tools import history, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = data(3 * MIB + 17)


@pytest.fixture(scope="module", params=list(WAYS))
def way(request: pytest.FixtureRequest) -> str:
    """The way that the server goes."""
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, way: str) -> AsyncIterator[Server]:
    """One server for all tests, which is killed in some."""
    async with playing(tmp_path_factory.mktemp("whole"), **WAYS[way]) as running:
        yield running


async def all_but_its_end(server: Server, *headers: str) -> tuple[Sending, str]:
    """An upload all of whose bytes are durable, while the end of its request has not come; and its id."""
    before = await newest(server)
    sending = await begin(server, "/upload/start", f"Upload-Length: {len(CONTENT)}", *headers)
    await sending.send(chunk(CONTENT))
    upload_id = await newer(server, before)
    await server.until_progress(upload_id, len(CONTENT))
    return sending, upload_id


async def completed(server: Server, upload_id: str) -> None:
    """Wait until it is, with what was sent."""
    task = await server.until_status(upload_id, "completed")
    assert task["result"]["sha256"] == sha256(CONTENT)
    assert await server.file(upload_id, "content") == CONTENT


async def test_a_client_that_goes_when_it_has_sent_all(server: Server) -> None:
    """Is not needed any more."""
    before = await newest(server)
    sending = await begin(server, "/upload/start", length=len(CONTENT))
    await sending.send(CONTENT)
    await sending.leave()
    await completed(server, await newer(server, before))


@pytest.mark.parametrize("kind", ["reset", "closed"])
async def test_a_client_that_goes_before_the_end_of_its_request(server: Server, kind: str) -> None:
    """All that was announced has come."""
    sending, upload_id = await all_but_its_end(server)
    if kind == "closed":
        await sending.leave()
    sending.abort()
    await completed(server, upload_id)


async def test_the_server_is_killed(server: Server) -> None:
    """The next generation completes it; a client that goes on by the offset that it knows is told so."""
    sending, upload_id = await all_but_its_end(server)
    await server.kill()
    sending.abort()
    await server.start()
    again = await resume(server, upload_id, CONTENT, len(CONTENT))
    assert (again.status, again.json["status"], again.json["id"]) == (200, "completed", upload_id)
    await completed(server, upload_id)
    again = await resume(server, upload_id, CONTENT, len(CONTENT))
    assert (again.status, again.json["status"]) == (200, "completed")
    assert await history(server, upload_id) == [
        *(("created", "paused"), ("connected", "running"), ("lost", "paused")),
        *(("connected", "running"), ("completed", "completed")),
    ]


async def test_its_child_is_killed(server: Server) -> None:
    """Its client is told where to go on; whoever resumes it has it completed, for there is nothing to wait for."""
    sending, upload_id = await all_but_its_end(server)
    send((await server.task(upload_id))["child"]["pid"])
    assert problem(await sending.answer(), 503, "interrupted")["offset"] == len(CONTENT)
    assert (await server.task(upload_id))["status"] == "paused"
    resumed = await server.verb(upload_id, "resume", wait_s=20)
    assert (resumed.status, resumed.json["status"]) == (200, "completed")
    await completed(server, upload_id)


async def test_a_pause_that_was_requested_holds(server: Server) -> None:
    """Through a kill of the server too, until somebody resumes it."""
    sending, upload_id = await all_but_its_end(server)
    assert (await server.verb(upload_id, "pause")).status == 200
    await sending.answer()
    assert (await server.task(upload_id))["checkpoint"]["state"]["received"] == len(CONTENT)
    await server.kill()
    await server.start()
    task = await server.task(upload_id)
    assert (task["status"], task["reason"], task["attempt"]) == ("paused", "requested", 1)
    assert (await server.verb(upload_id, "resume")).status == 200
    await completed(server, upload_id)


async def test_what_its_client_alone_ends(server: Server) -> None:
    """By the draft of resumable uploads all bytes are not the whole: after a kill it still waits for that word."""
    client = Client(server)
    path = await client.create(len(CONTENT))
    talk = await client.begin_append(path, 0, "?0")
    await talk.send(chunk(CONTENT))
    await server.until_progress(task_id(path), len(CONTENT))
    await server.kill()
    talk.abort()
    await server.start()
    assert (await client.state(path)).complete == "?0"
    assert (await client.append(path, b"", len(CONTENT), "?1")).complete == "?1"
    await completed(server, task_id(path))

    path = await client.create(len(CONTENT))
    talk = await client.begin_append(path, 0, "?0")
    await talk.send(chunk(CONTENT))
    await server.until_progress(task_id(path), len(CONTENT))
    talk.abort()
    await server.until_status(task_id(path), "paused")
    assert (await client.state(path)).complete == "?0"


async def test_a_digest_of_the_whole_is_verified(server: Server) -> None:
    """With another one it fails, whether its client or its server has gone: nobody may take it for complete."""
    for killed in (False, True):
        wrong = f"Repr-Digest: {digests(b'something else', 'sha-256')}"
        sending, upload_id = await all_but_its_end(server, wrong)
        if killed:
            await server.kill()
        sending.abort()
        if killed:
            await server.start()
            task = await server.until_status(upload_id, "failed")
            assert task["error"]["type"] == "DigestMismatch"
        else:  # the request that brought it has it discarded, as ever
            await server.until(upload_id, lambda task: task.get("type", "").endswith("/gone"))


async def test_a_digest_of_the_body_is_verified(server: Server) -> None:
    """What came is not what was announced for it: nothing of it is kept, though its client has gone."""
    before = after = await newest(server)
    wrong = f"Content-Digest: {digests(b'something else', 'sha-256')}"
    sending = await begin(server, "/upload/start", f"Upload-Length: {len(CONTENT)}", wrong)
    await sending.send(chunk(CONTENT))

    async def written() -> bool:
        nonlocal after
        after = await newest(server)
        path = server.data / "tasks" / after / "files" / "content"
        return after != before and path.exists() and path.stat().st_size > len(CONTENT) - MIB  # the rest is buffered

    await until(written)
    await sending.leave()
    task = await server.until_status(after, "paused")
    assert (task["checkpoint"], task["attempt"]) == (None, 1)
