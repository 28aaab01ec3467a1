"""The page at ``/docs``: all of it from this server, under a policy that allows nothing else."""

import re
import time
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urljoin

import pytest
import pytest_asyncio
from browsing import browsing, needs_chromium, visiting
from harness import Server, flawless, problem

from intermission.supervisor import tokens

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "a secret of the tests, thirty-two bytes and more"
TOKEN: Final = tokens.sign(SECRET, "anna", admin=False, now=time.time(), life_s=3600)


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
    for path in ("/docs", "/docs/docs.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/icon.svg"):
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


@needs_chromium
@pytest.mark.timeout(150)
async def test_in_a_browser(server: Server) -> None:
    """A browser shows every service's operations and tries one; where a token is needed, the page asks for it first."""
    tall = {"width": 1200, "height": 16_000}  # what is not in sight is not filled in
    async with browsing() as browser, visiting(browser, f"{server.url}/docs", viewport=tall) as page:
        page.set_default_timeout(40_000)
        if server.settings.get("INTERMISSION_JWT_SECRET"):
            assert await page.locator(".opblock").count() == 0
            for token, element in (("nonsense", "#token output:not(:empty)"), (TOKEN, ".opblock >> nth=0")):
                await page.get_by_label("This server answers to tokens only").fill(token)
                await page.get_by_role("button", name="Show the API").click()
                await page.wait_for_selector(element)
        assert await page.locator("#token").is_hidden()
        for path in ("/tasks/{id}/pause", "/counter/start", "/upload/resume"):
            await page.locator(
                f'[data-path="{path}"]'
            ).scroll_into_view_if_needed()  # what is not seen is not filled in
        start = page.locator("#operations-counter-counter_start")
        for button in (".opblock-summary-control", ".try-out__btn", ".execute"):
            await start.locator(button).click()
        status = start.locator(".live-responses-table tbody .response-col_status")
        assert (await status.inner_text()).startswith("202")
