"""What is refused: each wrong request is told what is wrong with it, changes nothing and never troubles the server."""

import asyncio
import gzip
import json
import string
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from uuid import uuid4

import pytest
import pytest_asyncio
from harness import Answer, Json, Server, flawless, pointers, problem
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON: Final = "Content-Type: application/json"
HOST: Final = b"Host: localhost\r\n"
UNKNOWN: Final = "01936d3e-7b1c-7def-8abc-0123456789ab"
STARTS: Final = ("/effect/start", "/tasks")  # `effect` needs a path, so no body here is accepted by accident
VERBS: Final = ("pause", "resume", "terminate")
OF_A_TASK: Final = ("", "/attempts", "/events", "/log", "/files/lines.txt")
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def shortly(said: bytes | str) -> str:
    """A name for a test of something long."""
    return ascii(said[:24])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with flawless(tmp_path_factory.mktemp("problems")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _nothing_changed(server: Server) -> AsyncIterator[None]:
    """Whatever a test sends, no task comes of it, and the server is still there to say so."""
    yield
    assert (await server.ask("GET", "/tasks")).json == {"items": [], "next": None}


async def start(server: Server, path: str, body: bytes | str, *headers: str) -> Answer:
    """A start with a body and these headers, JSON if none are given."""
    text = body.encode() if isinstance(body, str) else body
    return await server.exactly(f"POST {path}", *(headers or (JSON,)), body=text)


# Addresses.


@pytest.mark.parametrize("name", ["nope", "Steps", "tasks", "services", "st%65pz", "%00", "%ff", "%ed%a0%80", "a%2fb"])
async def test_a_service_that_there_is_not(server: Server, name: str) -> None:
    """An unknown service is 404 on each of its five routes, and the answer names those that there are."""
    for line in ("POST /{}/start", "GET /{}/status", *(f"POST /{{}}/{verb}" for verb in VERBS)):
        if name == "tasks" and "status" in line:
            continue  # that is the task of the id `status`
        said = problem(await server.exactly(line.format(name)), 404, "unknown-service")
        assert "counter" in said["detail"]


@pytest.mark.parametrize(
    "task_id",
    [
        UNKNOWN,
        UNKNOWN.upper(),
        UNKNOWN.replace("-", ""),
        UNKNOWN.replace("-", "%2d"),
        UNKNOWN + "%0a",
        UNKNOWN + "%00",
        "urn:uuid:" + UNKNOWN,
        "status",
        "0",
        "%00",
        "%ff",
        "%ed%a0%80",
        "%ef%bc%90" * 8 + UNKNOWN[8:],
        "a%2fb",
        "%2e%2e",
        "'%20OR%201=1--",
        "x" * 4000,
    ],
)
async def test_a_task_that_there_is_not(server: Server, task_id: str) -> None:
    """An unknown or malformed id is 404 on every route that takes one, as any other unknown task is."""
    lines = [f"GET /tasks/{task_id}{rest}" for rest in OF_A_TASK]
    lines += [f"DELETE /tasks/{task_id}", *(f"POST /tasks/{task_id}/{verb}" for verb in VERBS)]
    for line in lines:
        problem(await server.exactly(line), 404, "unknown-task")


@pytest.mark.parametrize("task_id", [UNKNOWN, UNKNOWN.upper(), "nope", "", "a%2fb"])
async def test_a_task_of_a_service_that_there_is_not(server: Server, task_id: str) -> None:
    """The same with ``?task=``."""
    for line in ("GET /steps/status", *(f"POST /steps/{verb}" for verb in VERBS)):
        problem(await server.exactly(f"{line}?task={task_id}"), 404, "unknown-task")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/nope", "/steps", "/steps/", "/steps/nope", "/steps/start/", "//tasks", "/tasks/", "/health/"),
        *(f"/tasks/{UNKNOWN}/nope", f"/tasks/{UNKNOWN}/files", f"/tasks/{UNKNOWN}/files/a/b", "/tasks/../tasks"),
    ],
)
async def test_nothing_at_an_address(server: Server, path: str) -> None:
    """Where there is nothing, that is what is said."""
    problem(await server.exactly(f"GET {path}"), 404, "not-found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/effect/start", {"POST"}),
        ("/nope/start", {"POST"}),
        ("/steps/status", {"GET", "HEAD"}),
        *((f"/steps/{verb}", {"POST"}) for verb in VERBS),
        ("/tasks", {"GET", "HEAD", "POST"}),
        (f"/tasks/{UNKNOWN}", {"GET", "HEAD", "DELETE"}),
        *((f"/tasks/{UNKNOWN}/{verb}", {"POST"}) for verb in VERBS),
        *((f"/tasks/{UNKNOWN}{rest}", {"GET", "HEAD"}) for rest in OF_A_TASK[1:]),
        ("/health", {"GET", "HEAD"}),
        ("/health/ready", {"GET", "HEAD"}),
    ],
)
async def test_a_method_that_an_address_does_not_take(server: Server, path: str, allowed: set[str]) -> None:
    """Every other method is 405 with the methods that there are; above all, no GET changes anything."""
    for method in METHODS:
        answer = await server.exactly(f"{method} {path}")
        if method in allowed:
            assert answer.status != 405
            continue
        assert answer.status == 405, method
        assert set(answer.headers["Allow"].replace(" ", "").split(",")) == allowed
        if method != "HEAD":
            problem(answer, 405, "method-not-allowed")


