"""tus 1.0.0, termination: statements 58 to 61 of our list."""

import asyncio

import psutil
import pytest
from harness import Server, problem, until
from tus_tools import CONTENT, FILES, HALF, ask, create, hanging, patch, task_id
from upload_tools import upload

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_58_terminated(server: Server) -> None:
    """204, whether it was empty, in the middle or complete, or held by a pause; nothing of it is left."""
    empty, half, complete, held = [await create(server) for _ in range(4)]
    await patch(server, half, CONTENT[:HALF], 0)
    await patch(server, complete, CONTENT, 0)
    await server.verb(task_id(held), "pause")
    plain = await upload(server, CONTENT)
    for path in (empty, half, complete, held, f"{FILES}/{plain.json['id']}"):
        answer = await ask(server, "DELETE", path)
        assert (answer.status, answer.body) == (204, b"")
        assert not (server.data / "tasks" / task_id(path)).exists()


async def test_59_afterwards(server: Server) -> None:
    """410, for every method, and by every route."""
    path = await create(server)
    await ask(server, "DELETE", path)
    for answer in (
        await ask(server, "HEAD", path),
        await patch(server, path, b"abc", 0),
        await ask(server, "DELETE", path),
        await server.ask("GET", f"/tasks/{task_id(path)}"),
        await server.ask("GET", f"/upload/status?task={task_id(path)}"),
    ):
        assert answer.status == 410
        assert "Upload-Offset" not in answer.headers


async def test_60_during_a_patch(server: Server) -> None:
    """Its child is killed, it ends with 410, and no file, process or descriptor stays."""
    descriptors = psutil.Process(server.pid).num_fds()
    path = await create(server)
    sending = await hanging(server, path, CONTENT, HALF)
    process = psutil.Process((await server.task(task_id(path)))["child"]["pid"])
    assert (await ask(server, "DELETE", path)).status == 204
    assert not process.is_running()
    problem(await sending.answer(), 410, "gone")
    assert not (server.data / "tasks" / task_id(path)).exists()

    async def closed() -> bool:
        return psutil.Process(server.pid).num_fds() <= descriptors

    await until(closed)  # the server notices that its client has hung up


async def test_61_what_is_not_there(server: Server) -> None:
    """404; the second of two is 410; one that an unfinished task reads stays."""
    problem(await ask(server, "DELETE", f"{FILES}/01900000-0000-7000-8000-000000000000"), 404, "unknown-task")
    path = await create(server)
    answers = await asyncio.gather(*(ask(server, "DELETE", path) for _ in range(5)))
    assert {answer.status for answer in answers} <= {204, 410}
    assert (await ask(server, "DELETE", path)).status == 410
