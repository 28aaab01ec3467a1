"""``kill -9`` of the server: nothing of it keeps running, nothing that it accepted is lost, all goes on."""

import asyncio
import signal
import time
from pathlib import Path

import aiohttp
import psutil
import pytest
from fault_tools import (
    TOYS,
    alive,
    child,
    every_task,
    faulty,
    logs,
    outcomes,
    place,
    until_dead,
    until_lines,
    until_logged,
)
from harness import Server, seeded, send, serving, squares, until

TEN = {"INTERMISSION_MAX_RUNNING": "10"}


async def test_no_process_outlives_it(tmp_path: Path) -> None:
    """All are gone at once: those that hold the GIL in C, and what daemons and sessions of their own they started."""
    async with faulty(tmp_path, **TEN) as server:
        kinds = ["forest"] * 3 + ["gil"] * 3 + ["deaf"] * 2
        ids = [await server.launch(kind) for kind in kinds]
        ids += [await server.launch("steps", {"steps": 100_000}) for _ in range(2)]
        for task_id in ids:
            await server.until(task_id, lambda task: (task["checkpoint"] or {}).get("sequence", 0) >= 1)
        processes = [server.fork_server, *server.descendants()]
        assert len(processes) >= 1 + 10 + 3 * 4
        await server.kill()
        took_s = await until_dead(processes, 1.0)
        print(f"{len(processes)} processes gone in {took_s * 1000:.0f} ms")  # noqa: T201
        assert server.survivors() == []
        await server.start()
        for task_id in ids:
            assert (await server.verb(task_id, "terminate")).status == 200


async def test_ten_tasks_carry_on_where_they_were(tmp_path: Path) -> None:
    """Started again at once, each goes on from its checkpoint or a later one, and ends byte for byte right."""
    async with faulty(tmp_path, **TEN) as server:
        ids = [await server.launch("steps", {"steps": 200, "delay_s": 0.01}) for _ in range(10)]
        for task_id in ids:
            await server.until_progress(task_id, 20)
        await server.kill()
        before = {task_id: place(server, task_id) for task_id in ids}
        await server.start()
        for task_id in ids:
            task = await server.task(task_id)
            assert task["status"] in {"pending", "running"}
            assert task["checkpoint"]["sequence"] >= before[task_id]
        for task_id in ids:
            task = await server.until_status(task_id, "completed")
            assert task["result"] == {"n": 200}
            assert (task["attempt"], task["errors_left"]) == (2, 4)
            assert await outcomes(server, task_id) == ["lost", "completed"]
            assert await server.file(task_id, "lines.txt") == squares(200)


async def test_it_is_killed_while_tasks_have_every_status(tmp_path: Path) -> None:
    """Each task is afterwards what it was, or what it was becoming."""
    effect = tmp_path / "effect"
    hold = Path(f"{effect}.hold")
    async with faulty(tmp_path / "data", **TEN) as server:
        completed = await server.launch("steps", {"steps": 3, "delay_s": 0})
        paused, running, pausing = [await server.launch("steps", {"steps": 300}) for _ in range(3)]
        retrying = await server.launch("fragile")
        failed = await server.launch("faulty", {"kind": "fatal"})
        terminating = await server.launch("held", {"path": str(effect)})
        ahead = await server.launch("single", {"delay_s": 600})
        pending = await server.launch("single", {"delay_s": 0})

        for task_id in (paused, running, pausing, terminating):
            await server.until_progress(task_id, 3)
        assert (await server.verb(paused, "pause")).status == 200
        hold.touch()
        assert (await server.verb(terminating, "terminate", wait_s=0)).status == 202
        await server.until_status(completed, "completed")
        due_at = (await server.until_status(retrying, "retrying"))["due_at"]
        await server.until_status(failed, "failed")
        await server.until_status(ahead, "running")
        cleans = Path(f"{effect}.cleans")

        async def cleaning() -> bool:
            return cleans.exists() and cleans.read_text().count("\n") == 1

        await until(cleaning)
        send(await child(server, pausing), signal.SIGSTOP)  # so that it cannot be paused before the server is gone
        assert (await server.verb(pausing, "pause", wait_s=0)).json["status"] == "pausing"
        assert (await server.task(pending))["status"] == "pending"
        kept = await server.task(paused)

        await server.kill()
        hold.unlink()
        await server.start()

        assert await server.task(paused) == kept
        assert (await server.task(completed))["status"] == "completed"
        assert (await server.task(failed))["reason"] == "exhausted"
        assert (await server.task(retrying))["due_at"] == due_at
        task = await server.task(pausing)
        assert (task["status"], task["reason"]) == ("paused", "requested")
        await server.until(terminating, lambda task: task["status"] == 410)
        assert cleans.read_text().count("\n") == 2, "clean was interrupted, so it had to run again"
        assert not effect.exists()

        for task_id in (paused, pausing, retrying):
            assert (await server.verb(task_id, "resume")).status == 202
        for task_id in (running, paused, pausing):
            await server.until_status(task_id, "completed")
            assert await server.file(task_id, "lines.txt") == squares(300)
        assert (await server.until_status(retrying, "completed"))["result"] == {"n": 2}
        assert (await server.task(pending))["status"] == "pending"
        assert (await server.verb(ahead, "terminate")).status == 200
        assert (await server.until_status(pending, "completed"))["attempt"] == 1


