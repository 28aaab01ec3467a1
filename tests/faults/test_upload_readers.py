"""Two may read from a client's connection, the child and the server: never both, whatever happens to either."""

import asyncio
import os
import signal
import socket
import struct
from pathlib import Path

from harness import Server, send, serving, until
from upload_tools import MIB, begin, data, flowing, newest, resume, sha256

CONTENT = data(24 * MIB)


async def kept(server: Server, task_id: str) -> bytes:
    """What is durable of an upload."""
    task = await server.until(task_id, lambda task: task["reason"] == "disconnected")
    received = task["checkpoint"]["state"]["received"] if task["checkpoint"] else 0
    path = server.data / "tasks" / task_id / "files" / "content"
    return path.read_bytes()[:received]


async def test_a_child_that_reads_late(tmp_path: Path) -> None:
    """When its client has gone and was given up, finds what it would have found before: the data has no hole."""
    async with serving(tmp_path, INTERMISSION_HANDLERS="toys,late_reader") as server:
        sending = await begin(server, "/upload/start", length=len(CONTENT))
        await sending.send(CONTENT[: 2 * MIB])  # some of it is on the connection when its child is late

        async def there() -> bool:
            return bool(await newest(server))

        await until(there)
        task_id = await newest(server)
        await sending.leave()
        found = await kept(server, task_id)
        assert found == CONTENT[: len(found)]
        ended = await resume(server, task_id, CONTENT, len(found))
        assert (ended.status, ended.json["result"]["sha256"]) == (200, sha256(CONTENT))


async def test_a_slow_child_and_a_client_that_sends_no_more(tmp_path: Path) -> None:
    """While it takes something it is waited for, however long that is: all of the data has been sent."""
    content = CONTENT[: 3 * MIB]
    async with serving(tmp_path, INTERMISSION_HANDLERS="toys,late_reader", SLOW_READERS="yes") as server:
        sending = await begin(server, "/upload/start", length=len(content))
        await sending.send(content)
        sending.writer.write_eof()
        answer = await sending.answer()
        assert (answer.status, answer.json["result"]["sha256"]) == (201, sha256(content))


async def test_a_frozen_child_and_a_client_with_more_to_send(tmp_path: Path) -> None:
    """With every buffer full, a client that breaks off is noticed at once; one that just goes is asked for."""
    async with serving(tmp_path) as server:
        sending, task_id = await flowing(server, CONTENT, 2 * MIB)
        send((await server.task(task_id))["child"]["pid"], signal.SIGSTOP)
        going = asyncio.create_task(sending.send(CONTENT[2 * MIB :]))
        port = sending.writer.get_extra_info("sockname")[1]
        filled = 0

        async def full() -> bool:
            nonlocal filled
            before, filled = filled, connection(port)[0]
            return 0 < filled == before

        await until(full)
        assert 0 < connection(port)[1] <= 60
        linger = struct.pack("ii", 1, 0)  # a reset, whatever is still to be sent
        sending.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        sending.abort()
        await asyncio.gather(going, return_exceptions=True)
        found = await kept(server, task_id)
        assert found == CONTENT[: len(found)]


def connection(port: int) -> tuple[int, float]:
    """Of the server's connection with this port: how much nobody has read, and when the kernel looks after it next."""
    for line in Path("/proc/net/tcp").read_text().splitlines():
        _, _, remote, _, queues, timer, *_ = line.split()
        if remote.endswith(f":{port:04X}"):
            return int(queues.partition(":")[2], 16), int(timer.partition(":")[2], 16) / os.sysconf("SC_CLK_TCK")
    raise LookupError(port)