@pytest.mark.parametrize(
    "path",
    [
        *("/health", "/health/ready", "/tasks", "/steps/status", "/tasks?limit=0", "/nope/status", "/nope"),
        *(f"/tasks/{UNKNOWN}{rest}" for rest in OF_A_TASK),
    ],
)
async def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    """HEAD has the status and the headers of GET, the length too, and no body."""
    get, head = await server.exactly(f"GET {path}"), await server.exactly(f"HEAD {path}")
    assert (head.status, head.body) == (get.status, b"")
    assert get.body
    for name in ("Content-Length", "Content-Type", "Cache-Control"):
        assert head.headers[name] == get.headers[name]


async def test_a_problem_is_for_people_and_programs(server: Server) -> None:
    """A problem has the members of RFC 9457, and is never kept by a cache."""
    answer = await server.exactly("GET /tasks/nope")
    said = problem(answer, 404, "unknown-task")
    assert set(said) == {"type", "title", "status", "detail"}
    assert said["title"] == "Unknown task"
    assert "'nope'" in said["detail"]
    assert answer.headers["Cache-Control"] == "no-store"


# Bodies.


@pytest.mark.parametrize("path", STARTS)
@pytest.mark.parametrize(
    "body",
    [
        "not json",
        "{",
        '{"path": }',
        "{} {}",
        "{'path': 1}",
        '{"path": "a",}',
        '{"path": "\n"}',
        "\x00",
        "\ufeff{}",
        b'{"path": "\xff"}',
        b'{"path": "\xed\xa0\x80"}',
        "{}".encode("utf-16"),
        "{}".encode("utf-16-be"),
        "{}".encode("utf-32"),
        '{"hang": NaN}',
        '{"hang": -Infinity}',
        '{"hang": 1e999}',
        '{"hang": %s}' % ("1" * 400),
        '{"hang": -%s}' % ("1" * 400),
        '{"hang": %s}' % ("1" * 5000),
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
    ids=shortly,
)
async def test_what_is_no_json(server: Server, path: str, body: bytes | str) -> None:
    """A body that is not JSON in UTF-8, or holds what JSON cannot carry, is 400 with the reason."""
    said = problem(await start(server, path, body), 400, "malformed-json")
    assert said["detail"].startswith("the body is not ")


@pytest.mark.parametrize("path", STARTS)
@pytest.mark.parametrize("body", ["[]", "null", '"text"', "3", "true", "[{}]", r'{"path": "\ud800"}', r'{"\udfff": 1}'])
async def test_json_of_the_wrong_kind(server: Server, path: str, body: str) -> None:
    """What is JSON but no object, or holds text that is none, is 422 for the whole."""
    said = problem(await start(server, path, body), 422, "invalid")
    assert pointers(said) == {""}


async def test_json_of_every_depth(server: Server) -> None:
    """However deep a body is, it is refused for its shape or its depth; no depth in between is a mistake of ours."""
    shapes: tuple[Callable[[int], str], ...] = (
        lambda depth: "[" * depth + "]" * depth,
        lambda depth: '{"hang":' * depth + "1" + "}" * depth,
        lambda depth: '{"service": "effect", "params": {"hang":' + "[" * depth + "]" * depth + "}}",
    )

    async def status(path: str, shape: Callable[[int], str], depth: int) -> int:
        return (await server.ask("POST", path, data=shape(depth), headers={"Content-Type": "application/json"})).status

    for path in STARTS:
        for shape in shapes:
            parsed, too_deep = 1, 200_000  # how deep a parser goes differs between versions of Python
            while too_deep - parsed > 1:
                depth = (parsed + too_deep) // 2
                if await status(path, shape, depth) == 400:
                    too_deep = depth
                else:
                    parsed = depth
            around = [await status(path, shape, depth) for depth in range(max(parsed - 40, 1), too_deep + 3)]
            assert set(around) == {400, 422}, (path, around)


@pytest.mark.parametrize("path", STARTS)
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ";;"])
async def test_a_body_that_does_not_say_that_it_is_json(server: Server, path: str, kind: str | None) -> None:
    """JSON must be sent as JSON: a form of a foreign web page can send text, but not that."""
    headers = ("X: y",) if kind is None else (f"Content-Type: {kind}",)
    said = problem(await start(server, path, '{"path": "/nowhere"}', *headers), 415, "unsupported-media-type")
    assert "application/json" in said["detail"]


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json"]
)
async def test_a_body_that_says_that_it_is_json(server: Server, kind: str) -> None:
    """Parameters, upper case and the suffix ``+json`` are fine; this body is refused for what it holds."""
    said = problem(await start(server, "/effect/start", '{"x": 1}', f"Content-Type: {kind}"), 422, "invalid")
    assert pointers(said) == {"/path", "/x"}


