"""A start whose body is a file: kept as an upload of the caller, then the service is started with it."""

import io
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness import Server, problem
from upload_tools import begin, newest
from verb_tools import nothing_left, playing, tasks

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEMBERS = b"team,email\n" + b"".join(b"red,%d@example.org\n" % n for n in range(500))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with playing(tmp_path_factory.mktemp("bodies")) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process."""
    yield
    await nothing_left(server)


async def test_teams_from_a_csv_body(server: Server) -> None:
    """The answer is the task of the service; the file is an upload, named by its params."""
    answer = await server.ask(
        "POST",
        "/team/start?filename=members.csv",
        data=io.BytesIO(MEMBERS),
        headers={"Content-Type": "text/csv", "Prefer": "wait=30"},
    )
    assert answer.status == 202, answer.body
    task = answer.json
    assert (task["service"], task["status"], task["result"]["members"]) == ("team", "completed", 500)
    assert answer.headers["Location"] == f"/tasks/{task['id']}"
    upload = await server.task(task["params"]["file"].removeprefix("upload:"))
    assert (upload["service"], upload["status"]) == ("upload", "completed")
    assert upload["result"]["filename"] == "members.csv"
    assert await server.file(upload["id"], "content") == MEMBERS
    assert (await server.ask("GET", "/team/teams")).json["items"][0]["members"] == 500


async def test_another_service(server: Server) -> None:
    """Every service that takes a file takes it so."""
    headers = {"Content-Type": "text/csv", "Prefer": "wait=30"}
    answer = await server.ask("POST", "/csv/start", data=io.BytesIO(MEMBERS), headers=headers)
    assert (answer.status, answer.json["status"], answer.json["result"]["rows"]) == (202, "completed", 500)


async def test_an_upload_that_is_in_use_stays(server: Server) -> None:
    """While an unfinished task reads it, an upload cannot be deleted; the answer names the task."""
    answer = await server.ask(
        "POST", "/csv/start", data=io.BytesIO(MEMBERS * 400), headers={"Content-Type": "text/csv"}
    )
    task_id, upload_id = answer.json["id"], answer.json["params"]["source"].removeprefix("upload:")
    paused = await server.verb(task_id, "pause")
    assert paused.json["status"] == "paused", "it was too quick to be paused"
    said = problem(await server.ask("DELETE", f"/tasks/{upload_id}"), 409, "in-use")
    assert said["tasks"] == [task_id]
    assert (await server.verb(task_id, "terminate")).status == 200
    assert (await server.ask("DELETE", f"/tasks/{upload_id}")).status == 204


async def test_a_file_that_the_service_refuses(server: Server) -> None:
    """Every fault is told, and neither a task nor an upload is left of it."""
    before, teams = await newest(server), await tasks(server, service="team")
    data = io.BytesIO(b"name,phone\nred,1\n")
    answer = await server.ask("POST", "/team/start", data=data, headers={"Content-Type": "text/csv"})
    assert problem(answer, 422, "invalid")["errors"][0]["pointer"] == "/file"
    assert (await newest(server), await tasks(server, service="team")) == (before, teams)


async def test_what_is_no_file(server: Server) -> None:
    """Bodies of other types are refused as before, and a service that takes no file takes none."""
    for path, kind in (
        ("/team/start", "text/html"),
        ("/team/start", "application/x-www-form-urlencoded"),
        ("/team/start", "multipart/mixed; boundary=x"),
        ("/counter/start", "text/csv"),
    ):
        answer = await server.ask("POST", path, data=b"a,b\n", headers={"Content-Type": kind})
        problem(answer, 415, "unsupported-media-type")
    large = await server.exactly(
        "POST /team/start", "Content-Type: application/json", "Content-Length: 100000000", "Expect: nothing"
    )
    assert large.status in {413, 417}
    before = await newest(server)
    problem(
        await server.exactly("POST /team/start", "Content-Type: text/csv", "Upload-Length: 5"), 411, "length-required"
    )
    assert await newest(server) == before, "what is refused creates nothing"


@pytest.mark.parametrize(
    ("service", "kind", "types"),
    [
        ("team", "text/plain", "text/csv, application/jsonl, application/x-ndjson, "),
        ("csv", "text/plain", "text/csv, "),
        ("csv", "application/jsonl", "text/csv, "),
        ("counter", "text/plain", None),
    ],
)
async def test_the_types_that_a_service_takes(server: Server, service: str, kind: str, types: str | None) -> None:
    """The refusal of another names them all, as the document does."""
    answer = await server.ask("POST", f"/{service}/start", data=b'{"a": 1}\n', headers={"Content-Type": kind})
    files = "" if types is None else f", or a file as {types}application/octet-stream or multipart/form-data"
    said = problem(answer, 415, "unsupported-media-type")["detail"]
    assert said == f"the body must be JSON, and it is {kind}: send application/json{files}"
    document = (await server.ask("GET", "/openapi.json")).json
    content = document["paths"][f"/{service}/start"]["post"]["requestBody"]["content"]
    named = files.removeprefix(", or a file as ").replace(" or ", ", ")
    assert ", ".join(content) == f"application/json{', ' if named else ''}{named}"


async def test_a_key_for_a_file(server: Server) -> None:
    """It cannot be kept, as the document says: nothing is started, and the refusal says what to do."""
    headers = {"Content-Type": "text/csv", "Idempotency-Key": "one"}
    before = await newest(server)
    for service in ("team", "csv"):
        answer = await server.ask("POST", f"/{service}/start", data=io.BytesIO(MEMBERS), headers=headers)
        assert "upload the file" in problem(answer, 400, "key-not-taken")["detail"]
        document = (await server.ask("GET", "/openapi.json")).json
        assert "It takes no Idempotency-Key" in document["paths"][f"/{service}/start"]["post"]["description"]
    assert await newest(server) == before


async def test_a_file_that_is_paused_on_its_way(server: Server) -> None:
    """Until the file is there, all that is said is said of the upload: it can be resumed, and then be used."""
    sending = await begin(server, "/team/start", "Content-Type: text/csv", length=len(MEMBERS))
    before = after = await newest(server)
    await sending.send(MEMBERS[:1000])
    while after == before:
        after = await newest(server)
    await server.until_progress(after, 1000)
    assert (await server.verb(after, "pause")).status == 200
    answer = await sending.answer()
    assert (answer.status, answer.json["id"], answer.json["status"]) == (200, after, "paused")
    headers = {"Upload-Offset": answer.headers["Upload-Offset"]}
    rest = io.BytesIO(MEMBERS[1000:])
    assert (await server.ask("POST", f"/upload/resume?task={after}", data=rest, headers=headers)).status == 200
    started = await server.ask("POST", "/team/start", json={"file": f"upload:{after}"}, headers={"Prefer": "wait=30"})
    assert started.json["result"]["rejected"] == 500, "they are there already"
