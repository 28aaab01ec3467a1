"""Downloads: a task's files as of its checkpoint, and its log; whole, in part, and not again what is known."""

import asyncio
import os
from collections.abc import AsyncIterator
from itertools import count
from typing import Any, Final

import pytest
import pytest_asyncio
from harness import Answer, Server, flawless, parsed, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCK: Final = 256 << 10
"""What the server reads at once: lines around this length are where a mistake would be."""
TEN: Final = b"0123456789"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with flawless(tmp_path_factory.mktemp("files"), INTERMISSION_MAX_RUNNING="64") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ten(server: Server) -> str:
    """The address of a finished file that holds ``0123456789``."""
    task_id = await written(server, {"ten.txt": 10})
    return f"/tasks/{task_id}/files/ten.txt"


async def written(server: Server, files: dict[str, int], status: str = "completed", **params: Any) -> str:
    """A task that has written files of these sizes."""
    task_id = await server.launch("writer", {"files": files, **params})
    await server.until_status(task_id, status)
    return task_id


async def get(server: Server, path: str, **headers: str) -> Answer:
    """A GET with headers, named with ``_`` for ``-``."""
    return await server.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})


# Files.


async def test_a_file_is_as_long_as_the_checkpoint(server: Server) -> None:
    """While a task writes, its file is what the last checkpoint says: whole items, never what may be taken back."""
    task_id = await server.launch("steps", {"steps": 1_000_000_000, "delay_s": 0})
    await server.until(task_id, lambda task: task["files"])
    on_disk = server.data / "tasks" / task_id / "files" / "lines.txt"
    expected, ahead = bytearray(), 0
    numbers = count(1)
    while ahead < 5:
        [before] = (await server.task(task_id))["files"]
        answer = await get(server, before["href"])
        ahead += os.stat(on_disk).st_size > len(answer.body)
        [after] = (await server.task(task_id))["files"]
        while len(expected) < after["size_bytes"]:
            n = next(numbers)
            expected += b"%d %d\n" % (n, n**2)
        assert answer.status == 200
        assert before["size_bytes"] <= len(answer.body) <= after["size_bytes"]
        assert int(answer.headers["Content-Length"]) == len(answer.body)
        assert answer.body == expected[: len(answer.body)]
        assert answer.body.endswith(b"\n")
    paused = (await server.verb(task_id, "pause")).json
    assert len(await server.file(task_id, "lines.txt")) == paused["files"][0]["size_bytes"]
    await server.verb(task_id, "terminate")


@pytest.mark.parametrize(("status", "fail"), [("running", False), ("failed", True)])
async def test_what_is_behind_the_checkpoint(server: Server, status: str, fail: bool) -> None:
    """What a handler wrote after its last checkpoint is on disk and not in the download; of a failed task too."""
    task_id = await server.launch("writer", {"files": {"ten.txt": 10}, "more": 7, "fail": fail})
    on_disk = server.data / "tasks" / task_id / "files" / "ten.txt"
    await server.until(task_id, lambda t: t["status"] == status and t["files"] and os.stat(on_disk).st_size == 17)
    assert await server.file(task_id, "ten.txt") == TEN
    assert (await get(server, f"/tasks/{task_id}/files/ten.txt", Range="bytes=8-")).body == b"89"
    await server.verb(task_id, "terminate")


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-4", 0, 5),
        ("bytes=3-", 3, 10),
        ("bytes=9-", 9, 10),
        ("bytes=0-", 0, 10),
        ("bytes=-3", 7, 10),
        ("bytes=-10", 0, 10),
        ("bytes=-999", 0, 10),
        ("bytes=2-9", 2, 10),
        ("bytes=2-999", 2, 10),
        ("bytes=2-999999999999999999", 2, 10),
        ("Bytes=2-3", 2, 4),
        ("bytes= 2-3", 2, 4),
    ],
)
async def test_a_range(server: Server, ten: str, asked: str, first: int, end: int) -> None:
    """A range is 206 with exactly those bytes, and says which they are."""
    answer = await get(server, ten, Range=asked)
    assert (answer.status, answer.body) == (206, TEN[first:end])
    assert answer.headers["Content-Range"] == f"bytes {first}-{end - 1}/10"
    assert answer.headers["Content-Length"] == str(end - first)


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-20", "bytes=999999999999-", "bytes=-0"])
async def test_a_range_that_is_not_there(server: Server, ten: str, asked: str) -> None:
    """A range behind the end is 416 with the length."""
    answer = await get(server, ten, Range=asked)
    problem(answer, 416, "range-not-satisfiable")
    assert answer.headers["Content-Range"] == "bytes */10"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=4-2",
        "bytes=a-b",
        "bytes=-",
        "bytes=",
        "bytes",
        "",
        "items=0-1",
        "bytes=0-1,4-5",
        "bytes=--1",
        "bytes=+1-2",
        "bytes=\xb2-3",
        "bytes=0x1-2",
        "bytes=1-2-3",
        "0-1",
        "bytes=" + "9" * 5000 + "-",
    ],
)
async def test_what_is_no_range(server: Server, ten: str, asked: str) -> None:
    """What is no range, or several, is left aside: the whole file."""
    answer = await server.exactly(f"GET {ten}", f"Range: {asked}")
    assert (answer.status, answer.body) == (200, TEN)
    assert "Content-Range" not in answer.headers


