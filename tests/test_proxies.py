"""Behind a proxy: who is believed about the address that a client sees, and bytes that come through a real one."""

import asyncio
import contextlib
import getpass
import os
import re
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import jwt
import pytest
import pytest_asyncio
from harness import Server
from tus_tools import FILES, ask, begin, content, offset, patch, task_id
from upload_tools import MIB, data
from verb_tools import nothing_left, playing
from yarl import URL

SECRET = "the secret of a server that others can reach"
BEARER = "Bearer " + jwt.encode({"sub": "anna", "exp": time.time() + 3600}, SECRET, "HS256")
LISTED = "127.0.0.1, 10.0.0.0/8, 2001:db8::/32"
SAID = [
    ({"X_Forwarded_Proto": "https", "X_Forwarded_Host": "Files.Example.org"}, "https://files.example.org"),
    ({"X_Forwarded_Proto": "https", "Host": "files.example.org:8443"}, "https://files.example.org:8443"),
    ({"X_Forwarded_Proto": "http, https", "X_Forwarded_Host": "evil.example, good.example"}, "https://good.example"),
    ({"X_Forwarded_Host": "files.example.org"}, ""),
    ({"X_Forwarded_For": "1.2.3.4"}, ""),
    ({"X_Forwarded_Proto": "javascript", "X_Forwarded_Host": "files.example.org"}, ""),
    ({"X_Forwarded_Proto": "https", "X_Forwarded_Host": "files.example.org/path"}, ""),
    ({"X_Forwarded_Proto": "https", "X_Forwarded_Host": "user@files.example.org"}, ""),
    ({"Forwarded": "for=1.2.3.4;proto=https;host=files.example.org"}, "https://files.example.org"),
    ({"Forwarded": 'for="[2001:db9::1]:4711";proto=https;host="[2001:db9::2]:8443"'}, "https://[2001:db9::2]:8443"),
    ({"Forwarded": "for=_hidden;proto=https;host=a.example", "X_Forwarded_Proto": "http"}, "https://a.example"),
    ({"Forwarded": "host=evil.example;proto=http, for=1.2.3.4;proto=https;host=good.example"}, "https://good.example"),
    ({"Forwarded": "for=1.2.3.4;proto=https;host=outer.example, for=10.1.2.3;proto=http"}, "https://outer.example"),
    (
        {"Forwarded": 'for=1.2.3.4;proto=https;host=outer.example, for="[2001:db8::5]:80";proto=http;host=inner'},
        "https://outer.example",
    ),
    ({"Forwarded": "for=1.2.3.4"}, ""),
    ({"Forwarded": "nonsense"}, ""),
    ({"Forwarded": 'proto=https;host="files.example.org\\""'}, ""),
    ({"Via": "1.1 somebody"}, ""),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server that trusts the proxies of this machine."""
    settings = {"INTERMISSION_JWT_SECRET": SECRET, "INTERMISSION_TRUSTED_PROXIES": LISTED}
    async with playing(tmp_path_factory.mktemp("behind"), **settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server that trusts others than those of this machine."""
    settings = {"INTERMISSION_JWT_SECRET": SECRET, "INTERMISSION_TRUSTED_PROXIES": "10.0.0.0/8"}
    async with playing(tmp_path_factory.mktemp("alone"), **settings) as running:
        yield running


async def located(server: Server, said: dict[str, str]) -> str:
    """Where a new upload is, up to its id."""
    answer = await ask(server, "POST", Upload_Length="10", Authorization=BEARER, **said)
    assert answer.status == 201, answer.body
    return str(answer.headers["Location"]).rpartition("/")[0]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("said", "origin"), SAID)
async def test_74_what_a_listed_proxy_says(behind: Server, said: dict[str, str], origin: str) -> None:
    """Is the address of what was created; what it does not say, or what cannot be one, leaves it relative."""
    assert await located(behind, said) == origin + FILES


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("said", [said for said, _ in SAID if "Host" not in said])
async def test_74_what_another_says(alone: Server, said: dict[str, str]) -> None:
    """Is believed nowhere: the address is relative, which is right behind any proxy."""
    assert await located(alone, said) == FILES


@pytest.mark.asyncio(loop_scope="module")
async def test_74_nobody_between(behind: Server) -> None:
    """Without a sign of a proxy the request's own address is the right one."""
    assert await located(behind, {}) == behind.url + FILES


