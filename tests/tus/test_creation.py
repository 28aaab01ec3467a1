"""tus 1.0.0, creation: with a body, with a length that comes later; statements 29 to 46 of our list."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from harness import Server, problem, send
from tus_tools import (
    CONTENT,
    FILES,
    HALF,
    OCTETS,
    ask,
    begin,
    content,
    create,
    head,
    metadata,
    offset,
    patch,
    task_id,
    unchanged,
)
from upload_tools import Sending, chunk, newest, sha256
from verb_tools import attempts, history, playing
from yarl import URL

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_29_created(server: Server) -> None:
    """With a length, or the promise of one: 201 and where it is. Neither or both: 400, and nothing is created."""
    answer = await ask(server, "POST", Upload_Length="10")
    assert (answer.status, answer.body) == (201, b"")
    assert answer.headers["Location"].startswith(server.url + FILES)
    task = await server.task(task_id(answer.headers["Location"]))
    assert (task["service"], task["status"], task["reason"], task["attempt"]) == (
        "upload",
        "paused",
        "awaiting_data",
        0,
    )
    assert (await ask(server, "POST", Upload_Defer_Length="1")).status == 201
    before = await newest(server)
    problem(await ask(server, "POST"), 400, "length")
    problem(await ask(server, "POST", Upload_Length="10", Upload_Defer_Length="1"), 400, "length")
    assert await newest(server) == before


@pytest.mark.parametrize("header", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"])
async def test_29_behind_a_proxy_the_location_is_relative(server: Server, header: str) -> None:
    """What the proxy is called by its clients, it alone knows; and nobody is believed who says it."""
    answer = await ask(server, "POST", Upload_Length="10", **{header: "https"})
    assert answer.headers["Location"].startswith(f"{FILES}/")
    said = f"POST {FILES} HTTP/1.0\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Length: 3\r\n\r\n"
    assert f"\r\nLocation: {FILES}/".encode() in await server.talk(said.encode())


@pytest.mark.parametrize("value", ["0", "2", "true", "", "1, 1"])
async def test_30_another_promise(server: Server, value: str) -> None:
    """Is 400."""
    before = await newest(server)
    problem(await ask(server, "POST", Upload_Defer_Length=value), 400, "malformed-header")
    assert await newest(server) == before


async def test_31_42_more_than_is_taken(tmp_path: Path) -> None:
    """413 at the creation, with nothing created, and when the length comes later, with nothing changed."""
    async with playing(tmp_path, INTERMISSION_MAX_UPLOAD_BYTES="1000") as limited:
        problem(await ask(limited, "POST", Upload_Length="1001"), 413, "too-large")
        assert await newest(limited) == ""
        path = await create(limited, None)
        assert (await patch(limited, path, b"x" * 900, 0)).status == 204
        answer = await patch(limited, path, b"x", 900, Upload_Length="1001")
        await unchanged(limited, path, answer, 413, "too-large", at=900)
        await unchanged(limited, path, await patch(limited, path, b"x" * 101, 900), 413, "too-large", at=900)
        sending = await begin(limited, path, at=900)
        await sending.send(chunk(b"x" * 101) + chunk(b""))
        problem(await sending.answer(), 413, "too-long")
        assert await offset(limited, path) == 1000, "what fits is kept"
        assert "Upload-Length" not in (await head(limited, path)).headers
        assert (await patch(limited, path, b"", 1000, Upload_Length="1000")).status == 204
        assert await content(limited, path) == b"x" * 1000


async def test_32_nothing_at_all(server: Server) -> None:
    """Is complete at once."""
    path = await create(server, 0)
    assert await offset(server, path) == 0
    task = await server.task(task_id(path))
    assert (task["status"], task["result"]["size_bytes"], task["result"]["sha256"]) == ("completed", 0, sha256(b""))
    assert await history(server, task_id(path)) == [
        ("created", "paused"),
        ("connected", "running"),
        ("completed", "completed"),
    ]
    assert await content(server, path) == b""


@pytest.mark.parametrize(
    "given", ["a YQ==,a YQ==", ",", "a,", " ,a", "a b", "a YQ", "a Y Q==", "a YQ==;b", "ä YQ==", "a ***"]
)
async def test_33_metadata_that_are_none(server: Server, given: str) -> None:
    """Are 400, and nothing is created."""
    before = await newest(server)
    problem(await ask(server, "POST", Upload_Length="3", Upload_Metadata=given), 400, "malformed-header")
    assert await newest(server) == before


@pytest.mark.parametrize("given", ["a", "a ", "a,b", "a ,b YQ==", ""])
async def test_33_values_may_be_empty(server: Server, given: str) -> None:
    """With or without the space."""
    answer = await server.exactly(
        f"POST {FILES}", "Tus-Resumable: 1.0.0", "Upload-Length: 3", f"Upload-Metadata: {given}"
    )
    assert answer.status == 201


@pytest.mark.parametrize(
    ("values", "filename", "media_type"),
    [
        ({"filename": "../../etc/passwd", "filetype": "text/plain"}, "../../etc/passwd", "text/plain"),
        ({"filename": "a\r\nX-Evil: y", "filetype": "a/b\r\nX-Evil: y"}, "a\r\nX-Evil: y", "application/octet-stream"),
        ({"filename": "nul\0.txt", "filetype": "none"}, "nul\0.txt", "application/octet-stream"),
        ({"filename": "\u202egpj.exe", "type": "image/png"}, "\u202egpj.exe", "application/octet-stream"),
        ({"name": "only a name"}, "only a name", "application/octet-stream"),
        ({"filename": b"\xff\xfe", "name": "second"}, "\ufffd\ufffd", "application/octet-stream"),
        ({"filename": "n" * 4000}, "n" * 4000, "application/octet-stream"),
        ({}, None, "application/octet-stream"),
    ],
)
async def test_34_metadata_are_data(
    server: Server, values: dict[str, bytes | str], filename: str | None, media_type: str
) -> None:
    """A name leads nowhere and adds no header, however it is made."""
    path = await create(server, 3, **({"Upload_Metadata": metadata(**values)} if values else {}))
    await patch(server, path, b"abc", 0)
    task = await server.task(task_id(path))
    assert (task["result"]["filename"], task["result"]["media_type"]) == (filename, media_type)
    assert os.listdir(server.data / "tasks" / task_id(path) / "files") == ["content"]
    for answer in (await head(server, path), await server.ask("GET", task["files"][0]["href"])):
        assert "X-Evil" not in answer.headers


async def test_34_a_name_that_is_too_long(server: Server) -> None:
    """Is refused, as everywhere."""
    before = await newest(server)
    answer = await ask(server, "POST", Upload_Length="3", Upload_Metadata=metadata(filename="n" * 4097))
    assert problem(answer, 422, "invalid")["errors"][0]["pointer"] == "/filename"
    assert await newest(server) == before


async def test_34_how_long_metadata_may_be(server: Server) -> None:
    """What an upload may have fits into a header; more has a clear answer."""
    version, packed = "Tus-Resumable: 1.0.0", "a " + "A" * 16_380
    answer = await server.exactly("POST /upload/files", version, "Upload-Length: 3", f"Upload-Metadata: {packed}")
    assert (answer.status, answer.headers["Upload-Metadata"]) == (201, packed)
    before = await newest(server)
    answer = await ask(server, "POST", Upload_Length="3", Upload_Metadata="a " + "A" * 16_384)
    assert problem(answer, 422, "invalid")["errors"][0]["pointer"] == "/metadata"
    assert await newest(server) == before


async def test_35_a_type_without_a_body(server: Server) -> None:
    """Means nothing; with a body only one type will do."""
    assert (await ask(server, "POST", Upload_Length="3", Content_Type="text/plain")).status == 201
    before = await newest(server)
    answer = await ask(server, "POST", body=b"abc", Upload_Length="3", Content_Type="text/plain")
    problem(answer, 415, "unsupported-media-type")
    assert await newest(server) == before


# The length comes later.


async def test_36_it_is_told_that_it_may(server: Server) -> None:
    """Among the extensions."""
    assert "creation-defer-length" in (await ask(server, "OPTIONS")).headers["Tus-Extension"].split(",")


async def test_37_38_the_length_comes_with_a_patch(server: Server) -> None:
    """Until then bytes come without an end in sight; from then on every route tells it, and at it the upload ends."""
    path = await create(server, None)
    assert (await patch(server, path, CONTENT[:1000], 0)).status == 204
    answer = await head(server, path)
    assert (answer.headers["Upload-Defer-Length"], answer.headers["Upload-Offset"]) == ("1", "1000")
    assert "Upload-Length" not in answer.headers
    task = await server.task(task_id(path))
    assert (task["status"], task["reason"], task["params"]["size_bytes"]) == ("paused", "awaiting_data", None)

    size = str(len(CONTENT))
    answer = await patch(server, path, CONTENT[1000:HALF], 1000, Upload_Length=size)
    assert (answer.status, answer.headers["Upload-Length"]) == (204, size)
    for answer in (await head(server, path), await server.ask("GET", f"/upload/status?task={task_id(path)}")):
        assert (answer.headers["Upload-Length"], "Upload-Defer-Length" in answer.headers) == (size, False)
    task = await server.task(task_id(path))
    assert (task["params"]["size_bytes"], task["progress"]["total"]) == (len(CONTENT), len(CONTENT))
    assert (await patch(server, path, CONTENT[HALF:], HALF)).status == 204
    assert (await server.task(task_id(path)))["result"]["sha256"] == sha256(CONTENT)


@pytest.mark.parametrize("chunked", [True, False])
async def test_38_the_length_comes_beside_more_bytes(server: Server, *, chunked: bool) -> None:
    """Of two requests at one moment one tells the length: whichever is first, no more than that is ever taken."""
    body = CONTENT[:3000]
    for _ in range(15):
        path = await create(server, None)
        telling = await begin(server, path, "Upload-Length: 5", length=0)
        bringing = await begin(server, path, length=None if chunked else len(body))
        bringing.writer.write(chunk(body) + chunk(b"") if chunked else body)
        await telling.answer()
        await bringing.answer()
        headers = (await head(server, path)).headers
        assert int(headers["Upload-Offset"]) <= int(headers.get("Upload-Length", len(body)))


async def test_38_the_length_survives(tmp_path: Path) -> None:
    """It is on disk before a byte that came with it is: SIGKILL of the child, and of the server."""
    async with playing(tmp_path) as server:
        path = await create(server, None)
        sending = await begin(server, path, f"Upload-Length: {len(CONTENT)}", length=len(CONTENT))
        await sending.send(CONTENT[:HALF])
        await server.until_progress(task_id(path), HALF)
        send((await server.task(task_id(path)))["child"]["pid"])
        problem(await sending.answer(), 503, "interrupted")
        assert (await head(server, path)).headers["Upload-Length"] == str(len(CONTENT))
        await server.kill()
        await server.start()
        assert (await head(server, path)).headers["Upload-Length"] == str(len(CONTENT))
        at = await offset(server, path)
        assert at == HALF
        assert (await patch(server, path, CONTENT[at:], at)).status == 204
        assert await content(server, path) == CONTENT


async def test_39_it_is_fixed_for_good(server: Server) -> None:
    """Another one is 400; the same again is not."""
    path = await create(server, None)
    assert (await patch(server, path, b"01234", 0, Upload_Length="10")).status == 204
    for other in ("9", "11", "0"):
        await unchanged(server, path, await patch(server, path, b"5", 5, Upload_Length=other), 400, "length", at=5)
    assert (await patch(server, path, b"56789", 5, Upload_Length="10")).status == 204
    await unchanged(server, path, await patch(server, path, b"", 10, Upload_Length="11"), 400, "length", at=10)


async def test_39_of_two_at_once_one_is_taken(server: Server) -> None:
    """Ten requests with ten lengths: it is that of one of them, and the others are told."""
    path = await create(server, None)
    answers = await asyncio.gather(*(patch(server, path, b"", 0, Upload_Length=str(10 + n)) for n in range(10)))
    statuses = [answer.status for answer in answers]
    assert sorted(statuses) == [204, *[400] * 9]
    assert (await head(server, path)).headers["Upload-Length"] == str(10 + statuses.index(204))


async def test_40_less_than_has_come(server: Server) -> None:
    """Is 400."""
    path = await create(server, None)
    await patch(server, path, b"01234", 0)
    await unchanged(server, path, await patch(server, path, b"", 5, Upload_Length="4"), 400, "length", at=5)
    await unchanged(server, path, await patch(server, path, b"x", 5, Upload_Length="4"), 400, "length", at=5)
    await unchanged(server, path, await patch(server, path, b"xy", 5, Upload_Length="6"), 413, "too-long", at=5)
    assert "Upload-Length" not in (await head(server, path)).headers


async def test_41_it_may_come_last_and_alone(server: Server) -> None:
    """With an empty body; the upload is complete then."""
    path = await create(server, None)
    await patch(server, path, b"01234", 0)
    assert (await patch(server, path, b"", 5, Upload_Length="5")).status == 204
    assert (await server.task(task_id(path)))["status"] == "completed"
    assert await content(server, path) == b"01234"
    path = await create(server, None)
    assert (await patch(server, path, b"", 0, Upload_Length="0")).status == 204
    assert (await server.task(task_id(path)))["status"] == "completed"


# The first bytes come along.


async def test_43_44_the_first_bytes_come_along(server: Server) -> None:
    """Some or all: 201 with where it is and how far."""
    assert {"creation", "creation-with-upload"} <= set(
        (await ask(server, "OPTIONS")).headers["Tus-Extension"].split(",")
    )
    some = await ask(server, "POST", body=CONTENT[:HALF], Upload_Length=str(len(CONTENT)), Content_Type=OCTETS)
    assert (some.status, some.headers["Upload-Offset"]) == (201, str(HALF))
    path = URL(some.headers["Location"]).path
    assert (await patch(server, path, CONTENT[HALF:], HALF)).status == 204
    assert await content(server, path) == CONTENT
    whole = await ask(server, "POST", body=CONTENT, Upload_Length=str(len(CONTENT)), Content_Type=OCTETS)
    assert (whole.status, whole.headers["Upload-Offset"]) == (201, str(len(CONTENT)))
    assert await content(server, URL(whole.headers["Location"]).path) == CONTENT


async def test_44_more_than_was_announced(server: Server) -> None:
    """Is 413, and nothing is created."""
    before = await newest(server)
    problem(await ask(server, "POST", body=b"abcd", Upload_Length="3", Content_Type=OCTETS), 413, "too-long")
    assert await newest(server) == before


async def creating(server: Server) -> tuple[Sending, str]:
    """A creation of which the half has come; the upload's id, which its client does not know yet."""
    before = after = await newest(server)
    sending = await begin(server, FILES, f"Upload-Length: {len(CONTENT)}", method="POST", length=len(CONTENT))
    await sending.send(CONTENT[:HALF])
    async with asyncio.timeout(20):
        while after == before:
            after = await newest(server)
    await server.until_progress(after, HALF)
    return sending, after


