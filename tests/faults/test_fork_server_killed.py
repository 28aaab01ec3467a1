"""SIGKILL of the fork server: another one takes its place, whatever ran is carried on, whatever it left is ended."""

import asyncio
import contextlib
import signal
import time
from pathlib import Path

import psutil
import pytest
from fault_tools import (
    TOYS,
    alive,
    child,
    every_task,
    faulty,
    generation,
    logs,
    outcomes,
    place,
    until_dead,
    until_logged,
    until_place,
)
from harness import Server, problem, seeded, squares, until

TEN = {"INTERMISSION_MAX_RUNNING": "10"}
DIED = "the fork server died"
NO_START = "the fork server does not start"


def recorded(server: Server) -> int | None:
    """The pid that is written down as the fork server's."""
    known = generation(server)["fork_server"]
    return known and int(known["pid"])


async def until_another(server: Server, dead: psutil.Process) -> psutil.Process:
    """The next fork server, as soon as it exists; its imports may not be done."""
    found: list[psutil.Process] = []

    async def there() -> bool:
        with contextlib.suppress(LookupError, psutil.Error):
            found[:] = [server.fork_server]
        return bool(found) and found[0] != dead and recorded(server) == found[0].pid

    await until(there, what=lambda: "\n".join(server.log[-20:]))
    return found[0]


async def test_while_children_run(tmp_path: Path) -> None:
    """All of them are gone at once, with what they had started, and each task goes on from its checkpoint."""
    async with faulty(tmp_path, **TEN) as server:
        steps = [await server.launch("steps", {"steps": 150}) for _ in range(5)]
        others = [await server.launch(kind) for kind in ("forest", "gil", "deaf")]
        for task_id in (*steps, *others):
            await until_place(server, task_id, 1)
        await server.until_progress(others[0], 4)
        dead = server.fork_server
        processes = server.descendants()
        assert len(processes) >= 8 + 4
        before = {task_id: place(server, task_id) for task_id in steps}
        dead.kill()
        took_s = await until_dead([dead, *processes], 2.0)
        print(f"{len(processes)} processes gone in {took_s * 1000:.0f} ms")  # noqa: T201
        for task_id in (*steps, *others):
            await server.until(task_id, lambda task: task["attempt"] == 2)
            assert (await outcomes(server, task_id))[0] == "lost"
        for task_id in steps:
            task = await server.until_status(task_id, "completed")
            assert (task["attempt"], task["errors_left"], task["error"]) == (2, 4, None)
            assert task["checkpoint"]["sequence"] >= before[task_id]
            assert await server.file(task_id, "lines.txt") == squares(150)
        for task_id in others:
            assert (await server.verb(task_id, "terminate")).status == 200
        assert recorded(server) == server.fork_server.pid != dead.pid
        assert logs(server, DIED) == 1


async def test_while_it_is_idle(tmp_path: Path) -> None:
    """Nobody notices: another one is there for the next start, and what rests is left alone."""
    async with faulty(tmp_path) as server:
        paused = await server.launch("steps", {"steps": 20})
        assert (await server.verb(paused, "pause")).status == 200
        kept = await server.task(paused)
        for _ in range(3):
            dead = server.fork_server
            dead.kill()
            task_id = await server.launch("steps", {"steps": 2, "delay_s": 0})
            assert (await server.until_status(task_id, "completed"))["attempt"] <= 2
            assert server.fork_server != dead
        assert await server.task(paused) == kept
        assert (await server.verb(paused, "resume")).status == 202
        await server.until_status(paused, "completed")
        assert await server.file(paused, "lines.txt") == squares(20)


