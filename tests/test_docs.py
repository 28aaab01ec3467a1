"""The page at ``/docs``: all of it from this server, under a policy that allows nothing else."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import pytest
import pytest_asyncio
from harness import Server, flawless, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "a secret of the tests, thirty-two bytes and more"
CHROMIUM: Final = shutil.which("chromium")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[None, SECRET], ids=["open", "with a secret"])
async def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server without a secret, and one with."""
    settings = {"INTERMISSION_JWT_SECRET": request.param} if request.param else {}
    async with flawless(tmp_path_factory.mktemp("docs"), **settings) as running:
        yield running


async def test_the_page(server: Server) -> None:
    """A page that refers to files of this server only, each of which is there, and has nothing in line."""
    answer = await server.ask("GET", "/docs")
    text = answer.body.decode()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html")
    named = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(named) == 6
    for name in named:
        assert not name.startswith(("/", "http"))
        status = 200 if "openapi" not in name or not server.settings.get("INTERMISSION_JWT_SECRET") else 401
        assert (await server.ask("GET", urljoin("/docs", name))).status == status
    assert "<style" not in text
    assert not re.search(r"<script(?! src=)|\son\w+=", text)


async def test_the_policy(server: Server) -> None:
    """A browser loads nothing from elsewhere, and does not guess at types."""
    for path in ("/docs", "/docs/docs.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"):
        headers = (await server.ask("GET", path)).headers
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy.pop("img-src") == "'self' data:"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert headers["X-Content-Type-Options"] == "nosniff"


async def test_swagger_ui_can_show_the_document(server: Server) -> None:
    """It is of version 5, which knows OpenAPI 3.1."""
    script = (await server.ask("GET", "/docs/swagger-ui-bundle.js")).body.decode()
    assert re.search(r'PACKAGE_VERSION:"5\.\d+\.\d+"', script)


@pytest.mark.parametrize(
    "name",
    ["index.html", "docs.html", "../docs.py", "..%2fdocs.py", "%2e%2e/docs.py", "swagger-ui.js", "%00", "x" * 300],
)
async def test_no_other_file(server: Server, name: str) -> None:
    """Files are named one by one: no path leads out of the page, and with a secret not even a 404 is told."""
    answer = await server.exactly(f"GET /docs/{name}")
    if server.settings.get("INTERMISSION_JWT_SECRET"):
        problem(answer, 401, "unauthorized")
    else:
        problem(answer, 404, "not-found")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
async def test_in_a_browser(server: Server, tmp_path: Path) -> None:
    """A browser shows every service's operations, or asks for a token where one is needed; the policy is kept."""
    assert CHROMIUM is not None
    browser = await asyncio.create_subprocess_exec(
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--enable-logging=stderr", "--dump-dom"),
        f"{server.url}/docs",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(50):
            page, said = (part.decode(errors="replace") for part in await browser.communicate())
    except TimeoutError:
        browser.kill()
        raise
    assert "Content Security Policy" not in said
    assert "Uncaught" not in said
    if server.settings.get("INTERMISSION_JWT_SECRET"):
        assert re.search(r'<form id="token">', page)
        assert "opblock" not in page
    else:
        assert re.search(r'<form id="token" hidden="?"?>', page)
        for path in ("/tasks/{id}/pause", "/counter/start", "/extract/status"):
            assert f'data-path="{path}"' in page
