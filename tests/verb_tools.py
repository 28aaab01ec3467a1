"""What the tests of the verbs share: a server for each file, and after each test the proof that nothing is left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from harness import Json, Server, serving

TOYS = "toys,verb_toys"
UNFINISHED = ("pending", "running", "pausing", "retrying", "terminating")


@asynccontextmanager
async def playing(data: Path, **settings: str) -> AsyncIterator[Server]:
    """A server with the toys, which has made no mistake of its own by the end, stops in order and leaves nothing."""
    settings = {"INTERMISSION_HANDLERS": TOYS, "INTERMISSION_MAX_RUNNING": "16", **settings}
    async with serving(data, **settings) as server:
        yield server
        assert await server.stop() == 0
        assert server.survivors() == []
        await server.close()  # reads the log to its end
        assert mistakes(server) == []


async def nothing_left(server: Server) -> None:
    """End what a test has left running; then there is no process but the server's own."""
    await asyncio.gather(*(server.verb(task["id"], "terminate") for task in await tasks(server, *UNFINISHED)))
    assert [task["status"] for task in await tasks(server, *UNFINISHED)] == []
    assert strays(server) == []


def strays(server: Server) -> list[str]:
    """Every process that was started below the fork server and still runs, wherever it is now."""
    return [found for found in server.survivors() if found.split()[0] != str(server.fork_server.pid)]


def mistakes(server: Server) -> list[str]:
    """What the server's log says that only a bug can make it say."""
    signs = ("Traceback", "never retrieved", "never awaited", "a request failed", "could not be carried")
    return [line for line in server.log if any(sign in line for sign in signs)]


async def tasks(server: Server, *statuses: str, **filters: str) -> list[Json]:
    """The newest tasks that have one of these statuses."""
    query = [("limit", "200"), *(("status", status) for status in statuses), *filters.items()]
    items: list[Json] = (await server.ask("GET", "/tasks", params=query)).json["items"]
    return items


async def attempts(server: Server, task_id: str) -> list[Json]:
    """Each attempt of a task, oldest first."""
    return await server.items(f"/tasks/{task_id}/attempts")


async def events(server: Server, task_id: str) -> dict[str, int]:
    """The id of the last event of each name; ids grow over all tasks."""
    return {item["event"]: item["id"] for item in await server.items(f"/tasks/{task_id}/events")}


async def history(server: Server, task_id: str) -> list[tuple[str, str]]:
    """Each event of a task with the status after it."""
    return [(item["event"], item["status"]) for item in await server.items(f"/tasks/{task_id}/events")]


async def log(server: Server, task_id: str) -> str:
    """What a task printed."""
    return (await server.ask("GET", f"/tasks/{task_id}/log")).body.decode()


async def launched(server: Server, service: str, params: Json | None = None, **more: Any) -> str:
    """Start a task with a priority or labels; its id."""
    answer = await server.ask("POST", "/tasks", json={"service": service, "params": params or {}, **more})
    assert answer.status == 202, answer.body
    return str(answer.json["id"])


async def paused(server: Server, service: str, params: Json | None = None) -> str:
    """A task that has paused after its first checkpoint; its id."""
    task_id = await server.launch(service, params)
    await server.until_progress(task_id)
    answer = await server.verb(task_id, "pause")
    assert answer.status == 200, answer.body
    return task_id


def numbers(steps: int, first: int = 1) -> bytes:
    """What ``committer``, ``gate`` and ``counter`` write."""
    return b"".join(b"%d\n" % n for n in range(first, first + steps))
