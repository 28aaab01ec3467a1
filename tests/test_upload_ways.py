"""Both ways of a body's bytes, the direct and the copied: exact at every boundary, bounded, and nothing left open."""

import asyncio
import contextlib
import io
import os
import signal
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from harness import Server, child_bytes, parsed, private_bytes, problem, seeded, send, until
from upload_tools import MIB, WAYS, Sending, begin, data, flowing, newest, resume, sha256
from verb_tools import nothing_left, playing

from intermission.supervisor.process.incoming import BATCH_BYTES
from intermission.supervisor.routes.direct import WORTH_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="module")

HUGE = data(64 * MIB + 1)
LARGE = HUGE[: 24 * MIB]
_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module", params=list(WAYS))
def way(request: pytest.FixtureRequest) -> str:
    """The way that the server goes."""
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, way: str) -> AsyncIterator[Server]:
    """One server for all tests."""
    async with playing(tmp_path_factory.mktemp("ways"), **WAYS[way]) as running:
        await sent_whole(running, LARGE)  # what is opened once and kept is open from here on
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process or a descriptor."""
    before = await descriptors(server)
    yield
    await nothing_left(server)

    async def as_before() -> bool:
        return await descriptors(server) <= before

    await until(as_before)  # connections that the client has closed are noticed in a moment


async def descriptors(server: Server) -> int:
    """How many the server and its fork server have open, but for the tests' own connections to it."""
    await server.ask("GET", "/health")
    assert server.session is not None
    idle = sum(len(kept) for kept in server.session.connector._conns.values())  # type: ignore[union-attr]
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (server.pid, server.fork_server.pid)) - idle


def read_by_children(server: Server) -> int:
    """The bytes that children which are gone have read by themselves: of connections and files, not of the ring."""
    lines = Path(f"/proc/{server.fork_server.pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar:")).split()[1])


async def sent_whole(server: Server, content: bytes) -> str:
    """Sent at once by a client that is as fast as it can be; the id of what is then completed and identical."""
    sending = await begin(server, "/upload/start", length=len(content))
    await sending.send(content)
    return await completed(server, content, sending)


async def completed(server: Server, content: bytes, sending: Sending, status: int = 201) -> str:
    """The id of an upload whose client has sent everything, and which is identical."""
    answer = await sending.answer()
    assert answer.status == status, answer.body
    assert answer.json["result"]["size_bytes"] == len(content)
    assert answer.json["result"]["sha256"] == sha256(content)
    task_id = str(answer.json["id"])
    assert (server.data / "tasks" / task_id / "files" / "content").read_bytes() == content
    return task_id


async def removed(server: Server, task_id: str) -> None:
    """Completed uploads of many megabytes are not kept until the end of the file."""
    assert (await server.ask("DELETE", f"/tasks/{task_id}")).status == 204


async def test_it_goes_this_way(server: Server, way: str) -> None:
    """The server says which way is in force, and goes it: the child reads from the connection, or does not."""
    assert [line for line in server.log if f'"way": "{way}"' in line]
    before = read_by_children(server)
    await removed(server, await sent_whole(server, LARGE))
    passed = read_by_children(server) - before
    assert passed > len(LARGE) - 4 * MIB if way == "direct" else passed < 4 * MIB


async def test_memory_is_used_again(server: Server) -> None:
    """What a block was in holds the next one: it is not given back to the kernel, to be zeroed page by page again."""
    await removed(server, await sent_whole(server, LARGE))
    before = minor_faults(server)
    await removed(server, await sent_whole(server, LARGE))
    assert minor_faults(server) - before < len(LARGE) // MIB * 32


def minor_faults(server: Server) -> int:
    """How many pages the server has touched for the first time."""
    return int(Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[7])


@pytest.mark.parametrize(
    "size",
    [
        *(WORTH_BYTES + n for n in (-1, 0, 1)),
        *(WORTH_BYTES + BATCH_BYTES + n for n in (-1, 0, 1)),
        *(2 * WORTH_BYTES + n for n in (-1, 0, 1)),
        *(64 * MIB + n for n in (-1, 0, 1)),
    ],
)
async def test_every_size_at_a_boundary(server: Server, size: int) -> None:
    """At every boundary of the way, exactly what was sent."""
    await removed(server, await sent_whole(server, HUGE[:size]))


@pytest.mark.parametrize("step", [1, 100, 1448, 65_536 + 1, WORTH_BYTES - 1])
async def test_every_size_of_a_piece(server: Server, step: int) -> None:
    """Whatever pieces it comes in, and some that are slower than it is worth waiting for."""
    size = min(3 * MIB, 3000 * step)
    sending = await begin(server, "/upload/start", length=size + 2 * MIB)
    for at in range(0, size, step):
        await sending.send(HUGE[at : min(at + step, size)])
        await asyncio.sleep(0)
    await server.until_progress(await until_there(server), size)  # what has come is not held back
    await sending.send(HUGE[size : size + 2 * MIB])
    await completed(server, HUGE[: size + 2 * MIB], sending)


