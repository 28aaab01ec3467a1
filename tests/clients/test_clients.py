"""Real clients, disturbed: paused from the server's side, cut, and the server killed and started again under them.

Each ends identical, and its user does nothing but start it; only a pause has to be lifted by who asked for it.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from browsing import browsing, needs_chromium, visiting
from harness import Json, Server, until
from js_clients import CLIENTS, bundle, install, needs_node
from line import BLOCK_BYTES, Line
from tus_tools import FILES
from upload_tools import MIB
from verb_tools import attempts, playing, tasks

NAME = "flights.bin"
PACE_S = 0.001
SEEN_WITHIN_S = 5.0
"""More than it takes to ask the server how much is there, and to kill it."""
NEEDS_CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
Command = Callable[[str, str], tuple[str, ...]]
"""Of a server's address and a file."""


def python(client: str) -> Command:
    """One of those that are written in Python."""
    return lambda url, file: (sys.executable, str(CLIENTS / "python_clients.py"), client, url + FILES, file)


def node(**options: Any) -> Command:
    """The one that is written in JavaScript."""
    return lambda url, file: ("node", str(CLIENTS / "upload.mjs"), url + FILES, file, json.dumps(options))


def curl(url: str, file: str) -> tuple[str, ...]:
    """Plain HTTP."""
    return str(CLIENTS / "curl.sh"), url, file


pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.parametrize("mib", [64, pytest.param(1024, marks=pytest.mark.long)], ids=["64 MiB", "1 GiB"]),
]


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        pytest.param(python("tuspy"), 1, id="tuspy"),
        pytest.param(python("aiotus"), 1, id="aiotus"),
        pytest.param(python("aiotus in parts"), 3, id="aiotus in parts"),
        pytest.param(node(), 1, id="tus-js-client", marks=needs_node),
        pytest.param(node(parallelUploads=4), 4, id="tus-js-client in parts", marks=needs_node),
        pytest.param(node(protocol="ietf-draft-05"), 1, id="tus-js-client, IETF draft 05", marks=needs_node),
        pytest.param(curl, 1, id="curl", marks=NEEDS_CURL),
    ],
)
async def test_a_client(tmp_path: Path, mib: int, command: Command, parts: int) -> None:
    """In a process of its own."""
    async with playing(tmp_path / "var") as server, Line(server).open() as line:
        line.pace_s = PACE_S
        digest = made(tmp_path / NAME, mib)
        words = command(line.url, str(tmp_path / NAME))
        if words[0] == "node":
            install()
        going = await asyncio.create_subprocess_exec(*words)

        async def ended() -> None:
            assert await going.wait() == 0

        try:
            await disturbed(server, line, mib * MIB, parts, ended, comes_again=command is not curl)
        finally:
            if going.returncode is None:
                going.kill()
                await going.wait()
        await identical(server, digest, parts)


@needs_node
@needs_chromium
async def test_uppy(tmp_path: Path, mib: int) -> None:
    """In a browser, on a page of another origin, which the operator lists."""
    install()
    bundle("uppy.mjs", tmp_path / "page" / "uppy.js")
    html = '<!doctype html><input type="file"><script type="module" src="uppy.js"></script>'
    (tmp_path / "page" / "index.html").write_text(html)
    digest = made(tmp_path / NAME, mib)
    async with (
        elsewhere(tmp_path / "page") as origin,
        playing(tmp_path / "var", INTERMISSION_CORS_ORIGINS=origin) as server,
        Line(server).open() as line,
        browsing() as browser,
        visiting(browser, f"{origin}/index.html?endpoint={line.url}{FILES}") as page,
    ):
        line.pace_s = PACE_S
        await page.locator("input").set_input_files(tmp_path / NAME)

        async def ended() -> None:
            await page.wait_for_function("window.ended", timeout=0)
            assert await page.evaluate("window.ended") == {"successful": 1, "failed": []}

        await disturbed(server, line, mib * MIB, 1, ended, comes_again=True)
        await identical(server, digest, 1)


async def disturbed(
    server: Server, line: Line, size: int, parts: int, ended: Callable[[], Awaitable[None]], *, comes_again: bool
) -> None:
    """Pause it when a seventh is there, cut it at the half, kill the server at two thirds; wait for the client's end.

    A client that ``comes_again`` asks while it is paused, and is refused.
    """
    began_s = time.monotonic()
    await brought(server, size // 7)
    paused = [task["id"] for task in await tasks(server, "running", "paused")]
    assert len(paused) == parts
    for answer in await asyncio.gather(*(server.verb(task_id, "pause") for task_id in paused)):
        assert (answer.status, answer.json["status"], answer.json["reason"]) == (200, "paused", "requested")
    before = [len(await attempts(server, task_id)) for task_id in paused]

    async def refused() -> bool:
        return line.statuses.count(b"423") > 3

    if comes_again:
        await until(refused, 60)  # a browser hears of each only when it can send no more
    assert {(await server.task(task_id))["reason"] for task_id in paused} == {"requested"}
    assert [len(await attempts(server, task_id)) for task_id in paused] == before
    for task_id in paused:
        await server.verb(task_id, "resume")

    await brought(server, size // 2)
    line.cut()

    # The last third is not over before its beginning is seen: who sends in parts and loses the request that joins them,
    # as tus-js-client does, does not send that again.
    line.pace_s = max(PACE_S, SEEN_WITHIN_S * parts * BLOCK_BYTES / (size / 3))
    await brought(server, size * 2 // 3)
    await server.kill()
    line.pace_s = PACE_S
    await server.start()

    async with asyncio.timeout(60 + size / (4 * MIB)):
        await ended()
    print(f"{size / MIB:.0f} MiB in {time.monotonic() - began_s:.1f} s")  # noqa: T201 -- pytest shows it if asked to


async def brought(server: Server, size: int) -> None:
    """Wait until so much of what a client uploads is there, in however many parts."""

    async def there() -> bool:
        return sum((task["progress"] or {"done": 0})["done"] for task in await tasks(server)) >= size

    await until(there, 20 + size / (4 * MIB))


async def identical(server: Server, digest: str, parts: int) -> None:
    """Assert that what is there is what was to come, and that the client went on with what was there."""
    (whole,) = [task for task in await tasks(server) if await whole_of(server, task)]
    task = await server.until_status(whole["id"], "completed")
    assert (task["result"]["filename"], task["result"]["sha256"]) == (NAME, digest)
    assert server.session is not None
    hashed = hashlib.sha256()
    async with server.session.get(f"{server.url}/tasks/{task['id']}/files/content") as answer:
        async for block in answer.content.iter_chunked(MIB):
            hashed.update(block)
    assert hashed.hexdigest() == digest
    assert len(await tasks(server)) == (1 if parts == 1 else parts + 1)


async def whole_of(server: Server, task: Json) -> bool:
    """Whether an upload is no part of another."""
    return (await server.task(task["id"]))["params"].get("concat") != "partial"


def made(path: Path, mib: int) -> str:
    """Write a file in which no part is like another; its SHA-256."""
    chance, hashed = random.Random(1), hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(mib):
            hashed.update(block := chance.randbytes(MIB))
            file.write(block)
    return hashed.hexdigest()


@contextlib.asynccontextmanager
async def elsewhere(folder: Path) -> AsyncIterator[str]:
    """Files at an origin of their own."""
    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
