"""tus 1.0.0, the core: statements 1 to 28 of our list, each a test named by its number."""

import asyncio
import contextlib
import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Answer, Server, parsed, problem
from tus_tools import (
    CONTENT,
    FILES,
    HALF,
    OCTETS,
    ask,
    begin,
    content,
    create,
    hanging,
    head,
    metadata,
    offset,
    patch,
    task_id,
    unchanged,
)
from upload_tools import MIB, chunk, newest, sha256, upload
from verb_tools import attempts, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN = f"{FILES}/01900000-0000-7000-8000-000000000000"


async def test_1_every_answer_says_the_version(server: Server) -> None:
    """Also those of routes that are not there, and of requests that never reach one."""
    path = await create(server)
    answers = [
        await ask(server, "POST", Upload_Length="3"),
        await ask(server, "HEAD", path),
        await patch(server, path, b"abc", 0),
        await patch(server, path, b"abc", 0),
        await patch(server, UNKNOWN, b"abc", 0),
        await ask(server, "HEAD", UNKNOWN),
        await ask(server, "PUT", path),
        await ask(server, "HEAD", f"{FILES}/none/of/this"),
        await ask(server, "POST", Upload_Length="3", Tus_Resumable="0.2.2"),
        await ask(server, "POST", Upload_Length="3", Host="example.org"),
        await ask(server, "POST", Upload_Length="3", Expect="200-ok"),
        await ask(server, "DELETE", path),
        await ask(server, "DELETE", path),
    ]
    assert [answer.status for answer in answers] == [201, 200, 204, 409, 404, 404, 405, 404, 412, 403, 417, 204, 410]
    assert {answer.headers.get("Tus-Resumable") for answer in answers} == {"1.0.0"}


@pytest.mark.parametrize("version", ["0.2.2", "1.0", "2.0.0", "", None])
async def test_2_another_version(server: Server, version: str | None) -> None:
    """Is 412 with the version that there is, and the body is left alone; HEAD may leave it out."""
    path = await create(server)
    refused = [
        await ask(server, "POST", Upload_Length="3", Tus_Resumable=version),
        await patch(server, path, b"abc", 0, Tus_Resumable=version),
        await ask(server, "DELETE", path, Tus_Resumable=version),
    ]
    if version is None:
        assert (await ask(server, "HEAD", path, Tus_Resumable=None)).status == 200
    else:
        refused.append(await ask(server, "HEAD", path, Tus_Resumable=version))
    for answer in refused:
        assert (answer.status, answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert await newest(server) == task_id(path)
    assert await offset(server, path) == 0


async def test_3_the_method_may_be_said_otherwise(server: Server) -> None:
    """By POST alone, of an upload alone; what is no method of tus is 400."""
    path = await create(server)
    override = "X_HTTP_Method_Override"
    named = {"Content_Type": OCTETS, "Upload_Offset": "0"}
    answer = await ask(server, "POST", path, b"abc", **named, **{override: "PATCH"})
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, "3")
    answer = await ask(server, "POST", path, **{override: "HEAD"})
    assert (answer.status, answer.headers["Upload-Offset"]) == (200, "3")
    for method in ("GET", "PUT", "patch", "TRACE", ""):
        await unchanged(
            server, path, await ask(server, "POST", path, **{override: method}), 400, "malformed-header", at=3
        )
    problem(await ask(server, "POST", Upload_Length="3", **{override: "PATCH"}), 400, "malformed-header")
    problem(await ask(server, "POST", path), 405, "method-not-allowed")
    assert (await ask(server, "HEAD", path, **{override: "DELETE"})).status == 200, "only POST can be another"
    assert (await ask(server, "POST", path, **{override: "DELETE"})).status == 204
    assert (await ask(server, "HEAD", path)).status == 410