async def test_while_launches_are_under_way(tmp_path: Path) -> None:
    """Orders that it had received and not carried out are lost with it, and given to the next one."""
    async with faulty(tmp_path, **TEN) as server:
        running = await server.launch("steps", {"steps": 200})
        await until_place(server, running, 1)
        dead = server.fork_server
        dead.send_signal(signal.SIGSTOP)
        ids = [await server.launch("steps", {"steps": 3, "delay_s": 0}) for _ in range(12)]
        for task_id in ids[:9]:
            await server.until_status(task_id, "running")
        assert [(await server.task(task_id))["child"] for task_id in ids] == [None] * 12
        dead.kill()
        for task_id in ids:
            task = await server.until_status(task_id, "completed", "failed")
            assert (task["status"], task["errors_left"]) == ("completed", 4)
            assert task["attempt"] <= 2
            assert await server.file(task_id, "lines.txt") == squares(3)
        await server.until_status(running, "completed")
        assert await server.file(running, "lines.txt") == squares(200)


async def test_at_any_instant_of_a_flood_of_launches(tmp_path: Path) -> None:
    """Before, in and after each fork: every task runs to its end, none of them twice at once, and no error counts."""
    chance = seeded()
    async with faulty(tmp_path, **TEN) as server:
        for _ in range(5):
            ids = await asyncio.gather(*(server.launch("steps", {"steps": 4, "delay_s": 0}) for _ in range(30)))
            await asyncio.sleep(chance.uniform(0, 0.05))  # to hit another moment, not to wait for anything
            dead = server.fork_server
            dead.kill()
            for task_id in ids:
                task = await server.until_status(task_id, "completed", "failed")
                assert (task["status"], task["errors_left"]) == ("completed", 4), task
                assert await server.file(task_id, "lines.txt") == squares(4)
            await until_another(server, dead)
        assert len(await every_task(server)) == 150


async def test_while_it_imports(tmp_path: Path) -> None:
    """A new one that is killed before it is ready is replaced by the next, and nothing runs or is lost meanwhile."""
    hold = tmp_path / "hold"
    async with faulty(tmp_path / "data", **TEN, TOYS_HOLD_ON_IMPORT=str(hold)) as server:
        ids = [await server.launch("steps", {"steps": 100}) for _ in range(3)]
        for task_id in ids:
            await until_place(server, task_id, 2)
        hold.touch()
        dead = server.fork_server
        dead.kill()
        for count in (1, 2):
            dead = await until_another(server, dead)
            late = await server.launch("steps", {"steps": 1, "delay_s": 0})
            ids.append(late)
            dead.kill()
            await until_logged(server, NO_START, times=count)
        assert {(await server.task(task_id))["child"] for task_id in ids} == {None}
        hold.unlink()
        for task_id in ids:
            task = await server.until_status(task_id, "completed")
            assert (task["attempt"] <= 2, task["errors_left"]) == (True, 4)
        for task_id in ids[:3]:
            assert await server.file(task_id, "lines.txt") == squares(100)


async def test_verbs_while_there_is_none(tmp_path: Path) -> None:
    """Handlers that cannot be imported any more hold up every launch, and no pause, terminate or start."""
    die = tmp_path / "die"
    async with faulty(tmp_path / "data", **TEN, TOYS_DIE_ON_IMPORT=str(die)) as server:
        goes_on, pauses, ends = [await server.launch("steps", {"steps": 60}) for _ in range(3)]
        for task_id in (goes_on, pauses, ends):
            await until_place(server, task_id, 2)
        die.touch()
        server.fork_server.kill()
        await until_logged(server, NO_START, times=2)
        assert (await server.ask("GET", "/health")).status == 200
        late = await server.launch("steps", {"steps": 1, "delay_s": 0})
        answer = await server.verb(pauses, "pause")
        assert (answer.status, answer.json["status"], answer.json["reason"]) == (200, "paused", "requested")
        assert await outcomes(server, pauses) == ["lost", "stopped"]
        assert (await server.verb(ends, "terminate")).status == 200
        problem(await server.ask("GET", f"/tasks/{ends}"), 410, "gone")
        die.unlink()
        assert (await server.verb(pauses, "resume")).status == 202
        for task_id in (goes_on, pauses, late):
            await server.until_status(task_id, "completed")
        for task_id in (goes_on, pauses):
            assert await server.file(task_id, "lines.txt") == squares(60)