async def test_45_the_body_breaks_off(server: Server) -> None:
    """The upload is there, and HEAD shows what came."""
    sending, after = await creating(server)
    sending.abort()
    await server.until_status(after, "paused")
    assert await offset(server, f"{FILES}/{after}") == HALF


async def test_45_the_answer_to_a_broken_one_says_where_it_is(server: Server) -> None:
    """Its child is killed: 503 with Location and offset, for a client that hears it."""
    sending, after = await creating(server)
    send((await server.task(after))["child"]["pid"])
    answer = await sending.answer()
    problem(answer, 503, "interrupted")
    assert (URL(answer.headers["Location"]).path, answer.headers["Upload-Offset"]) == (f"{FILES}/{after}", str(HALF))


async def test_46_without_a_length_and_asking_first(server: Server) -> None:
    """Both go with the first bytes."""
    headers = ("Upload-Defer-Length: 1", "Expect: 100-continue")
    sending = await begin(server, FILES, *headers, method="POST")
    async with asyncio.timeout(10):
        assert await sending.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await sending.send(chunk(b"01234") + chunk(b""))
    async with asyncio.timeout(20):
        heard = (await sending.reader.readuntil(b"\r\n\r\n")).decode()
    sending.abort()
    assert heard.startswith("HTTP/1.1 201 ")
    assert "\r\nUpload-Offset: 5\r\n" in heard
    assert "\r\nUpload-Defer-Length: 1\r\n" in heard
    path = f"{FILES}/{await newest(server)}"
    assert (await patch(server, path, b"56789", 5, Upload_Length="10")).status == 204
    assert len(await attempts(server, task_id(path))) == 2
    assert json.loads((await server.ask("GET", f"/tasks/{task_id(path)}")).body)["status"] == "completed"
