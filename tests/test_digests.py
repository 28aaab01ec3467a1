"""Digests (RFC 9530): which are computed, what is verified with them, and who is told."""

import asyncio
import base64
import io
import json
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any, get_args

import pytest
import pytest_asyncio
from aiohttp.test_utils import make_mocked_request
from harness import Answer, Server, problem, send
from tus_tools import OCTETS, ask, checksum, create, offset, patch, task_id, unchanged
from upload_tools import MIB, WAYS, begin, chunk, crc32c, data, digests, flowing, newest, resume, sha256, upload
from verb_tools import attempts, nothing_left, playing

from intermission.handlers.digest import Algorithm, Crc32c
from intermission.supervisor.routes.digests import asked

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = data(3 * MIB + 12_345)
HALF = MIB + 7
CRC = {"Want_Repr_Digest": "crc32c=10"}
BOTH = "crc32c=10, sha-256=1"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(WAYS))
async def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server, whose uploads go the one or the other way."""
    async with playing(tmp_path_factory.mktemp("digests"), **WAYS[request.param]) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


def computed(answer: Answer | dict[str, Any]) -> tuple[str | None, str | None]:
    """The digests in the result of a task."""
    result = (answer if isinstance(answer, dict) else answer.json)["result"]
    return result["sha256"], result["crc32c"]


# Which are computed.


@pytest.mark.parametrize(
    ("value", "number"),
    [(b"123456789", "e3069283"), (bytes(32), "8a9136aa"), (b"\xff" * 32, "62a8ab43"), (b"", "0" * 8)],
)
async def test_it_is_the_crc32c_of_the_standard(value: bytes, number: str) -> None:
    """As RFC 3720, B.4 has it; and through a save at every byte."""
    found = Crc32c()
    for byte in value:
        found.update(bytes([byte]))
        found = Crc32c(found.save())
    assert (found.hexdigest(), found.digest().hex()) == (number, number)


@pytest.mark.parametrize("size", [0, 1, 65_536, MIB + 1, len(CONTENT)])
async def test_the_cheap_one_alone(server: Server, size: int) -> None:
    """Who wants nothing but CRC-32C gets it, and SHA-256 is not computed."""
    answer = await upload(server, CONTENT[:size], **CRC)
    assert (answer.status, computed(answer)) == (201, (None, crc32c(CONTENT[:size])))
    assert answer.headers["Repr-Digest"] == digests(CONTENT[:size], "crc32c")
    assert answer.json["checkpoint"]["state"]["digest"] == ""


@pytest.mark.parametrize(
    ("wanted", "sha", "crc"),
    [
        (None, True, False),
        ("sha-256=1", True, False),
        ("sha-256=0, crc32c=3", False, True),
        ("crc32c=10,sha-512=10", False, True),
        (BOTH, True, True),
        ("sha-512=10", True, False),
        ("sha-256=0", False, False),
        ("sha-256=0, crc32c=0, md5=3", False, False),
        ("crc32c=0", True, False),
        ("crc32c=11", True, False),
        ("crc32c=-1", True, False),
        ("crc32c=5.0", True, False),
        ("crc32c=5, sha-256=x", True, False),
        ("crc32c", True, False),
        ("crc32c=5,", True, False),
        ("", True, False),
    ],
)
async def test_which_are_computed(server: Server, wanted: str | None, sha: bool, crc: bool) -> None:
    """Those that are wanted; where none is that is known, or the wish is malformed, SHA-256, unless that is refused.

    Told is what was wanted.
    """
    answer = await upload(server, b"abc", **({} if wanted is None else {"Want_Repr_Digest": wanted}))
    assert computed(answer) == (sha256(b"abc") if sha else None, crc32c(b"abc") if crc else None)
    names = [name for name, is_computed in (("sha-256", sha), ("crc32c", crc)) if is_computed]
    is_known = wanted in {"sha-256=1", "sha-256=0, crc32c=3", "crc32c=10,sha-512=10", BOTH}
    assert answer.headers.get("Repr-Digest") == (digests(b"abc", *names) if is_known else None)


async def test_without_any(server: Server) -> None:
    """Who wants none is spared it: paused and resumed it is still whole, and what is announced is still checked."""
    sending, task_id = await flowing(server, CONTENT, 3 * MIB, "Want-Repr-Digest: sha-256=0")
    assert (await server.verb(task_id, "pause")).status == 200
    offset = (await sending.answer()).json["checkpoint"]["state"]["received"]
    answer = await resume(server, task_id, CONTENT, offset)
    assert (answer.status, computed(answer)) == (200, (None, None))
    got = await server.ask("GET", f"/tasks/{task_id}/files/content")
    assert got.body == CONTENT
    assert "Repr-Digest" not in got.headers
    wrong = await upload(server, b"abc", Want_Repr_Digest="sha-256=0", Repr_Digest=digests(b"abd", "sha-256"))
    problem(wrong, 422, "digest-mismatch")


async def test_it_is_part_of_what_a_key_stands_for(server: Server) -> None:
    """The same key for another digest is another start; what says nothing of digests is what it always was."""
    first = await upload(server, b"abc", Idempotency_Key="one", **CRC)
    again = await upload(server, b"abc", Idempotency_Key="one", **CRC)
    assert (again.json["id"], again.headers["Idempotency-Replayed"]) == (first.json["id"], "true")
    problem(await upload(server, b"abc", Idempotency_Key="one"), 422, "key-reused")
    assert asked(make_mocked_request("POST", "/upload/start")) == {"sha256": None}
    announced = make_mocked_request("POST", "/upload/start", {"Repr-Digest": digests(b"abc", "sha-256")})
    assert asked(announced) == {"sha256": sha256(b"abc")}


# What is verified.


@pytest.mark.parametrize("algorithms", [("crc32c",), ("crc32c", "sha-256"), ("sha-256",), ("sha-512", "crc32c")])
async def test_what_is_announced_is_verified(server: Server, algorithms: tuple[str, ...]) -> None:
    """All that are known, and they are what is computed; if one of them is wrong nothing is kept."""
    answer = await upload(server, CONTENT, Repr_Digest=digests(CONTENT, *algorithms))
    assert answer.status == 201
    sha, crc = computed(answer)
    assert (sha is not None, crc is not None) == ("sha-256" in algorithms, "crc32c" in algorithms)
    for wrong in set(algorithms) & {"sha-256", "crc32c"}:
        given = ", ".join(digests(b"other" if name == wrong else CONTENT, name) for name in algorithms)
        refused = await upload(server, CONTENT, Repr_Digest=given)
        problem(refused, 422, "digest-mismatch")
        assert refused.headers["Want-Repr-Digest"] == "sha-256=10, crc32c=5"
        assert await newest(server) == answer.json["id"]


async def test_announced_of_what_comes_in_parts(server: Server) -> None:
    """It is of the whole: verified at the end, whatever came between, with whatever else is wanted."""
    for announced, status in ((CONTENT, 200), (b"other", 422)):
        given = f"Repr-Digest: {digests(announced, 'crc32c')}"
        sending, upload_id = await flowing(server, CONTENT, HALF, given, "Want-Repr-Digest: sha-256=10")
        await server.verb(upload_id, "pause")
        await sending.answer()
        answer = await resume(server, upload_id, CONTENT, HALF)
        assert answer.status == status
        if status == 200:
            assert computed(answer) == (sha256(CONTENT), crc32c(CONTENT))
        else:
            problem(await server.ask("GET", f"/tasks/{upload_id}"), 410, "gone")


@pytest.mark.parametrize("algorithm", ["sha-512", "sha-256", "crc32c"])
@pytest.mark.parametrize("at", [0, HALF])
async def test_the_digest_of_one_body(server: Server, algorithm: str, at: int) -> None:
    """With the wrong one nothing of it is kept, what was there before is, and the same place takes the right bytes."""
    created = await server.ask("POST", "/upload/start", headers={"Upload-Length": str(len(CONTENT))})
    upload_id = created.json["id"]
    if at:
        await resume(server, upload_id, CONTENT[:at], 0)

    async def bring(digest: str) -> Answer:
        headers = {"Upload-Offset": str(at), "Content-Digest": digest}
        return await server.ask(
            "POST", f"/upload/resume?task={upload_id}", data=io.BytesIO(CONTENT[at:]), headers=headers
        )

    refused = await bring(digests(b"other", algorithm))
    assert problem(refused, 422, "digest-mismatch")["offset"] == at
    assert refused.headers["Upload-Offset"] == str(at)
    assert "sha-512=10" in refused.headers["Want-Content-Digest"]
    task = await server.task(upload_id)
    assert (task["status"], task["error"]["type"]) == ("paused", "ChecksumMismatch")
    assert (server.data / "tasks" / upload_id / "files" / "content").stat().st_size == at
    taken = await bring(digests(CONTENT[at:], algorithm))
    assert (taken.status, taken.json["result"]["sha256"]) == (200, sha256(CONTENT))
    assert await server.file(upload_id, "content") == CONTENT


async def test_the_digest_of_a_body_that_is_the_whole(server: Server) -> None:
    """Of a start it is the same; where several are said the strongest decides, and one that is not known is left."""
    answer = await upload(server, CONTENT, Content_Digest=f"md5=:AAAA:, {digests(CONTENT, 'crc32c', 'sha-512')}")
    assert answer.status == 201
    answer = await upload(server, CONTENT, Content_Digest="md5=:AAAA:")
    assert answer.status == 201
    given = f"{digests(CONTENT, 'crc32c')}, {digests(b'other', 'sha-512')}"
    refused = problem(await upload(server, CONTENT, Content_Digest=given), 422, "digest-mismatch")
    assert (refused["offset"], refused["task_status"]) == (0, "paused")


async def test_the_digest_of_a_body_without_a_length(server: Server) -> None:
    """Its end tells that it is whole, and then it is verified."""
    for announced, status in ((CONTENT, 201), (b"other", 422)):
        sending = await begin(server, "/upload/start", f"Content-Digest: {digests(announced, 'crc32c')}")
        await sending.send(chunk(CONTENT) + chunk(b""))
        assert (await sending.answer()).status == status


async def test_a_body_with_a_digest_that_breaks_off(server: Server) -> None:
    """Cannot be verified, so nothing of it is kept."""
    sending, upload_id = await begun(server)
    sending.abort()
    await server.until_status(upload_id, "paused")
    head = await server.ask("HEAD", f"/upload/status?task={upload_id}")
    assert head.headers["Upload-Offset"] == "0"
    assert (await resume(server, upload_id, CONTENT, 0)).json["result"]["sha256"] == sha256(CONTENT)


async def begun(server: Server) -> tuple[Any, str]:
    """An upload with a digest of its body, which has begun to come."""
    before = await newest(server)
    given = f"Content-Digest: {digests(CONTENT, 'crc32c')}"
    sending = await begin(server, "/upload/start", given, length=len(CONTENT))
    await sending.send(CONTENT[:HALF])
    upload_id = before
    async with asyncio.timeout(20):
        while upload_id == before:
            upload_id = await newest(server)
    await server.until_status(upload_id, "running")
    return sending, upload_id


@pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest"])
@pytest.mark.parametrize(
    "given",
    [
        "sha-256",
        "=:AAAA:",
        ":AAAA:",
        "crc32c=AAAAAA==",
        "crc32c=:AAAA",
        "crc32c=:AAAA:",
        "crc32c=:AAAAAAAA:",
        "crc32c=:AAAAA:",
        "crc32c=:AAA-AA==:",
        "sha-256=:4wWSgw==:",
        'crc32c="4waSgw=="',
        "crc32c=?1",
        "crc32c=11",
        "crc32c=-1",
        "crc32c=1.5",
        "crc32c=x",
        "crc32c=",
        "crc32c=:4waSgw==: sha-256=1",
        "unheard=x",
        ",",
        "sha-256=1,",
    ],
)
async def test_what_is_malformed(server: Server, header: str, given: str) -> None:
    """400 that says how it must be, and nothing is created."""
    before = await newest(server)
    answer = await server.ask("POST", "/upload/start", data=b"abc", headers={header: given})
    assert header in problem(answer, 400, "malformed-header")["detail"]
    assert answer.headers[f"Want-{header}"].endswith("crc32c=5")
    assert await newest(server) == before


@pytest.mark.parametrize(
    "given",
    [
        "crc32c=:NktxmQ==:",
        "crc32c=:NktxmQ:",
        " crc32c=:NktxmQ==:;a=b ,\tmd5=:AAAA:",
        "crc32c=:AAAAAA==:, crc32c=:NktxmQ==:",
    ],
)
async def test_what_is_well_formed(server: Server, given: str) -> None:
    """As RFC 8941 has it: padding may lack, parameters say nothing here, and of two the last one counts."""
    right = base64.b64encode(bytes.fromhex(crc32c(b"abc"))).decode().rstrip("=")
    answer = await upload(server, b"abc", Repr_Digest=given.replace("NktxmQ", right))
    assert (answer.status, computed(answer)) == (201, (None, crc32c(b"abc")))
    wrong = await upload(server, b"abd", Repr_Digest=given.replace("NktxmQ", right))
    problem(wrong, 422, "digest-mismatch")


# Who is told.


async def test_who_asks_is_told(server: Server) -> None:
    """Wherever a task is shown, what is wanted of what is known; not to who does not ask, and not before the end."""
    done = (await upload(server, CONTENT, Want_Repr_Digest=BOTH)).json["id"]
    begun = (await server.ask("POST", "/upload/start", headers={"Upload-Length": "3"})).json["id"]
    for path in (f"/upload/status?task={done}", f"/tasks/{done}"):
        for method in ("GET", "HEAD"):
            for wanted, names in (
                (BOTH, get_args(Algorithm)),
                ("crc32c=1", ["crc32c"]),
                ("sha-512=1", []),
                ("x", []),
                (None, []),
            ):
                headers = {} if wanted is None else {"Want-Repr-Digest": wanted}
                answer = await server.ask(method, path, headers=headers)
                assert answer.headers.get("Repr-Digest") == (digests(CONTENT, *names) or None)
    for path in (f"/upload/status?task={begun}", f"/tasks/{begun}"):
        answer = await server.ask("GET", path, headers={"Want-Repr-Digest": BOTH})
        assert (answer.status, "Repr-Digest" in answer.headers) == (200, False)
    counted = await server.launch("counter", {"limit": 1})
    await server.until_status(counted, "completed")
    answer = await server.ask("GET", f"/tasks/{counted}", headers={"Want-Repr-Digest": BOTH})
    assert (answer.status, "Repr-Digest" in answer.headers) == (200, False)


async def test_a_download_is_told(server: Server) -> None:
    """With the file its digest always comes, also with a part of it: it is that of the whole."""
    done = (await upload(server, CONTENT, Want_Repr_Digest=BOTH)).json["id"]
    path = f"/tasks/{done}/files/content"
    both = digests(CONTENT, "sha-256", "crc32c")
    whole = await server.ask("GET", path)
    assert (whole.headers["Repr-Digest"], whole.body) == (both, CONTENT)
    assert (await server.ask("HEAD", path)).headers["Repr-Digest"] == both
    part = await server.ask("GET", path, headers={"Range": "bytes=5-9", "Want-Repr-Digest": "crc32c=1"})
    assert (part.status, part.headers["Repr-Digest"]) == (206, digests(CONTENT, "crc32c"))
    other = await server.ask("GET", path, headers={"Want-Repr-Digest": "sha-512=1"})
    assert (other.status, "Repr-Digest" in other.headers) == (200, False)
    sending, upload_id = await flowing(server, CONTENT, HALF)
    unfinished = await server.ask("GET", f"/tasks/{upload_id}/files/content")
    assert (unfinished.status, "Repr-Digest" in unfinished.headers) == (200, False)
    sending.abort()
    await server.until_status(upload_id, "paused")


# Through everything.


@pytest.mark.parametrize("how", ["paused", "cut", "child killed", "server killed"])
async def test_crc32c_goes_on_in_another_process(server: Server, how: str) -> None:
    """Its state is in the checkpoint, so nothing is read again: what is told is that of all bytes."""
    sending, upload_id = await flowing(server, CONTENT, HALF, f"Want-Repr-Digest: {BOTH}")
    await sending.send(CONTENT[HALF : 2 * HALF])
    await server.until_progress(upload_id, 2 * HALF)
    match how:
        case "paused":
            await server.verb(upload_id, "pause")
            await sending.answer()
        case "cut":
            sending.abort()
        case "child killed":
            send((await server.task(upload_id))["child"]["pid"], signal.SIGKILL)
            problem(await sending.answer(), 503, "interrupted")
        case _:
            await server.kill()
            await server.start()
            sending.abort()
    task = await server.until_status(upload_id, "paused")
    state = task["checkpoint"]["state"]
    assert state["crc32c"] == crc32c(CONTENT[: state["received"]])
    assert (state["received"] == 2 * HALF) or "killed" in how
    answer = await resume(server, upload_id, CONTENT, state["received"])
    assert (answer.status, computed(answer)) == (200, (sha256(CONTENT), crc32c(CONTENT)))
    assert await server.file(upload_id, "content") == CONTENT
    assert len(await attempts(server, upload_id)) == 2


async def test_an_upload_of_an_earlier_version(server: Server) -> None:
    """Whose row knows nothing of any of this goes on, and comes to its SHA-256."""
    sending, upload_id = await flowing(server, CONTENT, HALF)
    await server.verb(upload_id, "pause")
    await sending.answer()
    assert await server.stop() == 0
    with closing(sqlite3.connect(server.data / "intermission.db")) as db, db:
        of = (upload_id,)
        (params,) = db.execute("SELECT params FROM tasks WHERE id = ?", of).fetchone()
        (state,) = db.execute("SELECT state FROM checkpoints WHERE task_id = ?", of).fetchone()
        params, state = json.loads(params), json.loads(state)
        del params["digests"], params["crc32c"], state["crc32c"]
        db.execute("UPDATE tasks SET params = ? WHERE id = ?", (json.dumps(params), upload_id))
        db.execute("UPDATE checkpoints SET state = ? WHERE task_id = ?", (json.dumps(state), upload_id))
    await server.start()
    answer = await resume(server, upload_id, CONTENT, HALF)
    assert (answer.status, computed(answer)) == (200, (sha256(CONTENT), None))


async def test_without_sha256_it_is_a_source_like_any_other(server: Server) -> None:
    """What reads an upload needs no digest of it."""
    kept = await upload(server, b"a,b\n1,2\n", "?filename=rows.csv", **CRC)
    params = {"source": f"upload:{kept.json['id']}"}
    answer = await server.ask("POST", "/csv/start", json=params, headers={"Prefer": "wait=20"})
    assert answer.json["result"] == {"rows": 1}


# By the way of tus.


async def test_tus_has_the_same(server: Server) -> None:
    """Wanted and announced at the creation, of each body beside its own checksum; a mismatch is tus's own answer."""
    path = await create(server, len(CONTENT), Want_Repr_Digest="crc32c=1", Repr_Digest=digests(CONTENT, "crc32c"))
    refused = await patch(server, path, CONTENT[:HALF], 0, Content_Digest=digests(b"other", "sha-256"))
    problem(refused, 460, "checksum-mismatch")
    taken = await patch(server, path, CONTENT[:HALF], 0, Content_Digest=digests(CONTENT[:HALF], "sha-256"))
    assert (taken.status, taken.headers["Upload-Offset"]) == (204, str(HALF))
    assert (await patch(server, path, CONTENT[HALF:], HALF)).status == 204
    assert computed(await server.task(task_id(path))) == (None, crc32c(CONTENT))