async def test_if_range(server: Server, ten: str) -> None:
    """A part is only sent of the file that the client knows; of any other it gets the whole."""
    etag = (await get(server, ten)).headers["ETag"]
    assert (await get(server, ten, Range="bytes=8-", If_Range=etag)).body == b"89"
    for other in ('"other"', f"W/{etag}", "Wed, 21 Oct 2015 07:28:00 GMT", etag.strip('"'), "*"):
        answer = await get(server, ten, Range="bytes=8-", If_Range=other)
        assert (answer.status, answer.body) == (200, TEN), other
        assert (await get(server, ten, Range="bytes=99-", If_Range=other)).status == 200


async def test_what_is_known_is_not_sent_again(server: Server, ten: str) -> None:
    """The entity tag that the client has, in any form that means it, is 304 without a body."""
    etag = (await get(server, ten)).headers["ETag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', f'{etag},"other"', "*"):
        answer = await get(server, ten, If_None_Match=known)
        assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", etag), known
        assert (await get(server, ten, If_None_Match=known, Range="bytes=99-")).status == 304
    for unknown in ('"other"', etag.strip('"'), "", etag[:-2] + '"'):
        answer = await get(server, ten, If_None_Match=unknown)
        assert (answer.status, answer.body) == (200, TEN), unknown


async def test_a_file_that_grew_is_another(server: Server) -> None:
    """As a file grows its entity tag changes, so that a client that continues a download learns of it."""
    task_id = await server.launch("steps", {"steps": 1_000_000})
    path = f"/tasks/{task_id}/files/lines.txt"
    await server.until_progress(task_id)
    await server.verb(task_id, "pause")
    first = await get(server, path)
    assert (await get(server, path, If_None_Match=first.headers["ETag"])).status == 304
    await server.verb(task_id, "resume")
    await server.until(task_id, lambda task: task["files"][0]["size_bytes"] > len(first.body))
    second = await get(server, path, If_None_Match=first.headers["ETag"])
    assert second.status == 200
    assert second.headers["ETag"] != first.headers["ETag"]
    assert second.body.startswith(first.body)
    rest = await get(server, path, Range=f"bytes={len(first.body)}-")
    assert rest.status == 206
    await server.verb(task_id, "terminate")


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("rows.csv", "text/csv"),
        ("page.html", "text/html"),
        ("data.json", "application/json"),
        ("rows.csv.gz", "application/gzip"),
        ("rows.csv.bz2", "application/octet-stream"),
        ("unheard.of", "application/octet-stream"),
        ("README", "application/octet-stream"),
    ],
)
async def test_how_a_file_is_sent(server: Server, name: str, media_type: str) -> None:
    """A file is an attachment of its own name and type, and no browser guesses another."""
    task_id = await written(server, {name: 3})
    answer = await get(server, f"/tasks/{task_id}/files/{name}")
    assert (answer.status, answer.body) == (200, b"012")
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["Content-Disposition"] == f"attachment; filename*=UTF-8''{name}"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert "Content-Encoding" not in answer.headers
    [listed] = (await server.task(task_id))["files"]
    assert (listed["media_type"], listed["href"]) == (media_type, f"/tasks/{task_id}/files/{name}")


