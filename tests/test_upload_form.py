"""Uploads as ``multipart/form-data``: one file, cut out of the form as it comes, and clear answers to all else."""

import asyncio
import io
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from harness import Answer, Server, problem, until
from upload_tools import MIB, Sending, begin, chunk, data, newest, resume, sha256
from verb_tools import nothing_left, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = data(3 * MIB + 12_345)
HALF = MIB + 7
BOUNDARY = "----xYz"
FORM = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
END = f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for the tests that need no settings of their own."""
    async with playing(tmp_path_factory.mktemp("form"), INTERMISSION_UPLOAD_IDLE_S="20") as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


def part(*more: str, disposition: str = 'form-data; name="file"; filename="a.bin"') -> bytes:
    """A boundary and the head of a part."""
    lines = [f"--{BOUNDARY}", f"Content-Disposition: {disposition}", *more, "", ""]
    return "\r\n".join(lines).encode()


HEAD = part("Content-Type: image/png")


def value(name: str, text: str) -> bytes:
    """A field that is no file, with what ends it."""
    return part(disposition=f'form-data; name="{name}"') + text.encode() + b"\r\n"


async def post(server: Server, form: bytes, *headers: str, path: str = "/upload/start") -> Answer:
    """A form, all at once."""
    kind = () if any(header.startswith("Content-Type") for header in headers) else (FORM,)
    return await server.exactly(f"POST {path}", *kind, *headers, body=form)


async def flowing(server: Server, upto: int, *headers: str, query: str = "") -> tuple[Sending, str]:
    """A form of which the file's bytes have come up to a place, all of them in the child's hands; its id."""
    before = after = await newest(server)
    length = len(HEAD + CONTENT + END)
    sending = await begin(server, f"/upload/start{query}", FORM, *headers, length=length)
    await sending.send(HEAD + CONTENT[:upto])

    async def there() -> bool:
        nonlocal after
        after = await newest(server)
        return after != before

    await until(there)
    await server.until_progress(after, upto)
    return sending, after


async def nothing_kept(server: Server, before: str) -> None:
    """Assert that there is no upload that was not there before, and no file of one."""
    assert await newest(server) == before
    for folder in (server.data / "tasks").iterdir():
        assert (await server.task(folder.name))["id"] == folder.name


# Whole.


@pytest.mark.parametrize("size", [0, 1, 65_536, MIB - 1, 5 * MIB + 3])
async def test_any_size_arrives_exactly(server: Server, size: int) -> None:
    """The file is what was between its head and the boundary; its name and its type are those of the form."""
    sent = data(size)
    answer = await post(server, HEAD + sent + END)
    assert answer.status == 201, answer.body
    task = answer.json
    result, params = task["result"], task["params"]
    assert (result["filename"], result["size_bytes"], result["sha256"]) == ("a.bin", size, sha256(sent))
    assert (params["media_type"], params["size_bytes"]) == ("image/png", None), "the form's length is not its file's"
    assert answer.headers["Upload-Length"] == str(size)
    assert await server.file(task["id"], "content") == sent


async def test_by_a_client_of_its_own(server: Server) -> None:
    """What a client's library makes of a form is understood, with its length and without."""
    for form in (aiohttp.FormData(), aiohttp.FormData(quote_fields=False)):
        form.add_field("any name", io.BytesIO(CONTENT), filename="fl\u00fcge.bin", content_type="application/x-any")
        answer = await server.ask("POST", "/upload/start", data=form)
        assert answer.status == 201, answer.body
        assert answer.json["result"]["sha256"] == sha256(CONTENT)
        assert answer.json["params"]["media_type"] == "application/x-any"
    assert answer.json["result"]["filename"] == "fl\u00fcge.bin"


async def test_curl(server: Server, tmp_path: Path) -> None:
    """``curl -F``."""
    path = tmp_path / "sent.csv"
    path.write_bytes(CONTENT)
    curl = ("curl", "-sS", "-F", f"file=@{path};type=text/csv", f"{server.url}/upload/start")
    process = await asyncio.create_subprocess_exec(*curl, stdout=asyncio.subprocess.PIPE)
    task = json.loads((await process.communicate())[0])
    assert (task["result"]["filename"], task["params"]["media_type"]) == ("sent.csv", "text/csv")
    assert task["result"]["sha256"] == sha256(CONTENT)


