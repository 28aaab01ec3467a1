"""Whether it is as the OpenAPI document says: every answer here has to be one that it has promised."""

import asyncio
import contextlib
import io
import json
import re
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from aiohttp import web
from api_tools import NEVER, address, bare, described, filled, lines_of
from harness import HERE, Answer, Json, Server, flawless, parsed, until
from ietf_tools import Client, Interim
from jsonschema import Draft202012Validator
from upload_tools import MIB, begin, chunk, data, flowing

from intermission.handlers import registry
from intermission.supervisor import tokens
from intermission.supervisor.routes import auth, openapi

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "a secret of the tests, thirty-two bytes and more"
TOKEN: Final = tokens.sign(SECRET, "anna", admin=False, now=time.time(), life_s=3600)
ANNA: Final = {"Authorization": f"Bearer {TOKEN}"}
FOREVER: Final = {"steps": 1_000_000}
VERBS: Final = ("pause", "resume", "terminate")
UNTOLD: Final = {
    *("date", "server", "connection", "content-type", "content-length", "transfer-encoding", "content-disposition"),
    *("cache-control", "etag", "last-modified", "accept-ranges", "x-accel-buffering"),
    *("content-security-policy", "x-content-type-options", "x-frame-options", "referrer-policy"),
}
"""Headers of any answer, which are no part of what a route tells."""


def of_tus(text: str) -> bool:
    """Whether it is a route of tus, which promises what its own list says: ``tests/tus/`` holds it to that."""
    return "/upload/files" in text