async def test_head_of_a_file(server: Server, ten: str) -> None:
    """HEAD has every header of GET and no body; a range is none of its business."""
    whole = await get(server, ten)
    for headers in ({}, {"Range": "bytes=2-3"}, {"Range": "bytes=99-"}):
        head = await server.ask("HEAD", ten, headers=headers)
        assert (head.status, head.body) == (200, b"")
        for name in ("Content-Length", "Content-Type", "ETag", "Accept-Ranges", "Content-Disposition"):
            assert head.headers[name] == whole.headers[name]
    known = await server.ask("HEAD", ten, headers={"If-None-Match": whole.headers["ETag"]})
    assert (known.status, known.body) == (304, b"")


async def test_only_if_it_is_still_this_one(server: Server) -> None:
    """If-Match (RFC 9110, section 13.1.1), compared strongly, and before everything else that is asked."""
    path = f"/tasks/{await written(server, {'ten': 10})}/files/ten"
    tag = (await get(server, path)).headers["ETag"]
    for matching in (tag, "*", f'"other", {tag}', f'{tag},"other"'):
        assert (await get(server, path, **{"If-Match": matching})).status == 200, matching
        assert (await get(server, path, **{"If-Match": matching, "Range": "bytes=2-3"})).status == 206
    assert (await get(server, path, **{"If-Match": tag, "If-None-Match": f"W/{tag}"})).status == 304
    for other in ('"other"', f"W/{tag}", tag.strip('"'), "", '"a", "b"'):
        for also in ({}, {"Range": "bytes=99-"}, {"If-None-Match": tag}):
            answer = await get(server, path, **{"If-Match": other, **also})
            problem(answer, 412, "precondition-failed")
            assert answer.headers["ETag"] == tag
        head = await server.ask("HEAD", path, headers={"If-Match": other})
        assert (head.status, head.body) == (412, b"")
    unmodified = {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}
    assert (await get(server, path, **unmodified)).status == 200  # nobody knows when it was modified


async def test_an_empty_file(server: Server) -> None:
    """A file without a byte is one; there is no range of it."""
    task_id = await written(server, {"empty": 0})
    answer = await get(server, f"/tasks/{task_id}/files/empty")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    for asked in ("bytes=0-", "bytes=-1"):
        assert (await get(server, f"/tasks/{task_id}/files/empty", Range=asked)).status == 416


@pytest.mark.parametrize(
    "name",
    [
        *("nope", "TEN.txt", "ten.txt%00", "ten.txt%20", "%20ten.txt", "ten", "ten.txt.", "*", "%00", "%ff", "."),
        *("..", "%2e%2e", "..%2fslot.0", "..%2flog", "%2e%2e%2flog", "..%5clog", "%252e%252e%252flog", "log", "slot.0"),
        *("files", "..%2f..%2f..%2fintermission.db", "%2fetc%2fpasswd", "~root", "x" * 4000, "%ef%bc%8e%ef%bc%8e"),
    ],
)
async def test_a_name_that_there_is_not(server: Server, ten: str, name: str) -> None:
    """A name is looked up among the task's files, never in a folder; the answer says which there are."""
    answer = await server.exactly(f"GET {ten.removesuffix('ten.txt')}{name}")
    said = problem(answer, 404, "unknown-file")
    assert said["detail"].endswith("its files: ten.txt")


async def test_a_name_may_be_encoded(server: Server, ten: str) -> None:
    """As any part of an address."""
    assert (await server.exactly(f"GET {ten.replace('.', '%2E')}")).body == TEN


