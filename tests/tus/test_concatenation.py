"""tus 1.0.0, concatenation: statements 62 to 70 of our list."""

from pathlib import Path

import pytest
from harness import Server, problem
from tus_tools import CONTENT, FILES, HALF, ask, content, create, head, metadata, patch, task_id
from upload_tools import data, newest, sha256
from verb_tools import history, playing
from yarl import URL

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARTS = [data(500_000, seed=1), data(1, seed=2), b"", data(1_200_001, seed=3)]


async def part(server: Server, body: bytes, **headers: str) -> str:
    """A part that is complete; its path."""
    path = await create(server, len(body), Upload_Concat="partial", **headers)
    if body:
        assert (await patch(server, path, body, 0)).status == 204
    return path


async def joined(server: Server, *urls: str, **headers: str) -> str:
    """What is made of parts; its path."""
    answer = await ask(server, "POST", Upload_Concat="final;" + " ".join(urls), **headers)
    assert answer.status == 201, answer.body
    return URL(answer.headers["Location"]).path


async def test_62_a_part(server: Server) -> None:
    """Is an upload that says so."""
    assert "concatenation" in (await ask(server, "OPTIONS")).headers["Tus-Extension"].split(",")
    path = await create(server, Upload_Concat="partial")
    for at in (0, HALF):
        answer = await head(server, path)
        assert (answer.headers["Upload-Concat"], answer.headers["Upload-Offset"]) == ("partial", str(at))
        await patch(server, path, CONTENT[:HALF], at)
    assert "Upload-Concat" not in (await head(server, await create(server))).headers


async def test_63_made_of_parts(server: Server) -> None:
    """By their URLs, relative or whole; the length is not said again."""
    paths = [await part(server, body) for body in PARTS]
    path = await joined(server, paths[0], server.url + paths[1])
    assert await content(server, path) == PARTS[0] + PARTS[1]
    before = await newest(server)
    for more in ({"Upload_Length": "500001"}, {"Upload_Defer_Length": "1"}):
        problem(await ask(server, "POST", Upload_Concat=f"final;{paths[0]}", **more), 400, "length")
    assert await newest(server) == before


@pytest.mark.parametrize(
    "value",
    [
        *("", "final", "final;", "final; ", "Final;/upload/files/x", "partial;", "other"),
        "final;/upload/files/",
        "final;/upload/files/../../../etc/passwd",
        "final;/upload/files/%2e%2e/x",
        "final;/upload/files/{id}/../{id}",
        "final;/tasks/{id}",
        "final;{id}",
        "final;/upload/files/{id}?x=y",
        "final;/upload/files/{id}#x",
        "final;http://example.org/upload/files/{id}",
        "final;//example.org/upload/files/{id}",
        "final;http://[/upload/files/{id}",
        "final;file:///upload/files/{id}/x",
        "final;/upload/files/{id},/upload/files/{id}",
    ],
)
async def test_63_urls_that_are_none_of_ours(server: Server, value: str) -> None:
    """Are 400; they lead nowhere, and nothing is created."""
    path = await part(server, b"abc")
    given = value.replace("{id}", task_id(path))
    problem(await ask(server, "POST", Upload_Length="3", Upload_Concat="no"), 400, "malformed-header")
    answer = await ask(server, "POST", Upload_Concat=given)
    assert answer.status == 400
    assert await newest(server) == task_id(path)


async def test_63_parts_that_are_not_there(server: Server) -> None:
    """Unknown, deleted, or not meant to be a part: 400, and nothing is created."""
    good, gone, whole = await part(server, b"abc"), await part(server, b"abc"), await create(server, 0)
    await ask(server, "DELETE", gone)
    before = await newest(server)
    for bad in (f"{FILES}/01900000-0000-7000-8000-000000000000", gone, whole):
        problem(await ask(server, "POST", Upload_Concat=f"final;{good} {bad}"), 400, "part")
    assert await newest(server) == before