NEAR = (f"\r\n--{BOUNDARY}"[:-1] + "\r\n\r\r\n-\r\n--").encode()


@pytest.mark.parametrize("step", [1, 2, 3, 7, len(BOUNDARY) + 3, len(BOUNDARY) + 4, len(BOUNDARY) + 5, 100])
async def test_a_boundary_across_blocks(server: Server, step: int) -> None:
    """However a form is cut into blocks, and however much its file looks like the boundary: exactly the file."""
    sent = NEAR * 3 + data(100) + NEAR + f"--{BOUNDARY}--\r\n".encode() + NEAR
    form = b"a preamble\r\n" + HEAD + sent + END + b"an epilogue"
    sending = await begin(server, "/upload/start", FORM)
    for at in range(0, len(form), step):
        await sending.send(chunk(form[at : at + step]))
        await asyncio.sleep(0)
    await sending.send(chunk(b""))
    answer = await sending.answer()
    assert answer.status == 201, answer.body
    assert answer.json["result"]["sha256"] == sha256(sent)


async def test_what_has_come_is_not_held_back(server: Server) -> None:
    """Whatever a client waits for after it, each byte that cannot be of the boundary is passed on at once."""
    sending, task_id = await flowing(server, 1)
    for upto in (2, 3, 1000, 70_000):
        await sending.send(CONTENT[sending.sent - len(HEAD) : upto])
        await server.until_progress(task_id, upto)
    await sending.send(CONTENT[70_000:] + END)
    assert (await sending.answer()).json["result"]["sha256"] == sha256(CONTENT)


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="f"; filename="a b;c.txt"', "a b;c.txt"),
        ("form-data; name=f; filename=plain.txt", "plain.txt"),
        ('form-data; filename="first"; name="f"', "first"),
        ('form-data; name="f"; filename="flüge.csv"', "flüge.csv"),
        ("form-data; name=f; filename=x; filename*=UTF-8''fl%C3%BCge.csv", "flüge.csv"),
        ("form-data; name=f; filename=x; filename*=UTF-8''%FF", "x"),
        ("form-data; name=f; filename=x; filename*=klingon''y", "x"),
        (r'form-data; name="f"; filename="C:\CON\a\"b\\c"', r'C:\CON\a"b\c'),
        ('form-data; name="f"; filename="/../../etc/passwd"', "/../../etc/passwd"),
        ('form-data; name="f"; filename="%22.txt"', "%22.txt"),
    ],
)
async def test_names(server: Server, disposition: str, name: str) -> None:
    """A name is taken as browsers and others write it, and nothing of it is dropped."""
    answer = await post(server, part(disposition=disposition) + b"data" + END)
    assert answer.status == 201, answer.body
    assert (answer.json["result"]["filename"], answer.json["params"]["media_type"]) == (
        name,
        "application/octet-stream",
    )


async def test_a_name_that_is_not_in_utf8(server: Server) -> None:
    """Is what it was in the days before."""
    head = part(disposition='form-data; name="f"; filename="fl?ge"').replace(b"fl?ge", b"fl\xfcge")
    assert (await post(server, head + b"x" + END)).json["result"]["filename"] == "flüge"


async def test_what_is_said_in_the_address_wins(server: Server) -> None:
    """The name that a form gives stands only where nobody said another."""
    answer = await post(server, HEAD + b"x" + END, path="/upload/start?filename=b.txt")
    assert (answer.json["result"]["filename"], answer.json["params"]["media_type"]) == ("b.txt", "image/png")


@pytest.mark.parametrize(
    "kind",
    [
        f'multipart/form-data; boundary="{BOUNDARY}"',
        f"Multipart/Form-Data; charset=utf-8; Boundary={BOUNDARY}",
    ],
)
async def test_how_the_boundary_is_said(server: Server, kind: str) -> None:
    """Quoted or not, and behind other parameters."""
    assert (await post(server, HEAD + b"x" + END, f"Content-Type: {kind}")).status == 201


