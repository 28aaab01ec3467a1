"""What one user may have at once: uploads under way, bytes, uploads that are unfinished. Others have their own."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from harness import Answer, Server, problem, until
from upload_tools import MIB, Sending, begin, chunk, data, sha256
from verb_tools import TOYS, playing

from intermission.supervisor import tokens

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "a secret of the tests, thirty-two bytes and more"
CONTENT: Final = data(2 * MIB)


def bearer(user: str, *, admin: bool = False) -> dict[str, str]:
    """The header that says who asks."""
    token = tokens.sign(SECRET, user, admin=admin, now=time.time(), life_s=3600)
    return {"Authorization": f"Bearer {token}"}


ANNA: Final = bearer("anna")
BERTA: Final = bearer("berta")
ROOT: Final = bearer("root", admin=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server that takes two uploads of each user at once, and three of all."""
    settings = {
        "INTERMISSION_JWT_SECRET": SECRET,
        "INTERMISSION_MAX_UPLOADS": "3",
        "INTERMISSION_MAX_USER_UPLOADS": "2",
    }
    async with playing(tmp_path_factory.mktemp("limits"), **settings) as running:
        assert running.session is not None
        running.session.headers.update(ROOT)
        yield running


async def created(server: Server, who: dict[str, str], length: int = len(CONTENT)) -> str:
    """An upload without a byte; its id."""
    answer = await server.ask("POST", "/upload/start", headers={**who, "Upload-Length": str(length)})
    assert answer.status == 201, answer.body
    return str(answer.json["id"])


async def bringing(server: Server, task_id: str, who: dict[str, str], upto: int = 1000, at: int = 0) -> Sending:
    """A request that brings the first bytes of an upload, and then hangs."""
    named = (f"{name}: {value}" for name, value in who.items())
    sending = await begin(
        server, f"/upload/resume?task={task_id}", f"Upload-Offset: {at}", *named, length=len(CONTENT) - at
    )
    await sending.send(CONTENT[at:upto])
    await server.until_progress(task_id, upto)
    return sending


async def finished(sending: Sending) -> None:
    """Bring the rest of it."""
    await sending.send(CONTENT[sending.sent :])
    assert (await sending.answer()).json["result"]["sha256"] == sha256(CONTENT)


async def tried(server: Server, who: dict[str, str]) -> Answer:
    """A whole small upload."""
    return await server.ask("POST", "/upload/start", data=b"data", headers=who)


# Under way at once.


async def test_of_one_user(server: Server) -> None:
    """The third is told that it is this user's own limit, and is not created; another user has room."""
    ids = [await created(server, ANNA) for _ in range(3)]
    first, second = [await bringing(server, task_id, ANNA) for task_id in ids[:2]]

    before = (await server.ask("GET", "/upload/status", headers=ANNA)).json["items"]
    answer = await tried(server, ANNA)
    assert "of 'anna' as one user may have at once (2)" in problem(answer, 503, "crowded")["detail"]
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await server.ask("GET", "/upload/status", headers=ANNA)).json["items"] == before

    offset = {"Upload-Offset": "0"}
    for who in (ANNA, ROOT):  # it is anna's, whoever brings its bytes
        resumed = await server.ask(
            "POST", f"/upload/resume?task={ids[2]}", data=io.BytesIO(CONTENT), headers={**who, **offset}
        )
        problem(resumed, 503, "crowded")
    assert (await server.task(ids[2]))["reason"] == "awaiting_data"
    assert (await tried(server, BERTA)).status == 201

    await finished(first)
    assert (await tried(server, ANNA)).status == 201
    await finished(second)


async def test_of_all_users(server: Server) -> None:
    """The fourth is told that it is the server's limit."""
    owners = (ANNA, ANNA, BERTA)
    sendings = [await bringing(server, await created(server, who), who) for who in owners]
    assert "as this server takes at once (3)" in problem(await tried(server, BERTA), 503, "crowded")["detail"]
    await asyncio.gather(*map(finished, sendings))


