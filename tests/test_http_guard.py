"""Who may ask: on a server without a secret this machine's own user and no web page, otherwise who has a token."""

import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
import pytest_asyncio
from api_tools import NEVER, PUBLIC, address, bare, filled, lines_of
from harness import Answer, Json, Server, flawless, parsed, problem, until

from intermission.supervisor import tokens
from intermission.supervisor.routes import auth

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "a secret of the tests, thirty-two bytes and more, so that HS512 can use it as well"
EVERYWHERE: Final = (
    *("GET /health", "GET /health/ready", "GET /tasks", "POST /tasks", "POST /steps/start", "GET /steps/status"),
    *("POST /steps/terminate", "GET /nope", "GET /steps/start", "POST /nope/start", "GET /tasks/nope", "PUT /health"),
)


def has_ipv6_loopback() -> bool:
    """Whether there is a ``::1`` (containers are often without)."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server without a secret."""
    async with flawless(tmp_path_factory.mktemp("local")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server with a secret."""
    async with flawless(tmp_path_factory.mktemp("tokens"), INTERMISSION_JWT_SECRET=SECRET) as running:
        yield running


async def test_who_answers(local: Server) -> None:
    """Every answer says the product's name, and none the versions of what it is made of."""
    for line in (*EVERYWHERE, "GET /docs", "GET /upload", "GET /openapi.json", "POST /upload/start", "NO HTTP AT ALL"):
        heard = await local.talk(f"{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert parsed(heard).headers["Server"] == "intermission", line
        assert b"aiohttp" not in heard.partition(b"\r\n\r\n")[0], line


# Without a secret.


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8080", "127.8.9.10:1", "localhost", "localhost:8080", "LocalHost:80"),
        *("[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]:80"),
    ],
)
async def test_this_machines_own_names(local: Server, host: str) -> None:
    """Any name of this machine that cannot be another's is served, with any port (there may be a tunnel)."""
    assert (await local.exactly("GET /tasks", f"Host: {host}")).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example:80", "localhost."),
        *("localhost@evil.example", "evil.example#@localhost", "evil.example/localhost", "127.0.0.1,evil.example"),
        *("0.0.0.0", "10.0.0.1:8080", "[::]:80", "[fe80::1]", "[::1", "::1", "2130706433", "", ":80", "\xe4"),  # noqa: S104 -- nothing listens there
    ],
)
async def test_a_foreign_host(local: Server, host: str) -> None:
    """Any other ``Host`` is 403 (DNS rebinding makes a foreign name lead here), wherever it asks and whatever."""
    for line in EVERYWHERE:
        problem(await local.exactly(line, f"Host: {host}"), 403, "foreign-host")


async def test_no_host(local: Server) -> None:
    """A request that does not say whom it means is refused; so is one that says it twice."""
    heard = await local.talk(b"GET /tasks HTTP/1.0\r\n\r\n")
    assert heard.split()[1] == b"403"
    for headers in (b"", b"Host: localhost\r\nHost: evil.example\r\n", b"Host: evil.example\r\nHost: localhost\r\n"):
        heard = await local.talk(b"GET /tasks HTTP/1.1\r\nConnection: close\r\n" + headers + b"\r\n")
        assert heard.split()[1] == b"400"


