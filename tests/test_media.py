"""Media types: found in the bytes; what a client says of them decides only between kinds that nothing can run."""

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import filetype
import pytest
import pytest_asyncio
from harness import Server
from upload_tools import upload
from verb_tools import playing

from intermission.handlers.media import TEXTS, inert, sniffed

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40)
SCRIPT = b"<script>alert(1)</script>"
HTML = b"<!doctype html><html>" + SCRIPT
SVG = b'<svg xmlns="http://www.w3.org/2000/svg">' + SCRIPT + b"</svg>"
OCTETS = "application/octet-stream"
ACTIVE = re.compile(r"html|xml$|svg|(java|ecma)script|multipart|message", re.IGNORECASE)


@pytest.mark.parametrize(
    ("head", "claimed", "kind"),
    [
        (PNG, "image/png", "image/png"),
        (PNG, "text/html", "image/png"),
        (PNG, "text/csv", "image/png"),
        (PNG, "", "image/png"),
        (b"GIF89a" + HTML, "text/html", "image/gif"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", OCTETS, "application/pdf"),
        (b"PK\x03\x04" + bytes(40), "text/html", "application/zip"),
        (HTML, "text/html", OCTETS),
        (HTML, "text/plain", OCTETS),
        (b"\xef\xbb\xbf \r\n\t" + HTML, "text/plain", OCTETS),
        (HTML, "image/png", OCTETS),
        (SVG, "image/svg+xml", OCTETS),
        (b"<?xml version='1.0'?><html/>", "application/xhtml+xml", OCTETS),
        (b"alert(1)", "text/javascript", OCTETS),
        (b"alert(1)", "application/javascript", OCTETS),
        (b"abc", "image/png", OCTETS),
        (b"abc", "no type at all", OCTETS),
        (b"a,b\n1,2\n", "text/csv", "text/csv"),
        (b"a,b\n1,2\n", "Text/CSV; charset=utf-8", "text/csv"),
        (b"a,b\n1,2\n", OCTETS, OCTETS),
        (b"BM,b\n1,2\n", "text/csv", "text/csv"),
        (b'{"a": "<b>"}', "application/json", "application/json"),
        (b'{"a": 1}\n', "application/x-ndjson", "application/x-ndjson"),
        ("é".encode() * 4095 + b"x\xc3", "text/plain", "text/plain"),
        (b"caf\xe9 au lait", "text/plain", OCTETS),
        (b"nul\0", "text/plain", OCTETS),
        (b"\x1b[31mred\f\t\r\n", "text/plain", "text/plain"),
        (b"", "text/csv", "text/csv"),
        (b"", OCTETS, OCTETS),
    ],
)
def test_what_a_file_is(head: bytes, claimed: str, kind: str) -> None:
    """What has a mark is that, whoever says what; text is what it is called, if that is harmless."""
    assert sniffed(head, claimed) == kind


def test_nothing_that_can_be_found_is_active() -> None:
    """Neither of the kinds of text nor of the library's: a new version of it that knows markup would fail here."""
    found = TEXTS | {kind.mime for kind in filetype.types}
    assert [kind for kind in found if ACTIVE.search(kind)] == []
    assert [kind for kind in found if kind.startswith("text/") and kind not in TEXTS] == []


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "text/plain\r\nX-Evil: y", "x" * 255, ""])
def test_what_was_claimed_to_an_earlier_version(kind: str) -> None:
    """Is in its row as it was said, and nothing that could not have been found is sent with the file."""
    assert inert(kind) == OCTETS
    assert inert("text/csv") == "text/csv"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for all tests."""
    async with playing(tmp_path_factory.mktemp("media")) as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("content", "claimed", "kind"),
    [
        (PNG, "text/html", "image/png"),
        (HTML, "text/html", OCTETS),
        (SVG, "image/svg+xml", OCTETS),
        (b"a", "text/csv", "text/csv"),
    ],
)
async def test_a_download_runs_nothing(server: Server, content: bytes, claimed: str, kind: str) -> None:
    """The type is the one found, and whatever it is, it is an attachment that a browser neither guesses at nor runs."""
    task = (await upload(server, content, "?filename=page.html", Content_Type=claimed)).json
    assert (task["params"]["media_type"], task["result"]["media_type"]) == (claimed, kind)
    [listed] = task["files"]
    assert listed["media_type"] == kind
    for method in ("GET", "HEAD"):
        answer = await server.ask(method, listed["href"])
        assert answer.headers["Content-Type"] == kind
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Disposition"].startswith("attachment;")
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    created = await server.ask("POST", "/upload/start", headers={"Upload-Length": "3", "Content-Type": claimed})
    assert created.json["files"] == []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("filename", "saved_as"),
    [
        ("flüge 2013.csv", "flüge 2013.csv"),
        ("../../etc/passwd\r\nX: y", "passwdX: y"),
        ("C:\\temp\\a.txt", "a.txt"),
        ("photo\u202egpj.exe", "photogpj.exe"),
        (".bashrc", "bashrc"),
        ("", "content"),
        ("..", "content"),
        ("a/", "content"),
        ("a" * 3996 + ".csv", "a" * 196 + ".csv"),
        ("\U0001f600" * 100, "\U0001f600" * 50),
    ],
)
async def test_what_a_download_is_called(server: Server, filename: str, saved_as: str) -> None:
    """As the upload was, but for what could lead anywhere or deceive."""
    task = (await upload(server, b"a", f"?filename={quote(filename)}")).json
    answer = await server.ask("GET", task["files"][0]["href"])
    assert answer.headers["Content-Disposition"] == f"attachment; filename*=UTF-8''{quote(saved_as)}"


CSV = b"team,email\nred,%s\n"
LINES = b'{"team": "red", "email": "%s"}\n'
DOCUMENT = b'{"teams": [{"name": "red", "members": [{"email": "%s"}]}]}'


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("content", "filename", "claimed"),
    [
        (CSV % b"1@example.org", "", "text/csv"),
        (CSV % b"2@example.org", "members.csv", OCTETS),
        (CSV % b"3@example.org", "members.csv", "text/html"),
        (LINES % b"4@example.org", "", "application/jsonl"),
        (LINES % b"5@example.org", "members.jsonl", OCTETS),
        (DOCUMENT % b"6@example.org", "", "application/json"),
    ],
)
async def test_what_reads_it_knows_how(server: Server, content: bytes, filename: str, claimed: str) -> None:
    """Rows are found in what is named or called so, as ever."""
    kept = (await upload(server, content, f"?filename={filename}", Content_Type=claimed)).json["id"]
    params = {"file": f"upload:{kept}"}
    answer = await server.ask("POST", "/team/start", json=params, headers={"Prefer": "wait=20"})
    assert (answer.json["status"], answer.json["result"]["members"]) == ("completed", 1), answer.body