async def test_no_files_yet(server: Server) -> None:
    """A task without a checkpoint has no files, and says so."""
    task_id = await server.launch("gil", {"seconds": 0})
    said = problem(await get(server, f"/tasks/{task_id}/files/x"), 404, "unknown-file")
    assert said["detail"].endswith("none yet")


async def test_a_file_that_is_lost(server: Server) -> None:
    """Whatever happened to a file on disk, its download is never something shorter that looks whole."""
    task_id = await written(server, {"a": 100, "b": 3 * BLOCK})
    folder = server.data / "tasks" / task_id / "files"
    os.truncate(folder / "b", 2 * BLOCK)
    heard = await server.talk(
        f"GET /tasks/{task_id}/files/b HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    )  # returns at all only if the server breaks it off
    head, _, body = heard.partition(b"\r\n\r\n")
    assert heard == b"" or f"Content-Length: {3 * BLOCK}".encode() in head
    assert body.replace(b"0123456789abcdef", b"") in b"0123456789abcdef"
    assert len(body) <= 2 * BLOCK
    (folder / "a").unlink()
    problem(await get(server, f"/tasks/{task_id}/files/a"), 404, "unknown-file")


async def test_clients_that_read_slowly_or_not_at_all(server: Server) -> None:
    """Who does not read, or goes away in the middle, holds up nobody and is no mistake of the server's."""
    task_id = await written(server, {"large": 24 << 20})
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    crowd = [await asyncio.open_connection(host, int(port), limit=1 << 16) for _ in range(8)]
    for reader, writer in crowd:
        writer.write(f"GET /tasks/{task_id}/files/large HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
    answer = await get(server, f"/tasks/{task_id}/files/large", Range=f"bytes=-{BLOCK}")
    assert answer.body == b"0123456789abcdef" * (BLOCK // 16)
    for _, writer in crowd:
        writer.transport.abort()
    assert len(await server.file(task_id, "large")) == 24 << 20


# The log.


async def said(server: Server, *parts: tuple[str, int], **params: Any) -> str:
    """The address of the log of a task that has said this."""
    task_id = await server.launch("sayer", {"parts": parts, **params})
    await server.until_status(task_id, "completed")
    return f"/tasks/{task_id}/log"


async def test_a_log(server: Server) -> None:
    """The log has what the handler and everything below it printed, in whatever way."""
    task_id = await server.launch("printer")
    await server.until_status(task_id, "completed")
    answer = await get(server, f"/tasks/{task_id}/log")
    assert answer.status == 200
    lines = answer.body.decode().splitlines()
    for line in ("from print", "from stderr", "from the descriptor", "from a subprocess"):
        assert line in lines
    assert any(line.endswith("from the log") for line in lines)
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    head = await server.ask("HEAD", f"/tasks/{task_id}/log")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", answer.headers["Content-Length"])


LOGS: Final[dict[str, list[tuple[str, int]]]] = {
    "plain": [("one\ntwo\nthree\n", 1)],
    "no newline at the end": [("one\ntwo\nthree", 1)],
    "nothing": [("", 1)],
    "one newline": [("\n", 1)],
    "newlines": [("\n", 5)],
    "one line without end": [("one", 1)],
    "empty lines between": [("\n\none\n\n\ntwo\n\n", 1)],
    "carriage returns": [("one\rstill one\r\ntwo\x0b\x0c\x85two\r", 1)],
    "letters of several bytes": [("Zoë\n李\n👩\n", 1)],
    "a line of more than a block": [("first\n", 1), ("a", BLOCK + 5), ("\nlast\n", 1)],
    "a line of several blocks, without end": [("first\n", 1), ("a", 3 * BLOCK)],
    "a newline first in a block": [("first\n", 1), ("a", 5), ("\n", 1), ("b", BLOCK - 1)],
    "a newline last before a block": [("first\n", 1), ("a", 5), ("\n", 1), ("b", BLOCK)],
    "a block between newlines": [("first\n", 1), ("b", BLOCK - 1), ("\n", 1)],
    "a block and its newline": [("first\n", 1), ("b", BLOCK), ("\n", 1)],
    "a block of newlines": [("x", 1), ("\n", BLOCK + 3)],
    "exactly a block": [("a", BLOCK - 1), ("\n", 1)],
}


@pytest.mark.parametrize("parts", LOGS.values(), ids=LOGS)
async def test_the_end_of_a_log(server: Server, parts: list[tuple[str, int]]) -> None:
    """``?tail=N`` is the last N lines, however long they are and whether or not the last has ended."""
    path = await said(server, *parts)
    whole = "".join(text * times for text, times in parts).encode()
    assert (await get(server, path)).body == whole
    lines = [line + b"\n" for line in whole.split(b"\n")]
    lines[-1] = lines[-1].removesuffix(b"\n")
    lines = lines if lines[-1] else lines[:-1]
    for n in {1, 2, 3, max(len(lines) - 1, 1), max(len(lines), 1), len(lines) + 1, 100_000} - set(
        range(100_001, BLOCK * 2)
    ):
        assert (await get(server, f"{path}?tail={n}")).body == b"".join(lines[-n:]), n


async def test_a_range_of_a_log(server: Server) -> None:
    """A range is of what would be sent: of the whole log, or of its tail; a log is never known before."""
    path = await said(server, ("one\ntwo\nthree\n", 1))
    assert (await get(server, path, Range="bytes=4-6")).body == b"two"
    part = await get(server, path, Range="bytes=-6")
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"three\n", "bytes 8-13/14")
    tail = await get(server, f"{path}?tail=2", Range="bytes=0-2")
    assert (tail.status, tail.body, tail.headers["Content-Range"]) == (206, b"two", "bytes 0-2/10")
    problem(await get(server, path, Range="bytes=14-"), 416, "range-not-satisfiable")
    for headers in ({"If_Range": '"x"', "Range": "bytes=0-1"}, {"If_None_Match": "*"}):
        answer = await get(server, path, **headers)
        assert (answer.status, len(answer.body)) == (200, 14)
        assert "ETag" not in answer.headers


async def test_the_log_of_a_task_that_never_ran(server: Server) -> None:
    """It is empty, with or without a tail or a range."""
    first = await server.launch("single", {"delay_s": 600})
    await server.until_status(first, "running")
    task_id = await server.launch("single")
    for path in (f"/tasks/{task_id}/log", f"/tasks/{task_id}/log?tail=5"):
        for method in ("GET", "HEAD"):
            answer = await server.ask(method, path, headers={"Range": "bytes=0-5"})
            assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    for each in (task_id, first):
        await server.verb(each, "terminate")


async def test_a_log_while_it_is_written(server: Server) -> None:
    """A running task's log is what there is by now, and a resumed one's goes on in the same log."""
    task_id = await server.launch("sayer", {"parts": [("hello\n", 1)], "wait": True})
    await server.until_progress(task_id)
    assert (await get(server, f"/tasks/{task_id}/log")).body == b"hello\n"
    await server.verb(task_id, "pause")
    assert (await get(server, f"/tasks/{task_id}/log")).body == b"hello\n"
    await server.verb(task_id, "resume")
    await server.until_status(task_id, "completed")
    assert (await get(server, f"/tasks/{task_id}/log")).body == b"hello\nhello\n"
    assert (await get(server, f"/tasks/{task_id}/log?tail=1")).body == b"hello\n"


async def test_a_log_that_grows_while_it_is_sent(server: Server) -> None:
    """An answer is as long as its head says, though the task goes on printing."""
    task_id = await server.launch("printer", {"n": 20_000})
    await server.until_status(task_id, "running")
    for _ in range(20):
        answer = parsed(await server.talk(f"GET /tasks/{task_id}/log HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()))
        assert int(answer.headers["Content-Length"]) == len(answer.body)
    await server.until_status(task_id, "completed")
    assert len((await get(server, f"/tasks/{task_id}/log")).body) > 20_000_000
