"""Resumable uploads for HTTP, the creation: statements 1 to 8 of our list, each a test named by its number."""

import asyncio
import hashlib
from pathlib import Path

import pytest
from harness import Server
from ietf_tools import CONTENT, FILES, HALF, MIB, PARTIAL, START, Client, as_json, limits, task_id
from tus_tools import metadata
from upload_tools import WAYS, chunk, data, newest
from verb_tools import nothing_left, playing
from yarl import URL

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("version", [None, 3, 5, 7, 9, "8.0", "?1", '"8"', "8, 8", "08x", ""])
async def test_1_nobody_hears_of_104_who_does_not_ask(server: Server, version: int | str | None) -> None:
    """Many clients take the first line for the answer; one that says another version does not ask either."""
    client = Client(server, version)
    talk, _ = await client.flowing(HALF)
    await talk.send(CONTENT[HALF:])
    answer = await talk.answer()
    assert (answer.status, answer.complete, answer.interims) == (201, "?1", [])
    path = await client.create(3)
    assert (await client.append(path, b"abc", 0, "?1")).interims == []


async def test_1_a_104_says_the_version(client: Client) -> None:
    """That which was asked for."""
    path = await client.create()
    talk = await client.hanging(path, HALF)
    answers = [await client.ask("POST", START, "Upload-Complete: ?1", body=b"abc")]
    await talk.until_told(HALF)
    await talk.send(CONTENT[HALF:])
    answers.append(await talk.answer())
    for answer in answers:
        assert answer.told("Upload-Draft-Interop-Version") == [str(client.version)] * len(answer.interims)
        assert answer.interims


async def test_1_a_parameter_changes_nothing(server: Server) -> None:
    """It is a structured field: what is behind a semicolon says more of it."""
    answer = await Client(server, '8;a="b;c";d=?0;e').ask("POST", START, "Upload-Complete: ?1 ;x=:aGk=:", body=b"abc")
    assert answer.told("Upload-Draft-Interop-Version") == []  # a space before a semicolon is none
    answer = await Client(server, '8;a="b;c";d=?0;e').ask("POST", START, "Upload-Complete: ?1; x=:aGk=:", body=b"abc")
    assert answer.told("Upload-Draft-Interop-Version") == ["8"]
    assert answer.complete == "?1"


async def test_1_not_in_http_1_0(server: Server) -> None:
    """There are no interim answers there."""
    lines = ("Upload-Draft-Interop-Version: 8", "Upload-Complete: ?1", "Content-Length: 3", "Host: localhost")
    heard = await server.talk("\r\n".join([f"POST {START} HTTP/1.0", *lines, "", "abc"]).encode())
    assert heard.startswith(b"HTTP/1.0 201 ")


@pytest.mark.parametrize("complete", [None, "1", "true", "?2", "?", "?1, ?1", "?1 ?1", '"?1"', ""])
async def test_2_without_completeness_it_is_an_ordinary_upload(client: Client, complete: str | None) -> None:
    """So it is where the header has a value that it cannot have."""
    named = () if complete is None else (f"Upload-Complete: {complete}",)
    answer = await client.ask("POST", START, *named, body=CONTENT)
    assert (answer.status, answer.complete, answer.interims) == (201, None, [])
    assert as_json(answer)["status"] == "completed"
    talk = await client.begin("POST", START, *named)
    await talk.send(chunk(b"abc") + chunk(b""))
    assert (await talk.answer()).complete is None