@pytest.mark.parametrize("body", ["", " \r\n\t"])
@pytest.mark.parametrize("headers", [("X: y",), (JSON,), ("Content-Type: text/plain",)])
async def test_no_body_is_no_params(server: Server, body: str, headers: tuple[str, ...]) -> None:
    """An empty body stands for an empty object, whatever its type."""
    said = problem(await start(server, "/effect/start", body, *headers), 422, "invalid")
    assert said["errors"] == [{"pointer": "/path", "detail": "Field required"}]


async def test_a_body_that_is_too_large(server: Server) -> None:
    """More than 1 MiB is 413, with a length and without; exactly 1 MiB is still read."""
    large = b'{"x": 1}'.ljust((1 << 20) + 1)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large)
    for answer in (
        await start(server, "/effect/start", large),
        await start(server, "/tasks", large),
        await start(server, "/tasks", large, "Content-Type: text/plain"),
        await start(server, "/tasks", chunked, JSON, "Transfer-Encoding: chunked"),
    ):
        problem(answer, 413, "request-entity-too-large")
    assert pointers(problem(await start(server, "/effect/start", large[:-1]), 422, "invalid")) == {"/path", "/x"}


async def test_a_body_that_is_announced_too_large(server: Server) -> None:
    """Who announces too much is told so before any of it is sent."""

    async def never() -> AsyncIterator[bytes]:
        yield b""
        await asyncio.Event().wait()

    headers = {"Content-Type": "application/json", "Content-Length": "99999999999"}
    async with asyncio.timeout(5):
        answer = await server.ask("POST", "/steps/start", data=never(), headers=headers)
    problem(answer, 413, "request-entity-too-large")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "nonsense"])
async def test_a_packed_body(server: Server, coding: str) -> None:
    """A packed body is not unpacked, however it may explode; the answer says how to send it."""
    for body in (gzip.compress(b'{"path": "a"}'), gzip.compress(b" " * (64 << 20)), b"not packed at all"):
        answer = await start(server, "/effect/start", body, JSON, f"Content-Encoding: {coding}")
        problem(answer, 415, "unsupported-media-type")
        assert answer.headers["Accept-Encoding"] == "identity"
    same = await start(server, "/effect/start", "{}", JSON, "Content-Encoding: Identity")
    problem(same, 422, "invalid")