@pytest.mark.parametrize("name", ["X-Forwarded-Host", "X-Forwarded-For", "Forwarded", "X-Host", "X-Real-IP"])
async def test_what_others_say_of_the_host(local: Server, name: str) -> None:
    """Only ``Host`` counts, not what a proxy or a page may add."""
    for value in ("localhost", "127.0.0.1", "host=localhost;for=127.0.0.1"):
        problem(await local.exactly("GET /tasks", "Host: evil.example", f"{name}: {value}"), 403, "foreign-host")
    assert (await local.exactly("GET /tasks", f"{name}: evil.example")).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "https://localhost:8080", "http://localhost", "http://localhost:8081", "null", ""),
        *("http://127.0.0.1:8080", "http://localhost:8080/", "http://localhost:8080.evil.example", "localhost:8080"),
        *("http://localhost:8080, http://localhost:8080", "file://", "chrome-extension://abcdef"),
    ],
)
async def test_a_foreign_origin(local: Server, origin: str) -> None:
    """A web page of another origin can post to this machine, and is refused; the origin has a port and a scheme."""
    for line in EVERYWHERE:
        answer = await local.exactly(line, "Host: localhost:8080", f"Origin: {origin}")
        problem(answer, 403, "foreign-origin")
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert (await local.ask("GET", "/tasks")).json["items"] == []


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("LOCALHOST:8080", "http://localhost:8080"),
        ("127.0.0.1", "http://127.0.0.1"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
async def test_the_own_origin(local: Server, host: str, origin: str) -> None:
    """A page that this server itself sent may ask."""
    assert (await local.exactly("GET /tasks", f"Host: {host}", f"Origin: {origin}")).status == 200


async def test_everyone_is_local(local: Server, tmp_path: Path) -> None:
    """Without a secret a token changes nothing: everyone is the user ``local``, and no administrator."""
    headers = {"Authorization": f"Bearer {token(sub='anna', scope='admin')}"}
    answer = await local.ask("POST", "/effect/start", json={"path": str(tmp_path / "made")}, headers=headers)
    assert answer.json["user"] == "local"
    assert (await local.ask("GET", "/tasks?user=anna")).json["items"] == []
    assert [task["id"] for task in (await local.ask("GET", "/tasks?user=local")).json["items"]] == [answer.json["id"]]
    assert (await local.verb(answer.json["id"], "terminate")).status == 200


@pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no IPv6")
async def test_ipv6_loopback(tmp_path: Path) -> None:
    """On ``::1`` it says an address that works, and serves whoever uses it."""
    async with flawless(tmp_path, INTERMISSION_HOST="::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert (await server.ask("GET", "/health")).json["status"] == "ok"


# Tokens.


def token(header: Any = None, secret: str = SECRET, **claims: Any) -> str:
    """A token for an hour, if nothing else is said."""
    header = {"alg": "HS256", "typ": "JWT"} if header is None else header
    return signed(header, {"exp": time.time() + 3600, **claims}, secret)


def signed(header: Any, claims: Any, secret: str = SECRET) -> str:
    """A token, signed by HS256 whatever its header says. Anything goes: that is the point."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signature = hmac.digest(secret.encode(), b".".join(parts), hashlib.sha256)
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def bearer(user: str, **claims: Any) -> Json:
    """The headers of a user."""
    return {"Authorization": f"Bearer {token(sub=user, **claims)}"}


ANNA: Final = bearer("anna")
BERTA: Final = bearer("berta", scope="read write")
ADMIN: Final = bearer("root", scope="read admin")

WRONG: Final = {
    "expired": token(sub="anna", exp=time.time() - 1),
    "expired long ago": token(sub="anna", exp=0),
    "no expiry": signed({"alg": "HS256"}, {"sub": "anna"}),
    "expiry is null": token(sub="anna", exp=None),
    "expiry is text": token(sub="anna", exp="never"),
    "expiry is a list": token(sub="anna", exp=[time.time() + 1000]),
    "not yet": token(sub="anna", nbf=time.time() + 1000),
    "not yet, is text": token(sub="anna", nbf="soon"),
    "expiry is infinite": token(sub="anna", exp=float("inf")),
    "another secret": token(sub="anna", secret="another secret, and that one is long as well"),
    "empty secret": token(sub="anna", secret=""),
    "another user's signature": token(sub="anna").rpartition(".")[0] + "." + token(sub="berta").rpartition(".")[2],
    "alg none": token({"alg": "none"}, sub="anna"),
    "alg none, unsigned": token({"alg": "none"}, sub="anna").rpartition(".")[0] + ".",
    "alg None": token({"alg": "None"}, sub="anna").rpartition(".")[0] + ".",
    "unsigned": token(sub="anna").rpartition(".")[0] + ".",
    "alg RS256": token({"alg": "RS256"}, sub="anna"),
    "alg ES256": token({"alg": "ES256"}, sub="anna"),
    "alg HS512": token({"alg": "HS512"}, sub="anna"),
    "signed by HS512": jwt.encode({"sub": "anna", "exp": time.time() + 3600}, SECRET, "HS512"),
    "signed by HS384": jwt.encode({"sub": "anna", "exp": time.time() + 3600}, SECRET, "HS384"),
    "alg in lower case": token({"alg": "hs256"}, sub="anna"),
    "alg is a list": token({"alg": ["HS256"]}, sub="anna"),
    "no alg": token({}, sub="anna"),
    "its own key": token({"alg": "HS256", "jwk": {"kty": "oct", "k": "YQ"}}, sub="anna", secret="a"),
    "header is a list": token(["alg", "HS256"], sub="anna"),
    "claims are a list": signed({"alg": "HS256"}, ["sub", "anna"]),
    "critical extension": token({"alg": "HS256", "crit": ["b64"], "b64": False}, sub="anna"),
    "no sub": token(name="anna"),
    "sub is null": token(sub=None),
    "sub is a number": token(sub=1),
    "sub is true": token(sub=True),
    "sub is a list": token(sub=["anna"]),
    "sub is an object": token(sub={"user": "anna"}),
    "sub is empty": token(sub=""),
    "sub is long": token(sub="a" * 257),
    "sub has a line break": token(sub="anna\n"),
    "sub has a NUL": token(sub="anna\0"),
    "sub is half a character": token(sub="\ud800"),
    "for somebody else": token(sub="anna", aud="another service"),
    "no token": "nonsense",
    "dots": "..",
    "many dots": "....",
    "base64 of nothing": "e30.e30.",
    "not ASCII": "\xff\xfe.\xff.\xff",
    "long": "a" * 7000,
    "deep": base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30.e30",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_a_token_that_is_none(server: Server, wrong: str) -> None:
    """A token that is expired, forged, unsigned or says nothing usable of its user is 401, as RFC 6750 has it."""
    answer = await server.exactly("GET /tasks", f"Authorization: Bearer {wrong}")
    problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert SECRET not in answer.body.decode()


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer ", "Basic YW5uYTphbm5h", token(sub="anna"), "Bearer:x", ""])
async def test_no_token(server: Server, header: str | None) -> None:
    """Without a bearer token everything but the health checks is 401, what is not there too: nothing is given away."""
    headers = () if header is None else (f"Authorization: {header}",)
    for line in EVERYWHERE[2:-1]:
        answer = await server.exactly(line, *headers)
        problem(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [(), (f"Authorization: Bearer {token(sub='anna', exp=1)}",)], ids=["none", "old"])
async def test_every_route_needs_a_token(server: Server, headers: tuple[str, ...]) -> None:
    """Every route that there is, whoever adds it, but for those that tell nothing."""
    routes = list(bare().router.routes())
    assert {address(route) for route in routes} & auth.PUBLIC == PUBLIC
    for route in routes:
        answer = await server.exactly(f"{route.method} {filled(address(route), NEVER, 'steps')}", *headers)
        if address(route) in PUBLIC:
            assert answer.status == 200, route
        else:
            assert answer.status == 401, route
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_health_is_public(server: Server) -> None:
    """Load balancers have no tokens; what they learn is no secret."""
    for path in ("/health", "/health/ready"):
        for headers in ((), ("Authorization: Bearer nonsense",), ("Host: lb.example", "Origin: http://lb.example")):
            assert (await server.exactly(f"GET {path}", *headers)).status == 200
    assert (await server.exactly("GET /health/")).status == 401
    assert set((await server.ask("GET", "/health")).json) == {"status", "version", "running", "pending", "max_running"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
async def test_a_token(server: Server, scheme: str) -> None:
    """With a token the server answers to any name and any origin: what it asks for no page can make up."""
    headers = (f"Authorization: {scheme} {token(sub='anna', exp=time.time() + 60)}", "Host: tasks.example")
    assert (await server.exactly("GET /tasks", *headers, "Origin: https://app.example")).status == 200


@pytest.mark.parametrize(
    "claims",
    [
        {"iat": time.time() + 1000},
        {"iat": "once"},
        {"nbf": time.time() - 1},
        {"scope": ["admin"]},
        {"name": "Anna", "jti": "1", "iss": "https://issuer.example"},
    ],
)
async def test_what_else_a_token_may_say(server: Server, claims: Json) -> None:
    """When it was made is no rule, for an issuer's clock may be ahead; what we have no use for is left aside."""
    assert (await server.exactly("GET /tasks", f"Authorization: Bearer {token(sub='anna', **claims)}")).status == 200


@pytest.mark.parametrize("admin", [False, True])
async def test_a_token_of_our_own(server: Server, admin: bool) -> None:
    """What `intermission token` makes is taken, says as much and no more, and ends when it says."""
    fresh = tokens.sign(SECRET, "Zoë", admin=admin, now=time.time(), life_s=60)
    started = await server.ask("POST", "/counter/start", json={"limit": 1}, headers=bearer("yusuf"))
    headers = {"Authorization": f"Bearer {fresh}"}
    answer = await server.ask("GET", f"/tasks/{started.json['id']}", headers=headers)
    assert answer.status == (200 if admin else 404)
    assert (await server.ask("POST", "/counter/start", json={"limit": 1}, headers=headers)).json["user"] == "Zoë"
    old = tokens.sign(SECRET, "Zoë", admin=admin, now=time.time() - 61, life_s=60)
    answer = await server.ask("GET", "/tasks", headers={"Authorization": f"Bearer {old}"})
    assert "expired" in problem(answer, 401, "unauthorized")["detail"]


@pytest.mark.parametrize(
    "user", ["u-1042", "anna@example.com", "Zoë Müller 李", "a" * 256, "local", "' OR 1=1 --", "%", "\\"]
)
async def test_the_user_is_the_sub(server: Server, user: str) -> None:
    """A task belongs to its token's ``sub``, whatever that is called, and to nobody else."""
    started = await server.ask("POST", "/counter/start", json={"limit": 1}, headers=bearer(user))
    assert (started.status, started.json["user"]) == (202, user)
    items = (await server.ask("GET", "/tasks", headers=bearer(user))).json["items"]
    assert [(item["id"], item["user"]) for item in items] == [(started.json["id"], user)]


# Yours only.


async def as_(server: Server, who: Json, line: str, **options: Any) -> Answer:
    """A user's request."""
    method, _, path = line.partition(" ")
    return await server.ask(method, path, headers={**who, **options.pop("headers", {})}, **options)


async def started(server: Server, who: Json, service: str = "steps", **params: Any) -> str:
    """A user's task."""
    answer = await as_(server, who, f"POST /{service}/start", json=params)
    assert answer.status == 202
    return str(answer.json["id"])


async def at(server: Server, who: Json, task_id: str, status: str) -> None:
    """Wait until a user's task has this status."""

    async def so() -> bool:
        return bool((await as_(server, who, f"GET /tasks/{task_id}")).json["status"] == status)

    await until(so)


@pytest.mark.parametrize("status", ["running", "paused", "completed", "gone"])
async def test_somebody_elses_task(server: Server, status: str) -> None:
    """Another user's task is 404 for every verb and address, the same as one that never was; nothing happens to it."""
    task_id = await started(server, ANNA, steps=1 if status == "completed" else 100_000)
    await at(server, ANNA, task_id, "completed" if status == "completed" else "running")
    if status == "paused":
        await as_(server, ANNA, f"POST /tasks/{task_id}/pause")
    if status == "gone":
        assert (await as_(server, ANNA, f"POST /tasks/{task_id}/terminate")).status == 200
    lines = lines_of(task_id, "steps")
    assert len(lines) >= 19
    for line, as_if in zip(lines, lines_of(NEVER, "steps"), strict=True):
        theirs, none = await as_(server, BERTA, line), await as_(server, BERTA, as_if)
        assert theirs.status == none.status == 404, line
        assert theirs.body.replace(task_id.encode(), NEVER.encode()) == none.body
    after = await as_(server, ANNA, f"GET /tasks/{task_id}")
    assert (after.status, after.json["status"]) == ((410, 410) if status == "gone" else (200, status))
    await as_(server, ANNA, f"POST /tasks/{task_id}/terminate")


async def test_somebody_elses_upload(server: Server) -> None:
    """So is another user's upload, with bytes to add to it and without."""
    announced = await as_(server, ANNA, "POST /upload/start", headers={"Upload-Length": "5"})
    task_id = announced.json["id"]
    for line in lines_of(task_id, "upload"):
        assert (await as_(server, BERTA, line)).status == 404, line
    line, headers = f"POST /upload/resume?task={task_id}", {"Upload-Offset": "0"}
    problem(await as_(server, BERTA, line, headers=headers, data=b"theirs"[:5]), 404, "unknown-task")
    done = await as_(server, ANNA, line, headers=headers, data=b"hello")
    assert (done.status, done.json["status"]) == (200, "completed")
    assert (await as_(server, ANNA, f"GET /tasks/{task_id}/files/content")).body == b"hello"


async def test_verbs_without_a_task_are_about_ones_own(server: Server) -> None:
    """A verb without ``?task=`` looks at the caller's tasks only, an administrator's too."""
    task_id = await started(server, ANNA, steps=100_000)
    await at(server, ANNA, task_id, "running")
    for who in (BERTA, ADMIN):
        for verb in ("pause", "terminate"):
            problem(await as_(server, who, f"POST /steps/{verb}"), 404, "none-eligible")
    assert (await as_(server, ANNA, "POST /steps/terminate")).json["id"] == task_id


async def test_lists_are_of_ones_own(server: Server) -> None:
    """Lists show the caller's tasks; no filter shows another's, and an administrator's ``?user=`` shows anybody's."""
    carla, dora = bearer("carla"), bearer("dora")
    mine, theirs = await started(server, carla, "counter", limit=1), await started(server, dora, "counter", limit=1)

    async def shown(who: Json, path: str) -> set[str]:
        answer = await as_(server, who, f"GET {path}")
        assert answer.status == 200
        return {item["id"] for item in answer.json["items"]}

    for path in ("/tasks", "/tasks?user=carla", "/counter/status", "/tasks?service=counter"):
        assert await shown(carla, path) == {mine}, path
    assert await shown(carla, f"/tasks?cursor={theirs}") == {mine}
    for path in ("/tasks?user=dora", "/tasks?user=", "/tasks?user=dora&service=counter", "/tasks?user=Carla"):
        assert await shown(carla, path) == set(), path
    assert {mine, theirs} <= await shown(ADMIN, "/tasks?limit=200")
    assert await shown(ADMIN, "/tasks?user=dora") == {theirs}
    assert await shown(ADMIN, "/tasks?user=dora&service=steps") == set()
    assert await shown(ADMIN, "/counter/status") == set()


async def test_an_administrator(server: Server) -> None:
    """An administrator reads and controls everybody's tasks, which stay their owners'; the history says who it was."""
    task_id = await started(server, ANNA, steps=100_000)
    await at(server, ANNA, task_id, "running")
    for line in lines_of(task_id, "steps"):
        if line.startswith(("GET", "HEAD")) and "files" not in line:
            assert (await as_(server, ADMIN, line)).status == 200, line
    paused = await as_(server, ADMIN, f"POST /steps/pause?task={task_id}")
    assert (paused.status, paused.json["user"], paused.json["status"]) == (200, "anna", "paused")
    assert (await as_(server, ADMIN, f"POST /tasks/{task_id}/resume")).status == 202
    events = (await as_(server, ANNA, f"GET /tasks/{task_id}/events")).json["items"]
    asked = [(event["event"], event["by"]) for event in events if event["by"]]
    assert asked == [("created", "anna"), ("pause", "root"), ("resume", "root")]
    assert (await as_(server, ADMIN, f"POST /tasks/{task_id}/terminate")).status == 200
    assert (await as_(server, ADMIN, f"GET /tasks/{task_id}")).status == 410
    assert (await as_(server, ANNA, f"GET /tasks/{task_id}")).status == 410


@pytest.mark.parametrize(
    "scope", ["", "read", "administrator", "Admin", "not-admin", "admin,read", ["admin"], 1, None, {"admin": 1}]
)
async def test_no_administrator(server: Server, scope: Any) -> None:
    """Only the word ``admin`` in a scope of words makes an administrator."""
    task_id = await started(server, ANNA, "counter", limit=1)
    assert (await as_(server, bearer("eva", scope=scope), f"GET /tasks/{task_id}")).status == 404
    assert (await as_(server, bearer("eva", scope=scope), "GET /tasks")).json["items"] == []