async def test_what_would_not_be_verified(server: Server) -> None:
    """Is refused, for whoever sends it relies on it: of two of one body, and of the whole if it was not announced."""
    path = await create(server, len(CONTENT), Repr_Digest=digests(CONTENT, "crc32c"))
    plain = await create(server, len(CONTENT))
    right, wrong = digests(CONTENT, "sha-256"), digests(b"other", "sha-256")
    for content in (right, wrong, "nonsense"):
        answer = await patch(server, path, CONTENT, 0, Upload_Checksum=checksum(CONTENT), Content_Digest=content)
        await unchanged(server, path, answer, 400, "unverified-digest")
    heads = [
        f"Tus-Resumable: 1.0.0\r\nContent-Type: {OCTETS}",
        f"Upload-Checksum: {checksum(b'')}",
        "Upload-Checksum: !",
    ]
    twice = await server.exactly(f"PATCH {path}", *heads, "Upload-Offset: 0")
    await unchanged(server, path, twice, 400, "unverified-digest")
    ietf = {"Upload-Draft-Interop-Version": "8", "Upload-Complete": "?1", "Upload-Offset": "0"}
    for address, announced in ((path, right), (path, digests(b"other", "crc32c")), (plain, right)):
        await unchanged(
            server, address, await patch(server, address, CONTENT, 0, Repr_Digest=announced), 400, "unverified-digest"
        )
        for method, where, more in (
            ("PATCH", address, {**ietf, "Content-Type": "application/partial-upload"}),
            ("POST", f"/upload/resume?task={task_id(address)}", {"Upload-Offset": "0"}),
        ):
            headers = {**more, "Repr-Digest": announced}
            refused = await server.ask(method, where, data=io.BytesIO(CONTENT), headers=headers)
            assert "Content-Digest" in problem(refused, 400, "unverified-digest")["detail"]
    assert await offset(server, path) == 0
    same = digests(CONTENT, "crc32c") + ", md5=:AAAA:"
    assert (await patch(server, path, CONTENT, 0, Repr_Digest=same)).status == 204


