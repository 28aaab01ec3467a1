"""The list of sources over HTTP: what an extract can be made of."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness import Server, flawless, pointers, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server with sources."""
    async with flawless(tmp_path_factory.mktemp("sources")) as running:
        folder = running.data / "sources"
        (folder / "flights.csv").write_text("carrier,distance,day\nUA,1400,2013-01-01\n")
        (folder / "people.jsonl").write_text('{"name": "Ada", "age": 36, "tags": []}\n')
        (folder / "broken.csv").write_text('a,"b\n')
        (folder / "notes.txt").write_text("no source")
        yield running


async def test_every_source_with_its_columns(server: Server) -> None:
    """By name; one that cannot be read says why."""
    answer = await server.ask("GET", "/extract/sources")
    assert answer.status == 200
    assert answer.json == {
        "items": [
            {
                "name": "broken",
                "format": "csv",
                "size_bytes": 5,
                "columns": [],
                "error": "line 1: a quote that is never closed",
            },
            {
                "name": "flights",
                "format": "csv",
                "size_bytes": 40,
                "columns": [
                    {"name": "carrier", "type": "text"},
                    {"name": "distance", "type": "integer"},
                    {"name": "day", "type": "date"},
                ],
                "error": None,
            },
            {
                "name": "people",
                "format": "jsonl",
                "size_bytes": 39,
                "columns": [
                    {"name": "name", "type": "text"},
                    {"name": "age", "type": "integer"},
                    {"name": "tags", "type": "json"},
                ],
                "error": None,
            },
        ],
        "next": None,
    }


async def test_pages(server: Server) -> None:
    """The cursor leads through all of them; any text is a place among the names."""
    found, cursor = [], ""
    while True:
        page = (await server.ask("GET", f"/extract/sources?limit=2{cursor}")).json
        found += [item["name"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert found == ["broken", "flights", "people"]
    assert (await server.ask("GET", "/extract/sources?cursor=zzz")).json == {"items": [], "next": None}


async def test_what_is_refused(server: Server) -> None:
    """Parameters that are none, and any method but GET."""
    said = problem(await server.ask("GET", "/extract/sources?limit=0"), 422, "invalid")
    assert pointers(said) == {"limit"}
    said = problem(await server.ask("GET", "/extract/sources?name=x"), 422, "invalid")
    assert pointers(said) == {"name"}
    answer = await server.ask("POST", "/extract/sources")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["Allow"] == "GET,HEAD"


async def test_an_extract_to_json_lines(server: Server) -> None:
    """The whole way, and the file says what it is."""
    answer = await server.ask(
        "POST", "/extract/start", json={"source": "flights", "format": "jsonl"}, headers={"Prefer": "wait=20"}
    )
    assert answer.json["status"] == "completed", answer.body
    assert answer.json["files"][0]["media_type"] == "application/jsonl"
    found = await server.file(answer.json["id"], "flights.jsonl")
    assert found == b'{"carrier":"UA","distance":"1400","day":"2013-01-01"}\n'