async def test_64_in_their_order(server: Server) -> None:
    """The length is the sum; one may come twice; empty ones are nothing."""
    paths = [await part(server, body) for body in PARTS]
    order = [3, 0, 2, 1, 3, 1]
    path = await joined(server, *(paths[n] for n in order), Upload_Metadata=metadata(filename="whole"))
    expected = b"".join(PARTS[n] for n in order)
    answer = await head(server, path)
    assert answer.headers["Upload-Length"] == answer.headers["Upload-Offset"] == str(len(expected))
    task = await server.task(task_id(path))
    assert (task["status"], task["progress"]["done"], task["result"]) == (
        "completed",
        len(expected),
        {
            "filename": "whole",
            "size_bytes": len(expected),
            "sha256": sha256(expected),
            "crc32c": None,
            "media_type": "application/octet-stream",
        },
    )
    assert await content(server, path) == expected
    for n in (0, 1, 3):
        assert await content(server, paths[n]) == PARTS[n], "the parts are what they were"
    assert await content(server, await joined(server, paths[2], paths[2])) == b""


async def test_65_a_part_that_is_not_complete(server: Server) -> None:
    """Is 400."""
    good, unfinished = await part(server, b"abc"), await create(server, 3, Upload_Concat="partial")
    problem(await ask(server, "POST", Upload_Concat=f"final;{good} {unfinished}"), 400, "part")


async def test_66_no_bytes_for_the_whole(server: Server) -> None:
    """403, and nothing changes."""
    path = await joined(server, await part(server, b"abc"))
    before = await server.task(task_id(path))
    problem(await patch(server, path, b"d", 3), 403, "final")
    assert await server.task(task_id(path)) == before


async def test_67_the_whole_says_what_it_is_made_of(server: Server) -> None:
    """As it was said."""
    one, other = await part(server, b"abc"), await part(server, b"def")
    path = await joined(server, one, other)
    answer = await head(server, path)
    assert answer.headers["Upload-Concat"] == f"final;{one} {other}"
    assert answer.headers["Upload-Offset"] == answer.headers["Upload-Length"] == "6"


async def test_68_metadata_are_not_inherited(server: Server) -> None:
    """The whole has its own or none."""
    path = await joined(server, await part(server, b"abc", Upload_Metadata=metadata(filename="part")))
    assert "Upload-Metadata" not in (await head(server, path)).headers
    assert (await server.task(task_id(path)))["result"]["filename"] is None


async def test_69_the_whole_is_a_task_of_its_own(server: Server) -> None:
    """It waits for its turn and not for bytes; nothing happens to the parts."""
    one = await part(server, b"abc")
    before = await history(server, task_id(one))
    path = await joined(server, one)
    assert [event for event, _ in await history(server, task_id(path))] == ["created", "claimed", "completed"]
    assert await history(server, task_id(one)) == before
    assert (await ask(server, "DELETE", one)).status == 204, "it is needed no more"
    assert await content(server, path) == b"abc"
    assert (await ask(server, "DELETE", path)).status == 204


async def test_70_a_long_one(tmp_path: Path) -> None:
    """Its creation is answered in any case; its parts stay meanwhile; paused, killed and resumed it is identical.

    With one place, which is taken: so the creation waits as long as it ever does, and everything else is in our hands.
    """
    async with playing(tmp_path, INTERMISSION_MAX_RUNNING="1") as server:
        paths = [await part(server, body) for body in (CONTENT, PARTS[0])]
        blocking = await server.launch("single", {"delay_s": 600})
        path = await joined(server, *(paths * 40))
        whole = (CONTENT + PARTS[0]) * 40
        answer = await head(server, path)
        assert (answer.headers["Upload-Offset"], answer.headers["Upload-Length"]) == ("0", str(len(whole)))
        problem(await ask(server, "DELETE", paths[0]), 409, "in-use")
        assert (await server.ask("POST", "/upload/pause")).json["id"] == task_id(path)
        assert (await server.verb(blocking, "terminate")).status == 200
        assert (await server.verb(task_id(path), "resume")).status == 202
        await server.until_progress(task_id(path))
        await server.kill()
        await server.start()
        await server.until_status(task_id(path), "completed")
        assert (await server.task(task_id(path)))["result"]["sha256"] == sha256(whole)
        assert await content(server, path) == whole
        assert (await ask(server, "DELETE", paths[0])).status == 204