async def test_tus_tells_who_asks(server: Server) -> None:
    """With the answer that completes it and whenever it is looked at, as in a plain upload; never before."""
    both = digests(CONTENT, *get_args(Algorithm))
    path = await create(server, len(CONTENT), Want_Repr_Digest=BOTH)
    first = await patch(server, path, CONTENT[:HALF], 0, Want_Repr_Digest=BOTH)
    looked = await ask(server, "HEAD", path, Want_Repr_Digest=BOTH)
    assert [(answer.status, "Repr-Digest" in answer.headers) for answer in (first, looked)] == [
        (204, False),
        (200, False),
    ]
    last = await patch(server, path, CONTENT[HALF:], HALF, Want_Repr_Digest=BOTH)
    once_more = await patch(server, path, b"", len(CONTENT), Want_Repr_Digest=BOTH)
    assert [(answer.status, answer.headers["Repr-Digest"]) for answer in (last, once_more)] == [(204, both)] * 2
    for wanted, names in ((BOTH, get_args(Algorithm)), ("crc32c=1", ["crc32c"]), ("sha-512=1", []), (None, [])):
        looked = await ask(server, "HEAD", path, Want_Repr_Digest=wanted)
        assert (looked.status, looked.headers.get("Repr-Digest")) == (200, digests(CONTENT, *names) or None)
        forwarded = await ask(server, "POST", path, X_HTTP_Method_Override="HEAD", Want_Repr_Digest=wanted)
        assert forwarded.headers.get("Repr-Digest") == looked.headers.get("Repr-Digest")


