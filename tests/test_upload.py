"""Uploads: bytes on their way to a child, and every way in which that may be cut short."""

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from harness import Server, parsed, problem, send, until
from upload_tools import MIB, WAYS, begin, chunk, data, flowing, newer, newest, resume, sha256, upload
from verb_tools import attempts, history, nothing_left, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = data(3 * MIB + 12_345)
HALF = MIB + 7


@pytest.fixture(scope="module", params=["direct", "copied"])
def way(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of a server whose uploads go the fast way, and of one that cannot do it."""
    return WAYS[request.param]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, way: dict[str, str]) -> AsyncIterator[Server]:
    """One server for the tests that need no settings of their own."""
    async with playing(tmp_path_factory.mktemp("upload"), **way) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


async def content(server: Server, task_id: str) -> bytes:
    """What of it can be downloaded."""
    return await server.file(task_id, "content")


def on_disk(server: Server, task_id: str) -> int:
    """The bytes that are in the file, durable or not."""
    return os.stat(server.data / "tasks" / task_id / "files" / "content").st_size


def socket_buffers() -> int:
    """The most that the kernel keeps of what one end of a connection has sent and the other has not read."""
    return sum(int(Path(f"/proc/sys/net/ipv4/tcp_{end}mem").read_text().split()[2]) for end in "rw")


async def _so(is_so: bool) -> bool:
    return is_so


# Whole.


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, MIB, MIB + 1, 5 * MIB + 3])
async def test_any_size_arrives_exactly(server: Server, size: int) -> None:
    """One request, one answer: completed, with the name, the size and the digest, and the file is what was sent."""
    sent = data(size)
    answer = await upload(server, sent, "?filename=a.bin", Content_Type="image/png")
    assert answer.status == 201, answer.body
    task = answer.json
    assert answer.headers["Location"] == f"/tasks/{task['id']}"
    assert (answer.headers["Upload-Offset"], answer.headers["Upload-Length"]) == (str(size), str(size))
    assert task["status"] == "completed"
    assert task["result"] == {
        "filename": "a.bin",
        "size_bytes": size,
        "sha256": sha256(sent),
        "crc32c": None,
        "media_type": "application/octet-stream",  # whatever the client says: it is no PNG
    }
    assert await content(server, task["id"]) == sent
    assert [attempt["outcome"] for attempt in await attempts(server, task["id"])] == ["completed"]
    assert await history(server, task["id"]) == [
        ("created", "paused"),
        ("connected", "running"),
        ("completed", "completed"),
    ]
    assert (await server.ask("DELETE", f"/tasks/{task['id']}")).status == 204


async def test_chunked(server: Server) -> None:
    """A size that is known only at the end, in chunks of any size."""
    sending = await begin(server, "/upload/start")
    at = 0
    for size in (1, 2, 70_000, 300_000, 5):
        await sending.send(chunk(CONTENT[at : at + size]))
        at += size
    await sending.send(chunk(CONTENT[at:]) + chunk(b""))
    answer = await sending.answer()
    assert answer.status == 201
    assert answer.json["params"]["size_bytes"] is None
    assert answer.json["progress"]["total"] == answer.json["progress"]["done"] == len(CONTENT)
    assert (answer.json["result"]["size_bytes"], answer.json["result"]["sha256"]) == (len(CONTENT), sha256(CONTENT))
    assert await content(server, answer.json["id"]) == CONTENT


@pytest.mark.parametrize(
    ("query", "disposition", "name"),
    [
        ("", None, None),
        ("?filename=flights.csv", None, "flights.csv"),
        ("", 'attachment; filename="flights.csv"', "flights.csv"),
        ("", "attachment; filename*=UTF-8''fl%C3%BCge.csv", "flüge.csv"),
        ("?filename=first", 'attachment; filename="second"', "first"),
        ("?filename=..%2F..%2F..%2Fetc%2Fpasswd", None, "../../../etc/passwd"),
        ("?filename=a%0D%0AX-Evil:%20y", None, "a\r\nX-Evil: y"),
        ("?filename=%E2%80%AEgpj.exe", None, "\u202egpj.exe"),
        ("?filename=C:%5CCON", None, "C:\\CON"),
        ("?filename=" + "x" * 4000, None, "x" * 4000),
    ],
)
async def test_names_are_data(server: Server, query: str, disposition: str | None, name: str | None) -> None:
    """A name is kept as it was said, leads nowhere on disk and cannot add a header to the download."""
    headers = {} if disposition is None else {"Content-Disposition": disposition}
    answer = await upload(server, b"data", query, **headers)
    assert answer.status == 201, answer.body
    assert answer.json["result"]["filename"] == name
    files = server.data / "tasks" / answer.json["id"] / "files"
    assert os.listdir(files) == ["content"]
    download = await server.ask("GET", answer.json["files"][0]["href"])
    assert download.body == b"data"
    assert "X-Evil" not in download.headers
    assert download.headers["X-Content-Type-Options"] == "nosniff"
    assert download.headers["Content-Disposition"].startswith("attachment")


async def test_a_name_that_is_too_long(server: Server) -> None:
    """Is refused before anything is created."""
    answer = await upload(server, b"data", "?filename=" + "x" * 4097)
    assert problem(answer, 422, "invalid")["errors"][0]["pointer"] == "/filename"


async def test_expect_continue(server: Server) -> None:
    """A client that asks first is told to go on."""
    sending = await begin(server, "/upload/start", "Expect: 100-continue", length=4)
    async with asyncio.timeout(10):
        assert await sending.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await sending.send(b"data")
    assert (await sending.answer()).status == 201


async def test_a_request_behind_it_is_answered(server: Server) -> None:
    """Never more than the body is taken from the connection."""
    sending = await begin(server, "/upload/start", length=4)
    await sending.send(b"dataGET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        heard = await sending.reader.read(-1)
    assert heard.startswith(b"HTTP/1.1 201")
    assert heard.count(b"HTTP/1.1 200") == 1
    sending.abort()


# Paused, and resumed.


async def test_pause_while_bytes_flow(server: Server) -> None:
    """The open request ends with 200 and where to go on; the process is gone, and a resume ends identical."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    process = psutil.Process((await server.task(task_id))["child"]["pid"])
    pause = await server.ask("POST", f"/upload/pause?task={task_id}")
    assert not process.is_running()
    answer = await sending.answer()
    for said in (pause, answer):
        assert said.status == 200
        assert (said.json["id"], said.json["status"], said.json["reason"]) == (task_id, "paused", "requested")
        assert said.headers["Upload-Offset"] == str(HALF)
        assert said.headers["Upload-Length"] == str(len(CONTENT))
    assert answer.headers["Connection"] == "close"
    assert on_disk(server, task_id) == HALF
    ended = await resume(server, task_id, CONTENT, HALF)
    assert ended.status == 200
    assert ended.json["result"]["sha256"] == sha256(CONTENT)
    assert await content(server, task_id) == CONTENT
    assert [attempt["outcome"] for attempt in await attempts(server, task_id)] == ["stopped", "completed"]


async def test_pause_while_nothing_flows(server: Server) -> None:
    """A client that holds still does not hold up the pause."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    assert (await server.verb(task_id, "pause")).json["status"] == "paused"
    assert (await sending.answer()).headers["Upload-Offset"] == str(HALF)


async def test_pause_while_the_client_never_stops_sending(server: Server) -> None:
    """One that does not read before it has sent everything still gets its answer, and nothing more is kept."""
    huge = data(24 * MIB)
    sending, task_id = await flowing(server, huge, MIB)
    paused = asyncio.Event()

    async def go_on() -> None:
        while sending.sent < len(huge):
            if sending.sent >= len(huge) - MIB:
                await paused.wait()  # where the pause comes so late, it must not come too late
            await sending.send(huge[sending.sent : sending.sent + 65_536])

    going = asyncio.create_task(go_on())
    pause = await server.verb(task_id, "pause")
    paused.set()
    assert pause.json["status"] == "paused"
    answer = await sending.answer()
    assert answer.status == 200
    offset = int(answer.headers["Upload-Offset"])
    assert offset == pause.json["checkpoint"]["state"]["received"] < len(huge)
    going.cancel()
    await asyncio.wait({going})
    assert await content(server, task_id) == huge[:offset]
    assert (await resume(server, task_id, huge, offset)).json["result"]["sha256"] == sha256(huge)


async def test_a_pause_can_be_lifted_without_a_body(server: Server) -> None:
    """Then it waits for its client: 200, awaiting_data; asked again, the same."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    await server.verb(task_id, "pause")
    await sending.answer()
    for path in (f"/upload/resume?task={task_id}", f"/tasks/{task_id}/resume"):
        answer = await server.ask("POST", path)
        assert (answer.status, answer.json["status"], answer.json["reason"]) == (200, "paused", "awaiting_data")
        assert answer.headers["Upload-Offset"] == str(HALF)
        assert answer.json["allowed"] == ["pause", "resume", "terminate"]
    assert (await resume(server, task_id, CONTENT, HALF)).json["status"] == "completed"


async def test_no_body_is_no_end_of_data(server: Server) -> None:
    """Data of unknown length is complete when a body ends, be it of nothing; who sends none only asks to go on."""
    before = await newest(server)
    sending = await begin(server, "/upload/start")
    await sending.send(chunk(CONTENT[:HALF]))
    task_id = await newer(server, before)
    await server.until_progress(task_id, HALF)
    sending.abort()
    await server.until_status(task_id, "paused")
    path = f"POST /upload/resume?task={task_id}"
    for offset, status in ((str(HALF), 200), ("7", 409)):
        head = f"{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nUpload-Offset: {offset}\r\n\r\n"
        answer = parsed(await server.talk(head.encode()))
        assert (answer.status, answer.headers["Upload-Offset"]) == (status, str(HALF))
    task = await server.task(task_id)
    assert (task["status"], task["reason"]) == ("paused", "awaiting_data")
    answer = await server.exactly(path, f"Upload-Offset: {HALF}", "Content-Length: 0")
    assert (answer.status, answer.json["result"]["sha256"]) == (200, sha256(CONTENT[:HALF]))


async def test_one_that_waits_for_its_client_can_be_paused(server: Server) -> None:
    """Its reason is then that somebody asked for it."""
    task_id = (await server.ask("POST", "/upload/start", headers={"Upload-Length": "10"})).json["id"]
    answer = await server.verb(task_id, "pause")
    assert (answer.status, answer.json["status"], answer.json["reason"]) == (200, "paused", "requested")
    assert answer.json["allowed"] == ["resume", "terminate"]


async def test_in_a_hundred_pauses(server: Server) -> None:
    """However often it was paused, its digest and its bytes are those of the whole."""
    sent = data(2 * MIB, seed=7)
    size = len(sent) // 100
    sending, task_id = await flowing(server, sent, size)
    for n in range(1, 100):
        assert (await server.verb(task_id, "pause")).headers["Upload-Offset"] == str(n * size)
        assert (await sending.answer()).status == 200
        path = f"/upload/resume?task={task_id}"
        sending = await begin(server, path, f"Upload-Offset: {n * size}", length=len(sent) - n * size)
        await sending.send(sent[n * size : (n + 1) * size])
        await until(lambda wanted=(n + 1) * size: _so(on_disk(server, task_id) >= wanted))
    await sending.send(sent[100 * size :])
    assert (await sending.answer()).json["result"]["sha256"] == sha256(sent)
    assert await content(server, task_id) == sent
    assert len(await attempts(server, task_id)) == 100


@pytest.mark.parametrize("offset", [0, HALF - 1, HALF + 1, len(CONTENT), 2**63 - 1])
async def test_a_wrong_offset(server: Server, offset: int) -> None:
    """Is 409 with the right one, and changes nothing."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    await server.verb(task_id, "pause")
    await sending.answer()
    before = await server.task(task_id)
    headers = {"Upload-Offset": str(offset)}
    answer = await server.ask("POST", f"/upload/resume?task={task_id}", data=b"", headers=headers)
    said = problem(answer, 409, "offset")
    assert (said["offset"], answer.headers["Upload-Offset"]) == (HALF, str(HALF))
    assert await server.task(task_id) == before
    assert len(await attempts(server, task_id)) == 1


async def test_by_its_id(server: Server) -> None:
    """A resume takes what it takes at the service's address: nothing is dropped, and no mistake goes unseen."""
    created = await server.ask("POST", "/upload/start", headers={"Upload-Length": str(len(CONTENT))})
    path = f"/tasks/{created.json['id']}/resume"
    problem(await server.ask("POST", path, data=b"data"), 400, "offset-required")
    problem(await server.ask("POST", path, data=b"data", headers={"Upload-Offset": "7"}), 409, "offset")
    first = await server.ask("POST", path, data=io.BytesIO(CONTENT[:HALF]), headers={"Upload-Offset": "0"})
    assert (first.status, first.json["reason"], first.headers["Upload-Offset"]) == (200, "awaiting_data", str(HALF))
    await server.verb(created.json["id"], "pause")
    assert (await server.ask("POST", path)).json["reason"] == "awaiting_data"
    expecting = {"Upload-Offset": str(HALF), "Expect": "100-continue"}
    last = await server.ask("POST", path, data=io.BytesIO(CONTENT[HALF:]), headers=expecting)
    assert (last.status, last.json["result"]["sha256"]) == (200, sha256(CONTENT))


@pytest.mark.parametrize(("offset", "body"), [(8, b"data"), (20, b""), (20, b"data")])
async def test_a_wrong_offset_is_told_before_a_wrong_size(server: Server, offset: int, body: bytes) -> None:
    """Where the data goes on is what its client has to know; that it would come to too much follows from it."""
    created = await server.ask("POST", "/upload/start", headers={"Upload-Length": "10"})
    path = f"/upload/resume?task={created.json['id']}"
    answer = await server.ask("POST", path, data=body, headers={"Upload-Offset": str(offset)})
    assert problem(answer, 409, "offset")["offset"] == 0
    assert answer.headers["Upload-Offset"] == "0"
    answer = await server.ask("POST", path, data=b"eleven byte", headers={"Upload-Offset": "0"})
    problem(answer, 413, "too-long")
    assert answer.headers["Upload-Length"] == "10"


@pytest.mark.parametrize("offset", ["-1", "+5", "1e3", "5 6", "", "abc", str(2**63), "9" * 40])
async def test_an_offset_that_is_none(server: Server, offset: str) -> None:
    """Is 400, and so is a length that is none; nothing is created or changed."""
    task_id = (await server.ask("POST", "/upload/start", headers={"Upload-Length": "10"})).json["id"]
    path = f"POST /upload/resume?task={task_id}"
    problem(await server.exactly(path, f"Upload-Offset: {offset}", body=b"data"), 400, "malformed-header")
    problem(await server.exactly("POST /upload/start", f"Upload-Length: {offset}", body=b"x"), 400, "malformed-header")
    assert await newest(server) == task_id
    assert (await server.task(task_id))["attempt"] == 0


async def test_a_body_without_its_place(server: Server) -> None:
    """Bytes that do not say where they belong are refused."""
    task_id = (await server.ask("POST", "/upload/start", headers={"Upload-Length": "10"})).json["id"]
    answer = await server.ask("POST", f"/upload/resume?task={task_id}", data=b"data")
    problem(answer, 400, "offset-required")


async def test_the_rest_may_come_in_several_requests(server: Server) -> None:
    """A body that ends before the announced length leaves the task waiting for its client, not disconnected."""
    first = await upload(server, CONTENT[:HALF], Upload_Length=str(len(CONTENT)))
    assert (first.status, first.json["status"], first.json["reason"]) == (201, "paused", "awaiting_data")
    task_id = first.json["id"]
    second = await server.ask(
        "POST",
        f"/upload/resume?task={task_id}",
        data=io.BytesIO(CONTENT[HALF : 2 * MIB]),
        headers={"Upload-Offset": str(HALF)},
    )
    assert (second.status, second.json["reason"], second.headers["Upload-Offset"]) == (
        200,
        "awaiting_data",
        str(2 * MIB),
    )
    third = await resume(server, task_id, CONTENT, 2 * MIB)
    assert (third.status, third.json["result"]["sha256"]) == (200, sha256(CONTENT))


async def test_created_first_and_sent_later(server: Server) -> None:
    """With Upload-Length and no body a task is only created; no process waits for its client."""
    answer = await server.ask("POST", "/upload/start?filename=x", headers={"Upload-Length": str(len(CONTENT))})
    assert (answer.status, answer.json["status"], answer.json["reason"]) == (201, "paused", "awaiting_data")
    assert answer.headers["Location"] == f"/tasks/{answer.json['id']}"
    assert (answer.headers["Upload-Offset"], answer.json["attempt"]) == ("0", 0)
    assert server.descendants() == []
    assert (await resume(server, answer.json["id"], CONTENT, 0)).json["result"]["sha256"] == sha256(CONTENT)


async def test_going_on_without_naming_it(tmp_path: Path) -> None:
    """A client's only upload need not be named, by bytes either."""
    async with playing(tmp_path) as server:
        first = await upload(server, CONTENT[:HALF], Upload_Length=str(len(CONTENT)))
        rest, headers = io.BytesIO(CONTENT[HALF:]), {"Upload-Offset": str(HALF)}
        answer = await server.ask("POST", "/upload/resume", data=rest, headers=headers)
        assert (answer.status, answer.json["id"]) == (200, first.json["id"])
        assert answer.json["result"]["sha256"] == sha256(CONTENT)


async def test_status_says_how_far_it_is(server: Server) -> None:
    """GET and HEAD carry the durable offset and the length."""
    first = await upload(server, CONTENT[:HALF], Upload_Length=str(len(CONTENT)))
    for method in ("GET", "HEAD"):
        answer = await server.ask(method, f"/upload/status?task={first.json['id']}")
        assert answer.status == 200
        assert (answer.headers["Upload-Offset"], answer.headers["Upload-Length"]) == (str(HALF), str(len(CONTENT)))
        assert answer.headers["Cache-Control"] == "no-store"


# Cut short.


@pytest.mark.parametrize("kind", ["reset", "closed"])
async def test_the_client_goes_away(server: Server, kind: str) -> None:
    """What came is durable, no process is left, and it goes on where it stopped."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    process = psutil.Process((await server.task(task_id))["child"]["pid"])
    await (sending.leave() if kind == "closed" else asyncio.to_thread(sending.abort))
    task = await server.until_status(task_id, "paused")
    assert (task["reason"], task["error"], task["child"]) == ("disconnected", None, None)
    assert not process.is_running()
    assert task["checkpoint"]["state"]["received"] == on_disk(server, task_id) == HALF
    answer = await resume(server, task_id, CONTENT, HALF)
    assert answer.json["result"]["sha256"] == sha256(CONTENT)
    assert await content(server, task_id) == CONTENT


@pytest.mark.parametrize("kind", ["half-closed", "closed"])
@pytest.mark.parametrize("size", [1, 50_000, 300_000])
async def test_the_client_goes_away_before_its_child_is_there(server: Server, size: int, kind: str) -> None:
    """What has come by then is kept: one whose network delivers in bursts gets on with each of them."""
    task_id = (await server.ask("POST", "/upload/start", headers={"Upload-Length": str(len(CONTENT))})).json["id"]
    for n in range(3):
        at = n * size
        sending = await begin(
            server, f"/upload/resume?task={task_id}", f"Upload-Offset: {at}", length=len(CONTENT) - at
        )
        sending.writer.write(CONTENT[at : at + size])
        if kind == "half-closed":
            sending.writer.write_eof()
        else:
            sending.writer.close()
        task = await server.until(task_id, lambda task, n=n: (task["attempt"], task["status"]) == (n + 1, "paused"))
        assert (task["reason"], task["checkpoint"]["state"]["received"]) == ("disconnected", at + size)
        sending.writer.close()
    assert (await resume(server, task_id, CONTENT, 3 * size)).json["result"]["sha256"] == sha256(CONTENT)


async def test_terminate_under_an_open_request(server: Server) -> None:
    """The request ends with 410 and the receipt; file, folder and row are gone."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    answer = await server.ask("POST", f"/upload/terminate?task={task_id}")
    assert answer.status == 200
    assert answer.json["receipt"]["survivors"] == 0
    said = problem(await sending.answer(), 410, "gone")
    assert (said["id"], said["receipt"]) == (task_id, answer.json["receipt"])
    assert not (server.data / "tasks" / task_id).exists()
    assert (await server.ask("GET", f"/tasks/{task_id}")).status == 410


async def test_its_child_is_killed(server: Server) -> None:
    """The request ends with 503 and the durable offset; nothing of it is retried by itself."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    send((await server.task(task_id))["child"]["pid"], signal.SIGKILL)
    answer = await sending.answer()
    said = problem(answer, 503, "interrupted")
    assert (said["offset"], answer.headers["Upload-Offset"]) == (HALF, str(HALF))
    task = await server.task(task_id)
    assert (task["status"], task["reason"], task["errors_left"]) == ("paused", "disconnected", 4)
    assert (await resume(server, task_id, CONTENT, HALF)).json["result"]["sha256"] == sha256(CONTENT)


async def test_its_child_is_stopped(server: Server) -> None:
    """One that takes nothing any more slows its client down, and is ended when that has gone."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    send((await server.task(task_id))["child"]["pid"], signal.SIGSTOP)
    sending.abort()
    task = await server.until_status(task_id, "paused")
    assert (task["reason"], task["checkpoint"]["state"]["received"]) == ("disconnected", HALF)


async def test_a_slow_child_slows_its_client(server: Server) -> None:
    """What the server holds of a body that nobody takes is bounded, however much the client has to send."""
    most = MIB + socket_buffers() + 12 * MIB
    sending, task_id = await flowing(server, bytes(2 * most), MIB)
    pid = (await server.task(task_id))["child"]["pid"]
    before = psutil.Process(server.pid).memory_info().rss
    send(pid, signal.SIGSTOP)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.5):
            while sending.sent < 2 * most:
                await sending.send(bytes(65_536))
    assert sending.sent < most, "beyond what the kernel keeps for the two ends, only the child's pipe takes some"
    assert psutil.Process(server.pid).memory_info().rss - before < 8 * MIB
    send(pid, signal.SIGCONT)
    assert (await server.verb(task_id, "terminate")).status == 200
    sending.abort()


