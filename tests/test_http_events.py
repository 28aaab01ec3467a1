"""``GET /events``: what happened to all of a user's tasks."""

import time
from collections.abc import AsyncIterator
from typing import Any, Final

import jwt
import pytest
import pytest_asyncio
from harness import Json, Server, flawless, pointers, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "a secret of the tests, thirty-two bytes and more"


def bearer(user: str, **claims: Any) -> dict[str, str]:
    """The headers of a user."""
    token = jwt.encode({"sub": user, "exp": time.time() + 3600, **claims}, SECRET, "HS256")
    return {"Authorization": f"Bearer {token}"}


ADMIN: Final = bearer("root", scope="admin")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server on which two users have had tasks, one after the other in turn."""
    async with flawless(tmp_path_factory.mktemp("events"), INTERMISSION_JWT_SECRET=SECRET) as running:
        for user in ("anna", "berta") * 4:
            headers = {**bearer(user), "Prefer": "wait=20"}
            answer = await running.ask("POST", "/counter/start", json={"limit": 1}, headers=headers)
            assert answer.json["status"] == "completed"
        yield running


async def page(server: Server, query: str, headers: dict[str, str]) -> Json:
    """One page."""
    answer = await server.ask("GET", f"/events{query}", headers=headers)
    assert answer.status == 200, answer.body
    found: Json = answer.json
    return found


async def test_newest_first_and_yours_only(server: Server) -> None:
    """Each event as in the task's own history, which it leads to."""
    found = await page(server, "", bearer("anna"))
    assert found["next"] is None
    assert [item["event"] for item in found["items"]] == ["completed", "claimed", "created"] * 4
    numbers = [item["id"] for item in found["items"]]
    assert numbers == sorted(numbers, reverse=True)
    newest = found["items"][0]["task"]
    history = (await server.ask("GET", f"/tasks/{newest}/events", headers=bearer("anna"))).json["items"]
    assert found["items"][:3] == history[::-1]
    assert await page(server, "", bearer("nobody")) == {"items": [], "next": None}


@pytest.mark.parametrize("limit", [1, 5, 6, 11, 12])
async def test_pages_lead_through_all_of_them(server: Server, limit: int) -> None:
    """Each once, whatever the size of a page; the last page has no next."""
    whole = (await page(server, "", bearer("berta")))["items"]
    items, cursor = [], ""
    while True:
        part = await page(server, f"?limit={limit}{cursor}", bearer("berta"))
        items += part["items"]
        if part["next"] is None:
            break
        assert len(part["items"]) == limit
        cursor = f"&cursor={part['next']}"
    assert items == whole
    assert len(items) == 12


async def test_an_administrator(server: Server) -> None:
    """Sees everybody's, or those of one user; for others another user has none."""
    assert len((await page(server, "", ADMIN))["items"]) == 24
    assert await page(server, "?user=anna", ADMIN) == await page(server, "", bearer("anna"))
    assert await page(server, "?user=anna", bearer("anna")) == await page(server, "", bearer("anna"))
    assert await page(server, "?user=anna", bearer("berta")) == {"items": [], "next": None}


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("limit=0&cursor=x", {"cursor"}),
        ("limit=201", {"limit"}),
        ("cursor=-1", {"cursor"}),
        ("cursor=9223372036854775808", {"cursor"}),
        ("cursor=", {"cursor"}),
        ("status=failed&limit=1&limit=2", {"status", "limit"}),
    ],
)
async def test_a_query_that_does_not_fit(server: Server, query: str, wrong: set[str]) -> None:
    """422."""
    answer = await server.ask("GET", f"/events?{query}", headers=bearer("anna"))
    assert pointers(problem(answer, 422, "invalid")) == wrong


async def test_it_is_only_read(server: Server) -> None:
    """Any other method is 405, and without a token it is 401."""
    answer = await server.ask("POST", "/events", headers=bearer("anna"))
    problem(answer, 405, "method-not-allowed")
    problem(await server.ask("GET", "/events"), 401, "unauthorized")