@dataclass
class Promised:
    """A server whose every answer has to be one that its document has promised; and which of these were given."""

    server: Server
    document: Json
    seen: set[tuple[str, str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        schemas = self.document["components"]["schemas"]
        for name, schema in schemas.items():
            if "." not in name and "properties" in schema:
                schema.setdefault("additionalProperties", False)  # what is not described may not be sent either
        routes = [route for route in bare().router.routes() if route.method != "HEAD"]
        self._addresses = [(re.compile(re.sub(r"\{\w+\}", "[^/]+", address(route))), route) for route in routes]

    async def ask(self, line: str, status: int, **options: Any) -> Answer:
        """A request, and its answer as promised."""
        method, _, target = line.partition(" ")
        return self.hold(line, status, await self.server.ask(method, target, **options))

    def hold(self, line: str, status: int, answer: Answer) -> Answer:
        """An answer, held against the promise."""
        assert answer.status == status, (line, answer.body)
        promise = self._promise(line, status)
        told = {name.lower() for name in answer.headers} - {name.lower() for name in promise.get("headers", {})}
        assert status >= 400 or told <= UNTOLD, (line, told)
        kind = answer.headers.get("Content-Type", "").partition(";")[0]
        if "content" not in promise:
            assert answer.body == b""
        elif "*/*" not in promise["content"]:
            schema = promise["content"][kind].get("schema")
            if schema:
                whole = {**schema, "components": self.document["components"]}
                checker = Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
                assert [error.message for error in checker.iter_errors(answer.json)] == [], (line, answer.json)
        return answer

    def hold_interim(self, line: str, interim: Interim) -> None:
        """An answer that came before the answer, held against the promise."""
        assert set(interim.headers) <= self._promise(line, interim.status)["headers"].keys()

    def _promise(self, line: str, status: int) -> Json:
        """What is said of such an answer, which has been seen now."""
        method, _, target = line.partition(" ")
        path = target.partition("?")[0]
        route = next(route for fits, route in self._addresses if fits.fullmatch(path) and route.method == method)
        service = path.split("/")[1]
        documented = self.document["paths"][address(route).replace("{service}", service)][method.lower()]
        self.seen.add((method, self._kept(route, service), status))
        promise: Json = documented["responses"][str(status)]
        return promise

    def promises(self) -> set[tuple[str, str, int]]:
        """Every answer of every route, of those of all services once; and a stream service's own in their place."""
        found = set()
        for route in bare().router.routes():
            if route.method != "HEAD" and not of_tus(address(route)):
                for service in ("steps", "upload"):
                    path = address(route).replace("{service}", service)
                    responses = self.document["paths"][path][route.method.lower()]["responses"]
                    found |= {(route.method, self._kept(route, service), int(status)) for status in responses}
        return found

    def _kept(self, route: web.AbstractRoute, service: str) -> str:
        is_streamed = service == "upload" and described(route).streamed
        return address(route).replace("{service}", service) if is_streamed else address(route)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def promised(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Promised]:
    """A server with a secret, and its document."""
    settings = {
        "INTERMISSION_JWT_SECRET": SECRET,
        "INTERMISSION_HANDLERS": "toys,impatient",
        "INTERMISSION_MAX_RUNNING": "64",
        "INTERMISSION_UPLOAD_IDLE_S": "1",
    }
    async with flawless(tmp_path_factory.mktemp("openapi"), **settings) as server:
        assert server.session is not None
        server.session.headers.update(ANNA)
        document = (await server.ask("GET", "/openapi.json")).json
        yield Promised(server, document)


async def test_the_served_document(promised: Promised) -> None:
    """What is served is what is made from the code, with the server's own services."""
    answer = await promised.ask("GET /openapi.json", 200)
    handlers = registry.load([*registry.BUILT_IN, "toys", "impatient"]).handlers
    document = openapi.document(bare().router.routes(), handlers, answer.json["info"]["version"], auth.PUBLIC)
    assert answer.json == json.loads(json.dumps(document))


async def test_the_parameters_are_those_that_are_taken(promised: Promised) -> None:
    """A route that gets a parameter that there is not names those that there are: the documented ones, no others."""
    for route in bare().router.routes():
        path = address(route)
        if route.method == "HEAD" or path in {"/health", "/health/ready"} or of_tus(path):
            continue
        line = f"{route.method} {filled(path, NEVER, 'steps', 'steps')}?nonsense=1"
        (fault,) = (await promised.ask(line, 422)).json["errors"]
        there = [name for query in described(route).query for name in query.__annotations__]
        assert set(fault["detail"].partition("there are: ")[2].split(", ")) - {""} == set(there), line


async def launched(promised: Promised, service: str, **params: Any) -> str:
    """A task; its id."""
    return str((await promised.ask(f"POST /{service}/start", 202, json=params)).json["id"])


async def until_so(promised: Promised, task_id: str, condition: Callable[[Json], Any]) -> None:
    """Wait until a task is so."""

    async def so() -> bool:
        return bool(condition((await promised.ask(f"GET /tasks/{task_id}", 200)).json))

    await until(so)


async def progressed(promised: Promised, task_id: str) -> None:
    """Wait until a task has saved its place."""
    await until_so(promised, task_id, lambda task: task["progress"])


async def test_tasks_in_every_status(promised: Promised, tmp_path: Path) -> None:
    """A task is as described whether it waits, runs, rests, has failed or is gone, and so are its lists and files."""
    running = await launched(promised, "steps", **FOREVER)
    await progressed(promised, running)
    named = {"service": "deaf", "params": {}, "labels": {"k": "v"}, "priority": 1}
    deaf = (await promised.ask("POST /tasks", 202, json=named)).json["id"]
    await progressed(promised, deaf)
    await promised.ask(f"POST /tasks/{deaf}/pause", 202, headers={"Prefer": "wait=0"})
    assert (await promised.ask(f"POST /deaf/pause?task={deaf}", 200)).json["reason"] == "forced"
    await promised.ask(f"POST /deaf/resume?task={deaf}", 202)
    await progressed(promised, deaf)
    await promised.ask("POST /deaf/pause", 202, headers={"Prefer": "wait=0"})
    await promised.ask(f"POST /tasks/{deaf}/terminate", 200)
    done = (await promised.ask("POST /steps/start", 202, json={"steps": 3}, headers={"Prefer": "wait=20"})).json
    assert done["status"] == "completed"
    failed = await launched(promised, "faulty", kind="fatal")
    await until_so(promised, failed, lambda task: task["status"] == "failed")
    retrying = await launched(promised, "faulty", kind="segfault")
    await until_so(promised, retrying, lambda task: task["error"])
    paused = await launched(promised, "steps", **FOREVER)
    await progressed(promised, paused)
    await promised.ask(f"POST /tasks/{paused}/pause", 200)
    await promised.ask(f"POST /tasks/{paused}/resume", 202)
    for task_id in (running, done["id"], failed, retrying, paused):
        for rest in ("", "/attempts", "/events", "/log"):
            await promised.ask(f"GET /tasks/{task_id}{rest}", 200)
    await promised.ask(f"GET /steps/status?task={running}", 200)
    assert len((await promised.ask("GET /steps/status", 200)).json["items"]) == 3
    await promised.ask(f"GET /tasks/{done['id']}/log?follow=1", 200)
    page = (await promised.ask("GET /events?limit=3", 200)).json
    assert len((await promised.ask(f"GET /events?limit=3&cursor={page['next']}", 200)).json["items"]) == 3
    for path in ("/tasks", "/tasks?limit=1", "/tasks?status=failed&status=retrying&label=k:v", "/tasks?user=nobody"):
        await promised.ask(f"GET {path}", 200)
    file = f"GET /tasks/{done['id']}/files/lines.txt"
    etag = (await promised.ask(file, 200)).headers["ETag"]
    await promised.ask(file, 206, headers={"Range": "bytes=2-3"})
    await promised.ask(file, 304, headers={"If-None-Match": etag})
    await promised.ask(file, 416, headers={"Range": "bytes=1000-"})
    await promised.ask(f"GET /tasks/{done['id']}/log", 416, headers={"Range": "bytes=100000-"})
    printed = (await promised.ask("POST /printer/start", 202, json={"n": 3}, headers={"Prefer": "wait=20"})).json["id"]
    await promised.ask(f"GET /tasks/{printed}/log?tail=1", 206, headers={"Range": "bytes=0-0"})
    for line in (f"DELETE /tasks/{running}", *(f"POST /tasks/{done['id']}/{verb}" for verb in VERBS)):
        await promised.ask(line, 409)
    for verb in VERBS:
        await promised.ask(f"POST /steps/{verb}?task={done['id']}", 409)
    hanging = await launched(promised, "effect", path=str(tmp_path / "made"), hang=True)
    await until_so(promised, hanging, lambda task: task["status"] == "running")
    await promised.ask(f"POST /effect/terminate?task={hanging}", 202, headers={"Prefer": "wait=0"})
    await promised.ask(f"POST /tasks/{hanging}/terminate", 202, headers={"Prefer": "wait=0"})
    await promised.ask(f"POST /steps/terminate?task={paused}", 200)
    await promised.ask(f"DELETE /tasks/{done['id']}", 204)
    for line in lines_of(paused, "steps"):
        if not line.startswith("HEAD") and not of_tus(line):
            await promised.ask(line, 410)


async def test_uploads_keep_the_promises(promised: Promised) -> None:
    """Uploads that come whole, in parts, too slowly, and not as they were announced."""
    server, start, content = promised.server, "POST /upload/start", data(3 * MIB)
    whole = (await promised.ask(f"{start}?filename=a.txt", 201, data=b"abc")).json
    assert whole["status"] == "completed"
    named = {"id": (await promised.ask(start, 201, headers={"Upload-Length": "5"})).json["id"]}
    resume = f"POST /upload/resume?task={named['id']}"
    await promised.ask(f"POST /upload/pause?task={named['id']}", 200)
    await promised.ask(f"POST /tasks/{named['id']}/resume", 200)
    await promised.ask(resume, 400, data=b"abc")
    assert (await promised.ask(resume, 409, data=b"c", headers={"Upload-Offset": "2"})).json["offset"] == 0
    await promised.ask(resume, 413, data=b"abcdef", headers={"Upload-Offset": "0"})
    await promised.ask(resume, 415, data=b"ab", headers={"Upload-Offset": "0", "Content-Encoding": "br"})
    await promised.ask(resume, 200, data=b"ab", headers={"Upload-Offset": "0"})
    await promised.ask(resume, 200, data=b"cde", headers={"Upload-Offset": "2"})
    for task_id in (named["id"], whole["id"]):
        await promised.ask(f"GET /upload/status?task={task_id}", 200)
    await promised.ask("GET /upload/status", 200)
    bare_head = f"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    promised.hold(start, 411, parsed(await server.talk(bare_head.encode() + b"GET / HTTP/1.0\r\n\r\n")))
    await promised.ask(start, 400, data=b"abc", headers={"Upload-Length": "three"})
    await promised.ask(start, 413, data=b"abc", headers={"Upload-Length": "2"})
    await promised.ask(start, 415, data=b"abc", headers={"Content-Type": "multipart/mixed; boundary=x"})
    wrong = {"Repr-Digest": f"sha-256=:{b64encode(bytes(32)).decode()}:"}
    await promised.ask(start, 422, data=b"abc", headers=wrong)
    wanting = {"Want-Repr-Digest": "crc32c=10"}
    told = await promised.ask(start, 201, data=b"abc", headers=wanting)
    for path in (f"/upload/status?task={told.json['id']}", f"/tasks/{told.json['id']}"):
        again = await promised.ask(f"GET {path}", 200, headers=wanting)
        assert again.headers["Repr-Digest"] == told.headers["Repr-Digest"]
    await promised.ask(start, 422, data=b"abc", headers={"Content-Digest": wrong["Repr-Digest"]})
    rows = {"Content-Type": "text/csv"}
    await promised.ask("POST /csv/start", 202, data=b"a,b\n1,2\n", headers=rows)
    part = await promised.ask("POST /csv/start", 201, data=b"a,b\n", headers={**rows, "Upload-Length": "8"})
    assert (part.json["service"], part.json["reason"]) == ("upload", "awaiting_data")
    await promised.ask("POST /csv/start", 411, headers={**rows, "Upload-Length": "8"})
    await promised.ask("OPTIONS /upload/start", 204)
    resumable = "Upload-Complete: ?1"
    for verb, status, *more in (("pause", 200), ("pause", 423, resumable), ("terminate", 410)):
        sending, task_id = await flowing(server, content, MIB, f"Authorization: Bearer {TOKEN}", *more)
        await promised.ask(f"POST /upload/{verb}?task={task_id}", 200)
        promised.hold(start, status, await sending.answer())
    sending, task_id = await flowing(server, content, MIB, f"Authorization: Bearer {TOKEN}")
    offset = promised.hold(start, 408, await sending.answer()).json["offset"]
    headers = (f"Upload-Offset: {offset}", f"Authorization: Bearer {TOKEN}")
    sending = await begin(server, f"/upload/resume?task={task_id}", *headers, length=len(content) - offset)
    promised.hold("POST /upload/resume", 408, await sending.answer())
    await promised.ask(f"POST /tasks/{task_id}/terminate", 200)
    await promised.ask(f"POST /upload/resume?task={task_id}", 410)
    await promised.ask(f"POST /upload/resume?task={NEVER}", 404)


async def test_what_comes_before_the_answer(promised: Promised) -> None:
    """Where an upload can be resumed is told as it is described, to who asks for it."""
    start, resumable = "POST /upload/start", ("Upload-Complete: ?1", f"Authorization: Bearer {TOKEN}")
    answer = await Client(promised.server).ask("POST", "/upload/start", *resumable, body=data(MIB))
    promised.hold(start, 201, answer)
    assert answer.told("Location")
    for interim in answer.interims:
        promised.hold_interim(start, interim)


async def test_what_is_not_about_tasks(promised: Promised) -> None:
    """Services and what some of them have besides, health and the page."""
    sources = promised.server.data / "sources"
    (sources / "good.csv").write_text("date,a\n2013-01-01,1\n")
    (sources / "bad.csv").write_bytes(b"\xff\n")
    items = (await promised.ask("GET /extract/sources", 200)).json["items"]
    assert [item["error"] is None for item in items] == [False, True]
    await promised.ask("GET /extract/sources?limit=1&cursor=bad", 200)
    teams = {"teams": [{"name": "red", "members": [{"email": "a@b.example"}]}, {"name": "blue"}]}
    await promised.ask("POST /team/start", 202, json=teams, headers={"Prefer": "wait=20"})
    page = (await promised.ask("GET /team/teams?limit=1", 200)).json
    assert len((await promised.ask(f"GET /team/teams?cursor={page['next']}", 200)).json["items"]) == 1
    await promised.ask("GET /upload/usage", 200)
    services = (await promised.ask("GET /services", 200)).json["items"]
    for service in services:
        assert (await promised.ask(f"GET /services/{service['name']}", 200)).json == service
    for path in (
        "/health",
        "/health/ready",
        "/docs",
        "/docs/docs.js",
        "/docs/swagger-ui-bundle.js",
        "/upload",
        "/upload/page/upload.js",
    ):
        await promised.ask(f"GET {path}", 200)


async def test_what_is_refused(promised: Promised) -> None:
    """Unknown things, wrong bodies, no token."""
    for line in lines_of(NEVER, "steps"):
        if not line.startswith("HEAD") and not of_tus(line):
            await promised.ask(line, 404)
    for line in ("GET /services/nope", "GET /docs/nope.js", "GET /upload/page/nope.js"):
        await promised.ask(line, 404)
    await promised.ask("POST /tasks", 404, json={"service": "nope"})
    for path in ("/tasks", "/steps/start"):
        kind = {"Content-Type": "application/json"}
        await promised.ask(f"POST {path}", 400, data=b"{", headers=kind)
        await promised.ask(f"POST {path}", 413, data=io.BytesIO(b" " * (2 << 20)), headers=kind)
        await promised.ask(f"POST {path}", 415, data=b"a", headers={"Content-Type": "text/plain"})
        await promised.ask(f"POST {path}", 422, data=b'{"nonsense": 1}', headers=kind)
    for line in ("POST /upload/start", "POST /upload/resume"):
        await promised.ask(f"{line}?nonsense=1", 422)
    for method, path, status in promised.promises():
        if status == 401:
            line = f"{method} {filled(path, NEVER, 'steps')}"
            await promised.ask(line, 401, headers={"Authorization": "Bearer nonsense"})


async def test_how_a_body_has_to_come(promised: Promised) -> None:
    """In time, in a coding that is understood, and as expected; wherever one is taken."""
    said = {
        408: ("Content-Length: 9", "Upload-Offset: 0"),
        417: ("Expect: nonsense", "Content-Length: 9", "Upload-Offset: 0"),
        501: ("Transfer-Encoding: gzip, chunked", "Upload-Offset: 0"),
    }
    created = {"Upload-Length": "9"}
    for method, path, status in sorted(promised.promises()):
        if status in said:
            task_id = (await promised.ask("POST /upload/start", 201, headers=created)).json["id"]
            line = f"{method} {filled(path, task_id, 'steps')}"
            line += f"?task={task_id}" if path == "/upload/resume" else ""
            kind = "application/octet-stream" if "resume" in path or "upload" in path else "application/json"
            headers = (*said[status], f"Content-Type: {kind}", f"Authorization: Bearer {TOKEN}")
            body = chunk(b"{") + chunk(b"") if status == 501 else b"{"
            promised.hold(line, status, await promised.server.exactly(line, *headers, body=body))
    task_id = (await promised.ask("POST /upload/start", 201, headers=created)).json["id"]
    resume = f"POST /tasks/{task_id}/resume"
    await promised.ask(resume, 400, data=b"abc")
    await promised.ask(resume, 413, data=b"abcdefghijk", headers={"Upload-Offset": "0"})
    await promised.ask(resume, 415, data=b"ab", headers={"Upload-Offset": "0", "Content-Encoding": "br"})
    whole = (await promised.ask("POST /upload/start", 201, data=b"abc")).json["id"]
    await promised.ask(f"GET /tasks/{whole}/files/content", 412, headers={"If-Match": '"another"'})


UNSEEN: Final = {503, 507}
"""What a server in good health does not answer."""
RACES: Final = {
    # Somebody else was quicker than who started the task: terminated it while its start was waited for, or told it.
    *(("POST", "/tasks", 410), ("POST", "/{service}/start", 410), ("POST", "/upload/start", 409)),
    # What has not come to an end within 15 s is answered as it is.
    *(("POST", "/upload/start", 202), ("POST", "/upload/resume", 202)),
    # That of a stream service, seen at its own address.
    ("POST", "/{service}/resume", 200),
}


async def test_every_promise_has_been_seen(promised: Promised) -> None:
    """Nothing is promised that is never answered."""
    missing = {promise for promise in promised.promises() - promised.seen if promise[2] not in UNSEEN} - RACES
    assert missing == set()


# What others make of it.


@pytest.mark.timeout(240)
async def test_schemathesis(tmp_path: Path) -> None:
    """Requests made up from the document, fitting and not, are answered as it says, and none troubles the server."""
    settings = {
        "INTERMISSION_JWT_SECRET": SECRET,
        "INTERMISSION_HANDLERS": "",
        "INTERMISSION_MAX_RUNNING": "1",  # what they start may count for hours
        "INTERMISSION_MAX_UPLOAD_BYTES": str(MIB),  # what they announce would fit on no disk
    }
    async with flawless(tmp_path / "data", **settings) as server:
        (server.data / "sources" / "small.csv").write_text("date,a\n2013-01-01,1\n")
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("st")), "--config-file", str(HERE / "schemathesis.toml"), "run"),
            *(f"{server.url}/openapi.json", "-H", f"Authorization: {ANNA['Authorization']}"),
            *("--checks", "all", "--max-examples", "10", "--seed", "1", "--generation-deterministic"),
            *("--continue-on-failure", "--no-color", "--exclude-path-regex", "^/upload/files"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(200):
                said = (await process.communicate())[0].decode()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        assert process.returncode == 0, "\n".join([said, *(line for line in server.log if "request failed" in line)])
        assert re.search(r"Tested: (\d+)", said) is not None
