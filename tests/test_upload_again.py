"""An upload that is sent again under its Idempotency-Key: all of it, from the first byte, whatever is here of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from harness import Answer, Server, problem, until
from upload_tools import MIB, WAYS, begin, chunk, data, digests, newer, newest, sha256, upload
from verb_tools import nothing_left, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = data(3 * MIB + 12_345)
HALF = MIB + 7
FORM = "Content-Type: multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'


@pytest.fixture(scope="module", params=["direct", "copied"])
def way(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of a server whose uploads go the fast way, and of one that cannot do it."""
    return WAYS[request.param]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, way: dict[str, str]) -> AsyncIterator[Server]:
    """One server for the tests that need no settings of their own."""
    async with playing(tmp_path_factory.mktemp("again"), **way) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


def packed(kind: str, content: bytes) -> bytes:
    """The content as the body of a request of this kind."""
    return {
        "raw": content,
        "chunked": chunk(content) + chunk(b""),
        "form": PART + content + b"\r\n--b--\r\n",
    }[kind]


async def sent(server: Server, key: str, kind: str, content: bytes, *headers: str) -> Answer:
    """The start with all of it."""
    body, more = packed(kind, content), [f"Idempotency-Key: {key}", *headers]
    more += {"raw": [], "chunked": ["Transfer-Encoding: chunked"], "form": [FORM]}[kind]
    return await server.exactly("POST /upload/start", *more, body=body)


async def broken(server: Server, key: str, kind: str, content: bytes, upto: int) -> str:
    """The same start, of which so much came before its client went away; its id."""
    before = await newest(server)
    whole = packed(kind, content)
    begun = {"raw": content[:upto], "chunked": chunk(content[:upto]), "form": PART + content[:upto]}[kind]
    more = [FORM] if kind == "form" else []
    sending = await begin(
        server,
        "/upload/start",
        f"Idempotency-Key: {key}",
        *more,
        length=None if kind == "chunked" else len(whole),
    )
    await sending.send(begun)
    task_id = await newer(server, before)
    await server.until_progress(task_id, upto - 64)  # the end of what came of a form may be its boundary
    sending.abort()
    await server.until_status(task_id, "paused")
    return task_id


@pytest.mark.parametrize("kind", ["raw", "chunked", "form"])
@pytest.mark.parametrize("upto", [100, HALF])
async def test_after_its_client_was_cut_off(server: Server, kind: str, upto: int) -> None:
    """Trying again is all that a client needs to do: the answer is 201 when all of it is there."""
    task_id = await broken(server, f"cut-{kind}-{upto}", kind, CONTENT, upto)
    answer = await sent(server, f"cut-{kind}-{upto}", kind, CONTENT)
    assert (answer.status, answer.json["id"], answer.json["status"]) == (201, task_id, "completed")
    assert answer.headers["Idempotency-Replayed"] == "true"
    assert answer.json["result"]["sha256"] == sha256(CONTENT)
    assert await server.file(task_id, "content") == CONTENT


async def test_after_a_kill(tmp_path: Path, way: dict[str, str]) -> None:
    """So it is where the server was killed under it."""
    async with playing(tmp_path, **way) as server:
        before = await newest(server)
        sending = await begin(server, "/upload/start", "Idempotency-Key: k", length=len(CONTENT))
        await sending.send(CONTENT[:HALF])
        task_id = await newer(server, before)
        await server.until_progress(task_id, HALF)
        await server.kill()
        sending.abort()
        await server.start()
        answer = await sent(server, "k", "raw", CONTENT)
        assert (answer.status, answer.json["id"]) == (201, task_id)
        assert answer.json["result"]["sha256"] == sha256(CONTENT)


