"""Real clients of tus, disturbed: paused from the server's side, cut, and the server killed and started again."""

import asyncio
import contextlib
import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import HERE, Server, until
from tus_tools import FILES
from upload_tools import MIB, data, newest, sha256
from verb_tools import attempts, playing

SIZE = 20_000_000
PACE_S = 0.003
_BLOCK_BYTES = 1 << 16


class Line:
    """The way from a client to the server, wherever that listens by now: as fast as a network, and it can be cut."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pairs: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.url = ""
        self.statuses: list[bytes] = []
        """Of all answers."""
        self._left: float = math.inf
        self._spent, self._free = asyncio.Event(), asyncio.Event()
        self._free.set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Line"]:
        """For as long as the block lasts."""
        listening = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}{FILES}"
        try:
            yield self
        finally:
            listening.close()
            self.cut()
            await asyncio.gather(*self._carrying, return_exceptions=True)
            await listening.wait_closed()

    def hold_after(self, size: int) -> None:
        """Carry so many bytes more to the server, and then nothing until `release`."""
        self._left = size
        self._free.clear()

    async def held(self) -> None:
        """Wait until they are carried."""
        async with asyncio.timeout(20):
            await self._spent.wait()

    def release(self) -> None:
        """Carry on."""
        self._left = math.inf
        self._spent.clear()
        self._free.set()

    def cut(self) -> None:
        """Without a word to either side."""
        for writer in self._pairs:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._server.url.removeprefix("http://").rpartition(":")
        self._pairs.add(writer)
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:  # it is down
            writer.transport.abort()
            return
        self._pairs.add(back)
        ways = [asyncio.create_task(self._carry(*way)) for way in ((reader, back, PACE_S), (there, writer, 0))]
        self._carrying |= set(ways)
        await asyncio.wait(ways)
        self._pairs -= {writer, back}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace_s: float) -> None:
        with contextlib.suppress(ConnectionError):
            while block := await reader.read(_BLOCK_BYTES):
                if block.startswith(b"HTTP/1.1 "):
                    self.statuses.append(block[9:12])
                writer.write(block)
                await writer.drain()
                if pace_s:
                    self._left -= len(block)
                    if self._left <= 0:
                        self._spent.set()
                        await self._free.wait()
                await asyncio.sleep(pace_s)  # so that there is a middle to disturb
        writer.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("client", ["tuspy", "aiotus"])
async def test_a_disturbed_client(tmp_path: Path, client: str) -> None:
    """It ends identical, and its user does nothing but start it; only a pause has to be lifted by who asked for it."""
    content = data(SIZE)
    file = tmp_path / "flights.bin"
    file.write_bytes(content)
    async with playing(tmp_path / "var") as server, Line(server).open() as line:
        command = (sys.executable, str(HERE / "tus_clients.py"), client, line.url, str(file))
        going = await asyncio.create_subprocess_exec(*command)
        task_id = await created(server)

        await server.until_progress(task_id, 3 * MIB)
        paused = await server.verb(task_id, "pause")
        assert (paused.status, paused.json["status"], paused.json["reason"]) == (200, "paused", "requested")
        count = len(await attempts(server, task_id))
        assert going.returncode is None

        async def refused() -> bool:
            return line.statuses.count(b"423") > 3

        await until(refused)  # it comes again and again
        assert (await server.task(task_id))["reason"] == "requested"
        assert len(await attempts(server, task_id)) == count
        await server.verb(task_id, "resume")

        await server.until_progress(task_id, 8 * MIB)
        line.cut()

        await server.until_progress(task_id, 13 * MIB)
        await server.kill()
        await server.start()

        async with asyncio.timeout(60):
            assert await going.wait() == 0
        task = await server.task(task_id)
        assert (task["status"], task["result"]["sha256"]) == ("completed", sha256(content))
        assert task["result"]["filename"] == "flights.bin"
        assert await server.file(task_id, "content") == content
        assert await newest(server) == task_id, "it went on with what was there"


@pytest.mark.timeout(120)
async def test_parts_of_a_disturbed_client(tmp_path: Path) -> None:
    """Aiotus brings three parts at once; cut and with the server killed, and what is made of them is identical."""
    content = data(SIZE)
    file = tmp_path / "flights.bin"
    file.write_bytes(content)
    async with playing(tmp_path / "var") as server, Line(server).open() as line:
        command = (sys.executable, str(HERE / "tus_clients.py"), "aiotus in parts", line.url, str(file))
        # No more than the parts can be there at either point: a creation whose answer is lost is rightly sent again.
        line.hold_after(5 * MIB)
        going = await asyncio.create_subprocess_exec(*command)
        await line.held()
        assert len((await server.ask("GET", "/upload/status")).json["items"]) == 3
        line.cut()
        line.release()
        line.hold_after(6 * MIB)
        await line.held()
        await server.kill()
        line.release()
        await server.start()
        async with asyncio.timeout(60):
            assert await going.wait() == 0
        task = await server.until_status(await newest(server), "completed")
        assert (task["result"]["filename"], task["result"]["sha256"]) == ("flights.bin", sha256(content))
        assert await server.file(task["id"], "content") == content
        assert len((await server.ask("GET", "/upload/status")).json["items"]) == 4, "three parts and the whole"


async def created(server: Server) -> str:
    """The id of the upload that a client has just created."""
    found = ""

    async def there() -> bool:
        nonlocal found
        found = await newest(server)
        return found != ""

    await until(there)
    return found
