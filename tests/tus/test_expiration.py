"""tus 1.0.0, expiration: statements 47 to 49 of our list. What no client comes back for is gone, with its bytes."""

import asyncio
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from harness import Server, until
from tus_tools import CONTENT, HALF, ask, content, create, hanging, head, patch, task_id
from upload_tools import upload
from verb_tools import playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = 1.5
SOON = {"INTERMISSION_UPLOAD_EXPIRES_DAYS": f"{SECONDS / 86_400:.12f}"}
WEEK_S = 7 * 86_400


async def gone(server: Server, path: str) -> None:
    """Wait until there is nothing left of it but that it was there."""

    async def so() -> bool:
        return (await ask(server, "HEAD", path)).status == 410

    await until(so)
    assert not (server.data / "tasks" / task_id(path)).exists()


async def test_47_it_is_told(server: Server) -> None:
    """At the creation, by HEAD and by each PATCH, until the upload is complete."""
    created = await ask(server, "POST", Upload_Length="10")
    path = created.headers["Location"]
    some = await patch(server, path, b"01234", 0)
    task = await server.task(task_id(path))
    for answer in (created, some, await head(server, path)):
        at, now = (parsedate_to_datetime(answer.headers[name]) for name in ("Upload-Expires", "Date"))
        assert abs((at - now).total_seconds() - WEEK_S) <= 5
    assert answer.headers["Upload-Expires"].endswith(" GMT")
    assert task["due_at"][:19] == at.isoformat()[:19]
    last = await patch(server, path, b"56789", 5)
    assert last.status == 204
    for answer in (last, await head(server, path)):
        assert "Upload-Expires" not in answer.headers


async def test_48_afterwards_it_is_gone(tmp_path: Path) -> None:
    """410, and its bytes too: whether some came, it was only created, paused by somebody, or did not begin with tus."""
    async with playing(tmp_path, **SOON) as server:
        paths = [await create(server) for _ in range(3)]
        await patch(server, paths[1], CONTENT[:HALF], 0)
        await server.verb(task_id(paths[2]), "pause")
        plain = await upload(server, b"abc", Upload_Length="10")
        for path in (*paths, f"/upload/files/{plain.json['id']}"):
            await gone(server, path)
        assert (await patch(server, paths[1], CONTENT[HALF:], HALF)).status == 410
        assert (await server.ask("GET", f"/tasks/{task_id(paths[1])}")).json["receipt"]["files_deleted"] > 0


async def test_48_it_expires_while_the_server_is_down(tmp_path: Path) -> None:
    """And is gone soon after the next start."""
    async with playing(tmp_path, **SOON) as server:
        path = await create(server)
        await patch(server, path, CONTENT[:HALF], 0)
        await server.kill()
        await asyncio.sleep(SECONDS)  # the time itself is what is tested
        await server.start()
        await gone(server, path)


async def test_49_who_goes_on_keeps_it(tmp_path: Path) -> None:
    """A PATCH under way is not disturbed, and afterwards the time begins anew; what is complete stays."""
    async with playing(tmp_path, **SOON) as server:
        complete, other, path = [await create(server) for _ in range(3)]
        await patch(server, complete, CONTENT, 0)
        sending = await hanging(server, path, CONTENT, HALF)
        await gone(server, other)
        await sending.send(CONTENT[HALF:-1])
        await server.until_progress(task_id(path), len(CONTENT) - 1)
        task = await server.task(task_id(path))
        assert (task["status"], task["due_at"]) == ("running", None)
        sending.abort()
        await server.until_status(task_id(path), "paused")
        assert (await patch(server, path, CONTENT[-1:], len(CONTENT) - 1)).status == 204
        late = await create(server)
        await gone(server, late)
        assert await content(server, path) == await content(server, complete) == CONTENT