async def until_there(server: Server, service: str = "upload") -> str:
    """The id of the only task of a service that runs, once it does."""
    found = ""

    async def there() -> bool:
        nonlocal found
        found = await newest(server, service)
        return bool(found) and (await server.task(found))["status"] == "running"

    await until(there)
    return found


async def test_in_one_packet_with_the_head(server: Server) -> None:
    """What aiohttp has read already comes first."""
    for size in (1000, 200_000):
        head = f"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LARGE)}\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
        sending = Sending(reader, writer)
        await sending.send(head + LARGE[:size])
        await sending.send(LARGE[size:])
        await completed(server, LARGE, sending)


async def test_requests_behind_it(server: Server) -> None:
    """Not a byte more than the body is taken: what is pipelined behind it is answered on the same connection."""
    second = HUGE[-5 * MIB :]
    sending = await begin(server, "/upload/start", length=len(LARGE))
    head = f"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(second)}\r\n\r\n".encode()
    await sending.send(LARGE + head + second + _HEALTH)
    async with asyncio.timeout(20):
        heard = await sending.reader.read(-1)
    sending.abort()
    assert [part[:3] for part in heard.split(b"HTTP/1.1 ")[1:]] == [b"201", b"201", b"200"]
    for content in (LARGE, second):
        assert f'"sha256":"{sha256(content)}"'.encode() in heard.replace(b" ", b"")