async def test_nothing_comes_for_too_long(tmp_path: Path, way: dict[str, str]) -> None:
    """408 with the offset; the task is paused."""
    async with playing(tmp_path, **way, INTERMISSION_UPLOAD_IDLE_S="0.3") as server:
        sending, task_id = await flowing(server, CONTENT, HALF)
        answer = await sending.answer()
        assert problem(answer, 408, "idle")["offset"] == HALF
        assert (await server.task(task_id))["reason"] == "disconnected"
        assert (await resume(server, task_id, CONTENT, HALF)).status == 200


async def test_the_server_is_killed(tmp_path: Path, way: dict[str, str]) -> None:
    """At the next start the task waits for its client, at an offset that is not behind what was told before."""
    async with playing(tmp_path, **way) as server:
        sending, task_id = await flowing(server, CONTENT, HALF)
        told = int((await server.ask("HEAD", f"/upload/status?task={task_id}")).headers["Upload-Offset"])
        await server.kill()
        sending.abort()
        await server.start()
        answer = await server.ask("GET", f"/upload/status?task={task_id}")
        assert (answer.json["status"], answer.json["reason"]) == ("paused", "disconnected")
        offset = int(answer.headers["Upload-Offset"])
        assert told <= offset <= HALF
        assert (await resume(server, task_id, CONTENT, offset)).json["result"]["sha256"] == sha256(CONTENT)
        assert await content(server, task_id) == CONTENT


