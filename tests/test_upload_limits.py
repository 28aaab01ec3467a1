"""What one user may have at once: uploads under way, bytes, uploads that are unfinished. Others have their own."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from harness import Answer, Server, problem
from upload_tools import MIB, Sending, begin, data, sha256
from verb_tools import playing

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