@pytest.mark.parametrize("kind", ["raw", "chunked", "form"])
async def test_when_it_is_complete(server: Server, kind: str) -> None:
    """It is compared, and nothing else is done with it; other data is refused, however long it is."""
    first = await sent(server, f"whole-{kind}", kind, CONTENT)
    again = await sent(server, f"whole-{kind}", kind, CONTENT)
    assert (first.status, again.status, again.json["id"]) == (201, 201, first.json["id"])
    assert (again.headers["Idempotency-Replayed"], again.json["attempt"]) == ("true", 1)
    other = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    lengths = [other] if kind == "raw" else [other, CONTENT[:-1], CONTENT + b"x", CONTENT[:5]]
    for different in lengths:
        problem(await sent(server, f"whole-{kind}", kind, different), 422, "key-reused")
    assert await server.file(first.json["id"], "content") == CONTENT
    assert (await server.task(first.json["id"]))["attempt"] == 1


async def test_other_data_for_a_part(server: Server) -> None:
    """It is refused at the first byte that is another, and what was there stays."""
    task_id = await broken(server, "other", "raw", CONTENT, HALF)
    other = CONTENT[: HALF - 1] + bytes([CONTENT[HALF - 1] ^ 1]) + CONTENT[HALF:]
    problem(await sent(server, "other", "raw", other), 422, "key-reused")
    answer = await sent(server, "other", "raw", CONTENT)
    assert (answer.status, answer.json["id"], answer.json["result"]["sha256"]) == (201, task_id, sha256(CONTENT))