async def test_a_stop_while_there_is_none(tmp_path: Path) -> None:
    """A server whose fork servers die stops in good order, and what waits is pending, free of any loss."""
    die = tmp_path / "die"
    async with faulty(tmp_path / "data", TOYS_DIE_ON_IMPORT=str(die)) as server:
        task_id = await server.launch("steps", {"steps": 60})
        await until_place(server, task_id, 2)
        for count in range(3):
            die.touch()
            server.fork_server.kill()
            await until_logged(server, NO_START, times=count + 1)
            assert await server.stop() == 0
            assert server.survivors() == []
            die.unlink()
            await server.start()
            if count < 2:
                await until_place(server, task_id, place(server, task_id) + 2)
        await server.until_status(task_id, "completed")
        assert await server.file(task_id, "lines.txt") == squares(60)


async def test_the_first_one_dies(tmp_path: Path) -> None:
    """A start whose handlers kill the importing process fails, and says why; the next may succeed."""
    die = tmp_path / "die"
    die.touch()
    server = Server(tmp_path / "data", {"INTERMISSION_HANDLERS": TOYS, "TOYS_DIE_ON_IMPORT": str(die)})
    try:
        with pytest.raises(RuntimeError, match="the fork server died while it imported the handlers"):
            await server.start()
        assert server.process is not None
        assert await server.process.wait() == 1
        die.unlink()
        await server.start()
        task_id = await server.launch("steps", {"steps": 1})
        await server.until_status(task_id, "completed")
    finally:
        await server.close()


async def test_the_server_is_killed_while_it_imports(tmp_path: Path) -> None:
    """It would not see the server go before its imports are done, however long they take: it dies with it instead."""
    hold = tmp_path / "hold"
    async with faulty(tmp_path / "data", TOYS_HOLD_ON_IMPORT=str(hold)) as server:
        task_id = await server.launch("steps", {"steps": 60})
        await until_place(server, task_id, 2)
        hold.touch()
        dead = server.fork_server
        dead.kill()
        importing = await until_another(server, dead)
        await server.kill()
        took_s = await until_dead([importing], 1.0)
        print(f"gone in {took_s * 1000:.0f} ms")  # noqa: T201
        await server.begin()
        importing = await until_another(server, importing)
        await server.kill()
        await until_dead([importing], 1.0)
        hold.unlink()
        await server.start()
        await server.until_status(task_id, "completed")
        assert await server.file(task_id, "lines.txt") == squares(60)


async def test_again_and_again(tmp_path: Path) -> None:
    """Ten times in a row, whenever the tasks have got on a little: each is carried on each time, at no cost."""
    chance = seeded()
    async with faulty(tmp_path, **TEN) as server:
        ids = [await server.launch("steps", {"steps": 400, "delay_s": 0.005}) for _ in range(3)]
        dead = None
        for _ in range(10):
            for task_id in ids:
                await until_place(server, task_id, place(server, task_id) + chance.randint(1, 5))
            dead = server.fork_server
            dead.kill()
            await until_another(server, dead)
        for task_id in ids:
            task = await server.until_status(task_id, "completed")
            assert (task["attempt"], task["errors_left"]) == (11, 4)
            assert await server.file(task_id, "lines.txt") == squares(400)


async def test_what_a_daemon_leaves_is_ended(tmp_path: Path) -> None:
    """Double-forked daemons of a lost child do not live on beside its next attempt."""
    async with faulty(tmp_path) as server:
        task_id = await server.launch("forest", {"bomb": True})
        await server.until_progress(task_id, 1)
        for attempt in (1, 2):
            await child(server, task_id)
            below = server.descendants()
            dead = server.fork_server
            dead.kill()
            await server.until(task_id, lambda task, n=attempt: task["attempt"] > n and task["child"])
            assert alive(below) == []
        answer = await server.verb(task_id, "terminate")
        assert (answer.status, answer.json["receipt"]["survivors"]) == (200, 0)


