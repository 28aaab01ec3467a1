"""An upload by each of the ways to bring it, plain, tus and the draft of the IETF: what one of them tells, all tell."""

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

import pytest
import pytest_asyncio
from harness import Answer, Server, send
from ietf_tools import PARTIAL
from tus_tools import FILES, OCTETS
from upload_tools import MIB, Sending, begin, data, digests, newer, newest
from verb_tools import nothing_left, playing
from yarl import URL

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT: Final = data(2 * MIB)
HALF: Final = MIB + 7
VERSION: Final = "Upload-Draft-Interop-Version"


@dataclass(frozen=True)
class Face:
    """How one protocol says what all of them can say."""

    start: str
    said: dict[str, str] = field(default_factory=dict)
    """With each request."""
    begins: dict[str, str] = field(default_factory=dict)
    """With a creation that brings all of the data."""
    brings: dict[str, str] = field(default_factory=dict)
    """With some more of it."""
    goes_on: str = f"PATCH {FILES}/{{id}}"
    looks: tuple[str, ...] = (f"HEAD {FILES}/{{id}}", f"GET {FILES}/{{id}}", f"OPTIONS {FILES}/{{id}}")

    async def ask(self, server: Server, line: str, body: bytes | None = None, **headers: str) -> Answer:
        """Any request."""
        method, _, path = line.partition(" ")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = None if body is None else io.BytesIO(body)
        return await server.ask(
            method, path, data=content, headers={**self.said, **named}, skip_auto_headers=["Content-Type"]
        )

    async def create(self, server: Server, **headers: str) -> Answer:
        """An upload without a byte."""
        more = {"Upload_Complete": "?0"} if "Upload-Complete" in self.begins else {}
        return await self.ask(server, f"POST {self.start}", **{"Upload_Length": str(len(CONTENT)), **more, **headers})

    async def bring(self, server: Server, upload_id: str, body: bytes, at: int, **headers: str) -> Answer:
        """Bytes for a place."""
        named = {name.replace("-", "_"): value for name, value in self.brings.items()}
        line = self.goes_on.format(id=upload_id)
        return await self.ask(server, line, body, **{"Upload_Offset": str(at), **named, **headers})

    async def flowing(self, server: Server) -> tuple[Sending, str]:
        """A creation with all of the data, of which a part has come; and its id. No 104 is asked for."""
        before = await newest(server)
        headers = (f"{name}: {value}" for name, value in {**self.said, **self.begins}.items() if name != VERSION)
        sending = await begin(server, self.start, *headers, length=len(CONTENT))
        await sending.send(CONTENT[:HALF])
        upload_id = await newer(server, before)
        await server.until_progress(upload_id, HALF)
        return sending, upload_id


FACES: Final = {
    "plain": Face(
        "/upload/start",
        goes_on="POST /upload/resume?task={id}",
        looks=("HEAD /upload/status?task={id}", "GET /upload/status?task={id}", "OPTIONS /upload/start"),
    ),
    "tus": Face(
        FILES,
        {"Tus-Resumable": "1.0.0"},
        {"Upload-Length": str(len(CONTENT)), "Content-Type": OCTETS},
        {"Content-Type": OCTETS},
    ),
    "ietf": Face(
        "/upload/start",
        {VERSION: "8"},
        {"Upload-Complete": "?1"},
        {"Content-Type": PARTIAL, "Upload-Complete": "?0"},
    ),
}