async def test_taking_over_needs_no_place(server: Server) -> None:
    """With every place taken, a request for an upload of one's own that hangs has the place of the one that hung."""
    ids = [await created(server, ANNA) for _ in range(2)]
    hanging = [await bringing(server, task_id, ANNA) for task_id in ids]
    again = await bringing(server, ids[0], ANNA, upto=2000, at=1000)
    problem(await hanging[0].answer(), 409, "taken-over")
    await again.send(CONTENT[2000:])
    assert (await again.answer()).json["result"]["sha256"] == sha256(CONTENT)
    await finished(hanging[1])


async def test_many_at_one_moment(server: Server) -> None:
    """Of ten that come together as many flow as may: each takes its place before the next one looks."""
    ids = [await created(server, ANNA) for _ in range(10)]
    headers = {**ANNA, "Upload-Offset": "0"}
    answers = await asyncio.gather(
        *(server.ask("POST", f"/upload/resume?task={one}", data=io.BytesIO(CONTENT), headers=headers) for one in ids)
    )
    assert {answer.status for answer in answers} == {200, 503}
    tasks = [await server.task(one) for one in ids]
    for answer, task in zip(answers, tasks, strict=True):
        assert (task["status"] == "completed") is (answer.status == 200)
        assert (task["attempt"] == 1) is (answer.status == 200)
    most = max(len(overlapping) for overlapping in _at_once([task for task in tasks if task["attempt"]]))
    assert most <= 2


def _at_once(tasks: list[dict[str, str]]) -> list[list[str]]:
    """At each begin, the tasks that were under way."""
    return [
        [other["id"] for other in tasks if other["started_at"] <= task["started_at"] < other["finished_at"]]
        for task in tasks
    ]


# A first body that loses the race for a place.