async def test_a_client_that_goes_away_in_the_middle_of_a_body(server: Server) -> None:
    """Half a body is no start, and nothing to complain about."""
    before, complaints = (await server.ask("GET", "/tasks?limit=1")).json["items"], list(server.log)
    half = b"POST /steps/start HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n{}"
    await server.talk(half, hang_up=True)
    await server.talk(half.replace(b"Content-Length: 9", b"Transfer-Encoding: chunked") + b"\r\n", hang_up=True)
    assert (await server.ask("GET", "/tasks?limit=1")).json["items"] == before
    assert server.log == complaints


# What does not fit, all at once.


async def test_every_fault_of_the_params(server: Server) -> None:
    """Missing, unknown and wrongly typed params are all told in one answer, each with its JSON pointer."""
    body = {"clean_errors": "3", "hang": 1, "a/b~c": None, "": 1}
    said = problem(await start(server, "/effect/start", json.dumps(body)), 422, "invalid")
    assert {fault["pointer"]: fault["detail"] for fault in said["errors"]} == {
        "/path": "Field required",
        "/clean_errors": "Input should be a valid integer",
        "/hang": "Input should be a valid boolean",
        "/a~1b~0c": "Unknown field",
        "/": "Unknown field",
    }


async def test_every_fault_of_what_a_handler_checks_itself(server: Server) -> None:
    """A handler's own checks speak in the same way."""
    body = {"source": "nope", "columns": ["a", "b", "a"], "from_date": "2013-02-01", "to_date": "2013-01-01"}
    said = problem(await start(server, "/extract/start", json.dumps(body)), 422, "invalid")
    assert pointers(said) == {"/source", "/columns/2", "/from_date"}


async def test_every_fault_of_a_start_of_any_service(server: Server) -> None:
    """``POST /tasks`` points into its own body: at its fields, or below ``/params``."""
    body: Json = {"params": [], "priority": 1001, "labels": {"a b": "x", "c": 1, "d": "x" * 256}, "delay": 1}
    said = problem(await start(server, "/tasks", json.dumps(body)), 422, "invalid")
    assert {pointer for pointer in pointers(said) if not pointer.startswith("/labels/a b")} == {
        *("/service", "/params", "/priority", "/labels/c", "/labels/d", "/delay"),
    }
    assert any(pointer.startswith("/labels/a b") for pointer in pointers(said))
    body = {"service": "effect", "params": {"hang": "no", "x": {}}}
    said = problem(await start(server, "/tasks", json.dumps(body)), 422, "invalid")
    assert pointers(said) == {"/params/path", "/params/hang", "/params/x"}


@pytest.mark.parametrize(
    "more",
    [
        {"priority": 1.5},
        {"priority": True},
        {"priority": "1"},
        {"priority": None},
        {"priority": -1001},
        {"labels": {f"n{n}": "" for n in range(17)}},
        {"labels": {"": "x"}},
        {"labels": {"x" * 64: "x"}},
        {"labels": {"a": None}},
        {"labels": ["a"]},
        {"params": None},
        {"service": ["steps"]},
    ],
)
async def test_limits_of_a_start_of_any_service(server: Server, more: Json) -> None:
    """Priorities are whole numbers within a thousand; labels are few, short, and text."""
    said = problem(await start(server, "/tasks", json.dumps({"service": "steps", **more})), 422, "invalid")
    assert {pointer.split("/")[1] for pointer in pointers(said)} == set(more)


@pytest.mark.parametrize("service", ["nope", "", "Steps", "tasks", "st\x00eps", "x" * 300])
async def test_a_start_of_a_service_that_there_is_not(server: Server, service: str) -> None:
    """``POST /tasks`` for an unknown service is 404."""
    problem(await start(server, "/tasks", json.dumps({"service": service})), 404, "unknown-service")


# Queries.