async def test_it_is_killed_in_a_flood_of_starts(tmp_path: Path) -> None:
    """Every start that was answered with 202 is there afterwards, and no start is there twice."""
    chance = seeded()
    async with faulty(tmp_path, INTERMISSION_MAX_RUNNING="2") as server:
        accepted: dict[str, str] = {}
        for flood in range(3):

            async def start(name: str) -> None:
                body = {"service": "steps", "params": {"steps": 1, "delay_s": 0}, "labels": {"n": name}}
                try:
                    answer = await server.ask("POST", "/tasks", json=body)
                except aiohttp.ClientError:
                    return  # no answer, no promise
                assert answer.status == 202
                accepted[name] = answer.json["id"]

            before, enough = len(accepted), chance.randrange(20, 150)
            starts = [asyncio.create_task(start(f"{flood}.{n}")) for n in range(300)]

            async def some(before: int = before, enough: int = enough) -> bool:
                return len(accepted) >= before + enough

            await until(some)
            await server.kill()
            await asyncio.gather(*starts)
            assert len(accepted) < 300 * (flood + 1), "the kill came too late to disturb anything"
            await server.start()
        tasks = await every_task(server)
        names = [task["labels"]["n"] for task in tasks]
        assert len(set(names)) == len(names)
        assert accepted.items() <= {(task["labels"]["n"], task["id"]) for task in tasks}
        for task in tasks:
            await server.until_status(task["id"], "completed")


async def test_it_is_killed_again_and_again_while_it_recovers(tmp_path: Path) -> None:
    """However often a start is cut short, the next one finds everything, and leaves nothing of the last one running."""
    chance = seeded()
    async with faulty(tmp_path, **TEN) as server:
        begun = time.monotonic()
        await server.kill()
        await server.start()
        start_s = time.monotonic() - begun
        ids = [await server.launch("steps", {"steps": 100}) for _ in range(10)]
        paused = await server.launch("steps", {"steps": 50})
        assert (await server.verb(paused, "pause")).status == 200
        for task_id in ids:
            await server.until_progress(task_id, 2)
        await server.kill()
        for _ in range(12):
            places = {task_id: place(server, task_id) for task_id in ids}
            listening = await server.begin()
            await asyncio.wait({listening}, timeout=chance.uniform(0.2, 1.1) * start_s)
            await server.kill()
            for task_id in ids:
                assert place(server, task_id) >= places[task_id]
        await server.start()
        assert (await server.task(paused))["status"] == "paused"
        for task_id in ids:
            task = await server.until(task_id, lambda task: task["status"] in {"completed", "failed"}, within_s=40)
            assert task["status"] == "completed", task
            assert task["errors_left"] == 4
            assert await server.file(task_id, "lines.txt") == squares(100)
        print(f"{logs(server, 'carrying on with what was running')} recoveries")  # noqa: T201