async def test_2_at_the_address_of_uploads(client: Client) -> None:
    """One can be created too, as clients want that are given one address; there it has to be said that it is one."""
    described = f"Upload-Metadata: {metadata(filename='a b.csv', filetype='text/csv')}"
    answer = await client.ask(
        "POST", FILES, "Upload-Complete: ?0", "Upload-Length: 5", described, f"Content-Type: {PARTIAL}", body=b"abc"
    )
    assert (answer.status, answer.complete, answer.offset) == (201, "?0", 3)
    assert "Tus-Resumable" not in answer.headers
    params = (await client.task(answer.path))["params"]
    assert (params["filename"], params["media_type"], params["size_bytes"]) == ("a b.csv", "text/csv", 5)
    done = await client.append(answer.path, b"de", 3, "?1")
    assert (done.status, done.offset) == (200, 5)
    whole = await client.ask("POST", FILES, "Upload-Complete: ?1", body=b"abc")
    assert (whole.status, whole.complete, whole.path) == (201, "?1", f"{FILES}/{as_json(whole)['id']}")
    (await client.ask("POST", FILES, body=b"abc")).problem(400, "completeness-required")
    assert await newest(client.server) == as_json(whole)["id"], "nothing is created"


async def test_2_what_is_said_of_the_file(client: Client) -> None:
    """Its name and type, as of an ordinary upload."""
    named = "Content-Disposition: inline; filename*=UTF-8''%e2%82%ac%20rates.txt"
    path = await client.create(3, named, "Content-Type: text/plain")
    params = (await client.task(path))["params"]
    assert (params["filename"], params["media_type"]) == ("€ rates.txt", "text/plain")
    path = await client.create(3, named, path=f"{START}?filename=other.txt")
    assert (await client.task(path))["params"]["filename"] == "other.txt"
    (await client.ask("POST", f"{START}?nonsense=1", "Upload-Complete: ?0", body=b"")).problem(422, "invalid")


async def test_3_the_address_comes_before_the_body(client: Client) -> None:
    """With the limits, and not a byte of the body has been sent."""
    talk = await client.begin("POST", START, "Upload-Complete: ?1", length=len(CONTENT))
    interim = await talk.interim()
    assert interim.status == 104
    path = URL(interim.headers["Location"]).path
    assert limits(interim.headers["Upload-Limit"])["max-age"] in range(6 * 86_400, 7 * 86_400 + 1)
    assert "Upload-Offset" not in interim.headers
    talk.abort()
    assert (await client.state(path)).offset == 0


async def test_3_after_100_for_who_waits_for_that(client: Client) -> None:
    """100 is not left out for the 104; and what is refused is refused instead of both."""
    for complete in ("?0", "?1"):
        head = ("Expect: 100-continue", f"Upload-Complete: {complete}")
        talk = await client.begin("POST", START, *head, length=3)
        assert [(await talk.interim()).status for _ in range(2)] == [100, 104]
        await talk.send(b"abc")
        assert (await talk.answer()).status == 201
        path = await client.create(5)
        talk = await client.begin_append(path, 0, "?0", "Expect: 100-continue", length=3)
        assert (await talk.interim()).status == 100
        await talk.send(b"abc")
        assert (await talk.answer()).offset == 3
        talk = await client.begin_append(path, 4, complete, "Expect: 100-continue", length=1)
        refused = await talk.answer()
        assert (refused.status, refused.interims) == (409, [])
    talk = await client.begin("POST", START, *head, "Upload-Length: 4", length=3)
    refused = await talk.answer()
    assert (refused.status, refused.interims) == (400, [])