@pytest.fixture(params=list(FACES))
def face(request: pytest.FixtureRequest) -> Face:
    """Each of them."""
    return FACES[request.param]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here; it does not wait long for what does not come."""
    async with playing(tmp_path_factory.mktemp("faces"), INTERMISSION_UPLOAD_IDLE_S="1") as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


def slug(answer: Answer) -> str:
    """What a problem is called."""
    return str(answer.json["type"]).replace("#", "/").rpartition("/")[2]


async def created(server: Server, face: Face) -> str:
    """An upload without a byte; its id."""
    answer = await face.create(server)
    assert answer.status == 201, answer.body
    return URL(answer.headers["Location"]).name


async def test_a_query_that_nobody_knows(server: Server, face: Face) -> None:
    """Is refused wherever it is said, and not left aside by some."""
    upload_id = await created(server, face)
    for line in (*face.looks, face.goes_on):
        address = line.format(id=upload_id)
        refused = await face.ask(server, f"{address}{'&' if '?' in address else '?'}nonsense=1")
        assert refused.status == 422, line
    for line in face.looks:
        assert (await face.ask(server, line.format(id=upload_id))).status in {200, 204}


async def test_the_same_creation_again(server: Server, face: Face) -> None:
    """With its key it is the one before; another one with that key is refused."""
    key = f"key of {face.start} {face.said}".replace(" ", "_")
    first, again = [await face.create(server, Idempotency_Key=key) for _ in range(2)]
    assert (first.status, again.status) == (201, 201)
    assert ("Idempotency-Replayed" in first.headers, again.headers["Idempotency-Replayed"]) == (False, "true")
    assert first.headers["Location"] == again.headers["Location"]
    other = await face.create(server, Idempotency_Key=key, Upload_Length="1")
    assert (other.status, slug(other)) == (422, "key-reused")
    malformed = await face.create(server, Idempotency_Key="two words")
    assert (malformed.status, slug(malformed)) == (400, "malformed-header")


async def test_another_offset(server: Server, face: Face) -> None:
    """Tells of which upload, how it is, what it can be told, and where it goes on."""
    upload_id = await created(server, face)
    await face.bring(server, upload_id, CONTENT[:HALF], 0)
    answer = await face.bring(server, upload_id, b"abc", 5)
    said = answer.json
    assert (answer.status, answer.headers["Upload-Offset"]) == (409, str(HALF))
    assert (said["id"], said["task_status"], said["offset"]) == (upload_id, "paused", HALF)
    assert said["allowed"] == (await server.task(upload_id))["allowed"]


async def test_a_packed_body(server: Server, face: Face) -> None:
    """Is told how it would be taken (RFC 9110, section 15.5.16)."""
    upload_id = await created(server, face)
    answer = await face.bring(server, upload_id, b"abc", 0, Content_Encoding="gzip")
    assert (answer.status, answer.headers["Accept-Encoding"]) == (415, "identity")


@pytest.mark.parametrize("how", ["idle", "child killed", "paused"])
async def test_a_creation_that_is_cut_short(server: Server, face: Face, how: str) -> None:
    """Tells where the upload is and how far: it is kept."""
    sending, upload_id = await face.flowing(server)
    if how == "child killed":
        send((await server.task(upload_id))["child"]["pid"])
    elif how == "paused":
        await server.verb(upload_id, "pause")
    answer = await sending.answer()
    assert answer.status in {"idle": {408}, "child killed": {503}, "paused": {200, 423}}[how]
    assert URL(answer.headers["Location"]).name == upload_id
    offset = int(answer.headers["Upload-Offset"])
    assert (await face.ask(server, face.looks[0].format(id=upload_id))).headers["Upload-Offset"] == str(offset)


async def test_a_creation_whose_body_is_not_what_it_says(server: Server, face: Face) -> None:
    """Tells which digests can be checked."""
    headers = {name.replace("-", "_"): value for name, value in face.begins.items()}
    wrong = digests(b"other", "crc32c")
    answer = await face.ask(server, f"POST {face.start}", CONTENT, Content_Digest=wrong, **headers)
    assert (answer.status, slug(answer)) in {(422, "digest-mismatch"), (460, "checksum-mismatch")}
    assert answer.headers["Want-Content-Digest"] == "sha-512=10, sha-256=9, crc32c=5"


async def test_a_post_that_overrides_nothing(server: Server) -> None:
    """Is told all that the address takes."""
    upload_id = await created(server, FACES["tus"])
    answer = await server.ask("POST", f"{FILES}/{upload_id}")
    assert answer.status == 405
    assert set(answer.headers["Allow"].split(",")) == {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH"}


async def test_the_same_creation_again_by_tus_with_its_bytes(server: Server) -> None:
    """They are not taken a second time, and a request that still brings the first ones is stopped."""
    tus = FACES["tus"]
    headers = {name.replace("-", "_"): value for name, value in tus.begins.items()}
    first = await tus.ask(server, f"POST {FILES}", CONTENT[:HALF], Idempotency_Key="bytes", **headers)
    again = await tus.ask(server, f"POST {FILES}", CONTENT[:HALF], Idempotency_Key="bytes", **headers)
    assert [(answer.status, answer.headers["Upload-Offset"]) for answer in (first, again)] == [(201, str(HALF))] * 2
    upload_id = URL(again.headers["Location"]).name
    assert (await tus.bring(server, upload_id, CONTENT[HALF:], HALF)).status == 204
    assert await server.file(upload_id, "content") == CONTENT
    done = await tus.ask(server, f"POST {FILES}", CONTENT[:HALF], Idempotency_Key="bytes", **headers)
    assert (done.status, done.headers["Upload-Offset"]) == (201, str(len(CONTENT)))
    assert first.headers["Location"] == again.headers["Location"] == done.headers["Location"]


async def test_the_same_creation_again_of_what_has_not_ended(server: Server) -> None:
    """Who hears that all is there sends nothing more: by tus it is complete then, without the bytes sent again."""
    tus, ietf = FACES["tus"], FACES["ietf"]
    headers = {name.replace("-", "_"): value for name, value in tus.begins.items()}
    first = await tus.ask(server, f"POST {FILES}", CONTENT[:HALF], Idempotency_Key="end", **headers)
    upload_id = URL(first.headers["Location"]).name
    assert (await ietf.bring(server, upload_id, CONTENT[HALF:], HALF)).status == 204
    assert (await server.task(upload_id))["reason"] == "awaiting_data"
    again = await tus.ask(server, f"POST {FILES}", CONTENT[:HALF], Idempotency_Key="end", **headers)
    assert (again.status, again.headers["Upload-Offset"]) == (201, str(len(CONTENT)))
    assert (await server.task(upload_id))["status"] == "completed"
    assert await server.file(upload_id, "content") == CONTENT


async def test_the_same_creation_again_by_tus_of_parts(server: Server) -> None:
    """They are joined once."""
    tus = FACES["tus"]
    part = await tus.ask(
        server, f"POST {FILES}", b"abc", Upload_Concat="partial", Upload_Length="3", Content_Type=OCTETS
    )
    concat = f"final;{part.headers['Location']}"
    first, again = [
        await tus.ask(server, f"POST {FILES}", Upload_Concat=concat, Idempotency_Key="parts") for _ in range(2)
    ]
    assert (first.status, again.status, again.headers["Upload-Offset"]) == (201, 201, "3")
    assert first.headers["Location"] == again.headers["Location"]
    assert await newest(server) == URL(again.headers["Location"]).name