async def test_the_fork_server_is_killed(server: Server) -> None:
    """503 with the offset, like the death of the child alone."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    server.fork_server.kill()
    assert problem(await sending.answer(), 503, "interrupted")["offset"] == HALF
    assert (await resume(server, task_id, CONTENT, HALF)).json["result"]["sha256"] == sha256(CONTENT)


async def test_the_server_is_stopped(tmp_path: Path, way: dict[str, str]) -> None:
    """SIGTERM: the open request ends with an answer that says where to go on, and the next start does."""
    async with playing(tmp_path, **way) as server:
        sending, task_id = await flowing(server, CONTENT, HALF)
        stopping = asyncio.create_task(server.stop())
        assert problem(await sending.answer(), 503, "interrupted")["offset"] == HALF
        assert await stopping == 0
        await server.start()
        task = await server.task(task_id)
        assert (task["status"], task["reason"]) == ("paused", "disconnected")
        assert (await resume(server, task_id, CONTENT, HALF)).json["result"]["sha256"] == sha256(CONTENT)


# Refused.


async def test_lengths_that_lie(server: Server) -> None:
    """A body beyond the announced length is refused before a byte is taken; one without end, at its end."""
    before = await upload(server, b"first")
    problem(await upload(server, b"12345", Upload_Length="4"), 413, "too-long")
    assert await newest(server) == before.json["id"], "nothing was created"

    sending = await begin(server, "/upload/start", "Upload-Length: 4")
    await sending.send(chunk(b"12345") + chunk(b""))
    answer = await sending.answer()
    assert problem(answer, 413, "too-long")["offset"] == 4
    assert await content(server, await newest(server)) == b"1234"

    problem(
        await resume(server, (await upload(server, b"123", Upload_Length="4")).json["id"], b"12345", 3), 413, "too-long"
    )


async def test_more_than_there_is_space_for(server: Server) -> None:
    """Is found at the start: 507, and nothing is created."""
    before = await upload(server, b"first")
    problem(await server.ask("POST", "/upload/start", headers={"Upload-Length": str(2**62)}), 507, "no-space")
    assert await newest(server) == before.json["id"]


async def test_limits(tmp_path: Path, way: dict[str, str]) -> None:
    """The largest upload, and how many at once."""
    async with playing(tmp_path, **way, INTERMISSION_MAX_UPLOAD_BYTES=str(MIB), INTERMISSION_MAX_UPLOADS="2") as server:
        problem(await upload(server, bytes(MIB + 1)), 413, "too-large")
        problem(await upload(server, b"x", Upload_Length=str(MIB + 1)), 413, "too-large")
        assert (await server.ask("GET", "/tasks")).json["items"] == []

        sending = await begin(server, "/upload/start")
        await sending.send(chunk(bytes(MIB)) + chunk(b"x") + chunk(b""))
        problem(await sending.answer(), 413, "too-large")
        assert (await server.ask("GET", "/tasks")).json["items"] == [], "what can never end is not kept"

        assert (await upload(server, bytes(MIB))).status == 201
        sent = data(MIB)
        one, first = await flowing(server, sent, 1000)
        two, second = await flowing(server, sent, 1000)
        answer = await upload(server, b"data")
        problem(answer, 503, "crowded")
        assert int(answer.headers["Retry-After"]) >= 1
        assert first != second
        await one.send(sent[1000:])
        assert (await one.answer()).status == 201
        assert (await upload(server, b"data")).status == 201
        await two.send(sent[1000:])
        assert (await two.answer()).status == 201


@pytest.mark.parametrize(
    ("headers", "status", "slug"),
    [
        ({"Content-Type": "multipart/mixed; boundary=x"}, 415, "unsupported-media-type"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported-media-type"),
        ({"Repr-Digest": "sha-256=:AAAA:"}, 400, "malformed-header"),
        ({"Repr-Digest": "sha-256=xyz"}, 400, "malformed-header"),
        ({"Repr-Digest": "sha-256=:***:"}, 400, "malformed-header"),
    ],
)
async def test_what_is_not_taken(server: Server, headers: dict[str, str], status: int, slug: str) -> None:
    """A clear answer, and nothing is created."""
    before = await upload(server, b"first")
    problem(await server.ask("POST", "/upload/start", data=b"data", headers=headers), status, slug)
    assert await newest(server) == before.json["id"]


async def test_no_body_and_no_length(server: Server) -> None:
    """Is not taken for an empty file; one that says that it is empty is."""
    heard = await server.talk(b"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert heard.startswith(b"HTTP/1.1 411")
    assert (await upload(server, b"")).status == 201


async def test_a_digest_is_verified(server: Server) -> None:
    """The right one passes; with another one nothing is kept."""
    right = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    answer = await upload(server, CONTENT, Repr_Digest=f"sha-512=:AAAA:, sha-256=:{right}:")
    assert answer.status == 201
    problem(await upload(server, CONTENT, Repr_Digest=f"sha-256=:{wrong}:"), 422, "digest-mismatch")
    assert await newest(server) == answer.json["id"]
    only_other = await upload(server, CONTENT, Repr_Digest="sha-512=:AAAA:")
    assert only_other.status == 201, "an algorithm that is not known is left aside, as the RFC says"


async def test_by_the_way_of_other_services(server: Server) -> None:
    """An upload is started with its data only, and the others are not started with theirs."""
    answer = await server.ask("POST", "/tasks", json={"service": "upload"})
    assert problem(answer, 422, "invalid")["errors"][0]["pointer"] == "/service"


async def test_a_second_request_takes_over(server: Server) -> None:
    """It goes on where the first one stopped, which is told so; what the first one brought is kept."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    answer = await resume(server, task_id, CONTENT, HALF)
    assert (answer.status, answer.json["result"]["sha256"]) == (200, sha256(CONTENT))
    told = await sending.answer()
    assert problem(told, 409, "taken-over")["offset"] == HALF
    assert told.headers["Upload-Offset"] == str(HALF)
    assert [attempt["outcome"] for attempt in await attempts(server, task_id)] == ["disconnected", "completed"]
    problem(await resume(server, task_id, CONTENT, HALF), 409, "not-now")
    again = await resume(server, task_id, CONTENT, len(CONTENT))  # nothing is added: only an answer was lost
    assert (again.status, again.json["result"]) == (200, answer.json["result"])