async def test_expect_continue(server: Server) -> None:
    """A client that asks first is told to go on, once."""
    form = HEAD + b"data" + END
    sending = await begin(server, "/upload/start", FORM, "Expect: 100-continue", length=len(form))
    async with asyncio.timeout(10):
        assert await sending.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await sending.send(form)
    assert (await sending.answer()).status == 201


async def test_a_request_behind_it_is_answered(server: Server) -> None:
    """Nothing but the form is taken from the connection."""
    form = HEAD + CONTENT + END
    sending = await begin(server, "/upload/start", FORM, length=len(form))
    await sending.send(form + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        heard = await sending.reader.read(-1)
    sending.abort()
    assert [one[:3] for one in heard.split(b"HTTP/1.1 ")[1:]] == [b"201", b"200"]


async def test_the_same_start_again(server: Server) -> None:
    """By its key it is the first one's task, whatever its boundary is now; with another name it is another start."""
    key = "Idempotency-Key: form"
    first = await post(server, HEAD + b"data" + END, key)
    form = (HEAD + b"data" + END).replace(BOUNDARY.encode(), b"other")
    again = await post(server, form, "Content-Type: multipart/form-data; boundary=other", key)
    assert (again.status, again.json["id"], again.headers["Idempotency-Replayed"]) == (201, first.json["id"], "true")
    problem(await post(server, part() + b"data" + END, key), 422, "key-reused")


async def test_for_a_service_that_takes_a_file(server: Server) -> None:
    """A form of one file is a file."""
    rows = b"a,b\n" + b"1,2\n" * 500
    answer = await post(server, part("Content-Type: text/csv") + rows + END, "Prefer: wait=30", path="/csv/start")
    assert (answer.status, answer.json["status"], answer.json["result"]["rows"]) == (202, "completed", 500)
    members = b"team,email\n" + b"".join(b"form,%d@example.org\n" % n for n in range(50))
    answer = await post(server, part() + members + END, "Prefer: wait=30", path="/team/start")
    assert (answer.status, answer.json["result"]["members"]) == (202, 50)
    before = await newest(server)
    problem(await post(server, part() + b"name,phone\nred,1\n" + END, path="/team/start"), 422, "invalid")
    await nothing_kept(server, before)


# Cut short.


@pytest.mark.parametrize("kind", ["reset", "closed"])
async def test_the_client_goes_away(server: Server, kind: str) -> None:
    """What came is durable; the rest is sent raw."""
    sending, task_id = await flowing(server, HALF)
    await (sending.leave() if kind == "closed" else asyncio.to_thread(sending.abort))
    task = await server.until_status(task_id, "paused")
    assert (task["reason"], task["checkpoint"]["state"]["received"]) == ("disconnected", HALF)
    assert (await resume(server, task_id, CONTENT, HALF)).json["result"]["sha256"] == sha256(CONTENT)
    assert await server.file(task_id, "content") == CONTENT


async def test_pause_and_terminate(server: Server) -> None:
    """Under an open request they are as with a body that is the file itself."""
    sending, task_id = await flowing(server, HALF)
    assert (await server.verb(task_id, "pause")).json["reason"] == "requested"
    answer = await sending.answer()
    assert (answer.status, answer.json["status"], answer.headers["Upload-Offset"]) == (200, "paused", str(HALF))
    assert (await resume(server, task_id, CONTENT, HALF)).json["result"]["sha256"] == sha256(CONTENT)
    sending, task_id = await flowing(server, HALF)
    assert (await server.verb(task_id, "terminate")).status == 200
    problem(await sending.answer(), 410, "gone")
    assert not (server.data / "tasks" / task_id).exists()


async def test_another_request_takes_over(server: Server) -> None:
    """The rest, sent raw while the form still hangs."""
    sending, task_id = await flowing(server, HALF)
    assert (await resume(server, task_id, CONTENT, HALF)).json["result"]["sha256"] == sha256(CONTENT)
    assert problem(await sending.answer(), 409, "taken-over")["offset"] == HALF


@pytest.mark.parametrize("end", [b"", b"\r", b"\r\n--", f"\r\n--{BOUNDARY}".encode(), f"\r\n--{BOUNDARY}-".encode()])
async def test_it_ends_before_its_boundary(server: Server, end: bytes) -> None:
    """Then it was cut somewhere: what is surely of the file is kept, and can be gone on with."""
    answer = await post(server, HEAD + CONTENT[:HALF] + end)
    said = problem(answer, 400, "malformed-form")
    assert (said["offset"], answer.headers["Upload-Offset"]) == (HALF, str(HALF))
    assert (await server.task(said["id"]))["reason"] == "disconnected"
    assert (await resume(server, said["id"], CONTENT, HALF)).json["result"]["sha256"] == sha256(CONTENT)


async def test_the_rest_as_a_form(server: Server) -> None:
    """Is refused, for it is no file of its own; nothing changes."""
    answer = await post(server, HEAD + CONTENT[:HALF] + END, f"Upload-Length: {len(CONTENT)}")
    assert (answer.status, answer.json["reason"], answer.headers["Upload-Offset"]) == (201, "awaiting_data", str(HALF))
    path = f"/upload/resume?task={answer.json['id']}"
    rest = HEAD + CONTENT[HALF:] + END
    refused = await post(server, rest, f"Upload-Offset: {HALF}", path=path)
    assert "the rest of it, as the body" in problem(refused, 415, "unsupported-media-type")["detail"]
    assert (await resume(server, answer.json["id"], CONTENT, HALF)).json["result"]["sha256"] == sha256(CONTENT)


# Refused.


OTHER = value("title", "x")
BAD_FIELD = 'form-data; name="f"; filename="../../etc/passwd\r\nX y"'


@pytest.mark.parametrize(
    ("form", "status", "slug"),
    [
        (b"", 400, "malformed-form"),
        (b"no form at all", 400, "malformed-form"),
        (HEAD[:-2], 400, "malformed-form"),
        (b"x" * 65_537 + b"\r\n" + HEAD + b"data" + END, 400, "malformed-form"),
        (b"\r\n" * 40_000 + HEAD + b"data" + END, 400, "malformed-form"),
        (part(f"X-Long: {'x' * 66_000}") + b"data" + END, 400, "malformed-form"),
        (part(*("X-Many: x" for _ in range(7000))) + b"data" + END, 400, "malformed-form"),
        (part("Content-Type: a/b", "content-type: a/b") + b"data" + END, 400, "malformed-form"),
        (part("no colon") + b"data" + END, 400, "malformed-form"),
        (part("X-Folded: a", " b") + b"data" + END, 400, "malformed-form"),
        (part("X-Nul: \0") + b"data" + END, 400, "malformed-form"),
        (part(disposition=BAD_FIELD) + b"data" + END, 400, "malformed-form"),
        (part(disposition='form-data; name="f"; filename="open') + b"data" + END, 400, "malformed-form"),
        (part(disposition='form-data; filename="a"; filename="b"') + b"data" + END, 400, "malformed-form"),
        (part(disposition='attachment; filename="a"') + b"data" + END, 400, "malformed-form"),
        (f"--{BOUNDARY}\r\n\r\ndata".encode() + END, 400, "malformed-form"),
        (f"--{BOUNDARY}more\r\n\r\ndata".encode() + END, 400, "malformed-form"),
        (f"--{BOUNDARY}--\r\n".encode(), 422, "no-file"),
        (part(disposition='form-data; name="f"; filename=""') + END, 422, "no-file"),
        (OTHER[:-2] + END, 422, "invalid"),
        (OTHER + HEAD + b"data" + END, 422, "invalid"),
        (part("Content-Transfer-Encoding: base64") + b64encode(b"data") + END, 415, "unsupported-media-type"),
        (part("Content-Transfer-Encoding: quoted-printable") + b"data" + END, 415, "unsupported-media-type"),
        (part("Content-Encoding: gzip") + b"data" + END, 415, "unsupported-media-type"),
        (part(disposition=f'form-data; name="f"; filename="{"x" * 4097}"') + b"data" + END, 422, "invalid"),
        # What is found behind the file, which by then is stored.
        (HEAD + CONTENT + b"\r\n" + part() + b"data" + END, 422, "several-files"),
        (HEAD + CONTENT + b"\r\n" + OTHER[:-2] + END, 422, "invalid"),
        (HEAD + CONTENT + b"\r\n" + part("no colon") + END, 400, "malformed-form"),
        (HEAD + CONTENT + f"\r\n--{BOUNDARY}more\r\n\r\n".encode() + END, 400, "malformed-form"),
        (HEAD + CONTENT + END + b"x" * 65_536, 400, "malformed-form"),
    ],
)
async def test_what_is_not_taken(server: Server, form: bytes, status: int, slug: str) -> None:
    """A clear answer, and nothing is kept, whenever it is found."""
    before = await newest(server)
    said = problem(await post(server, form), status, slug)
    if b'"title"' in form:
        assert [fault["parameter"] for fault in said["errors"]] == ["title"]
    await nothing_kept(server, before)


@pytest.mark.parametrize(
    "kind",
    [
        *("", "; boundary=", '; boundary=""', "; boundary=" + "x" * 71, '; boundary="a\tb"', "; boundary=a@b"),
        '; boundary="ends "',
    ],
)
async def test_no_boundary(server: Server, kind: str) -> None:
    """Refused before the body is asked for, or read."""
    headers = (f"Content-Type: multipart/form-data{kind}", "Expect: 100-continue")
    sending = await begin(server, "/upload/start", *headers, length=100)
    problem(await sending.answer(), 400, "malformed-form")


@pytest.mark.parametrize(
    ("length", "header", "status", "slug"),
    [
        (100, "Content-Encoding: gzip", 415, "unsupported-media-type"),
        (2 * MIB, "Accept: */*", 413, "too-large"),
        (100_000, "Upload-Length: 10", 413, "too-long"),
        (100, "Upload-Length: 1e3", 400, "malformed-header"),
        (100, "Idempotency-Key: two words", 400, "malformed-header"),
        (100, f"Repr-Digest: sha-256=:{b64encode(bytes(32)).decode()}:", 400, "digest-of-form"),
        (100, f"Content-Digest: sha-256=:{b64encode(bytes(32)).decode()}:", 400, "digest-of-form"),
    ],
)
async def test_refused_by_its_head(small: Server, length: int, header: str, status: int, slug: str) -> None:
    """Instead of 100."""
    sending = await begin(small, "/upload/start", FORM, "Expect: 100-continue", header, length=length)
    problem(await sending.answer(), status, slug)
    assert (await small.ask("GET", "/tasks")).json["items"] == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server that takes no more than a megabyte, and does not wait."""
    settings = {"INTERMISSION_MAX_UPLOAD_BYTES": str(MIB), "INTERMISSION_UPLOAD_IDLE_S": "0.5"}
    async with playing(tmp_path_factory.mktemp("small"), **settings) as running:
        yield running


async def test_a_file_that_is_too_large(small: Server) -> None:
    """The limit is that of the file, however long the form is; a form that may fit is read to see."""
    answer = await post(small, HEAD + bytes(MIB) + END)
    assert (answer.status, answer.json["result"]["size_bytes"]) == (201, MIB)
    assert (await small.ask("DELETE", f"/tasks/{answer.json['id']}")).status == 204
    problem(await post(small, HEAD + bytes(MIB + 1) + END), 413, "too-large")
    assert (await small.ask("GET", "/tasks")).json["items"] == []


async def test_nothing_comes_for_too_long(small: Server) -> None:
    """Before the file nothing is kept, within it what is durable."""
    sending = await begin(small, "/upload/start", FORM, length=1000)
    await sending.send(HEAD[:-1])
    problem(await sending.answer(), 408, "idle")
    assert (await small.ask("GET", "/tasks")).json["items"] == []
    sending = await begin(small, "/upload/start", FORM, length=1000)
    await sending.send(HEAD + b"data\r\n--")
    said = problem(await sending.answer(), 408, "idle")
    assert said["offset"] == 4
    assert (await small.verb(said["id"], "terminate")).status == 200


async def test_a_boundary_that_never_comes(server: Server) -> None:
    """Takes no memory: before the file it is refused soon, and as the file it is the file."""
    before = await newest(server)
    sending = await begin(server, "/upload/start", FORM)
    await sending.send(b"".join(chunk(bytes(10_000)) for _ in range(20)))
    problem(await sending.answer(), 400, "malformed-form")
    await nothing_kept(server, before)