@pytest.mark.parametrize(
    "line",
    [
        *("POST /steps/start", "GET /steps/status", "GET /tasks", "POST /tasks", f"DELETE /tasks/{UNKNOWN}"),
        *(f"POST /steps/{verb}" for verb in VERBS),
        *(f"POST /tasks/{UNKNOWN}/{verb}" for verb in VERBS),
        *(f"GET /tasks/{UNKNOWN}{rest}" for rest in OF_A_TASK),
    ],
)
async def test_parameters_that_there_are_not(server: Server, line: str) -> None:
    """Unknown parameters are all told at once: a misspelt filter must not list, or stop, everything."""
    said = problem(await server.exactly(f"{line}?taks=1&Limit=2&=3&%ff=4"), 422, "invalid")
    assert pointers(said) == {"taks", "Limit", "", "\ufffd"}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("GET /tasks?limit=1&limit=1&cursor=a&cursor=b&service=a&service=b&x=1", {"limit", "cursor", "service", "x"}),
        (f"GET /steps/status?task={UNKNOWN}&task={UNKNOWN}", {"task"}),
        (f"POST /steps/pause?task={UNKNOWN}&task={UNKNOWN}", {"task"}),
        (f"GET /tasks/{UNKNOWN}/log?tail=1&tail=2", {"tail"}),
        ("GET /tasks?label=a:1&label=a:2", {"label"}),
    ],
)
async def test_parameters_that_are_given_twice(server: Server, line: str, wrong: set[str]) -> None:
    """What may be said once is refused when it is said twice, instead of choosing one."""
    assert pointers(problem(await server.exactly(line), 422, "invalid")) == wrong


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "limit",
            ["0", "201", "-1", "+5", "5.0", "1e1", "%205", "5%0a", "%ef%bc%95", "0x1", "", "9" * 4000, "%00", "%ff"],
        ),
        ("status", ["", "Running", "gone", "terminated", "running,paused", "%ed%a0%80"]),
        ("label", ["", "a", ":", ":1", "a%00:1", "a:%00", "a:%ff"]),
        ("cursor", ["", "1", UNKNOWN.upper(), UNKNOWN + "0", "%00"]),
        ("service", ["%00", "%ff"]),
    ],
)
async def test_values_that_do_not_fit(server: Server, name: str, values: list[str]) -> None:
    """A parameter's value is checked, and the answer says what it may be."""
    for value in values:
        said = problem(await server.exactly(f"GET /tasks?{name}={value}"), 422, "invalid")
        assert pointers(said) == {name}, value


@pytest.mark.parametrize("tail", ["0", "-1", "100001", "all", "", "1.0", "%ff"])
async def test_a_tail_that_does_not_fit(server: Server, tail: str) -> None:
    """So is the number of lines of a log, before anything else is looked at."""
    said = problem(await server.exactly(f"GET /tasks/{UNKNOWN}/log?tail={tail}"), 422, "invalid")
    assert pointers(said) == {"tail"}


# What is no request at all.


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\r\n" * 1000,
        b"\x00" * 5000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /tasks\r\n\r\n",
        b"GET /tasks HTTP/9.9\r\n" + HOST + b"\r\n",
        b"BREW /tasks HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /tasks/\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /tasks HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /tasks HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 10_000 + b"\r\n",
        b"GET /tasks HTTP/1.1\r\n" + HOST + b"X\r\n\r\n",
        b"GET /tasks HTTP/1.1\r\n" + HOST + b"\x00: y\r\n\r\n",
        b"POST /steps/start HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n{}",
        b"POST /steps/start HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        b"POST /steps/start HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /steps/start HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nno length\r\n",
        b"POST /steps/start HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: nonsense\r\n\r\n{}",
        b"POST /steps/start HTTP/1.1\r\n" + HOST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n\x00\x01garbage after it\r\n\r\n",
        b"GET /tasks HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + HOST + b"\r\n\x00\xff",
        b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
    ids=shortly,
)
async def test_garbage(server: Server, said: bytes) -> None:
    """Bytes that are no request are refused or ignored, and tell nothing of the inside."""
    heard = await server.talk(said, hang_up=True)
    assert heard == b"" or heard.split()[1] in {b"200", b"400", b"403", b"404", b"415", b"431", b"505"}
    assert heard == b"" or b"\r\nContent-Type: application/problem+json" in heard or heard.split()[1] == b"200"
    assert b"Traceback" not in heard
    assert b".py" not in heard


