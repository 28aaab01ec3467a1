"""Resumable uploads for HTTP, all around them: statements 20 to 25 of our list, pauses, and other origins' pages."""

import base64
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from harness import Server
from ietf_tools import CONTENT, FILES, HALF, START, Client, Told, as_json, limits, task_id
from upload_tools import chunk, newest
from verb_tools import playing

from intermission.supervisor import tokens

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST = 1_000_000
SECRET = "an ordinary secret, as it is told to nobody"
PAGE = "https://app.example.org"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server with a largest size, which other origins' pages may use."""
    settings = {"INTERMISSION_MAX_UPLOAD_BYTES": str(MOST), "INTERMISSION_CORS_ORIGINS": PAGE}
    async with playing(tmp_path_factory.mktemp("limited"), **settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def private(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server that wants tokens."""
    async with playing(tmp_path_factory.mktemp("private"), INTERMISSION_JWT_SECRET=SECRET) as running:
        assert running.session is not None
        running.session.headers["Authorization"] = bearer("anna").partition(": ")[2]
        yield running


def bearer(user: str, life_s: float = 3600) -> str:
    """The header of a user's token."""
    return f"Authorization: Bearer {tokens.sign(SECRET, user, admin=False, now=time.time(), life_s=life_s)}"


async def test_20_the_limits(server: Server, limited: Server) -> None:
    """Are told wherever an upload can begin or go on; `min-size=0` where there is none."""
    for at, told in ((server, "min-size=0"), (limited, f"max-size={MOST}")):
        for path in (START, FILES, await Client(at).create(3)):
            for version in (None, 6, 8):
                answer = await Client(at, version).ask("OPTIONS", path)
                assert (answer.status, answer.headers["Upload-Limit"]) == (204, told)
                assert answer.headers["Accept-Patch"] == "application/partial-upload"
    assert (await Client(server).ask("OPTIONS", f"{FILES}/01900000-0000-7000-8000-000000000000")).status == 404


async def test_20_of_an_upload(limited: Server) -> None:
    """In the 104 and each answer; how long it is kept, as long as it is not complete."""
    client = Client(limited)
    talk = await client.begin("POST", START, "Upload-Complete: ?0", length=3)
    seen = [(await talk.interim()).headers]
    await talk.send(b"abc")
    created = await talk.answer()
    seen += [created.headers, (await client.state(created.path)).headers]
    seen.append((await client.append(created.path, b"def", 3, "?0")).headers)
    for headers in seen:
        said = limits(headers["Upload-Limit"])
        assert (list(said), said["max-size"]) == (["max-size", "max-age"], MOST)
        assert 0 < said["max-age"] <= 7 * 86_400


async def test_21_more_than_is_taken(limited: Server) -> None:
    """Is 413 with the limit: before a byte of it is sent where it can be known, and else nothing of it is kept."""
    client, before = Client(limited), await newest(limited)
    told: list[Told] = []
    for complete, length in (("?1", ()), ("?0", ()), ("?0", (f"Upload-Length: {MOST + 1}",))):
        talk = await client.begin("POST", START, f"Upload-Complete: {complete}", *length, length=MOST + 1)
        told.append(await talk.answer())
        assert told[-1].interims == []
    assert await newest(limited) == before
    path = await client.create(None)
    talk = await client.begin_append(path, 0, "?1", length=MOST + 1)
    told.append(await talk.answer())
    assert (await client.state(path)).offset == 0
    talk = await client.begin_append(path, 0, "?0")
    with contextlib.suppress(ConnectionError):
        await talk.send(chunk(CONTENT[: MOST + 1]))
    told.append(await talk.answer())
    assert (await client.ask("HEAD", path)).status == 410
    for answer in told:
        answer.problem(413, "too-large")
        assert limits(answer.headers["Upload-Limit"])["max-size"] == MOST
        assert answer.complete is None


async def test_22_all_bytes_are_not_the_end(client: Client) -> None:
    """Only who says so ends it; it may be a request without a byte, in another generation of the server."""
    for length in (None, len(CONTENT)):
        path = await client.create(length)
        answer = await client.append(path, CONTENT, 0, "?0")
        assert (answer.status, answer.offset, answer.complete) == (204, len(CONTENT), "?0")
        answer = await client.append(path, b"", len(CONTENT), "?0")
        assert (answer.status, answer.complete) == (204, "?0")
        task = await client.task(path)
        assert (task["status"], task["reason"]) == ("paused", "awaiting_data")
        assert (await client.append(path, b"", len(CONTENT), "?1")).complete == "?1"
        assert as_json(await client.append(path, b"", len(CONTENT), "?1"))["status"] == "completed"
        assert await client.content(path) == CONTENT
    answer = await client.ask("POST", START, "Upload-Complete: ?0", "Upload-Length: 3", body=b"abc")
    assert (answer.status, answer.offset, answer.complete) == (201, 3, "?0")


async def test_23_codings(client: Client) -> None:
    """What is packed is refused, for nobody would unpack it; what was chunked counts without its chunks."""
    path, before = await client.create(), await newest(client.server)
    packed = "Content-Encoding: gzip"
    (await client.append(path, b"abc", 0, "?0", packed)).problem(415, "unsupported-media-type")
    (await client.ask("POST", START, "Upload-Complete: ?1", packed, body=b"abc")).problem(415, "unsupported-media-type")
    form = "Content-Type: multipart/form-data; boundary=x"
    (await client.ask("POST", START, "Upload-Complete: ?1", form, body=b"abc")).problem(415, "unsupported-media-type")
    assert await newest(client.server) == before
    for at in range(0, 9, 3):
        talk = await client.begin_append(path, at, "?0")
        await talk.send(chunk(b"a") + chunk(b"b") + chunk(b"c") + chunk(b""))
        assert (await talk.answer()).offset == at + 3


async def test_24_the_digest_of_all(client: Client) -> None:
    """Is given at the creation and verified at the end: one that is not right leaves nothing."""
    right = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    path = await client.create(None, f"Repr-Digest: sha-256=:{right}:")
    await client.append(path, CONTENT[:HALF], 0, "?0")
    assert (await client.append(path, CONTENT[HALF:], HALF, "?1")).status == 200
    path = await client.create(None, f"Repr-Digest: sha-256=:{right}:")
    assert (await client.append(path, CONTENT[:HALF], 0, "?0")).status == 204
    answer = await client.append(path, CONTENT[HALF:-1], HALF, "?1")
    answer.problem(422, "digest-mismatch")
    assert answer.complete == "?1", "all of it came: it is no use to resume it"
    assert (await client.ask("HEAD", path)).status == 410
    wrong = await client.ask("POST", START, "Upload-Complete: ?1", f"Repr-Digest: sha-256=:{right}:", body=b"abc")
    wrong.problem(422, "digest-mismatch")
    assert (wrong.complete, await newest(client.server) == task_id(path)) == ("?1", False)


async def test_24_the_digest_of_one_body(client: Client) -> None:
    """If it is not what was announced, nothing of that body is kept, and the upload goes on where it was."""
    right, wrong = (
        f"Content-Digest: sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
        for body in (CONTENT[HALF:], b"another")
    )
    path = await client.create()
    await client.append(path, CONTENT[:HALF], 0, "?0")
    for complete in ("?0", "?1"):
        answer = await client.append(path, CONTENT[HALF:], HALF, complete, wrong)
        answer.problem(422, "digest-mismatch")
        assert (answer.offset, answer.complete, answer.told("Upload-Offset")) == (HALF, "?0", [])
    assert (await client.append(path, CONTENT[HALF:], HALF, "?1", right, "Want-Repr-Digest: sha-256=1")).status == 200
    assert await client.content(path) == CONTENT
    answer = await client.ask("POST", START, "Upload-Complete: ?1", wrong, body=b"abc")
    answer.problem(422, "digest-mismatch")
    assert (answer.offset, answer.complete) == (0, "?0")
    assert (await client.append(answer.path, b"abc", 0, "?1")).status == 200


async def test_25_who_may(private: Server) -> None:
    """Is asked of each request, of the one that ends it too: an upload is its user's, and unguessable to others."""
    client = Client(private)
    path = await client.create(6, bearer("anna"))
    assert (await client.append(path, b"abc", 0, "?0", bearer("anna"))).status == 204
    for who, status in ((bearer("berta"), 404), (bearer("anna", life_s=-1), 401), ("X: y", 401)):
        assert (await client.append(path, b"def", 3, "?1", who)).status == status
        for method in ("HEAD", "GET", "DELETE"):
            answer = await client.ask(method, path, who)
            assert (answer.status, "Upload-Offset" in answer.headers) == (status, False)
    answer = await client.ask("HEAD", path, bearer("anna"))
    assert (answer.offset, answer.complete) == (3, "?0")
    assert (await client.append(path, b"def", 3, "?1", bearer("anna"))).status == 200


async def test_a_requested_pause_holds(client: Client) -> None:
    """It ends the request as something that must not be tried again, and refuses the next, until it is resumed."""
    talk, path = await client.flowing(HALF)
    upload = task_id(path)
    assert (await client.server.verb(upload, "pause")).status == 200
    cut = await talk.answer()
    assert cut.problem(423, "held")["task_status"] == "paused"
    assert (cut.offset, cut.complete, cut.path) == (HALF, "?0", path)
    for complete in ("?0", "?1"):
        refused = await client.append(path, CONTENT[HALF:], HALF, complete)
        refused.problem(423, "held")
        assert (refused.offset, refused.complete, refused.interims) == (HALF, "?0", [])
    assert (await client.state(path)).offset == HALF
    assert (await client.server.verb(upload, "resume")).status == 200
    talk = await client.hanging(path, HALF + 1000, at=HALF)
    assert (await client.server.verb(upload, "pause")).status == 200
    cut = await talk.answer()
    cut.problem(423, "held")
    assert (cut.offset, cut.complete) == (HALF + 1000, "?0")
    assert (await client.server.verb(upload, "resume")).status == 200
    assert (await client.append(path, CONTENT[HALF + 1000 :], HALF + 1000, "?1")).status == 200
    assert await client.content(path) == CONTENT


async def test_an_upload_that_is_terminated(client: Client) -> None:
    """Ends the request that brings it bytes, and is gone."""
    talk, path = await client.flowing(HALF)
    assert (await client.server.verb(task_id(path), "terminate")).status == 200
    (await talk.answer()).problem(410, "gone")
    assert (await client.ask("GET", path)).status == 410


async def test_another_origins_page(limited: Server) -> None:
    """May send and read all of it, in errors too."""
    client, origin = Client(limited, None), f"Origin: {PAGE}"
    asking = "Access-Control-Request-Method: PATCH"
    path = await client.create(3, origin)
    for where in (START, FILES, path):
        answer = await client.ask("OPTIONS", where, origin, asking)
        allowed = answer.headers["Access-Control-Allow-Headers"].lower()
        assert {"upload-complete", "upload-draft-interop-version", "upload-offset"} <= set(allowed.split(", "))
    answers = [
        await client.ask("GET", path, origin),
        await client.append(path, b"abc", 1, "?1", origin),
        await client.append(path, b"abc", 0, "?1", origin),
        await client.ask("POST", START, "Upload-Complete: ?0", origin, body=b""),
    ]
    assert [answer.status for answer in answers] == [204, 409, 200, 201]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        readable = set(answer.headers["Access-Control-Expose-Headers"].lower().split(", "))
        assert {"location", "upload-complete", "upload-limit", "upload-offset", "upload-length"} <= readable


async def test_a_disk_that_is_full(client: Client, tmp_path: Path) -> None:
    """Is said before anything is created."""
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    before = await newest(client.server)
    answer = await client.ask("POST", START, "Upload-Complete: ?0", f"Upload-Length: {free * 2}", body=b"")
    answer.problem(507, "no-space")
    assert await newest(client.server) == before