FIRST: Final = {
    "raw": ("/upload/start", {}),
    "empty": ("/upload/start", {"Content-Length": "0"}),
    "form": ("/upload/start", {"Content-Type": "multipart/form-data; boundary=b"}),
    "file": ("/csv/start", {"Content-Type": "text/csv"}),
    "tus": ("/upload/files", {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}),
    "ietf": ("/upload/start", {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": "8"}),
    "keyed": ("/upload/start", {"Idempotency-Key": "mine"}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server whose only place is taken whenever a first body is to have it."""
    settings = {"INTERMISSION_HANDLERS": f"{TOYS},late_crowd", "INTERMISSION_MAX_UPLOADS": "1"}
    async with playing(tmp_path_factory.mktemp("full"), **settings) as running:
        yield running


@pytest.mark.parametrize("kind", FIRST)
async def test_the_place_was_lost(full: Server, kind: str) -> None:
    """It is refused, and nothing is left of it; with a key it stands for its task, which the next one finds."""
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ndata\r\n--b--\r\n'
    body = {"form": part, "empty": b""}.get(kind, b"a,b\n1,2\n")
    path, headers = FIRST[kind]
    if kind == "tus":
        headers = {**headers, "Upload-Length": str(len(body))}
    hanging = await bringing(full, await created(full, {}), {})

    before = await uploads(full)
    answer = await full.ask("POST", path, data=body, headers=headers)
    problem(answer, 503, "crowded")
    left = await uploads(full) - before
    if kind == "keyed":
        assert len(left) == 1
        problem(await full.ask("POST", path, data=body, headers=headers), 503, "crowded")
        assert await uploads(full) - before == left
    else:
        assert left == set()

    await finished(hanging)


async def uploads(server: Server) -> set[str]:
    """The ids of all that there are."""
    return {str(item["id"]) for item in (await server.ask("GET", "/upload/status?limit=200")).json["items"]}


async def test_a_body_that_comes_meanwhile(server: Server) -> None:
    """While a form's file is awaited others take the places: the form is refused, and no upload is created for it."""
    form = await begin(
        server,
        "/upload/start",
        "Content-Type: multipart/form-data; boundary=b",
        "Expect: 100-continue",
        f"Authorization: {ANNA['Authorization']}",
    )
    assert (await form.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    others = [await bringing(server, await created(server, ANNA), ANNA) for _ in range(2)]
    before = (await server.ask("GET", "/upload/status", headers=ANNA)).json["items"]
    await form.send(chunk(b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ndata\r\n--b--\r\n'))
    problem(await form.answer(), 503, "crowded")
    assert (await server.ask("GET", "/upload/status", headers=ANNA)).json["items"] == before
    await asyncio.gather(*map(finished, others))


# Bytes.


async def usage(server: Server, who: dict[str, str]) -> dict[str, int]:
    """What a user's uploads come to."""
    answer = await server.ask("GET", "/upload/usage", headers=who)
    assert answer.status == 200
    said: dict[str, int] = answer.json
    return said


async def sent(server: Server, who: dict[str, str], size: int, **headers: str) -> Answer:
    """An upload of so many bytes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await server.ask("POST", "/upload/start", data=io.BytesIO(CONTENT[:size]), headers={**who, **named})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server on which each user may store a million bytes, and have five uploads unfinished."""
    settings = {
        "INTERMISSION_JWT_SECRET": SECRET,
        "INTERMISSION_MAX_USER_BYTES": "1000000",
        "INTERMISSION_MAX_USER_UNFINISHED": "5",
    }
    async with playing(tmp_path_factory.mktemp("quota"), **settings) as running:
        assert running.session is not None
        running.session.headers.update(ROOT)
        yield running


async def test_what_counts(narrow: Server) -> None:
    """The announced size of what is unfinished, the real size of what is complete; nothing once it is gone."""
    carla = bearer("carla")
    nothing = {"stored_bytes": 0, "max_bytes": 1_000_000, "uploads": 0, "unfinished": 0, "max_unfinished": 5}
    assert await usage(narrow, carla) == nothing
    waiting = await created(narrow, carla, 600_000)
    assert await usage(narrow, carla) == {**nothing, "stored_bytes": 600_000, "uploads": 1, "unfinished": 1}
    done = (await sent(narrow, carla, 400_000)).json["id"]
    full = {**nothing, "stored_bytes": 1_000_000, "uploads": 2, "unfinished": 1}
    assert await usage(narrow, carla) == full

    answer = await sent(narrow, carla, 1)
    said = problem(answer, 507, "quota")
    assert "1 bytes more are too many: of 1000000 that one user may have 1000000 are taken" in said["detail"]
    assert {name: said[name] for name in full} == full == await usage(narrow, carla)
    tus = {**carla, "Tus-Resumable": "1.0.0", "Upload-Length": "1"}
    problem(await narrow.ask("POST", "/upload/files", headers=tus), 507, "quota")
    assert (await sent(narrow, carla, 0)).status == 201
    assert (await sent(narrow, bearer("dora"), 1_000_000)).status == 201

    assert (await narrow.ask("DELETE", f"/tasks/{done}", headers=carla)).status == 204
    assert (await narrow.verb(waiting, "terminate")).status == 200
    assert await usage(narrow, carla) == {**nothing, "uploads": 1}


async def test_many_starts_at_one_moment(narrow: Server) -> None:
    """Of twenty that fit alone only as many are accepted as fit together."""
    emil = bearer("emil")
    answers = await asyncio.gather(*(sent(narrow, emil, 300_000) for _ in range(20)))
    assert sorted(answer.status for answer in answers) == [201] * 3 + [507] * 17
    assert (await usage(narrow, emil))["stored_bytes"] == 900_000


async def test_a_length_that_comes_later(narrow: Server) -> None:
    """It counts when it is said, or with the bytes that come; what would be too much is refused before a byte."""
    fritz = bearer("fritz")
    speaks = {**fritz, "Tus-Resumable": "1.0.0"}
    answer = await narrow.ask("POST", "/upload/files", headers={**speaks, "Upload-Defer-Length": "1"})
    path = f"/upload/files/{answer.headers['Location'].rpartition('/')[2]}"
    brings = {**speaks, "Content-Type": "application/offset+octet-stream"}

    async def patch(size: int, at: int, **more: str) -> Answer:
        headers = {**brings, "Upload-Offset": str(at), **{name.replace("_", "-"): text for name, text in more.items()}}
        return await narrow.ask("PATCH", path, data=io.BytesIO(CONTENT[at : at + size]), headers=headers)

    problem(await patch(1_000_001, 0), 507, "quota")
    assert (await usage(narrow, fritz))["stored_bytes"] == 0
    assert (await patch(1000, 0)).status == 204
    assert (await usage(narrow, fritz))["stored_bytes"] == 1000
    problem(await patch(10, 1000, Upload_Length="1000001"), 507, "quota")
    assert (await patch(10, 1000, Upload_Length="999999")).status == 204
    assert (await usage(narrow, fritz))["stored_bytes"] == 999_999
    problem(await sent(narrow, fritz, 2), 507, "quota")


async def test_a_length_that_nobody_says(narrow: Server) -> None:
    """Chunked: it is taken as far as there is room, 507 says how far; what is there is kept, counted and goes on."""
    gerda = bearer("gerda")
    whole = (await sent(narrow, gerda, 500_000)).json["id"]
    sending = await begin(narrow, "/upload/start", f"Authorization: {gerda['Authorization']}")
    for at in range(0, 600_000, 50_000):
        sending.writer.write(chunk(CONTENT[at : at + 50_000]))
    said = problem(await sending.answer(), 507, "quota")
    assert said["offset"] == 500_000
    full = await usage(narrow, gerda)
    assert (full["stored_bytes"], full["unfinished"]) == (1_000_000, 1)
    refused = problem(await sent(narrow, gerda, 1), 507, "quota")
    assert {name: said[name] for name in full} == full == {name: refused[name] for name in full}
    assert (await narrow.ask("DELETE", f"/tasks/{whole}", headers=gerda)).status == 204
    now = await usage(narrow, gerda)
    assert (now["stored_bytes"], now["unfinished"]) == (500_000, 1)
    rest = {**gerda, "Upload-Offset": str(said["offset"])}
    answer = await narrow.ask("POST", f"/upload/resume?task={said['id']}", data=b"end", headers=rest)
    assert answer.json["result"]["sha256"] == sha256(CONTENT[: said["offset"]] + b"end")
    now = await usage(narrow, gerda)
    assert (now["stored_bytes"], now["unfinished"]) == (500_003, 0)


@pytest.mark.parametrize("protocol", ["tus", "ietf"])
async def test_a_length_that_nobody_says_by_the_other_protocols(narrow: Server, protocol: str) -> None:
    """There too what is stored and may be is told of an upload that comes to the limit on its way."""
    ilse = bearer(f"ilse-{protocol}")
    headers = {
        "tus": ("Tus-Resumable: 1.0.0", "Upload-Defer-Length: 1", "Content-Type: application/offset+octet-stream"),
        "ietf": ("Upload-Complete: ?0",),
    }[protocol]
    assert (await sent(narrow, ilse, 700_000)).status == 201
    sending = await begin(narrow, "/upload/files", f"Authorization: {ilse['Authorization']}", *headers)
    for at in range(0, 600_000, 50_000):
        sending.writer.write(chunk(CONTENT[at : at + 50_000]))
    answer = await sending.answer()
    said = problem(answer, 507, "quota")
    now = await usage(narrow, ilse)
    assert (now["stored_bytes"], now["uploads"]) == (1_000_000, 2)
    assert {name: said[name] for name in now} == now
    assert (said["offset"], answer.headers["Upload-Offset"]) == (300_000, "300000")
    assert answer.headers["Location"].endswith(said["id"])


async def test_what_finds_no_place_does_not_count(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of requests at one moment those that are refused for want of a place have reserved nothing."""
    settings = {"INTERMISSION_MAX_UPLOADS": "1", "INTERMISSION_MAX_USER_BYTES": str(1 << 30)}
    async with playing(tmp_path_factory.mktemp("crowd"), **settings) as server:
        tus = ("Tus-Resumable: 1.0.0", "Content-Type: application/offset+octet-stream")
        uploads = []
        for _ in range(12):
            answer = await server.ask(
                "POST", "/upload/files", headers={"Tus-Resumable": "1.0.0", "Upload-Defer-Length": "1"}
            )
            uploads.append(answer.headers["Location"].removeprefix(server.url))
        requests = [
            await begin(server, path, *tus, "X-HTTP-Method-Override: PATCH", "Upload-Offset: 0", length=32 * MIB)
            for path in uploads
        ]
        for sending in requests:
            sending.writer.write(b"x" * 100)

        async def one_is_left() -> bool:
            return len(server.descendants()) == 1

        await until(one_is_left)
        refused = [sending for sending in requests if sending.reader.at_eof() or await _answered(sending)]
        assert len(refused) == 11
        assert (await server.ask("GET", "/upload/usage")).json["stored_bytes"] == 32 * MIB
        for sending in requests:
            sending.abort()


async def _answered(sending: Sending) -> bool:
    """Whether it is refused; one that is taken waits for the rest of its body."""
    try:
        async with asyncio.timeout(1):
            return (await sending.reader.readline()).split()[1] == b"503"
    except TimeoutError:
        return False


# Unfinished.


async def test_too_many_unfinished(narrow: Server) -> None:
    """The sixth is refused until one is complete or gone; a replayed start is none."""
    hanna = bearer("hanna")
    keyed = {**hanna, "Idempotency-Key": "first", "Upload-Length": "3"}
    first = (await narrow.ask("POST", "/upload/start", headers=keyed)).json["id"]
    others = [await created(narrow, hanna, 3) for _ in range(4)]
    refused = await sent(narrow, hanna, 3)
    assert "5 uploads of one user are unfinished, and no more may be" in problem(refused, 507, "quota")["detail"]
    assert (await narrow.ask("POST", "/upload/start", headers=keyed)).json["id"] == first
    done = await narrow.ask(
        "POST", f"/upload/resume?task={first}", data=b"abc", headers={**hanna, "Upload-Offset": "0"}
    )
    assert done.json["status"] == "completed"
    assert (await sent(narrow, hanna, 3)).status == 201
    assert (await narrow.verb(others[0], "terminate")).status == 200
    assert (await usage(narrow, hanna))["unfinished"] == 3


async def test_the_sums_after_kills(tmp_path_factory: pytest.TempPathFactory) -> None:
    """SIGKILL of the server while bytes of unknown length flow: then it counts with what is there, and no more."""
    settings = {"INTERMISSION_JWT_SECRET": SECRET, "INTERMISSION_MAX_USER_BYTES": str(64 * MIB)}
    async with playing(tmp_path_factory.mktemp("killed"), **settings) as server:
        sending = await begin(server, "/upload/start", f"Authorization: {ANNA['Authorization']}")
        sending.writer.write(chunk(CONTENT))
        async with asyncio.timeout(20):
            while (await usage(server, ANNA))["stored_bytes"] < len(CONTENT):
                pass
        await server.kill()
        sending.abort()
        await server.start()
        (item,) = (await server.ask("GET", "/upload/status", headers=ANNA)).json["items"]
        there = (await server.ask("HEAD", f"/upload/status?task={item['id']}", headers=ANNA)).headers["Upload-Offset"]
        assert (await usage(server, ANNA))["stored_bytes"] == int(there)
