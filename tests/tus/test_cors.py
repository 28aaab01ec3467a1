"""Pages of other origins: statements 71 to 73 of our list."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness import Server, problem
from tus_tools import FILES, ask, create, patch
from verb_tools import playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = "https://app.example.org"
SENT = (
    "authorization, content-type, tus-resumable, upload-length, upload-offset, upload-metadata, upload-defer-length, "
    "upload-concat, upload-checksum, x-http-method-override, x-requested-with, x-request-id, upload-complete, "
    "upload-draft-interop-version"
)
READ = (
    "Upload-Offset, Location, Upload-Length, Tus-Version, Tus-Resumable, Tus-Max-Size, Tus-Extension, Upload-Metadata, "
    "Upload-Defer-Length, Upload-Concat, Upload-Expires, Upload-Complete, Upload-Limit"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server that admits a page's origin."""
    origins = f"{PAGE},http://localhost:3000"
    async with playing(tmp_path_factory.mktemp("cors"), INTERMISSION_CORS_ORIGINS=origins) as running:
        yield running


def listed(header: str) -> set[str]:
    """A header's list."""
    return {part.strip().lower() for part in header.split(",")}


@pytest.mark.parametrize("path", [FILES, f"{FILES}/any", "/upload/start", "/upload/resume", "/upload/status"])
async def test_71_a_browser_asks_first(open_server: Server, path: str) -> None:
    """And is told what a listed page may send."""
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": SENT}
    answer = await open_server.ask("OPTIONS", path, headers=headers)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, PAGE)
    assert listed("POST, HEAD, PATCH, DELETE, OPTIONS, GET") <= listed(answer.headers["Access-Control-Allow-Methods"])
    assert listed(SENT) <= listed(answer.headers["Access-Control-Allow-Headers"])
    assert int(answer.headers["Access-Control-Max-Age"]) > 0


async def test_72_what_a_page_may_read(open_server: Server) -> None:
    """Of every answer, errors too, before and behind the routes."""
    path = await create(open_server, 3)
    answers = [
        await ask(open_server, "POST", Upload_Length="3", Origin=PAGE),
        await ask(open_server, "HEAD", path, Origin=PAGE),
        await patch(open_server, path, b"x", 2, Origin=PAGE),
        await patch(open_server, path, b"x", 0, Origin=PAGE, Tus_Resumable="9"),
        await patch(open_server, path, b"abc", 0, Origin=PAGE),
        await ask(open_server, "PUT", path, Origin=PAGE),
        await ask(open_server, "HEAD", f"{FILES}/none", Origin=PAGE),
        await open_server.ask("POST", "/upload/start", data=b"abc", headers={"Origin": PAGE}),
        await open_server.ask("POST", "/upload/start", data=b"a", headers={"Origin": PAGE, "Content-Encoding": "x"}),
    ]
    assert [answer.status for answer in answers] == [201, 200, 409, 412, 204, 405, 404, 201, 415]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert listed(READ) <= listed(answer.headers["Access-Control-Expose-Headers"])


async def test_72_whatever_an_upload_sends(open_server: Server) -> None:
    """A page may read each header that the document names for one of the addresses that it may use."""
    paths = (await open_server.ask("GET", "/openapi.json")).json["paths"]
    sent = {
        name.lower()
        for path, item in paths.items()
        if path.startswith("/upload/")
        for operation in item.values()
        for status, answer in operation["responses"].items()
        if status != "104"  # no page ever sees one
        for name in answer.get("headers", {})
    }
    assert {"repr-digest", "idempotency-replayed", "accept-patch"} < sent
    answer = await ask(open_server, "POST", Upload_Length="3", Origin=PAGE)
    assert sent <= listed(answer.headers["Access-Control-Expose-Headers"])


async def test_73_others_are_told_nothing(open_server: Server) -> None:
    """Answers differ by origin and say so to caches; no credentials are shared; another origin is refused."""
    answer = await ask(open_server, "POST", Upload_Length="3", Origin=PAGE)
    assert (answer.headers["Vary"], "Access-Control-Allow-Credentials" in answer.headers) == ("Origin", False)
    assert (await ask(open_server, "POST", Upload_Length="3")).headers["Vary"] == "Origin"
    for origin in ("https://evil.example.org", "null", f"{PAGE}.evil.org", "http://app.example.org"):
        for method in ("OPTIONS", "POST"):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Tus-Resumable": "1.0.0"}
            answer = await open_server.ask(method, FILES, headers=asked)
            problem(answer, 403, "foreign-origin")
            assert "Access-Control-Allow-Origin" not in answer.headers


async def test_73_a_listed_page_may_upload_and_nothing_else(open_server: Server) -> None:
    """It neither sees tasks nor moves them."""
    for method, path in (("GET", "/tasks"), ("POST", "/counter/start"), ("GET", "/health"), ("OPTIONS", "/tasks")):
        headers = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
        answer = await open_server.ask(method, path, headers=headers)
        problem(answer, 403, "foreign-origin")
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_73_without_origins_nobody_is_admitted(server: Server) -> None:
    """As it is by default."""
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    problem(await server.ask("OPTIONS", FILES, headers=asked), 403, "foreign-origin")
    answer = await ask(server, "POST", Upload_Length="3")
    assert "Vary" not in answer.headers