async def test_of_many_requests_each_has_its_turn(server: Server) -> None:
    """Ten at once for the same place: their bytes are never mixed, and the upload ends as it should."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    answers = await asyncio.gather(*(resume(server, task_id, CONTENT, HALF) for _ in range(10)))
    assert {answer.status for answer in answers} <= {200, 409}
    assert (await sending.answer()).status == 409
    task = await server.task(task_id)
    if task["status"] != "completed":
        at = int((await server.ask("HEAD", f"/upload/status?task={task_id}")).headers["Upload-Offset"])
        task = (await resume(server, task_id, CONTENT, at)).json
    assert task["result"]["sha256"] == sha256(CONTENT)
    assert await content(server, task_id) == CONTENT


async def test_looking_does_not_take_over(server: Server) -> None:
    """GET and HEAD of the status disturb nothing."""
    sending, task_id = await flowing(server, CONTENT, HALF)
    for method in ("GET", "HEAD"):
        assert (await server.ask(method, f"/upload/status?task={task_id}")).status == 200
    await sending.send(CONTENT[HALF:])
    assert (await sending.answer()).json["result"]["sha256"] == sha256(CONTENT)
    assert len(await attempts(server, task_id)) == 1


async def test_several_at_once(server: Server) -> None:
    """Thirty at the same time, each exact."""
    contents = [data(300_000 + n, seed=n) for n in range(30)]
    answers = await asyncio.gather(*(upload(server, one, f"?filename={n}") for n, one in enumerate(contents)))
    for one, answer in zip(contents, answers, strict=True):
        assert answer.status == 201
        assert answer.json["result"]["sha256"] == sha256(one)
    for one, answer in zip(contents, answers, strict=True):
        assert await content(server, answer.json["id"]) == one


async def test_uploads_do_not_wait_for_places(tmp_path: Path, way: dict[str, str]) -> None:
    """They are not counted as running: with one place, taken, they go on, and take none from others."""
    async with playing(tmp_path, **way, INTERMISSION_MAX_RUNNING="1") as server:
        blocking = await server.launch("single", {"delay_s": 600})
        await server.until_status(blocking, "running")
        sending, task_id = await flowing(server, CONTENT, HALF)
        assert (await server.ask("GET", "/health")).json["running"] == 1
        assert (await server.verb(blocking, "pause")).status == 200
        other = await server.launch("printer", {"n": 0})
        await server.until_status(other, "completed")
        await sending.send(CONTENT[HALF:])
        assert (await sending.answer()).status == 201
        assert json.loads((await server.ask("GET", f"/tasks/{task_id}")).body)["status"] == "completed"


async def test_a_client_of_one_byte_at_a_time(server: Server) -> None:
    """Is served, and takes nothing from the others."""
    sent = data(200)
    sending = await begin(server, "/upload/start", length=len(sent))
    for n in range(len(sent)):
        await sending.send(sent[n : n + 1])
        await asyncio.sleep(0)
    assert (await sending.answer()).json["result"]["sha256"] == sha256(sent)


async def test_a_task_of_another_service(server: Server) -> None:
    """Is no upload, whatever it is sent."""
    task_id = await server.launch("steps", {"steps": 1_000_000})
    problem(await resume(server, task_id, b"data", 0), 404, "unknown-task")
    assert (await server.verb(task_id, "terminate")).status == 200