# Frozen.


async def test_verbs_while_it_is_frozen(tmp_path: Path) -> None:
    """What cannot be known is not said: a pause and a terminate stay under way, until it can tell that all are dead."""
    async with faulty(tmp_path, **TEN) as server:
        pauses, ends, runs = [await server.launch("steps", {"steps": 3000}) for _ in range(3)]
        deaf = await server.launch("deaf")
        for task_id in (pauses, ends, runs, deaf):
            await until_place(server, task_id, 1)
        frozen = server.fork_server
        frozen.send_signal(signal.SIGSTOP)
        for task_id in (pauses, deaf):
            answer = await server.verb(task_id, "pause", wait_s=1)
            assert (answer.status, answer.json["status"]) == (202, "pausing")
        answer = await server.verb(ends, "terminate", wait_s=1)
        assert (answer.status, answer.json["status"]) == (202, "terminating")
        assert (await server.task(runs))["status"] == "running"
        late = await server.launch("steps", {"steps": 1})
        assert (await server.until_status(late, "running"))["child"] is None
        frozen.send_signal(signal.SIGCONT)
        task = await server.until_status(pauses, "paused")
        assert task["reason"] == "requested"
        assert await server.file(pauses, "lines.txt") == squares(task["checkpoint"]["state"]["n"])
        assert (await server.until_status(deaf, "paused"))["reason"] == "forced"
        await server.until(ends, lambda task: task["status"] == 410)
        await server.until_status(late, "completed")
        assert (await server.verb(runs, "terminate")).status == 200


async def test_a_stop_while_it_is_frozen(tmp_path: Path) -> None:
    """The drain ends in its time all the same: the fork server is killed, and all that it had is pending, not lost."""
    async with faulty(tmp_path, INTERMISSION_DRAIN_S="1", **TEN) as server:
        steps = await server.launch("steps", {"steps": 300})
        forest, stubborn = [await server.launch(kind) for kind in ("forest", "stubborn")]
        for task_id in (steps, forest, stubborn):
            await until_place(server, task_id, 1)
        await server.until_progress(forest, 4)
        processes = [server.fork_server, *server.descendants()]
        server.fork_server.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        assert await server.stop() == 0
        print(f"stopped in {time.monotonic() - begun:.1f} s")  # noqa: T201
        assert alive(processes) == []
        assert server.survivors() == []
        await server.start()
        for task_id in (steps, forest, stubborn):
            assert await server.until(task_id, lambda task: task["attempt"] == 2)
            assert (await outcomes(server, task_id))[0] == "drained"
        await server.until_status(steps, "completed")
        assert await server.file(steps, "lines.txt") == squares(300)
        for task_id in (forest, stubborn):
            assert (await server.verb(task_id, "terminate")).status == 200


async def test_it_is_killed_while_it_is_frozen(tmp_path: Path) -> None:
    """What was asked for while nobody could answer is done when it is dead: paused, gone, carried on."""
    async with faulty(tmp_path, **TEN) as server:
        pauses, ends, runs = [await server.launch("steps", {"steps": 300}) for _ in range(3)]
        for task_id in (pauses, ends, runs):
            await until_place(server, task_id, 1)
        frozen = server.fork_server
        frozen.send_signal(signal.SIGSTOP)
        assert (await server.verb(pauses, "pause", wait_s=0)).json["status"] == "pausing"
        assert (await server.verb(ends, "terminate", wait_s=0)).json["status"] == "terminating"
        waiting = asyncio.create_task(server.verb(ends, "terminate"))
        frozen.kill()
        assert (await waiting).status == 200
        await server.until_status(pauses, "paused")
        assert (await server.verb(pauses, "resume")).status == 202
        for task_id in (runs, pauses):
            await server.until_status(task_id, "completed")
            assert await server.file(task_id, "lines.txt") == squares(300)
