"""SIGTERM: every child saves its place and goes, none is counted as lost, and who asks is told the truth."""

import asyncio
import signal
import time
from pathlib import Path

import psutil
import pytest
from fault_tools import TOYS, child, faulty, outcomes, place, until_lines, until_logged, until_place
from harness import Server, problem, seeded, send, squares, until

TEN = {"INTERMISSION_MAX_RUNNING": "10"}
LONG = {"INTERMISSION_DRAIN_S": "600"}
"""So long that a stop that takes all of it is noticed on any machine: the harness waits 20 s for one."""


async def draining(server: Server) -> None:
    """SIGTERM, and wait until it has begun to stop."""
    send(server.pid, signal.SIGTERM)

    async def begun() -> bool:
        return (await server.ask("GET", "/health/ready")).status == 503

    await until(begun)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_tasks_carry_on_at_the_next_start(tmp_path: Path, number: signal.Signals) -> None:
    """Each stops at its next checkpoint, long before the time is over, and goes on from there; no loss is counted."""
    async with faulty(tmp_path, **TEN, **LONG) as server:
        ids = [await server.launch("steps", {"steps": 200}) for _ in range(6)]
        for task_id in ids:
            await until_place(server, task_id, 3)
        for round_ in (1, 2):
            assert await server.stop(number=number) == 0
            assert server.survivors() == []
            before = {task_id: place(server, task_id) for task_id in ids}
            await server.start()
            for task_id in ids:
                task = await server.task(task_id)
                assert task["status"] in {"pending", "running"}
                assert task["checkpoint"]["sequence"] >= before[task_id]
                assert (await outcomes(server, task_id))[:round_] == ["drained"] * round_
            for task_id in ids:
                await until_place(server, task_id, before[task_id] + 3)
        for task_id in ids:
            task = await server.until_status(task_id, "completed")
            assert (task["attempt"], task["errors_left"], task["error"]) == (3, 4, None)
            assert await server.file(task_id, "lines.txt") == squares(200)


async def test_more_often_than_losses_are_allowed(tmp_path: Path) -> None:
    """Deployed over and over while it is at one and the same checkpoint, a task is never taken for one that is lost."""
    hold = tmp_path / "hold"
    hold.touch()
    async with faulty(tmp_path / "data") as server:
        task_id = await server.launch("doomed", {"attempts": 0, "hold": str(hold)})
        for attempt in range(1, 7):
            await server.until(task_id, lambda task, n=attempt: task["attempt"] == n and task["child"])
            assert await server.stop() == 0
            await server.start()
        hold.unlink()
        task = await server.until_status(task_id, "completed", "failed")
        assert (task["status"], task["attempt"], task["errors_left"]) == ("completed", 7, 4)
        assert await outcomes(server, task_id) == ["drained"] * 6 + ["completed"]


async def test_one_that_hears_nothing_is_ended_when_the_time_is_over(tmp_path: Path) -> None:
    """Its grace may be longer than the drain: it is ended, goes on from its last checkpoint, and is not lost either."""
    async with faulty(tmp_path, INTERMISSION_DRAIN_S="1", **TEN) as server:
        stubborn = [await server.launch("stubborn", {"seconds": 600}) for _ in range(3)]
        polite = await server.launch("steps", {"steps": 100})
        forest = await server.launch("forest")
        await server.until_progress(forest, 4)
        for task_id in (*stubborn, polite):
            await until_place(server, task_id, 1)
        begun = time.monotonic()
        assert await server.stop() == 0
        assert time.monotonic() - begun >= 1
        assert server.survivors() == []
        await server.start()
        for task_id in stubborn:
            task = await server.until(task_id, lambda task: task["attempt"] == 2)
            assert (task["errors_left"], task["checkpoint"]["state"]) == (4, {"n": 1})
            assert (await outcomes(server, task_id))[0] == "drained"
            assert (await server.verb(task_id, "terminate")).status == 200
        await server.until_status(polite, "completed")
        assert await server.file(polite, "lines.txt") == squares(100)
        assert (await server.verb(forest, "terminate")).status == 200


async def test_a_time_of_none(tmp_path: Path) -> None:
    """With ``INTERMISSION_DRAIN_S=0`` every child is ended at once; what it had saved is kept."""
    async with faulty(tmp_path, INTERMISSION_DRAIN_S="0", **TEN) as server:
        ids = [await server.launch("steps", {"steps": 100}) for _ in range(4)]
        for task_id in ids:
            await until_place(server, task_id, 3)
        assert await server.stop() == 0
        await server.start()
        for task_id in ids:
            assert (await outcomes(server, task_id))[0] == "drained"
            assert (await server.until_status(task_id, "completed"))["errors_left"] == 4
            assert await server.file(task_id, "lines.txt") == squares(100)