@pytest.mark.parametrize("number", ["-1", "1e3", "+5", "5 6", "", "0x10", "5,5", "1.0", str(2**63), "9" * 40])
async def test_4_numbers_that_are_none(server: Server, number: str) -> None:
    """400, and nothing is created or changed."""
    path = await create(server, None)
    line = "Tus-Resumable: 1.0.0"
    answer = await server.exactly(f"POST {FILES}", line, f"Upload-Length: {number}")
    problem(answer, 400, "malformed-header")
    assert await newest(server) == task_id(path)
    typed = f"Content-Type: {OCTETS}"
    answer = await server.exactly(f"PATCH {path}", line, typed, f"Upload-Offset: {number}", body=b"abc")
    await unchanged(server, path, answer, 400, "malformed-header")
    length = f"Upload-Length: {number}"
    answer = await server.exactly(f"PATCH {path}", line, typed, "Upload-Offset: 0", length, body=b"abc")
    await unchanged(server, path, answer, 400, "malformed-header")


async def test_5_what_there_is(tmp_path: Path, server: Server) -> None:
    """Version and extensions; the largest size where there is one."""
    answer = await ask(server, "OPTIONS")
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert set(answer.headers["Tus-Extension"].split(",")) == {
        "creation",
        "creation-with-upload",
        "creation-defer-length",
        "checksum",
        "expiration",
        "termination",
        "concatenation",
    }
    assert "Tus-Max-Size" not in answer.headers
    async with playing(tmp_path, INTERMISSION_MAX_UPLOAD_BYTES="1234") as limited:
        assert (await ask(limited, "OPTIONS")).headers["Tus-Max-Size"] == "1234"


@pytest.mark.parametrize("version", [None, "0.2.2"])
async def test_6_options_are_told_to_everybody(server: Server, version: str | None) -> None:
    """Whatever version they speak."""
    answer = await ask(server, "OPTIONS", Tus_Resumable=version)
    assert (answer.status, answer.headers["Tus-Version"]) == (204, "1.0.0")
    assert "sha1" in answer.headers["Tus-Checksum-Algorithm"].split(",")


async def test_7_head_says_the_offset(server: Server) -> None:
    """At the beginning, in the middle and at the end."""
    path = await create(server, 10)
    assert await offset(server, path) == 0
    await patch(server, path, b"01234", 0)
    assert await offset(server, path) == 5
    await patch(server, path, b"56789", 5)
    assert await offset(server, path) == 10
    assert (await server.task(task_id(path)))["status"] == "completed"


async def test_8_head_says_the_length(server: Server) -> None:
    """Or that it is still to come; of an upload that did not begin with tus, too."""
    answer = await head(server, await create(server, 10))
    assert (answer.headers["Upload-Length"], "Upload-Defer-Length" in answer.headers) == ("10", False)
    answer = await head(server, await create(server, None))
    assert (answer.headers["Upload-Defer-Length"], "Upload-Length" in answer.headers) == ("1", False)
    plain = await upload(server, CONTENT)
    answer = await head(server, f"{FILES}/{plain.json['id']}")
    assert answer.headers["Upload-Length"] == answer.headers["Upload-Offset"] == str(len(CONTENT))


async def test_9_head_is_not_kept_by_caches(server: Server) -> None:
    """Cache-Control: no-store."""
    assert (await head(server, await create(server))).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "given",
    [
        metadata(filename="a.bin", filetype="image/png"),
        "b YQ==,a  , c",
        "z,y YQ==, x\tYg==".replace("\t", " "),
        "filename 5pel5pys6KqeLnR4dA==,empty ,alone",
    ],
)
async def test_10_metadata_come_back_as_they_were(server: Server, given: str) -> None:
    """Byte for byte, order and spaces too."""
    path = await create(server, Upload_Metadata=given)
    assert (await head(server, path)).headers["Upload-Metadata"] == given
    await patch(server, path, CONTENT, 0)
    assert (await head(server, path)).headers["Upload-Metadata"] == given
    assert "Upload-Metadata" not in (await head(server, await create(server))).headers