async def test_garbage_from_many_at_once(server: Server) -> None:
    """A crowd that sends garbage, and a crowd that sends nothing more, keep nobody from being answered."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
    for _, writer in silent:
        writer.write(b"POST /steps/start HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n")
    await asyncio.gather(*(server.talk(bytes([n]) * 3000, hang_up=True) for n in range(100)))
    assert (await server.ask("GET", "/health")).status == 200
    for _, writer in silent:
        writer.close()


# Anything.

ANY_JSON: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
EXTRACT: Final = ("source", "columns", "where", "from_date", "to_date", "format", "compression")
TASK: Final = ("service", "params", "priority", "labels")


def near(fields: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """An object that has some of these fields, each with anything in it, or anything else."""
    return st.dictionaries(st.sampled_from(fields), ANY_JSON, max_size=len(fields)) | ANY_JSON


def refused(answer: Answer) -> None:
    """A problem of the client's making."""
    assert answer.status in {400, 404, 413, 415, 422}, (answer.status, answer.body)
    assert answer.headers["Content-Type"] == "application/problem+json"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(body=near(EXTRACT))
async def test_any_json_as_params(server: Server, body: Any) -> None:
    """Any JSON as the params of a service is refused with a reason (there are no sources to extract from here)."""
    refused(await server.ask("POST", "/extract/start", json=body))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(body=near(TASK), params=near(EXTRACT))
async def test_any_json_as_a_start(server: Server, body: Any, params: Any) -> None:
    """So is any JSON as the start of a task, and as the params within it."""
    if body is not None:
        refused(await server.ask("POST", "/tasks", json=body))
    refused(await server.ask("POST", "/tasks", json={"service": "extract", "params": params}))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(body=st.binary(max_size=200), kind=st.sampled_from(["application/json", "text/json", "application/x+json"]))
async def test_any_bytes_as_params(server: Server, body: bytes, kind: str) -> None:
    """So are any bytes."""
    refused(await server.ask("POST", "/extract/start", data=body, headers={"Content-Type": kind}))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT"]),
    path=st.lists(
        st.sampled_from(
            ["/", "tasks", "steps", "pause", "status", "health", UNKNOWN, "files", "%00", "%ff", "..", "?", "&", "="]
        )
        | st.text(string.printable, max_size=4),
        max_size=8,
    ),
)
async def test_any_address(server: Server, method: str, path: list[str]) -> None:
    """Any address is answered, and never with a mistake of ours."""
    if (method, path[:1]) == ("POST", ["steps"]):
        return  # might be a start
    target = "".join(path).replace("\r", "").replace("\n", "").replace(" ", "")
    heard = await server.talk(f"{method} /{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert 200 <= int(heard.split()[1]) < 500


async def test_the_database_is_as_it_was(server: Server) -> None:
    """After all of that there is no folder of a task either."""
    assert list((server.data / "tasks").iterdir()) == []
    assert (await server.ask("GET", f"/tasks/{uuid4()}")).status == 404


@pytest.mark.parametrize("coding", ["gzip, chunked", "br,\tgzip, chunked"])
@pytest.mark.parametrize(
    "line",
    [
        *("POST /tasks", "POST /steps/start", "POST /upload/start", "POST /upload/resume?task={task}"),
        *("POST /tasks/{task}/resume", "POST /csv/start", "PATCH /upload/files/{task}", "POST /upload/files"),
    ],
)
async def test_a_transfer_coding_that_nobody_undoes(server: Server, line: str, coding: str) -> None:
    """Is 501 (RFC 9112, section 6.1) wherever a body is taken: its bytes are not what was meant."""
    created = (await server.ask("POST", "/upload/start", headers={"Upload-Length": "10"})).json
    kind = {"/tasks": "application/json", "/steps/start": "application/json", "/csv/start": "text/csv"}
    path = line.split()[1]
    tus = "/upload/files" in path
    headers = [
        f"Content-Type: {kind.get(path, 'application/offset+octet-stream' if tus else 'text/plain')}",
        *(["Upload-Offset: 0"] if "{task}" in path else []),
        *(["Tus-Resumable: 1.0.0"] if tus else []),
        *(["Upload-Length: 4"] if path == "/upload/files" else []),
    ]
    body = b"4\r\ngzip\r\n0\r\n\r\n"
    said = line.replace("{task}", created["id"])
    answer = await server.exactly(said, *headers, f"Transfer-Encoding: {coding}", body=body)
    problem(answer, 501, "unknown-transfer-coding")
    assert await server.task(created["id"]) == created
    assert (await server.verb(created["id"], "terminate")).status == 200