@pytest.mark.parametrize("size", [1, 1000, WORTH_BYTES + 1, len(LARGE)])
async def test_a_client_that_says_that_no_more_comes(server: Server, size: int) -> None:
    """When its whole request is out, that is no farewell: it is answered, and then the connection is closed."""
    for pieces in (1, 2):
        sending = await begin(server, "/upload/start", length=size)
        for at in range(pieces):
            await sending.send(HUGE[size * at // pieces : size * (at + 1) // pieces])
        sending.writer.write_eof()
        async with asyncio.timeout(20):
            heard = await sending.reader.read(-1)
        sending.abort()
        assert heard.startswith(b"HTTP/1.1 201 "), heard
        task = parsed(heard).json
        assert (task["status"], task["result"]["sha256"]) == ("completed", sha256(HUGE[:size]))
        await removed(server, task["id"])


async def test_a_client_that_says_so_in_the_middle(server: Server) -> None:
    """That ends the body: what has come is kept, and nobody waits for more."""
    there = 9 * MIB + 1
    sending, task_id = await flowing(server, LARGE, there)
    sending.writer.write_eof()
    task = await server.until_status(task_id, "paused")
    sending.abort()
    assert (task["reason"], task["checkpoint"]["state"]["received"]) == ("disconnected", there)
    assert (await resume(server, task_id, LARGE, there)).json["result"]["sha256"] == sha256(LARGE)


@pytest.mark.parametrize("size", [0, 1, WORTH_BYTES + 1, len(LARGE)])
async def test_blocks_are_a_handlers_own(server: Server, size: int) -> None:
    """Who keeps blocks of the body finds them later as they were; nobody else has written to them meanwhile."""
    sending = await begin(server, "/tally/start", length=size)
    await sending.send(LARGE[:size])
    assert (await sending.answer()).json["result"] == {"received": size, "crc": zlib.crc32(LARGE[:size])}


async def test_blocks_that_are_kept_come_again(server: Server) -> None:
    """What a handler has, but has not said that it is done with, is asked for once more after a pause."""
    sending = await begin(server, "/tally/start", length=len(LARGE))
    await sending.send(LARGE[: len(LARGE) // 2])
    assert (await server.ask("POST", f"/tally/pause?task={await until_there(server, 'tally')}")).status == 200
    paused = await sending.answer()
    offset = paused.json["checkpoint"]["state"]["received"]
    assert 0 < offset < len(LARGE) // 2
    headers = {"Upload-Offset": str(offset)}
    rest = await server.ask(
        "POST", f"/tally/resume?task={paused.json['id']}", data=io.BytesIO(LARGE[offset:]), headers=headers
    )
    assert rest.json["result"] == {"received": len(LARGE), "crc": zlib.crc32(LARGE)}


async def test_the_rest_in_another_request(server: Server) -> None:
    """A body that ends before the announced length, at full speed: it waits for its client, with all of the body."""
    part = 20 * MIB + 3
    sending = await begin(server, "/upload/start", f"Upload-Length: {len(LARGE)}", length=part)
    await sending.send(LARGE[:part])
    answer = await sending.answer()
    assert (answer.status, answer.json["reason"], answer.headers["Upload-Offset"]) == (201, "awaiting_data", str(part))
    assert (await resume(server, answer.json["id"], LARGE, part)).json["result"]["sha256"] == sha256(LARGE)


async def test_a_pause_keeps_what_its_child_waits_with(server: Server, way: str) -> None:
    """A child that waits for a batch of bytes takes what there is when it is to stop: it need not come again."""
    there = 2 * MIB + 300_000
    sending = await begin(server, "/upload/start", length=len(LARGE))
    await sending.send(LARGE[:there])
    task_id = await until_there(server)
    await server.until_progress(task_id, MIB)

    async def out() -> bool:
        return not sending.writer.transport.get_write_buffer_size()

    await until(out)
    assert (await server.verb(task_id, "pause")).status == 200
    kept = int((await sending.answer()).headers["Upload-Offset"])
    assert kept == there if way == "direct" else kept >= MIB
    assert (await resume(server, task_id, LARGE, kept)).json["result"]["sha256"] == sha256(LARGE)


async def test_nobody_takes_it_and_the_client_goes(server: Server) -> None:
    """With the pipe full of a stopped child's data: what it had taken is kept, and nothing hangs."""
    sending, task_id = await flowing(server, HUGE, MIB)
    pid = (await server.task(task_id))["child"]["pid"]
    send(pid, signal.SIGSTOP)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await sending.send(HUGE[MIB:])
    sending.abort()
    send(pid, signal.SIGCONT)
    task = await server.until_status(task_id, "paused")
    assert task["reason"] == "disconnected"
    assert MIB <= task["checkpoint"]["state"]["received"] < len(HUGE)


@pytest.mark.timeout(150)
async def test_stopped_at_any_moment_at_full_speed(server: Server) -> None:
    """Paused, cut and killed thirty times each way, at moments by chance, until it is whole: identical."""
    chance = seeded()
    left = 30
    while left:
        task_id, offset, told, sending = "", 0, 0, await begin(server, "/upload/start", length=len(HUGE))
        while True:
            going = asyncio.create_task(sending.send(HUGE[offset:]))
            going.add_done_callback(lambda done: done.cancelled() or done.exception())
            task_id = task_id or await until_there(server)
            await asyncio.sleep(chance.uniform(0, 0.1))  # another moment each time
            kind = chance.choice(["pause", "cut", "kill"]) if left else "none"
            left -= bool(left)
            if kind == "pause":
                await server.verb(task_id, "pause")
            elif kind == "cut":
                sending.abort()
            elif kind == "kill" and (child := (await server.task(task_id)).get("child")):
                send(child["pid"], signal.SIGKILL)
            task = await server.until_status(task_id, "paused", "completed", within_s=40)
            sending.abort()
            await asyncio.wait({going})
            if task["status"] == "completed":
                break
            offset = task["checkpoint"]["state"]["received"] if task["checkpoint"] else 0
            assert offset >= told, "an offset was taken back"
            told = offset
            path = f"/upload/resume?task={task_id}"
            sending = await begin(server, path, f"Upload-Offset: {offset}", length=len(HUGE) - offset)
        assert task["result"]["sha256"] == sha256(HUGE)
        assert (server.data / "tasks" / task_id / "files" / "content").read_bytes() == HUGE
        await removed(server, task_id)


async def test_terminated_at_full_speed(server: Server) -> None:
    """The request ends with 410, and nothing of it is left."""
    for upto in (MIB, 5 * MIB, 17 * MIB):
        sending, task_id = await flowing(server, HUGE, upto)
        going = asyncio.create_task(sending.send(HUGE[upto:-MIB]))  # not all: that could be faster than the verb
        assert (await server.verb(task_id, "terminate")).status == 200
        problem(await sending.answer(), 410, "gone")
        await asyncio.wait({going})
        going.exception()
        assert not (server.data / "tasks" / task_id).exists()


@pytest.mark.timeout(120)
async def test_two_hundred_at_once(server: Server) -> None:
    """Each exact, each child small, and the server no larger for it than a few blocks each."""
    contents = [HUGE[n * 1000 : n * 1000 + 2 * MIB + n] for n in range(200)]
    supervisor = psutil.Process(server.pid)
    before = private_bytes(supervisor)
    uploads = []
    for content in contents:
        uploads.append(await begin(server, "/upload/start", length=len(content)))
        await uploads[-1].send(content[:1000])

    async def all_there() -> bool:
        return len(server.descendants()) == len(contents)

    await until(all_there, 60)

    async def go_on(sending: Sending, content: bytes) -> None:
        await sending.send(content[1000 : MIB + 600_000])

    await asyncio.gather(*(go_on(*pair) for pair in zip(uploads, contents, strict=True)))
    assert max(child_bytes(child) for child in server.descendants()) < 15 * MIB
    assert private_bytes(supervisor) - before < 200 * MIB // 2
    for sending, content in zip(uploads, contents, strict=True):
        await sending.send(content[MIB + 600_000 :])
    for sending, content in zip(uploads, contents, strict=True):
        await removed(server, await completed(server, content, sending))