async def test_11_head_of_what_is_not_there(server: Server) -> None:
    """404, or 410 of what is there no more, and no offset; so of a task that is no upload."""
    other = await server.launch("printer", {"n": 0})
    for path in (UNKNOWN, f"{FILES}/nonsense", f"{FILES}/{other}"):
        answer = await ask(server, "HEAD", path)
        assert (answer.status, "Upload-Offset" in answer.headers) == (404, False)
    path = await create(server)
    assert (await server.verb(task_id(path), "terminate")).status == 200
    answer = await ask(server, "HEAD", path)
    assert (answer.status, "Upload-Offset" in answer.headers) == (410, False)


async def test_12_head_takes_over(server: Server) -> None:
    """With a PATCH that hangs it is answered in under 200 ms, and what it says is where the next PATCH goes on."""
    path = await create(server)
    took_s = []
    for n in range(5):  # the machine may be busy with something else for a moment, but not each time
        upto = (n + 1) * 300_000
        sending = await hanging(server, path, CONTENT, upto, at=n * 300_000)
        began = time.monotonic()
        at = await offset(server, path)
        took_s.append(time.monotonic() - began)
        assert at == upto, "what came is kept"
        told = await sending.answer()
        assert problem(told, 409, "taken-over")["offset"] == upto
        assert told.headers["Upload-Offset"] == str(upto)
    assert (await patch(server, path, CONTENT[at:], at)).status == 204
    assert await content(server, path) == CONTENT
    assert min(took_s) < 0.2, took_s


async def test_13_head_says_nothing_of_a_content(server: Server) -> None:
    """Content-Length is not the upload's."""
    path = await create(server, 10)
    await patch(server, path, b"01234", 0)
    assert (await head(server, path)).headers.get("Content-Length", "0") == "0"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/octet-stream", "multipart/form-data; boundary=x"])
async def test_14_another_content_type(server: Server, kind: str | None) -> None:
    """Is 415, and not one byte is stored."""
    path = await create(server)
    answer = await patch(server, path, CONTENT, 0, Content_Type=kind)
    await unchanged(server, path, answer, 415, "unsupported-media-type")
    assert (await server.task(task_id(path)))["attempt"] == 0
    kept = server.data / "tasks" / task_id(path) / "files" / "content"
    assert kept.stat().st_size == 0  # there is but the room for it


async def test_15_no_offset(server: Server) -> None:
    """Is 400."""
    path = await create(server)
    answer = await patch(server, path, b"abc", 0, Upload_Offset=None)
    await unchanged(server, path, answer, 400, "offset-required")


@pytest.mark.parametrize("at", [0, HALF - 1, HALF + 1, len(CONTENT), len(CONTENT) + 1, 2**63 - 1])
async def test_16_another_offset(server: Server, at: int) -> None:
    """Is 409 with the right one, be it beyond the length, and nothing changes."""
    path = await create(server)
    await patch(server, path, CONTENT[:HALF], 0)
    before = await server.task(task_id(path))
    answer = await patch(server, path, b"abc", at)
    assert answer.headers["Upload-Offset"] == str(HALF)
    await unchanged(server, path, answer, 409, "offset", at=HALF)
    assert await server.task(task_id(path)) == before


async def test_17_a_patch_is_an_attempt(server: Server) -> None:
    """204 with the new offset; the whole is the file, and the task is completed like any other."""
    path = await create(server, Upload_Metadata=metadata(filename="a.bin", filetype="image/png"))
    first = await patch(server, path, CONTENT[:HALF], 0)
    second = await patch(server, path, CONTENT[HALF:], HALF)
    assert [(a.status, a.body, a.headers["Upload-Offset"]) for a in (first, second)] == [
        (204, b"", str(HALF)),
        (204, b"", str(len(CONTENT))),
    ]
    task = await server.task(task_id(path))
    assert (task["service"], task["status"]) == ("upload", "completed")
    assert task["result"] == {
        "filename": "a.bin",
        "media_type": "application/octet-stream",  # whatever the client says: it is no PNG
        "size_bytes": len(CONTENT),
        "sha256": sha256(CONTENT),
        "crc32c": None,
    }
    assert [attempt["outcome"] for attempt in await attempts(server, task_id(path))] == ["disconnected", "completed"]
    assert await content(server, path) == CONTENT