@pytest.mark.parametrize("way", list(WAYS))
async def test_3_curl_takes_it(tmp_path: Path, way: str) -> None:
    """And ends as ever, either way of the bytes."""
    content = data(24 * MIB + 1)
    (tmp_path / "file").write_bytes(content)
    async with playing(tmp_path / "data", **WAYS[way]) as server:
        for version in (6, 8):
            named = ("-H", "Upload-Complete: ?1", "-H", f"Upload-Draft-Interop-Version: {version}")
            curl = await asyncio.create_subprocess_exec(
                *("curl", "-sv", "--data-binary", f"@{tmp_path / 'file'}", *named, f"{server.url}{START}"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            told, said = await curl.communicate()
            assert curl.returncode == 0
            assert b"< HTTP/1.1 104 Upload Resumption Supported" in said
            assert said.count(b"< HTTP/1.1 201 ") == 1
            assert hashlib.sha256(content).hexdigest().encode() in told


async def test_4_all_at_once(client: Client) -> None:
    """Is answered as the start would be without it, and says that it is complete."""
    answer = await client.ask("POST", START, "Upload-Complete: ?1", f"Upload-Length: {len(CONTENT)}", body=CONTENT)
    task = as_json(answer)
    assert (answer.status, answer.complete, answer.path) == (201, "?1", f"/tasks/{task['id']}")
    assert (task["status"], task["result"]["sha256"]) == ("completed", hashlib.sha256(CONTENT).hexdigest())
    assert await client.content(answer.path) == CONTENT
    talk = await client.begin("POST", START, "Upload-Complete: ?1")
    await talk.send(chunk(CONTENT[:HALF]) + chunk(CONTENT[HALF:]) + chunk(b""))
    answer = await talk.answer()
    assert (answer.status, answer.complete) == (201, "?1")
    assert await client.content(answer.path) == CONTENT


async def test_5_a_first_part(client: Client) -> None:
    """Is 201, not complete, with the address and the limits; whether the length is known or not."""
    for length in ((), (f"Upload-Length: {len(CONTENT)}",)):
        answer = await client.ask("POST", START, "Upload-Complete: ?0", *length, body=CONTENT[:HALF])
        assert (answer.status, answer.complete, answer.offset) == (201, "?0", HALF)
        assert limits(answer.headers["Upload-Limit"])["max-age"] > 0
        task = await client.task(answer.path)
        assert (task["status"], task["reason"]) == ("paused", "awaiting_data")
        done = await client.append(answer.path, CONTENT[HALF:], HALF, "?1")
        assert (done.status, done.complete) == (200, "?1")
        assert await client.content(answer.path) == CONTENT


async def test_6_the_address_is_the_same_in_all_answers(client: Client) -> None:
    """Also in that of a request that was cut short."""
    answer = await client.ask("POST", START, "Upload-Complete: ?0", body=CONTENT)
    assert set(answer.told("Location")) == {answer.headers["Location"]}
    talk, path = await client.flowing(HALF)
    assert (await client.state(path)).offset == HALF
    cut = await talk.answer()
    cut.problem(409, "taken-over")
    assert (cut.path, cut.offset, cut.complete) == (path, HALF, "?0")
    assert cut.told("Location") == [cut.headers["Location"]]


async def test_7_the_length(client: Client) -> None:
    """Is what Upload-Length says, or the end of a body that ends the data."""
    path = await client.create(None)
    assert "Upload-Length" not in (await client.state(path)).headers
    await client.append(path, b"abc", 0, "?0", "Upload-Length: 7")
    assert (await client.state(path)).headers["Upload-Length"] == "7"
    talk = await client.begin("POST", START, "Upload-Complete: ?1", length=5)
    await talk.send(b"abc")
    upload = task_id((await talk.interim()).headers["Location"])
    await client.server.until_progress(upload, 3)
    talk.abort()
    assert (await client.state(f"{FILES}/{upload}")).headers["Upload-Length"] == "5"
    path = await client.create(None)
    await client.append(path, b"abc", 0, "?0")
    talk = await client.begin_append(path, 3, "?1", length=4)
    await talk.send(b"de")
    await client.server.until_progress(task_id(path), 5)
    talk.abort()
    assert (await client.state(path)).headers["Upload-Length"] == "7"


async def test_7_lengths_that_do_not_agree(client: Client) -> None:
    """Are 400 and change nothing, whether they are in one request or in two."""
    before = await newest(client.server)
    for body, complete in ((b"abcd", "?1"), (b"abcdef", "?1"), (b"abcdef", "?0"), (b"", "?1")):
        answer = await client.ask("POST", START, f"Upload-Complete: {complete}", "Upload-Length: 5", body=body)
        answer.problem(400, "inconsistent-upload-length")
        assert answer.interims == []
    assert await newest(client.server) == before
    path = await client.create(5)
    await client.append(path, b"abc", 0, "?0")
    for body, complete, length in (
        (b"d", "?1", ()),
        (b"def", "?1", ()),
        (b"d", "?0", ("Upload-Length: 6",)),
        (b"", "?1", ()),
    ):
        answer = await client.append(path, body, 3, complete, *length)
        answer.problem(400, "inconsistent-upload-length")
        assert answer.interims == []
        assert (await client.state(path)).offset == 3
    path = await client.create(None)
    await client.append(path, b"abc", 0, "?0")
    (await client.append(path, b"", 3, "?0", "Upload-Length: 2")).problem(400, "inconsistent-upload-length")
    assert (await client.append(path, b"de", 3, "?1")).status == 200


async def test_7_a_body_that_ends_the_data_too_early(client: Client) -> None:
    """Where only its end tells: what came is kept, and it is not complete."""
    path = await client.create(5)
    talk = await client.begin_append(path, 0, "?1")
    await talk.send(chunk(b"abc") + chunk(b""))
    answer = await talk.answer()
    answer.problem(400, "inconsistent-upload-length")
    assert (answer.offset, answer.complete) == (3, "?0")
    assert (await client.append(path, b"de", 3, "?1")).status == 200


@pytest.mark.parametrize("length", ["-1", "1e3", "+5", "5 6", "5.0", "?1", str(10**15), '"5"', "5, 5"])
async def test_7_a_length_that_is_none(client: Client, length: str) -> None:
    """Is as if it were not there."""
    answer = await client.ask("POST", START, "Upload-Complete: ?0", f"Upload-Length: {length}", body=b"abc")
    assert answer.status == 201
    assert "Upload-Length" not in (await client.state(answer.path)).headers
    assert (await client.append(answer.path, b"", 3, "?1", f"Upload-Length: {length}")).complete == "?1"


async def test_8_nothing_at_all(client: Client) -> None:
    """That ends the data is an empty file; that does not is only a creation, with the address in the answer too."""
    for body in (b"", None):
        answer = await client.ask("POST", START, "Upload-Complete: ?1", body=body)
        assert (answer.status, answer.complete, as_json(answer)["result"]["size_bytes"]) == (201, "?1", 0)
        answer = await client.ask("POST", START, "Upload-Complete: ?0", body=body)
        assert (answer.status, answer.complete, answer.offset) == (201, "?0", 0)
        assert answer.told("Location") == [answer.headers["Location"]]
        task = await client.task(answer.path)
        assert (task["status"], task["attempt"]) == ("paused", 0)
    path = await client.create(0)
    assert (await client.state(path)).complete == "?0", "as long as nobody says that it is"
    assert (await client.append(path, b"", 0, "?1")).complete == "?1"


async def test_8_a_creation_that_is_sent_again(client: Client) -> None:
    """By its key it finds the first one's upload, be its answer lost, and goes on with it."""
    key = f"Idempotency-Key: ietf-{client.version}"
    talk, path = await client.flowing(HALF, key)
    again = await client.begin("POST", START, "Upload-Complete: ?1", key, length=len(CONTENT))
    answer = await again.answer()
    assert (answer.status, answer.headers["Idempotency-Replayed"]) == (201, "true")
    assert (answer.path, answer.offset, answer.complete) == (path, HALF, "?0")
    (await talk.answer()).problem(409, "taken-over")
    assert (await client.append(answer.path, CONTENT[HALF:], HALF, "?1")).status == 200
    answer = await client.ask("POST", START, "Upload-Complete: ?1", key, body=CONTENT)
    assert (answer.status, answer.complete, as_json(answer)["id"]) == (201, "?1", task_id(path))


async def test_8_a_client_that_leaves_at_once(client: Client) -> None:
    """Leaves an upload that awaits its data, and no process."""
    talk = await client.begin("POST", START, "Upload-Complete: ?1", length=len(CONTENT))
    upload = task_id((await talk.interim()).headers["Location"])
    talk.abort()
    await client.server.until_status(upload, "paused")
    await nothing_left(client.server)
