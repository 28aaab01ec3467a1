"""The page at ``/docs``: all of it from this server, under a policy that allows nothing else."""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

import aiohttp
import pytest
import pytest_asyncio
from harness import Json, Server, flawless, problem, until

from intermission.supervisor import tokens

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "a secret of the tests, thirty-two bytes and more"
TOKEN: Final = tokens.sign(SECRET, "anna", admin=False, now=time.time(), life_s=3600)
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


@dataclass
class Tab:
    """A browser's tab, by the DevTools protocol."""

    socket: aiohttp.ClientWebSocketResponse
    complaints: list[str] = field(default_factory=list)
    """What the browser refused to load, or could not run."""
    _asked: int = 0

    async def call(self, method: str, **params: Any) -> Json:
        """A command's result."""
        self._asked += 1
        await self.socket.send_json({"id": self._asked, "method": method, "params": params})
        while (said := await self.socket.receive_json()).get("id") != self._asked:
            if said["method"] == "Runtime.exceptionThrown" or "Content Security Policy" in str(said):
                self.complaints.append(str(said))
        result: Json = said["result"]
        return result

    async def run(self, script: str) -> Any:
        """What a script returns."""
        return (await self.call("Runtime.evaluate", expression=script, returnByValue=True))["result"].get("value")

    async def shows(self, selector: str) -> None:
        """Wait until the page has an element."""

        async def so() -> bool:
            return bool(await self.run(f"document.querySelector({selector!r}) !== null"))

        await until(so, 40, lambda: f"{selector}; {self.complaints}")


@contextlib.asynccontextmanager
async def tab(profile: Path) -> AsyncIterator[Tab]:
    """A browser of its own, with an empty tab."""
    assert CHROMIUM is not None
    browser = await asyncio.create_subprocess_exec(
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        "--window-size=1200,12000",  # the page fills in only what is in sight
        *(f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:

        async def listening() -> bool:
            port = profile / "DevToolsActivePort"  # which is there a moment before anything is in it
            return port.exists() and "\n" in port.read_text()

        await until(listening, 30)
        port = (profile / "DevToolsActivePort").read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
                url = (await answer.json())["webSocketDebuggerUrl"]
            async with session.ws_connect(url, max_msg_size=0) as socket:
                opened = Tab(socket)
                for domain in ("Runtime", "Log", "Page"):
                    await opened.call(f"{domain}.enable")
                yield opened
    finally:
        browser.terminate()
        await browser.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.timeout(150)
async def test_in_a_browser(server: Server, tmp_path: Path) -> None:
    """A browser shows every service's operations and tries one; where a token is needed, the page asks for it first."""
    async with tab(tmp_path / "profile") as page:
        await page.call("Page.navigate", url=f"{server.url}/docs")
        if server.settings.get("INTERMISSION_JWT_SECRET"):
            await page.shows("#token:not([hidden])")
            assert await page.run("document.querySelector('.opblock')") is None
            for token, element in (("nonsense", "#token output:not(:empty)"), (TOKEN, ".opblock")):
                await page.run(f"document.getElementById('text').value = {token!r}")
                await page.run("document.querySelector('#token button').click()")
                await page.shows(element)
        for path in ("/tasks/{id}/pause", "/counter/start", "/upload/resume"):
            await page.shows(f'[data-path="{path}"]')
        await page.shows("#token[hidden]")
        start = "#operations-counter-counter_start"
        for button in (".opblock-summary-control", ".try-out__btn", ".execute"):
            await page.shows(f"{start} {button}")
            await page.run(f"document.querySelector('{start} {button}').click()")
        await page.shows(f"{start} .live-responses-table .response-col_status")
        shown = await page.run(f"document.querySelector('{start} .live-responses-table tbody').textContent")
        assert shown.startswith("202")
        assert page.complaints == []