async def test_18_what_came_of_a_broken_body_is_kept(server: Server) -> None:
    """And it goes on there."""
    path = await create(server)
    sending = await hanging(server, path, CONTENT, HALF)
    sending.abort()
    await server.until_status(task_id(path), "paused")
    assert await offset(server, path) == HALF
    assert (await patch(server, path, CONTENT[HALF:], HALF)).status == 204
    assert await content(server, path) == CONTENT


async def test_19_an_upload_that_is_not_there(server: Server) -> None:
    """Is 404."""
    problem(await patch(server, UNKNOWN, b"abc", 0), 404, "unknown-task")


async def test_20_more_than_was_announced(server: Server) -> None:
    """Is 413 before a byte is read where the head says so; chunked, nothing is written beyond the length."""
    path = await create(server, 10)
    await unchanged(server, path, await patch(server, path, b"x" * 11, 0), 413, "too-long")
    assert (await server.task(task_id(path)))["attempt"] == 0
    sending = await begin(server, path)
    await sending.send(chunk(b"0123456789abc") + chunk(b""))
    problem(await sending.answer(), 413, "too-long")
    assert await offset(server, path) == 10
    assert await content(server, path) == b"0123456789"
    assert os.stat(server.data / "tasks" / task_id(path) / "files" / "content").st_size == 10


async def test_21_an_empty_body(server: Server) -> None:
    """Changes nothing, in the middle and at the end; a body for what is complete is 413."""
    path = await create(server, 10)
    answer = await patch(server, path, b"", 0)
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, "0")
    await patch(server, path, b"0123456789", 0)
    answer = await patch(server, path, b"", 10)
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, "10")
    assert len(await attempts(server, task_id(path))) == 1, "one only for what it brought"
    await unchanged(server, path, await patch(server, path, b"a", 10), 413, "too-long", at=10)
    sending = await begin(server, path, at=10)
    await sending.send(chunk(b""))
    assert (await sending.answer()).status == 204
    sending = await begin(server, path, at=10)
    await sending.send(chunk(b"a") + chunk(b""))
    problem(await sending.answer(), 413, "too-long")
    await unchanged(server, path, await patch(server, path, b"", 5), 409, "offset", at=10)
    assert await content(server, path) == b"0123456789"


async def test_22_nothing_comes_for_too_long(tmp_path: Path) -> None:
    """The request ends, the bytes are kept, the connection is closed."""
    async with playing(tmp_path, INTERMISSION_UPLOAD_IDLE_S="0.3") as impatient:
        path = await create(impatient)
        sending = await hanging(impatient, path, CONTENT, HALF)
        answer = await sending.answer()
        assert problem(answer, 408, "idle")["offset"] == HALF
        assert answer.headers["Connection"] == "close"
        assert await offset(impatient, path) == HALF


async def test_23_a_second_patch_takes_over(server: Server) -> None:
    """The first one is stopped and told so, its bytes are kept, and none are mixed."""
    path = await create(server)
    sending = await hanging(server, path, CONTENT, HALF)
    refused = await patch(server, path, CONTENT[:1], 0)
    assert (refused.status, refused.headers["Upload-Offset"]) == (409, str(HALF))
    problem(await sending.answer(), 409, "taken-over")
    sending = await hanging(server, path, CONTENT, HALF + 100, at=HALF)
    answers = await asyncio.gather(*(patch(server, path, CONTENT[HALF + 100 :], HALF + 100) for _ in range(5)))
    assert {answer.status for answer in answers} <= {204, 409, 413}
    problem(await sending.answer(), 409, "taken-over")
    at = await offset(server, path)
    assert (await patch(server, path, CONTENT[at:], at)).status == 204
    assert await content(server, path) == CONTENT