async def test_tus_tells_at_the_creation(server: Server) -> None:
    """Of one that is complete with it: by its body, for want of a byte, or made of parts."""
    body = {"Content_Type": OCTETS, "Want_Repr_Digest": BOTH}
    whole = await ask(server, "POST", body=CONTENT, Upload_Length=str(len(CONTENT)), **body)
    assert (whole.status, whole.headers["Repr-Digest"]) == (201, digests(CONTENT, *get_args(Algorithm)))
    begun = await ask(server, "POST", body=CONTENT[:HALF], Upload_Length=str(len(CONTENT)), **body)
    assert (begun.status, "Repr-Digest" in begun.headers) == (201, False)
    empty = await ask(server, "POST", Upload_Length="0", Want_Repr_Digest="crc32c=1")
    assert (empty.status, empty.headers["Repr-Digest"]) == (201, digests(b"", "crc32c"))
    part = (await ask(server, "POST", body=b"abc", Upload_Concat="partial", Upload_Length="3", **body)).headers
    joined = await ask(
        server, "POST", Upload_Concat=f"final;{part['Location']} {part['Location']}", Want_Repr_Digest="crc32c=1"
    )
    assert (joined.status, joined.headers["Repr-Digest"]) == (201, digests(b"abcabc", "crc32c"))


