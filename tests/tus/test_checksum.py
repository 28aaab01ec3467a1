"""tus 1.0.0, checksum: statements 50 to 57 of our list. A body with one counts as a whole or not at all."""

import os
import signal
from pathlib import Path

import pytest
from harness import Server, problem, send, until
from tus_tools import (
    CONTENT,
    HALF,
    OCTETS,
    ask,
    begin,
    checksum,
    content,
    create,
    offset,
    patch,
    task_id,
    unchanged,
)
from upload_tools import Sending, newest, sha256
from verb_tools import attempts, playing
from yarl import URL

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRONG = checksum(b"other")


def on_disk(server: Server, path: str) -> int:
    """The bytes that are in the file, durable or not."""
    return os.stat(server.data / "tasks" / task_id(path) / "files" / "content").st_size


async def test_50_which_there_are(server: Server) -> None:
    """sha1 is among them; their names are lower-case."""
    names = (await ask(server, "OPTIONS")).headers["Tus-Checksum-Algorithm"]
    assert names.split(",") == ["sha1", "sha256", "crc32c", "md5"]


@pytest.mark.parametrize("given", ["crc64 AAAA", "SHA1 AAAA", "AAAA", "", "sha512 AAAA"])
async def test_51_one_that_there_is_not(server: Server, given: str) -> None:
    """Is 400, and nothing is stored."""
    path = await create(server)
    await unchanged(server, path, await patch(server, path, b"abc", 0, Upload_Checksum=given), 400, "unknown-checksum")


@pytest.mark.parametrize("at", [0, HALF])
async def test_52_a_body_that_does_not_fit(server: Server, at: int) -> None:
    """Is 460; offset and bytes are what they were, and the same place takes the right bytes."""
    path = await create(server)
    await patch(server, path, CONTENT[:at], 0)
    answer = await patch(server, path, CONTENT[at:], at, Upload_Checksum=WRONG)
    await unchanged(server, path, answer, 460, "checksum-mismatch", at=at)
    assert answer.headers["Upload-Offset"] == str(at)
    assert on_disk(server, path) == at
    task = await server.task(task_id(path))
    assert (task["status"], task["error"]["type"]) == ("paused", "ChecksumMismatch")
    assert (await patch(server, path, CONTENT[at:], at, Upload_Checksum=checksum(CONTENT[at:]))).status == 204
    task = await server.task(task_id(path))
    assert (task["status"], task["error"], task["result"]["sha256"]) == ("completed", None, sha256(CONTENT))
    assert await content(server, path) == CONTENT


async def test_52_the_last_one_does_not_complete_it(server: Server) -> None:
    """Not even an empty one."""
    path = await create(server, None)
    await patch(server, path, b"abc", 0)
    answer = await patch(server, path, b"", 3, Upload_Length="3", Upload_Checksum=WRONG)
    assert (await server.task(task_id(path)))["status"] == "paused"  # until a HEAD tells that all is there
    await unchanged(server, path, answer, 460, "checksum-mismatch", at=3)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "crc32c", "md5"])
async def test_53_a_body_that_fits(server: Server, algorithm: str) -> None:
    """Is 204, in as many parts as there are."""
    path = await create(server)
    size = 300_000
    for at in range(0, len(CONTENT), size):
        part = CONTENT[at : at + size]
        answer = await patch(server, path, part, at, Upload_Checksum=checksum(part, algorithm))
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(at + len(part)))
    task = await server.task(task_id(path))
    assert (task["result"]["sha256"], task["progress"]["done"]) == (sha256(CONTENT), len(CONTENT))
    assert await content(server, path) == CONTENT


@pytest.mark.parametrize(
    "given",
    ["sha1", "sha1 ", "sha1 AAAA", "sha1 ***", "sha1  qUqP5cyxm6YcTAhz05Hph5gvu9M=", "md5 A", "crc32c AAAAAAA="],
)
async def test_54_one_that_is_malformed(server: Server, given: str) -> None:
    """Is 400, and nothing is stored."""
    path = await create(server)
    answer = await patch(server, path, b"test", 0, Upload_Checksum=given)
    await unchanged(server, path, answer, 400, "malformed-header")


async def test_55_of_the_first_bytes(server: Server) -> None:
    """The same for a creation; with the wrong one nothing is left."""
    before = await newest(server)
    named = {"Upload_Length": "3", "Content_Type": OCTETS}
    problem(await ask(server, "POST", body=b"abc", Upload_Checksum="crc64 AAAA", **named), 400, "unknown-checksum")
    problem(await ask(server, "POST", body=b"abc", Upload_Checksum=WRONG, **named), 460, "checksum-mismatch")
    assert await newest(server) == before
    answer = await ask(server, "POST", body=b"abc", Upload_Checksum=checksum(b"abc"), **named)
    assert answer.status == 201
    assert await content(server, URL(answer.headers["Location"]).path) == b"abc"


@pytest.mark.parametrize("how", ["cut", "taken over", "paused", "child killed", "too long in coming"])
async def test_56_a_body_that_breaks_off(tmp_path: Path, how: str) -> None:
    """Is not kept, whatever ends it: what has not been verified does not count. It is cut off the file, too."""
    async with playing(tmp_path, **({"INTERMISSION_UPLOAD_IDLE_S": "0.3"} if "coming" in how else {})) as server:
        path = await create(server)
        await patch(server, path, CONTENT[:1000], 0)
        sending = await begun(server, path, 1000, checksum(CONTENT[1000:]))
        match how:
            case "cut":
                sending.abort()
                await server.until_status(task_id(path), "paused")
            case "taken over":
                assert await offset(server, path) == 1000
                problem(await sending.answer(), 409, "taken-over")
            case "paused":
                assert (await server.verb(task_id(path), "pause")).headers["Upload-Offset"] == "1000"
                problem(await sending.answer(), 423, "held")
                await server.verb(task_id(path), "resume")
            case "child killed":
                send((await server.task(task_id(path)))["child"]["pid"], signal.SIGKILL)
                problem(await sending.answer(), 503, "interrupted")
            case _:
                problem(await sending.answer(), 408, "idle")
        assert await offset(server, path) == 1000
        if how != "child killed":
            assert on_disk(server, path) == 1000
        assert (await patch(server, path, CONTENT[1000:], 1000, Upload_Checksum=checksum(CONTENT[1000:]))).status == 204
        assert await content(server, path) == CONTENT
        assert len(await attempts(server, task_id(path))) == 3


async def begun(server: Server, path: str, at: int, given: str) -> Sending:
    """A PATCH with a checksum of which about the half has been written."""
    sending = await begin(server, path, f"Upload-Checksum: {given}", length=len(CONTENT) - at, at=at)
    await sending.send(CONTENT[at:HALF])
    # Nothing else tells, for none of it counts yet. The last 64 KiB may be in a buffer of the child.
    await until(lambda: so(on_disk(server, path) > HALF - (1 << 17)))
    return sending


async def so(is_so: bool) -> bool:
    """What it is."""
    return is_so


async def test_57_trailers_are_not_advertised(server: Server) -> None:
    """For they are not read."""
    assert "checksum-trailer" not in (await ask(server, "OPTIONS")).headers["Tus-Extension"].split(",")