async def test_23_a_pause_that_somebody_asked_for_holds(server: Server) -> None:
    """The PATCH under way ends with 423, and so does each that follows, until somebody resumes the upload."""
    path = await create(server)
    sending = await hanging(server, path, CONTENT, HALF)
    assert (await server.verb(task_id(path), "pause")).status == 200
    for answer in (await sending.answer(), await patch(server, path, CONTENT[HALF:], HALF)):
        said = problem(answer, 423, "held")
        assert (said["offset"], answer.headers["Upload-Offset"]) == (HALF, str(HALF))
    assert (await server.task(task_id(path)))["reason"] == "requested"
    assert await offset(server, path) == HALF, "HEAD is not held"
    assert (await server.verb(task_id(path), "resume")).json["reason"] == "awaiting_data"
    assert (await patch(server, path, CONTENT[HALF:], HALF)).status == 204
    assert await content(server, path) == CONTENT


async def test_23_a_pause_holds_against_a_patch_of_the_same_instant(server: Server) -> None:
    """Whichever is first: once both are answered the upload is held, and no byte comes after the pause was promised."""
    for n in range(40):
        path = await create(server)
        if n % 2:
            paused, patched = await asyncio.gather(
                server.verb(task_id(path), "pause"), patch(server, path, CONTENT[:100], 0)
            )
        else:
            patched, paused = await asyncio.gather(
                patch(server, path, CONTENT[:100], 0), server.verb(task_id(path), "pause")
            )
        assert (paused.status, paused.json["reason"]) == (200, "requested")
        assert patched.status in {204, 423}
        task = await server.task(task_id(path))
        assert (task["status"], task["reason"]) == ("paused", "requested"), n
        assert await offset(server, path) == int(paused.headers["Upload-Offset"])


async def asked(server: Server, path: str, *headers: str, method: str = "PATCH", length: int = 3) -> Answer | None:
    """What a client that asks first is told: the refusal, or None if it is to go on; then it goes."""
    sending = await begin(server, path, "Expect: 100-continue", *headers, method=method, length=length)
    try:
        async with asyncio.timeout(20):
            heard = await sending.reader.readuntil(b"\r\n\r\n")
        if heard.startswith(b"HTTP/1.1 100 "):
            return None
        size = int(parsed(heard + b" " * 9999).headers["Content-Length"])
        return parsed(heard + await sending.reader.readexactly(size))
    finally:
        sending.abort()


async def test_24_refusals_come_before_the_body(server: Server) -> None:
    """A client that asks is told instead of 100; one that is not refused is told to go on."""
    path = await create(server, 10)
    complete = await create(server, 0)
    held = await create(server, 10)
    await server.verb(task_id(held), "pause")
    refusals = {
        path: [
            ("Upload-Offset: 0", 400),  # twice
            ("Upload-Checksum: md6 AAAA", 400),
            ("Upload-Checksum: sha1 AAAA", 400),
            ("Content-Encoding: gzip", 415),
            ("Upload-Length: 11", 400),
        ],
        complete: [("X-Any: thing", 413)],
        held: [("X-Any: thing", 423)],
        UNKNOWN: [("X-Any: thing", 404)],
    }
    for where, cases in refusals.items():
        for header, status in cases:
            answer = await asked(server, where, header)
            assert answer is not None, header
            assert answer.status == status, header
    assert (await asked(server, path, length=11)).status == 413  # type: ignore[union-attr]
    for where, header in (
        (FILES, "Upload-Length: -1"),
        (FILES, "Upload-Length: 2"),
        ("/upload/start", "Upload-Length: 2"),
    ):
        assert (await asked(server, where, header, method="POST")).status in {400, 413}  # type: ignore[union-attr]
    plain = await upload(server, b"abc", Upload_Length="10")
    resume = f"/upload/resume?task={plain.json['id']}"
    assert (await asked(server, resume, method="POST")).status == 409  # type: ignore[union-attr]
    assert await asked(server, path) is None
    assert await asked(server, FILES, "Upload-Length: 3", method="POST") is None
    assert await asked(server, "/upload/start", method="POST") is None


async def test_25_an_early_answer_is_heard(server: Server) -> None:
    """By a client that goes on sending, and then the connection is closed."""
    path = await create(server, 40 * MIB)
    sending = await begin(server, path, length=40 * MIB, at=5)
    with contextlib.suppress(ConnectionError):
        for _ in range(16):
            await sending.send(bytes(65_536))
    answer = await sending.answer()
    await unchanged(server, path, answer, 409, "offset")
    assert answer.headers["Connection"] == "close"