async def test_its_fork_server_is_frozen_when_it_is_killed(tmp_path: Path) -> None:
    """The one case in which children outlive the server: the next start waits, then ends them, and carries on."""
    async with faulty(tmp_path, **TEN) as server:
        steps = await server.launch("steps", {"steps": 400})
        forest = await server.launch("forest")
        await server.until_progress(steps, 3)
        await server.until_progress(forest, 4)
        fork_server = server.fork_server
        processes = server.descendants()
        fork_server.send_signal(signal.SIGSTOP)
        await server.kill()
        # The children hear the supervisor go and leave; what they have started hears nothing.
        assert len(alive(processes)) >= 4, "then there is nothing to sweep"
        begun = time.monotonic()
        await server.start()
        print(f"a start behind a frozen fork server: {time.monotonic() - begun:.1f} s")  # noqa: T201
        assert alive([fork_server, *processes]) == []
        assert (await server.until_status(steps, "completed"))["attempt"] == 2
        assert await server.file(steps, "lines.txt") == squares(400)
        await server.until_status(forest, "running")
        assert (await server.verb(forest, "terminate")).status == 200


async def test_its_fork_server_is_killed_with_it(tmp_path: Path) -> None:
    """The kernel ends the children; daemons of theirs are left, and the next start sweeps them."""
    async with faulty(tmp_path) as server:
        forest = await server.launch("forest")
        await server.until_progress(forest, 4)
        processes = server.descendants()
        server.fork_server.send_signal(signal.SIGSTOP)  # so that it does nothing between the two
        fork_server = server.fork_server
        await server.kill()
        fork_server.kill()
        await until_dead([fork_server, *(p for p in processes if "forest" in p.name())], 1.0)
        assert alive(processes), "then there is nothing to sweep"
        await server.start()
        assert alive(processes) == []
        await server.until_status(forest, "running")
        assert (await server.verb(forest, "terminate")).status == 200


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
async def test_a_program_with_an_environment_of_its_own_is_ended(tmp_path: Path, *, frozen: bool, far: bool) -> None:
    """Nor does a session of its own hide it, nor closed descriptors: it never writes beside the next attempt."""
    lines = tmp_path / "lines"
    async with faulty(tmp_path / "data") as server:
        task_id = await server.launch("stray", {"path": str(lines), "far": far})
        await until_lines(lines, 1)
        fork_server = server.fork_server
        (program,) = psutil.Process(await child(server, task_id)).children()
        fork_server.send_signal(signal.SIGSTOP)
        await server.kill()
        if not frozen:
            fork_server.kill()
            await until_dead([fork_server], 1.0)
        assert alive([program]), "then there is nothing to find"
        await server.start()
        assert alive([program]) == []
        await until_lines(lines, lines.read_text().count("\n") + 2)
        written = lines.read_text().split()
        assert written == sorted(written)
        assert written[-1] == "2"
        assert (await server.verb(task_id, "terminate")).status == 200


async def test_a_server_that_is_killed_while_it_waits_for_another_one_leaves_no_trace(tmp_path: Path) -> None:
    """A start behind a frozen fork server may be killed too; the one after it does what it would have done."""
    async with serving(tmp_path, INTERMISSION_HANDLERS=TOYS) as server:
        steps = await server.launch("steps", {"steps": 30})
        await server.until_progress(steps, 3)
        fork_server = server.fork_server
        fork_server.send_signal(signal.SIGSTOP)
        await server.kill()
        await server.begin()
        waiting = psutil.Process(server.pid)

        async def waits() -> bool:
            return any(file.path == str(tmp_path / "lock") for file in waiting.open_files())

        await until(waits)
        await server.kill()
        fork_server.send_signal(signal.SIGCONT)
        await server.start()
        await server.until_status(steps, "completed")
        assert await server.file(steps, "lines.txt") == squares(30)
        assert isinstance(server, Server)
        await until_logged(server, "carrying on with what was running")
