"""Disturbances by chance: pauses, and kills of a task's child, of the fork server and of the server."""

import asyncio
import random

import psutil
from fault_tools import place
from harness import Server, send, until

KINDS = ("child", "child", "pause", "pause", "fork server", "server")


async def _has_fork_server(server: Server) -> bool:
    try:
        return server.fork_server.is_running()
    except (LookupError, psutil.Error):
        return False


async def disturb(server: Server, task_id: str, chance: random.Random, times: int, within_s: float = 0.01) -> int:
    """Disturb a task so often, each time a moment after it got further; how often, should it end before that."""
    for number in range(times):
        before = place(server, task_id)

        async def further(before: int = before) -> bool:
            return place(server, task_id) > before or bool((await server.task(task_id))["finished_at"])

        await until(further)
        await asyncio.sleep(chance.random() * within_s)
        task = await server.task(task_id)
        if task["finished_at"]:
            return number
        match chance.choice(KINDS):
            case "child":
                if task["child"]:
                    send(task["child"]["pid"])
            case "fork server":
                await until(lambda: _has_fork_server(server))  # the last one may just have been killed
                send(server.fork_server.pid)
            case "server":
                await server.kill()
                await server.start()
            case _:
                if (await server.verb(task_id, "pause")).json["status"] == "paused":
                    await server.verb(task_id, "resume")
    return times