async def test_at_its_own_address_by_the_other_protocol(server: Server) -> None:
    """HEAD and GET tell it there too, to who speaks the draft of resumable uploads and to who speaks neither."""
    done = (await upload(server, CONTENT, Want_Repr_Digest=BOTH)).json["id"]
    begun = (await server.ask("POST", "/upload/start", headers={"Upload-Length": "3"})).json["id"]
    for version in ({"Upload-Draft-Interop-Version": "8"}, {}):
        for method in ("HEAD", "GET"):
            for upload_id, wanted, told in (
                (done, {"Want-Repr-Digest": BOTH}, digests(CONTENT, *get_args(Algorithm))),
                (done, {}, None),
                (begun, {"Want-Repr-Digest": BOTH}, None),
            ):
                answer = await server.ask(method, f"/upload/files/{upload_id}", headers={**version, **wanted})
                assert (answer.status // 100, answer.headers.get("Repr-Digest")) == (2, told)


async def test_tus_keeps_nothing_that_was_not_announced(server: Server) -> None:
    """As in a plain upload: 422, and it is gone; made of parts it is the same."""
    path = await create(server, 3, Repr_Digest=digests(b"other", "crc32c"))
    problem(await patch(server, path, b"abc", 0), 422, "digest-mismatch")
    problem(await server.ask("GET", f"/tasks/{task_id(path)}"), 410, "gone")
    part = await ask(server, "POST", body=b"abc", Upload_Concat="partial", Upload_Length="3", Content_Type=OCTETS)
    address = part.headers["Location"]
    before = await newest(server)
    for announced, status in ((b"other", 422), (b"abcabc", 201)):
        given = {"Upload_Concat": f"final;{address} {address}", "Repr_Digest": digests(announced, "crc32c")}
        answer = await ask(server, "POST", **given)
        assert answer.status == status
        if status == 422:
            problem(answer, 422, "digest-mismatch")
            assert await newest(server) == before
    assert computed(await server.task(await newest(server))) == (None, crc32c(b"abcabc"))
