"""A server that is stopped in the middle of downloads: it ends in good order, and closes nothing that is in use."""

import asyncio
import signal
from pathlib import Path

import pytest
from fault_tools import TOYS, until_logged
from harness import Server, send, serving
from upload_tools import MIB, data, upload
from verb_tools import mistakes

CONTENT = data(24 * MIB)
WAYS = {"sent": "", "copied": ",without_sendfile"}
READING = "a download is being read"
CLOSED = "it was closed under its read"
"""What `slow_reads` has the server say; to import it here would slow the tests' own reads."""


async def downloading(server: Server, path: str) -> asyncio.StreamWriter:
    """A client that takes no more than the begin of an answer."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1 << 16)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return writer


async def stopped(server: Server, *, again: bool) -> None:
    """SIGTERM, and then with ``again`` more of it and of Ctrl-C until it has stopped; it has made no mistake."""
    stopping = asyncio.create_task(server.stop())
    while again and not stopping.done():
        for number in (signal.SIGTERM, signal.SIGINT):
            send(server.pid, number)
        await asyncio.sleep(0.01)  # to hit every moment, not to wait for anything
    assert await stopping == 0
    assert server.survivors() == []
    await server.close()  # reads the log to its end
    assert mistakes(server) == []
    assert [line for line in server.log if "exception" in line.lower()] == []


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
@pytest.mark.parametrize("way", WAYS)
async def test_clients_that_read_and_that_do_not(tmp_path: Path, way: str, *, again: bool) -> None:
    """Neither holds up the stop."""
    async with serving(tmp_path, INTERMISSION_HANDLERS=f"{TOYS}{WAYS[way]}") as server:
        path = f"/tasks/{(await upload(server, CONTENT)).json['id']}/files/content"
        writers = [await downloading(server, path) for _ in range(8)]

        async def over_and_over() -> None:
            while True:
                await server.ask("GET", path)

        reading = [asyncio.create_task(over_and_over()) for _ in range(4)]
        await server.ask("GET", path)
        await stopped(server, again=again)
        await asyncio.gather(*reading, return_exceptions=True)
        for writer in writers:
            writer.close()


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_slow_disk(tmp_path: Path, way: str, *, again: bool) -> None:
    """What a thread reads or sends is not closed before it has done so, though everything else has ended by then."""
    async with serving(tmp_path, INTERMISSION_HANDLERS=f"{TOYS},slow_reads{WAYS[way]}") as server:
        path = f"/tasks/{(await upload(server, CONTENT)).json['id']}/files/content"
        writers = [await downloading(server, path) for _ in range(3)]
        await until_logged(server, READING, times=len(writers))
        await stopped(server, again=again)
        assert CLOSED not in server.log
        for writer in writers:
            writer.close()