async def test_07_all_of_it_is_complete(server: Server) -> None:
    """A client that hears that all is there sends nothing more: it is complete, though its end was never brought.

    So it is after a kill between the last byte and the end; the other protocol's ?0 leads there without one.
    """
    path = await create(server)
    named = {"Upload_Complete": "?0", "Upload_Draft_Interop_Version": "6", "Content_Type": "application/partial-upload"}
    answer = await patch(server, path, CONTENT, 0, Tus_Resumable=None, **named)
    assert answer.headers["Upload-Offset"] == str(len(CONTENT))
    assert (await server.task(task_id(path)))["status"] == "paused"
    assert await offset(server, path) == len(CONTENT)
    task = await server.task(task_id(path))
    assert (task["status"], task["result"]["sha256"]) == ("completed", sha256(CONTENT))


async def test_25_who_only_sends(server: Server) -> None:
    """A client that looks at no answer before its body is sent, as a browser does, soon can send no more of it."""
    path = await create(server, 1 << 30)
    sending = await begin(server, path, length=1 << 30, at=5)

    async def send_all() -> None:
        while True:
            await sending.send(bytes(65_536))
            await asyncio.sleep(0.01)  # at the pace of a network

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(send_all(), 6)


async def test_26_chunked(server: Server) -> None:
    """Whatever the chunks; without the last one the body is not whole, and what came is kept."""
    path = await create(server)
    sending = await begin(server, path)
    at = 0
    for size in (1, 2, 70_000, 300_000, 5):
        await sending.send(chunk(CONTENT[at : at + size]))
        at += size
    await sending.send(chunk(b""))
    assert (await sending.answer()).headers["Upload-Offset"] == str(at)
    sending = await begin(server, path, at=at)
    await sending.send(chunk(CONTENT[at:HALF]))
    await server.until_progress(task_id(path), HALF)
    await sending.leave()
    await server.until_status(task_id(path), "paused")
    assert await offset(server, path) == HALF
    assert (await server.task(task_id(path)))["reason"] == "disconnected"
    assert (await patch(server, path, CONTENT[HALF:], HALF)).status == 204
    assert await content(server, path) == CONTENT


async def test_27_a_packed_body(server: Server) -> None:
    """Is refused: offsets count the bytes that are sent."""
    path = await create(server)
    answer = await patch(server, path, b"abc", 0, Content_Encoding="gzip")
    await unchanged(server, path, answer, 415, "unsupported-media-type")


async def test_28_beyond_four_gigabytes(tmp_path: Path) -> None:
    """Offsets have 64 bits all the way: the file is made long, with holes, while the server is down."""
    big = 2**32 + 5
    async with playing(tmp_path) as server:
        path = await create(server, big + 10)
        await patch(server, path, b"x", 0)
        assert await server.stop() == 0
        os.truncate(tmp_path / "tasks" / task_id(path) / "files" / "content", big)
        with contextlib.closing(sqlite3.connect(tmp_path / "intermission.db")) as db, db:
            (state,) = db.execute("SELECT state FROM checkpoints").fetchone()
            kept = json.loads(state)
            made: dict[str, Any] = kept | {"received": big, "tail": 0, "tail_bytes": 0}
            db.execute("UPDATE checkpoints SET state = ?, outputs = ?", (json.dumps(made), f'{{"content": {big}}}'))
        await server.start()
        assert await offset(server, path) == big
        assert (await patch(server, path, b"01234", big)).headers["Upload-Offset"] == str(big + 5)
        assert (await patch(server, path, b"x", 5)).headers["Upload-Offset"] == str(big + 5)
        assert (await patch(server, path, b"56789", big + 5)).headers["Upload-Offset"] == str(big + 10)
        ranged = {"Range": f"bytes={big}-"}
        answer = await server.ask("GET", f"/tasks/{task_id(path)}/files/content", headers=ranged)
        assert (answer.status, answer.body) == (206, b"0123456789")
        assert (await ask(server, "DELETE", path)).status == 204
