"""Resumable uploads for HTTP, the upload's own address: statements 9 to 19, each a test named by its number."""

import asyncio
import itertools
import time

import pytest
from harness import Server
from ietf_tools import (
    CONTENT,
    FILES,
    HALF,
    MIB,
    PARTIAL,
    START,
    Client,
    Told,
    as_json,
    durable,
    limits,
    task_id,
)
from tus_tools import OCTETS, ask, hanging, head, offset, patch
from upload_tools import chunk, upload
from verb_tools import attempts
from yarl import URL

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN = f"{FILES}/01900000-0000-7000-8000-000000000000"


async def unchanged(client: Client, path: str, answer: Told, status: int, slug: str, *, at: int = 0) -> None:
    """Assert that a request was refused so, before a byte of it was taken, and that the upload is where it was."""
    answer.problem(status, slug)
    assert answer.interims == []
    assert "Tus-Resumable" not in answer.headers
    assert (await client.state(path)).offset == at


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_9_how_far_it_is(client: Client, method: str) -> None:
    """At the beginning, in the middle, when all bytes are there, and at the end."""
    path = await client.create(6)
    seen = []
    for at, body, complete in ((0, b"abc", "?0"), (3, b"def", "?0"), (6, b"", "?1")):
        seen.append(await client.state(path, method))
        assert (seen[-1].offset, seen[-1].complete) == (at, "?0")
        assert limits(seen[-1].headers["Upload-Limit"])["max-age"] > 0
        assert (await client.append(path, body, at, complete)).status == (204 if complete == "?0" else 200)
    seen.append(await client.state(path, method))
    assert (seen[-1].offset, seen[-1].complete, seen[-1].headers["Upload-Limit"]) == (6, "?1", "min-size=0")
    for answer in seen:
        assert (answer.headers["Upload-Length"], answer.headers["Cache-Control"], answer.body) == ("6", "no-store", b"")
        assert (answer.interims, "Tus-Resumable" in answer.headers) == ([], False)


async def test_9_of_what_is_not_there(client: Client) -> None:
    """404 or 410, without an offset."""
    path = await client.create()
    assert (await client.ask("DELETE", path)).status == 204
    for method in ("GET", "HEAD"):
        gone = await client.ask(method, path)
        unknown = await client.ask(method, UNKNOWN)
        assert (gone.status, unknown.status) == (410, 404)
        assert "Upload-Offset" not in (*gone.headers, *unknown.headers)


async def test_9_who_says_no_version(server: Server) -> None:
    """May be a client of either protocol, and is told what both want to know."""
    client = Client(server, None)
    path = await client.create(5)
    answer = await client.ask("HEAD", path)
    assert (answer.status, answer.offset, answer.complete, answer.headers["Tus-Resumable"]) == (200, 0, "?0", "1.0.0")
    assert (await client.state(path, "GET")).complete == "?0"