async def test_a_second_signal_changes_nothing(tmp_path: Path) -> None:
    """Neither another SIGTERM nor Ctrl-C cuts the drain short: it still ends in good order, with the exit code 0."""
    async with faulty(tmp_path, INTERMISSION_DRAIN_S="1") as server:
        stubborn = await server.launch("stubborn", {"seconds": 600})
        await until_place(server, stubborn, 1)
        await draining(server)
        stopping = asyncio.create_task(server.stop())
        while not stopping.done():
            for number in (signal.SIGTERM, signal.SIGINT):
                send(server.pid, number)
            await asyncio.sleep(0.01)  # to hit every moment, not to wait for anything
        assert await stopping == 0
        assert server.survivors() == []
        assert [line for line in server.log if "Traceback" in line] == []
        await server.start()
        assert (await outcomes(server, stubborn))[0] == "drained"
        assert (await server.verb(stubborn, "terminate")).status == 200


async def test_a_signal_to_the_whole_group(tmp_path: Path) -> None:
    """Ctrl-C in a terminal and a container's stop reach every process: the drain needs the others, and has them."""
    async with faulty(tmp_path, **TEN) as server:
        ids = [await server.launch("steps", {"steps": 100}) for _ in range(3)]
        for task_id in ids:
            await until_place(server, task_id, 3)
        server.fork_server.send_signal(signal.SIGINT)
        server.fork_server.send_signal(signal.SIGTERM)
        assert await server.stop(number=signal.SIGINT) == 0
        await server.start()
        for task_id in ids:
            assert (await outcomes(server, task_id))[0] == "drained"
            await server.until_status(task_id, "completed")
            assert await server.file(task_id, "lines.txt") == squares(100)


async def test_what_is_answered_meanwhile(tmp_path: Path) -> None:
    """Not ready, no start is accepted, and everything that can be asked is still answered."""
    async with faulty(tmp_path, INTERMISSION_DRAIN_S="2", **TEN) as server:
        assert (await server.ask("GET", "/health/ready")).status == 200
        stubborn = await server.launch("stubborn", {"seconds": 600})
        await until_place(server, stubborn, 1)
        rests = await server.launch("steps", {"steps": 1, "delay_s": 0})
        await server.until_status(rests, "completed")
        await draining(server)
        for path, body in (("/steps/start", {}), ("/tasks", {"service": "steps"})):
            refused = await server.ask("POST", path, json=body)
            problem(refused, 503, "unavailable")
            assert refused.headers["Retry-After"] == "1"
        ready = await server.ask("GET", "/health/ready")
        problem(ready, 503, "unavailable")
        health = await server.ask("GET", "/health")
        assert (health.status, health.json["status"]) == (200, "draining")
        assert (await server.task(rests))["status"] == "completed"
        assert (await server.task(stubborn))["status"] == "running"
        items = (await server.ask("GET", "/tasks")).json["items"]
        assert [item["id"] for item in items] == [rests, stubborn]
        assert await server.stop() == 0
        await server.start()
        assert [item["id"] for item in (await server.ask("GET", "/tasks")).json["items"]] == [rests, stubborn]
        assert (await server.verb(stubborn, "terminate")).status == 200


async def test_who_waits_gets_an_honest_answer(tmp_path: Path) -> None:
    """A pause is paused if it is; a start and a resume say that it is pending; nobody is left hanging."""
    hold = tmp_path / "hold"
    hold.touch()
    async with faulty(tmp_path / "data", INTERMISSION_DRAIN_S="1", **TEN) as server:
        deaf = await server.launch("stubborn", {"seconds": 600})
        held = await server.launch("doomed", {"attempts": 0, "hold": str(hold)})
        await until_place(server, deaf, 1)
        await child(server, held)
        pausing = asyncio.create_task(server.verb(deaf, "pause", wait_s=60))
        await server.until_status(deaf, "pausing")
        body = {"steps": 10_000}
        prefer = {"Prefer": "wait=60"}
        starting = asyncio.create_task(server.ask("POST", "/steps/start", json=body, headers=prefer))

        async def started() -> bool:
            return (await server.ask("GET", "/steps/status")).json["items"] != []

        await until(started)
        send(server.pid, signal.SIGTERM)
        answer = await pausing
        assert (answer.status, answer.json["status"], answer.json["reason"]) == (200, "paused", "forced")
        answer = await starting
        assert (answer.status, answer.json["status"]) == (202, "pending")
        assert await server.stop() == 0
        hold.unlink()
        await server.start()
        assert (await server.task(deaf))["status"] == "paused"
        await server.until_status(held, "completed")
        for task_id in (deaf, answer.json["id"]):
            assert (await server.verb(task_id, "terminate")).status == 200


