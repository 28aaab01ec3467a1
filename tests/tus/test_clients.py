"""Real clients of tus, disturbed: paused from the server's side, cut, and the server killed and started again."""

import asyncio
import sys
from pathlib import Path

import pytest
from harness import HERE, Server, until
from line import Line
from tus_tools import FILES
from upload_tools import MIB, data, newest, sha256
from verb_tools import attempts, playing

SIZE = 20_000_000


@pytest.mark.timeout(120)
@pytest.mark.parametrize("client", ["tuspy", "aiotus"])
async def test_a_disturbed_client(tmp_path: Path, client: str) -> None:
    """It ends identical, and its user does nothing but start it; only a pause has to be lifted by who asked for it."""
    content = data(SIZE)
    file = tmp_path / "flights.bin"
    file.write_bytes(content)
    async with playing(tmp_path / "var") as server, Line(server).open() as line:
        command = (sys.executable, str(HERE / "tus_clients.py"), client, line.url + FILES, str(file))
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
        command = (sys.executable, str(HERE / "tus_clients.py"), "aiotus in parts", line.url + FILES, str(file))
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