async def test_a_part_again(server: Server) -> None:
    """A body that is less than what is here, of an announced length, is no other start, and takes nothing back."""
    length = f"Upload-Length: {len(CONTENT)}"
    first = await sent(server, "part", "raw", CONTENT[:HALF], length)
    less = await sent(server, "part", "raw", CONTENT[: HALF // 2], length)
    more = await sent(server, "part", "raw", CONTENT[: HALF + 5], length)
    for answer, offset in ((first, HALF), (less, HALF), (more, HALF + 5)):
        assert (answer.status, answer.json["id"], answer.json["reason"]) == (201, first.json["id"], "awaiting_data")
        assert answer.headers["Upload-Offset"] == str(offset)
    assert (await sent(server, "part", "raw", CONTENT, length)).json["result"]["sha256"] == sha256(CONTENT)


async def test_while_the_first_request_still_brings_it(server: Server) -> None:
    """It takes over, as a client comes back before its broken connection is noticed."""
    before = await newest(server)
    first = await begin(server, "/upload/start", "Idempotency-Key: beside", length=len(CONTENT))
    await first.send(CONTENT[:HALF])
    task_id = await newer(server, before)
    await server.until_progress(task_id, HALF)
    answer = await sent(server, "beside", "raw", CONTENT)
    assert (answer.status, answer.json["id"], answer.json["result"]["sha256"]) == (201, task_id, sha256(CONTENT))
    problem(await first.answer(), 409, "taken-over")


async def test_many_at_once(server: Server) -> None:
    """One upload comes of them; those that were taken over from are told so."""
    answers = await asyncio.gather(*(sent(server, "many", "raw", CONTENT) for _ in range(6)))
    assert {answer.status for answer in answers} <= {201, 409}
    whole = [answer for answer in answers if answer.status == 201]
    assert whole
    assert {(answer.json["id"], answer.json["status"]) for answer in whole} == {(whole[0].json["id"], "completed")}
    assert {answer.json["id"] for answer in answers} == {whole[0].json["id"]}
    assert await server.file(whole[0].json["id"], "content") == CONTENT


async def test_when_somebody_has_paused_it(server: Server) -> None:
    """A pause that was asked for holds against a client that tries again by itself."""
    before = await newest(server)
    first = await begin(server, "/upload/start", "Idempotency-Key: held", length=len(CONTENT))
    await first.send(CONTENT[:HALF])
    task_id = await newer(server, before)
    await server.until_progress(task_id, HALF)
    await server.verb(task_id, "pause")
    await first.answer()
    answer = await sent(server, "held", "raw", CONTENT)
    problem(answer, 423, "held")
    assert answer.headers["Upload-Offset"] == str(HALF)
    await server.verb(task_id, "resume")
    assert (await sent(server, "held", "raw", CONTENT)).json["result"]["sha256"] == sha256(CONTENT)


async def test_a_digest_of_the_body(server: Server) -> None:
    """Is verified, or refused where nobody could; never believed."""
    first = await sent(server, "digest", "raw", CONTENT)
    right = await sent(server, "digest", "raw", CONTENT, f"Content-Digest: {digests(CONTENT, 'sha-256')}")
    assert (right.status, right.json["id"]) == (201, first.json["id"])
    wrong = await sent(server, "digest", "raw", CONTENT, f"Content-Digest: {digests(b'other', 'sha-256')}")
    problem(wrong, 422, "key-reused")
    await broken(server, "half", "raw", CONTENT, HALF)
    half = await sent(server, "half", "raw", CONTENT, f"Content-Digest: {digests(CONTENT, 'sha-256')}")
    problem(half, 409, "offset")
    assert half.headers["Upload-Offset"] == str(HALF)


async def test_what_was_announced_need_not_come_again(server: Server) -> None:
    """The digest that both announce has been verified: who asks first does not send the body."""
    announced = {"Idempotency_Key": "announced", "Repr_Digest": digests(CONTENT, "sha-256")}
    first = await upload(server, CONTENT, **announced)
    assert first.status == 201
    sending = await begin(
        server,
        "/upload/start",
        *(
            "Idempotency-Key: announced",
            f"Repr-Digest: {digests(CONTENT, 'sha-256')}",
            "Content-Type: application/octet-stream",
        ),
        "Expect: 100-continue",
        length=len(CONTENT),
    )
    answer = await sending.answer()
    assert (answer.status, answer.json["id"], answer.headers["Idempotency-Replayed"]) == (201, first.json["id"], "true")


async def test_nothing_comes_while_it_is_compared(tmp_path: Path, way: dict[str, str]) -> None:
    """A client that falls silent is let go, and what is here stays."""
    async with playing(tmp_path, INTERMISSION_UPLOAD_IDLE_S="1", **way) as server:
        task_id = await broken(server, "idle", "raw", CONTENT, HALF)
        sending = await begin(server, "/upload/start", "Idempotency-Key: idle", length=len(CONTENT))
        await sending.send(CONTENT[:1000])
        answer = await sending.answer()
        problem(answer, 408, "idle")
        assert answer.headers["Upload-Offset"] == str(HALF)
        assert (await sent(server, "idle", "raw", CONTENT)).json["id"] == task_id


async def test_a_service_that_keeps_no_file(server: Server) -> None:
    """Nothing is there to compare with: one that is complete stands, and the rest of another is asked for."""
    for _ in range(2):
        whole = await server.exactly("POST /tally/start", "Idempotency-Key: tally-whole", body=CONTENT)
        assert (whole.status, whole.json["status"], whole.json["attempt"]) == (201, "completed", 1)
    sending = await begin(server, "/tally/start", "Idempotency-Key: tally-part", length=len(CONTENT))
    await sending.send(CONTENT[:HALF])
    before = whole.json["id"]

    async def begun() -> bool:
        return await newest(server, "tally") != before

    await until(begun)
    task_id = await newest(server, "tally")
    await server.until(task_id, lambda task: task["progress"])  # it is two blocks behind what has come
    sending.abort()
    await server.until_status(task_id, "paused")
    again = await server.exactly("POST /tally/start", "Idempotency-Key: tally-part", body=CONTENT)
    problem(again, 409, "offset")
    offset = int(again.headers["Upload-Offset"])
    path = f"POST /tally/resume?task={task_id}"
    rest = await server.exactly(path, f"Upload-Offset: {offset}", body=CONTENT[offset:])
    assert (rest.status, rest.json["status"]) == (200, "completed")