@pytest.mark.asyncio(loop_scope="module")
async def test_63_parts_by_the_address_that_the_client_sees(behind: Server) -> None:
    """What the Location said can be joined, and nobody else's address."""
    said = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "files.example.org", "Authorization": BEARER}
    part = await ask(behind, "POST", Upload_Length="3", Upload_Concat="partial", **said)
    url = part.headers["Location"]
    assert (await patch(behind, URL(url).path, b"abc", 0, **said)).status == 204
    joined = await ask(behind, "POST", Upload_Concat=f"final;{url} {URL(url).path}", **said)
    assert (joined.status, joined.headers["Upload-Length"]) == (201, "6")
    foreign = await ask(behind, "POST", Upload_Concat=f"final;{url.replace('files.', 'others.')}", **said)
    assert foreign.status == 400


PAGE = (Path(__file__).parents[1] / "docs/proxies.md").read_text()
NGINX = """
daemon off; user {user}; pid {folder}/pid; error_log /dev/null;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {said}
}}
"""
"""What has to be around it: as nobody, its worker could not write to the folder of a test."""


def keeping(said: str) -> str:
    """The same for an nginx that keeps a body until it has all of it, which is what it does by default."""
    return said.replace("proxy_request_buffering off;", "")


PROXIES: dict[str, tuple[str, Callable[[str], str], list[str]]] = {
    "nginx": ("nginx", lambda said: said, ["nginx", "-c"]),
    "nginx, keeping": ("nginx", keeping, ["nginx", "-c"]),
    "caddy": (
        "caddyfile",
        lambda said: "{\nadmin off\n}\n" + said,
        ["caddy", "run", "--adapter", "caddyfile", "--config"],
    ),
    "haproxy": ("haproxy", lambda said: said, ["haproxy", "-q", "-f"]),
}
"""What the page says of each, what a test does to that, and how it is run."""


@asynccontextmanager
async def proxied(folder: Path, server: Server, name: str) -> AsyncIterator[Server]:
    """A proxy before the server as the page sets it up, to be asked like the server."""
    language, changed, command = PROXIES[name]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = PAGE.partition(f"```{language}\n")[2].partition("```")[0]
    said = changed(said).replace("127.0.0.1:8080", server.url.removeprefix("http://"))
    said = re.sub(r"(listen |bind :|^:)80\b", rf"\g<1>{port}", said, flags=re.MULTILINE)
    if language == "nginx":
        said = NGINX.format(folder=folder, user=getpass.getuser(), said=said)
    conf = folder / "conf"
    conf.write_text(said)
    environment = {**os.environ, "HOME": str(folder)}
    process = await asyncio.create_subprocess_exec(
        *command, str(conf), env=environment, stderr=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                await asyncio.sleep(0.02)
        yield Server(server.data, url=f"http://127.0.0.1:{port}", session=server.session)
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("name", PROXIES)
async def test_75_through_a_proxy(tmp_path: Path, name: str) -> None:
    """Bytes come as they are sent, and a pause ends the request; where all are kept first, they come all the same."""
    if shutil.which(PROXIES[name][2][0]) is None:
        pytest.skip(f"{name} is not installed")
    body = data(4 * MIB)
    async with playing(tmp_path / "data", INTERMISSION_TRUSTED_PROXIES="127.0.0.1") as server:
        async with proxied(tmp_path, server, name) as front:
            answer = await ask(front, "POST", Upload_Length=str(len(body)))
            assert answer.headers["Location"].startswith(f"{front.url}{FILES}/")
            path = URL(answer.headers["Location"]).path
            at = 0
            if name != "nginx, keeping":
                at = await paused_on_its_way(server, front, path, body)
            assert (await patch(front, path, body[at:], at)).status == 204
            assert await content(front, path) == body
        await nothing_left(server)


async def paused_on_its_way(server: Server, front: Server, path: str, body: bytes) -> int:
    """Send half of it, see most of that arrive, pause: the request ends; where to go on once it is resumed."""
    sending = await begin(front, path, length=len(body))
    try:
        await sending.send(body[: 2 * MIB])
        await server.until_progress(task_id(path), MIB)  # the last few KiB may be in the proxy's own buffer
        assert (await front.verb(task_id(path), "pause")).json["status"] == "paused"
        answering = asyncio.create_task(sending.answer())
        with contextlib.suppress(ConnectionError):
            while not answering.done():  # Caddy passes an early answer on between two of the client's next bytes
                await sending.send(bytes(1 << 10))
                await asyncio.wait({answering}, timeout=0.01)
        assert (await answering).status == 423
    finally:
        sending.abort()
    assert (await front.verb(task_id(path), "resume")).status == 200
    return await offset(front, path)