async def test_a_termination_goes_on_at_the_next_start(tmp_path: Path) -> None:
    """A `clean` that takes longer than the drain is ended and runs again; who waited is told that it is under way."""
    effect = tmp_path / "effect"
    cleans, hold = Path(f"{effect}.cleans"), Path(f"{effect}.hold")
    hold.touch()
    async with faulty(tmp_path / "data", INTERMISSION_DRAIN_S="1") as server:
        task_id = await server.launch("held", {"path": str(effect)})
        await server.until_progress(task_id, 2)
        waiting = asyncio.create_task(server.verb(task_id, "terminate", wait_s=60))
        await until_lines(cleans, 1)
        send(server.pid, signal.SIGTERM)
        answer = await waiting
        assert (answer.status, answer.json["status"]) == (202, "terminating")
        assert await server.stop() == 0
        assert server.survivors() == []
        hold.unlink()
        await server.start()
        await server.until(task_id, lambda task: task["status"] == 410)
        assert cleans.read_text().count("\n") == 2
        assert not effect.exists()


async def test_a_client_that_never_reads_does_not_hold_it_up(tmp_path: Path) -> None:
    """Open connections, half a request and an answer that nobody takes are cut when the work is done."""
    async with faulty(tmp_path, **LONG) as server:
        task_id = await server.launch("bulk", {"blocks": 4000})
        await server.until_status(task_id, "completed")
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        writers = []
        for said in (b"", b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", b"GET "):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            writers.append(writer)
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET /tasks/{task_id}/files/bulk.bin HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await reader.readexactly(100)
        assert await server.stop() == 0
        for one in (*writers, writer):
            one.close()


async def test_while_it_starts(tmp_path: Path) -> None:
    """Told to stop at any moment of a start, it stops: at once or in good order, with no trace and nothing lost."""
    chance = seeded()
    async with faulty(tmp_path, **TEN) as server:
        ids = [await server.launch("steps", {"steps": 300}) for _ in range(4)]
        for task_id in ids:
            await until_place(server, task_id, 2)
        assert await server.stop() == 0
        begun = time.monotonic()
        await server.start()
        start_s = time.monotonic() - begun
        assert await server.stop() == 0
        codes = []
        for _ in range(8):
            listening = await server.begin()
            await asyncio.wait({listening}, timeout=chance.uniform(0.05, 1.2) * start_s)
            codes.append(await server.stop(within_s=10))
            assert server.survivors() == []
        # Before its first line it is a Python that imports: there is nothing yet that could be stopped in order.
        assert set(codes) <= {0, -signal.SIGTERM}
        assert [line for line in server.log if "Traceback" in line] == []
        await server.start()
        for task_id in ids:
            task = await server.until_status(task_id, "completed", "failed")
            assert (task["status"], task["errors_left"]) == ("completed", 4)
            assert await server.file(task_id, "lines.txt") == squares(300)


async def test_while_its_fork_server_imports(tmp_path: Path) -> None:
    """A start that handlers hold up, for however long, can be stopped."""
    hold = tmp_path / "hold"
    hold.touch()
    server = Server(tmp_path / "data", {"INTERMISSION_HANDLERS": TOYS, "TOYS_HOLD_ON_IMPORT": str(hold)})
    try:
        await server.begin()

        async def importing() -> bool:
            return any("im-forkserver" in one.name() for one in psutil.Process(server.pid).children())

        await until(importing)
        assert await server.stop() == 0
        assert server.survivors() == []
        await until_logged(server, "the fork server does not end; it is killed")
    finally:
        await server.close()


async def test_a_stop_in_a_flood_of_starts(tmp_path: Path) -> None:
    """Each start is either accepted, and then there for good, or refused; what was claimed is not left behind."""
    async with faulty(tmp_path, INTERMISSION_MAX_RUNNING="4") as server:
        accepted: list[str] = []
        refused = 0

        async def start() -> None:
            nonlocal refused
            answer = await server.ask("POST", "/steps/start", json={"steps": 2, "delay_s": 0.01})
            if answer.status == 202:
                accepted.append(answer.json["id"])
            else:
                problem(answer, 503, "unavailable")
                refused += 1

        starts = [asyncio.create_task(start()) for _ in range(300)]

        async def some() -> bool:
            return len(accepted) >= 30

        await until(some)
        send(server.pid, signal.SIGTERM)
        errors = [one for one in await asyncio.gather(*starts, return_exceptions=True) if one is not None]
        assert all(isinstance(error, OSError) or "Disconnected" in type(error).__name__ for error in errors), errors
        assert await server.stop() == 0
        assert len(accepted) < 300, "the signal came too late to disturb anything"
        await server.start()
        for task_id in accepted:
            task = await server.until_status(task_id, "completed")
            assert (task["errors_left"], await server.file(task_id, "lines.txt")) == (4, squares(2))