async def test_10_an_offset_is_never_taken_back(client: Client) -> None:
    """Each that was told is durable when it is told, and none is below one before."""
    path = await client.create()
    told = [0]
    for upto in range(MIB // 2, len(CONTENT), MIB // 2):
        talk = await client.begin_append(path, told[-1], "?0", length=len(CONTENT) - told[-1])
        await talk.send(CONTENT[told[-1] : upto])
        offset = int((await talk.interim()).headers["Upload-Offset"])
        assert told[-1] < offset <= upto
        assert durable(await client.task(path)) >= offset
        talk.abort()
        told += [offset, (await client.state(path)).offset]
    assert told == sorted(told)
    assert (await client.append(path, CONTENT[told[-1] :], told[-1], "?1")).status == 200
    assert await client.content(path) == CONTENT


@pytest.mark.parametrize("kind", [None, "text/plain", "application/octet-stream", OCTETS])
async def test_11_the_type_of_an_append(client: Client, kind: str | None) -> None:
    """Has to be that of the draft, or not a byte is taken."""
    path = await client.create()
    named = () if kind is None else (f"Content-Type: {kind}",)
    answer = await client.ask("PATCH", path, "Upload-Offset: 0", "Upload-Complete: ?0", *named, body=b"abc")
    await unchanged(client, path, answer, 415, "unsupported-media-type")


async def test_11_what_an_append_has_to_say(client: Client) -> None:
    """Where it begins and whether it ends the data; a value that cannot be is as none."""
    path = await client.create()
    kind, complete = f"Content-Type: {PARTIAL}", "Upload-Complete: ?1"
    for given in ((), ("Upload-Offset: -1",), ("Upload-Offset: 0.0",), ("Upload-Offset: 0", "Upload-Offset: 0")):
        answer = await client.ask("PATCH", path, kind, complete, *given, body=b"abc")
        await unchanged(client, path, answer, 400, "offset-required")
    for given in ((), ("Upload-Complete: 1",), ("Upload-Complete: ?1", "Upload-Complete: ?1")):
        answer = await client.ask("PATCH", path, kind, "Upload-Offset: 0", *given, body=b"abc")
        await unchanged(client, path, answer, 400, "completeness-required")
    answer = await client.ask("PATCH", f"{path}?n=1", kind, complete, "Upload-Offset: 0", body=b"abc")
    await unchanged(client, path, answer, 422, "invalid")
    assert (await client.append(path, b"abc", 0, "?0;a=1", "X: y")).offset == 3


async def test_12_another_offset(client: Client) -> None:
    """Is 409, with the right one; nothing has changed."""
    path = await client.create()
    await client.append(path, CONTENT[:HALF], 0, "?0")
    for wrong in (0, HALF - 1, HALF + 1, len(CONTENT), 10**15 - 1):
        for complete in ("?0", "?1"):
            answer = await client.append(path, b"abc", wrong, complete)
            said = answer.problem(409, "mismatching-upload-offset")
            assert (said["expected-offset"], said["provided-offset"]) == (HALF, wrong)
            assert (answer.offset, answer.complete, answer.interims) == (HALF, "?0", [])
    assert (await client.append(path, CONTENT[HALF:], HALF, "?1")).status == 200
    assert await client.content(path) == CONTENT


async def test_13_a_request_that_breaks_off(client: Client) -> None:
    """Leaves what came of it, and is not complete, whatever it would have been."""
    path = await client.create(None)
    talk = await client.begin_append(path, 0, "?1")
    await talk.send(chunk(CONTENT[:HALF]))
    await client.server.until_progress(task_id(path), HALF)
    talk.abort()
    answer = await client.state(path)
    assert (answer.offset, answer.complete, "Upload-Length" in answer.headers) == (HALF, "?0", False)
    talk = await client.begin_append(path, HALF, "?1")
    await talk.send(chunk(CONTENT[HALF:])[:-1])  # without its last byte, and without an end
    await client.server.until_progress(task_id(path), len(CONTENT))
    talk.abort()
    answer = await client.state(path)
    assert (answer.offset, answer.complete) == (len(CONTENT), "?0")
    assert (await client.append(path, b"", len(CONTENT), "?1")).complete == "?1"
    assert await client.content(path) == CONTENT


async def test_14_an_append(client: Client) -> None:
    """Is 204 while there is more to come, and the last one what the start would have answered."""
    path = await client.create(len(CONTENT))
    answer = await client.append(path, CONTENT[:HALF], 0, "?0")
    assert (answer.status, answer.complete, answer.offset, answer.body) == (204, "?0", HALF, b"")
    talk = await client.begin_append(path, HALF, "?1")
    await talk.send(
        b"".join(chunk(CONTENT[at : at + 100_000]) for at in range(HALF, len(CONTENT), 100_000)) + chunk(b"")
    )
    answer = await talk.answer()
    assert (answer.status, answer.complete, answer.offset) == (200, "?1", len(CONTENT))
    task = as_json(answer)
    assert (task["status"], task["id"], task["result"]["size_bytes"]) == ("completed", task_id(path), len(CONTENT))
    assert await client.content(path) == CONTENT
    assert "Location" not in answer.headers
    assert len(await attempts(client.server, task_id(path))) == 2


async def test_14_an_append_of_nothing(client: Client) -> None:
    """That neither ends the data nor tells its length leaves no trace."""
    path = await client.create(None)
    for _ in range(3):
        answer = await client.append(path, b"", 0, "?0")
        assert (answer.status, answer.complete, answer.offset) == (204, "?0", 0)
    assert await attempts(client.server, task_id(path)) == []
    answer = await client.append(path, b"", 0, "?0", "Upload-Length: 3")
    assert (answer.status, answer.headers["Upload-Length"]) == (204, "3")
    answer = await client.append(path, b"abc", 0, "?1")
    assert (answer.status, answer.complete) == (200, "?1")


@pytest.mark.parametrize("complete", ["?0", "?1"])
async def test_15_more_than_was_announced(client: Client, complete: str) -> None:
    """Ends the upload, for it can never be right; nothing was written beyond its length."""
    path = await client.create(5)
    await client.append(path, b"abc", 0, "?0")
    talk = await client.begin_append(path, 3, complete)
    await talk.send(chunk(b"d") + chunk(b"ef"))
    answer = await talk.answer()
    answer.problem(400, "inconsistent-upload-length")
    assert answer.complete is None
    for method in ("HEAD", "GET", "DELETE"):
        assert (await client.ask(method, path)).status == 410
    assert (await client.append(path, b"de", 3, "?1")).status == 410
    talk = await client.begin("POST", START, f"Upload-Complete: {complete}", "Upload-Length: 5")
    await talk.send(chunk(b"abcdef") + chunk(b""))
    answer = await talk.answer()
    answer.problem(400, "inconsistent-upload-length")
    (path,) = answer.told("Location")
    assert (await client.ask("HEAD", URL(path).path)).status == 410


async def test_16_progress(client: Client) -> None:
    """Is told while the bytes come, without an address, of what is durable by then, and not more than once a second."""
    path = await client.create(None)
    talk = await client.begin_append(path, 0, "?0", length=len(CONTENT))
    at = []
    for begin in range(0, 2 * MIB, MIB):
        await talk.send(CONTENT[begin : begin + MIB])
        interim = await talk.interim()
        at.append(time.monotonic())
        assert (interim.status, "Location" in interim.headers) == (104, False)
        assert durable(await client.task(path)) >= int(interim.headers["Upload-Offset"])
    await talk.send(CONTENT[2 * MIB :])
    answer = await talk.answer()
    told = [int(value) for value in answer.told("Upload-Offset")]
    assert told == sorted(set(told))
    assert answer.offset == len(CONTENT) >= told[-1]
    assert min(b - a for a, b in itertools.pairwise(at)) > 0.9


async def test_16_progress_of_a_creation(client: Client) -> None:
    """Is told as well."""
    talk, path = await client.flowing(HALF)
    assert "Upload-Offset" not in (await talk.interim()).headers
    assert "Location" not in (await talk.until_told(HALF)).headers
    await talk.send(CONTENT[HALF:])
    assert (await talk.answer()).status == 201
    assert await client.content(path) == CONTENT


async def test_17_an_answer_that_was_lost(client: Client) -> None:
    """Is given again to who says once more that this was all; anything else is refused."""
    path = await client.create(None)
    first = await client.append(path, b"abc", 0, "?1")
    for length in ((), ("Upload-Length: 3",)):
        again = await client.append(path, b"", 3, "?1", *length)
        assert (again.status, again.complete, as_json(again)) == (200, "?1", as_json(first))
    talk = await client.begin_append(path, 3, "?1")
    await talk.send(chunk(b""))
    assert as_json(await talk.answer()) == as_json(first)
    refused = {
        "inconsistent-upload-length": [
            await client.append(path, b"d", 3, "?1"),
            await client.append(path, b"d", 3, "?0"),
            await client.append(path, b"", 3, "?1", "Upload-Length: 4"),
        ],
        "completed-upload": [await client.append(path, b"", 3, "?0")],
    }
    for slug, answers in refused.items():
        for answer in answers:
            answer.problem(400, slug)
            assert answer.complete is None, "it would say that this came of the upload"
    answer = await client.append(path, b"abc", 0, "?1")
    assert answer.problem(409, "mismatching-upload-offset")["expected-offset"] == 3
    assert answer.complete is None
    assert await client.content(path) == b"abc"
    plain = await upload(client.server, b"plain")
    assert (await client.append(f"{FILES}/{plain.json['id']}", b"", 5, "?1")).status == 200


async def test_18_an_end(client: Client) -> None:
    """In the middle, of a request too, which ends; when it is complete; and then there is nothing."""
    path = await client.create()
    talk = await client.hanging(path, HALF)
    assert (await client.ask("DELETE", path)).status == 204
    (await talk.answer()).problem(410, "gone")
    assert not (client.server.data / "tasks" / task_id(path)).exists()
    done = await client.ask("POST", FILES, "Upload-Complete: ?1", body=b"abc")
    assert (await client.ask("DELETE", done.path)).status == 204
    for gone in (path, done.path):
        answers = [await client.ask(method, gone) for method in ("DELETE", "HEAD", "GET")]
        answers.append(await client.append(gone, b"", 3, "?1"))
        assert {(answer.status, "Tus-Resumable" in answer.headers) for answer in answers} == {(410, False)}
    assert (await client.ask("DELETE", UNKNOWN)).status == 404


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_19_a_new_request_takes_over(client: Client, method: str) -> None:
    """From one that hangs, in under 200 ms; and where it says that the data goes on, there it does."""
    path = await client.create()
    took_s = []
    for n in range(5):  # the machine may be busy with something else for a moment, but not each time
        upto = (n + 1) * 300_000
        talk = await client.hanging(path, upto, at=n * 300_000)
        began = time.monotonic()
        at = (await client.state(path, method)).offset
        took_s.append(time.monotonic() - began)
        assert at == upto, "what came is kept"
        cut = await talk.answer()
        cut.problem(409, "taken-over")
        assert (cut.offset, cut.complete) == (upto, "?0")
    assert (await client.append(path, CONTENT[at:], at, "?1")).status == 200
    assert await client.content(path) == CONTENT
    assert min(took_s) < 0.2, took_s


async def test_19_an_append_takes_over(client: Client) -> None:
    """From one before it, if it goes on where that one came to."""
    path = await client.create()
    talk = await client.hanging(path, HALF)
    answer = await client.append(path, CONTENT[HALF:], HALF, "?1")
    assert (answer.status, answer.complete) == (200, "?1")
    (await talk.answer()).problem(409, "taken-over")
    assert await client.content(path) == CONTENT


async def test_19_several_at_once(client: Client) -> None:
    """Never mix: one of them is the first at each place."""
    path = await client.create()
    answers = await asyncio.gather(*(client.append(path, CONTENT[:HALF], 0, "?0") for _ in range(6)))
    assert {answer.status for answer in answers} <= {204, 409}
    at = (await client.state(path)).offset
    answers = await asyncio.gather(*(client.append(path, CONTENT[at:], at, "?1") for _ in range(6)))
    assert {answer.status for answer in answers} <= {200, 409, 400}
    answer = await client.state(path)
    if answer.complete == "?0":
        answer = await client.append(path, CONTENT[answer.offset :], answer.offset, "?1")
    assert answer.complete == "?1"
    assert await client.content(path) == CONTENT


async def test_19_both_protocols_at_one_upload(client: Client) -> None:
    """What one of them began the other goes on with, and takes over."""
    server, path = client.server, await client.create(len(CONTENT))
    talk = await client.hanging(path, HALF)
    assert await offset(server, path) == HALF
    (await talk.answer()).problem(409, "taken-over")
    sending = await hanging(server, path, CONTENT, HALF + 1000, at=HALF)
    assert (await client.state(path)).offset == HALF + 1000
    assert (await sending.answer()).status == 409
    assert (await patch(server, path, CONTENT[HALF + 1000 : -1], HALF + 1000)).status == 204
    assert (await client.append(path, CONTENT[-1:], len(CONTENT) - 1, "?0")).complete == "?0"
    answer = await head(server, path)
    assert (answer.headers["Upload-Offset"], answer.headers["Tus-Resumable"]) == (str(len(CONTENT)), "1.0.0")
    assert "Upload-Complete" not in answer.headers
    assert (await patch(server, path, b"", len(CONTENT))).status == 204
    assert (await client.state(path)).complete == "?1"
    assert await client.content(path) == CONTENT
    answer = await ask(server, "GET", path)
    assert (answer.status, answer.headers["Tus-Resumable"]) == (200, "1.0.0")
