"""The service ``team`` with real processes: all there once through any kill, none left after a terminate."""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from disturbing import disturb
from fault_tools import place, serve
from harness import Answer, Json, Server, pointers, problem, seeded, send, serving, until
from verb_tools import attempts, nothing_left, playing

MANY = 25_000  # what fits into a megabyte of params
SECRET = "a secret of thirty-two bytes or more"


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server, which at the end has no process left."""
    async with playing(tmp_path / "data") as running:
        yield running
        await nothing_left(running)


def teams(members: int, mark: str = "x", among: int = 20) -> list[Json]:
    """So many members of some teams."""
    return [
        {"name": f"team {n}", "members": [{"email": f"{mark}{m}@example.org"} for m in range(n, members, among)]}
        for n in range(among)
    ]


def stored(server: Server) -> list[tuple[Any, ...]]:
    """Every member: team, e-mail, and the task that added it."""
    with closing(sqlite3.connect(server.data / "directory.db", timeout=30)) as connection:
        query = "SELECT t.name, m.email, m.task FROM member m JOIN team t ON t.id = m.team"
        return connection.execute(query).fetchall()


def rows(server: Server) -> dict[str, int]:
    """How many rows each table of the directory has."""
    with closing(sqlite3.connect(server.data / "directory.db", timeout=30)) as connection:
        tables = ("team", "member", "position", "rejected")
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def wanted(members: int, mark: str = "x") -> Counter[str]:
    """Every e-mail, once."""
    return Counter(f"{mark}{m}@example.org" for m in range(members))


async def further(server: Server, task_id: str, checkpoints: int = 3) -> None:
    """Wait until a task has saved some more checkpoints."""
    before = place(server, task_id)

    async def so() -> bool:
        return place(server, task_id) >= before + checkpoints

    await until(so)


# Kills.


async def test_many_members_through_three_kills(server: Server) -> None:
    """Of the child, the fork server and the server, in the middle: all are there once, and counted right."""
    task_id = await server.launch("team", {"teams": teams(MANY)})
    await further(server, task_id)
    send((await server.task(task_id))["child"]["pid"])
    await further(server, task_id)
    send(server.fork_server.pid)
    await further(server, task_id)
    await server.kill()
    await server.start()
    done = await server.until_status(task_id, "completed")
    assert len(await attempts(server, task_id)) == 4
    assert done["result"] == {"teams": 20, "members": MANY, "rejected": 0, "rejected_rows": []}
    assert Counter(email for _, email, _ in stored(server)) == wanted(MANY)
    assert rows(server) == {"team": 20, "member": MANY, "position": 0, "rejected": 0}


@pytest.mark.parametrize("bad", [0, 7])
async def test_chance_disturbs_it_twenty_times(server: Server, bad: int) -> None:
    """Pauses and kills of all kinds; the rejected rows are each once in the output, too."""
    chance = seeded()
    asked = teams(MANY)
    bad_rows = [(one["name"], f"bad {n}") for n, one in enumerate(asked) for _ in range(bad)]
    for one in asked:
        spread = [{"email": email} for name, email in bad_rows if name == one["name"]]
        for row in spread:
            one["members"].insert(chance.randrange(len(one["members"])), row)
    task_id = await server.launch("team", {"teams": asked})
    assert await disturb(server, task_id, chance, 20) >= 10
    done = await server.until_status(task_id, "completed", within_s=40)
    assert (done["result"]["teams"], done["result"]["members"]) == (20, MANY)
    assert Counter(email for _, email, _ in stored(server)) == wanted(MANY)
    assert done["result"]["rejected"] == len(bad_rows)
    if bad_rows:
        lines = (await server.file(task_id, "rejected.csv")).decode().splitlines()[1:]
        assert Counter(tuple(line.split(",")[2:4]) for line in lines) == Counter(bad_rows)
    assert rows(server) == {"team": 20, "member": MANY, "position": 0, "rejected": 0}


# Terminate.


async def test_terminated_half_way_none_is_left(server: Server) -> None:
    """And nothing of anybody else is touched: neither other tasks' members nor what other programs wrote."""
    earlier = await server.launch("team", {"teams": [{"name": "team 1", "members": [{"email": "first@example.org"}]}]})
    await server.until_status(earlier, "completed")
    with closing(sqlite3.connect(server.data / "directory.db")) as connection:
        connection.execute("INSERT INTO team (id, user, name, created_at) VALUES (900, 'else', 'team 2', 0)")
        connection.execute("INSERT INTO member VALUES (900, 'by@hand', 'by@hand', NULL, NULL, NULL, 0)")
        connection.commit()
    task_id = await server.launch("team", {"teams": teams(MANY)})
    await further(server, task_id, 5)
    answer = await server.verb(task_id, "terminate")
    assert (answer.status, answer.json["receipt"]["cleaned"]) == (200, True)
    assert problem(await server.ask("GET", f"/tasks/{task_id}"), 410, "gone")["receipt"]["survivors"] == 0
    assert sorted(stored(server)) == [("team 1", "first@example.org", earlier), ("team 2", "by@hand", None)]
    assert rows(server) == {"team": 2, "member": 2, "position": 0, "rejected": 0}
    again = await server.launch("team", {"teams": teams(MANY)})
    done = await server.until_status(again, "completed")
    assert (done["result"]["teams"], done["result"]["members"]) == (19, MANY)
    assert rows(server) == {"team": 21, "member": MANY + 2, "position": 0, "rejected": 0}


async def test_terminated_while_paused_and_after_a_kill(server: Server) -> None:
    """A pause, then the server's death: what was added so far is still this task's."""
    task_id = await server.launch("team", {"teams": teams(MANY)})
    await further(server, task_id)
    assert (await server.verb(task_id, "pause")).json["status"] == "paused"
    found = len(stored(server))
    assert (await server.task(task_id))["checkpoint"]["state"]["members"] == found
    assert 0 < found < MANY
    await server.kill()
    await server.start()
    assert (await server.verb(task_id, "terminate")).status == 200
    assert rows(server) == {"team": 0, "member": 0, "position": 0, "rejected": 0}


async def test_two_with_one_team_both_terminated(server: Server) -> None:
    """The team stays for the one that did not create it, and goes with that one."""
    first = await server.launch("team", {"teams": teams(MANY)})
    await further(server, first)
    assert (await server.verb(first, "pause")).status == 200
    second = await server.launch("team", {"teams": teams(MANY, "b")})
    await further(server, second)
    assert (await server.verb(second, "pause")).status == 200
    assert (await server.verb(first, "terminate")).status == 200
    left = (await server.ask("GET", "/team/teams")).json["items"]
    assert left
    assert {team["task"] for team in left} == {second}
    assert (await server.verb(second, "terminate")).status == 200
    assert rows(server) == {"team": 0, "member": 0, "position": 0, "rejected": 0}


# Several at once.


async def test_five_tasks_at_once_on_one_directory(server: Server) -> None:
    """Each waits for the others' transactions; what two of them want is added by one."""
    sizes = {"a": 4_000, "b": 20_000, "c": 20_000, "d": 4_000}
    asked = [teams(size, mark) for mark, size in sizes.items()] + [teams(4_000, "a")]
    with closing(sqlite3.connect(server.data / "directory.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")  # none may be done before the last has begun
        ids = [await server.launch("team", {"teams": one}) for one in asked]
        for task_id in ids:
            await server.until_status(task_id, "running")
        connection.rollback()

    async def stopped(task_id: str, verb: str) -> Answer:
        """As soon as it has got on: one that the others let through may be complete in half a second."""
        await further(server, task_id)
        return await server.verb(task_id, verb)

    paused, gone = await asyncio.gather(stopped(ids[1], "pause"), stopped(ids[2], "terminate"))
    assert paused.json["status"] == "paused"
    assert gone.status == 200
    await server.verb(ids[1], "resume")
    done = [await server.until_status(ids[n], "completed", within_s=40) for n in (0, 1, 3, 4)]
    assert [task["errors_left"] for task in done] == [4] * 4
    every = wanted(4_000, "a") + wanted(20_000, "b") + wanted(4_000, "d")
    assert Counter(email for _, email, _ in stored(server)) == every
    assert done[0]["result"]["members"] + done[3]["result"]["members"] == 4_000
    assert done[0]["result"]["rejected"] + done[3]["result"]["rejected"] == 4_000
    assert {row[2] for row in stored(server)} <= {ids[0], ids[1], ids[3], ids[4]}


async def test_a_directory_that_others_lock_is_waited_for(server: Server) -> None:
    """For as long as 30 s; a pause meanwhile is forced, and loses nothing."""
    first = await server.launch("team", {"teams": teams(10)})
    await server.until_status(first, "completed")
    with closing(sqlite3.connect(server.data / "directory.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        waiting, pausing = [await server.launch("team", {"teams": teams(300, mark)}) for mark in "yz"]
        await server.until_status(waiting, "running")
        problem(await server.ask("GET", "/team/teams"), 503, "directory")
        paused = (await server.verb(pausing, "pause")).json
        assert (paused["status"], paused["reason"]) == ("paused", "forced")
        assert (await server.task(waiting))["status"] == "running"
        connection.rollback()
    await server.verb(pausing, "resume")
    for task_id in (waiting, pausing):
        assert (await server.until_status(task_id, "completed"))["result"]["members"] == 300
    assert rows(server)["member"] == 610


# Bad rows.


async def test_stop_fails_the_task_and_terminate_undoes_it(server: Server) -> None:
    """With place and reason; what came before is kept until then."""
    asked = [{"name": "red", "members": [{"email": f"{n}@x"} for n in range(150)] + [{"email": "0@X"}]}]
    task_id = await server.launch("team", {"teams": asked, "on_error": "stop"})
    failed = await server.until_status(task_id, "failed")
    assert failed["error"]["message"] == "/teams/0/members/150: the team has this e-mail from an earlier row"
    assert rows(server) == {"team": 1, "member": 150, "position": 1, "rejected": 0}
    assert (await server.verb(task_id, "terminate")).status == 200
    assert rows(server) == {"team": 0, "member": 0, "position": 0, "rejected": 0}


async def test_params_that_do_not_fit_change_nothing(server: Server) -> None:
    """Every fault at once, and no directory is made."""
    body = {"teams": [{"name": 1, "members": [{"mail": "x"}]}], "on_error": "no"}
    said = problem(await server.ask("POST", "/team/start", json=body), 422, "invalid")
    assert pointers(said) == {"/teams/0/name", "/teams/0/members/0/email", "/teams/0/members/0/mail", "/on_error"}
    said = problem(await server.ask("POST", "/team/start", json={}), 422, "invalid")
    assert pointers(said) == {""}
    file = "upload:01934567-89ab-7def-8123-456789abcdef"
    said = problem(await server.ask("POST", "/team/start", json={"file": file}), 422, "invalid")
    assert pointers(said) == {"/file"}
    assert not (server.data / "directory.db").exists()


# The list.


async def test_each_user_has_teams_of_their_own(tmp_path: Path) -> None:
    """The same names, apart; pages with their cursors."""
    async with serving(tmp_path, INTERMISSION_JWT_SECRET=SECRET) as server:
        for user, count in [("ada", 3), ("eve", 1)]:
            body = {"teams": teams(9, user, among=count)}
            answer = await server.ask("POST", "/team/start", json=body, headers=bearer(user) | {"Prefer": "wait=20"})
            assert answer.json["status"] == "completed", answer.body
        first = (await server.ask("GET", "/team/teams?limit=2", headers=bearer("ada"))).json
        assert [(item["name"], item["members"]) for item in first["items"]] == [("team 2", 3), ("team 1", 3)]
        assert set(first["items"][0]) == {"name", "members", "task", "created_at"}
        path = f"/team/teams?limit=2&cursor={first['next']}"
        assert [item["name"] for item in (await server.ask("GET", path, headers=bearer("ada"))).json["items"]] == [
            "team 0"
        ]
        hers = (await server.ask("GET", "/team/teams", headers=bearer("eve"))).json
        assert [(item["name"], item["members"]) for item in hers["items"]] == [("team 0", 9)]
        assert (await server.ask("GET", "/team/teams", headers=bearer("bob"))).json == {"items": [], "next": None}
        assert (await server.ask("GET", "/team/teams")).status == 401


def bearer(user: str) -> dict[str, str]:
    """The header that says who asks."""
    return {"Authorization": "Bearer " + jwt.encode({"sub": user, "exp": time.time() + 60}, SECRET)}


async def test_no_teams(server: Server) -> None:
    """Without a directory the list is empty; what no page has given is no cursor."""
    assert (await server.ask("GET", "/team/teams")).json == {"items": [], "next": None}
    for cursor in ("", "x", "-1", "1" * 40):
        said = problem(await server.ask("GET", f"/team/teams?cursor={cursor}"), 422, "invalid")
        assert pointers(said) == {"cursor"}
    problem(await server.ask("POST", "/team/teams"), 405, "method-not-allowed")


async def test_the_list_answers_while_tasks_are_killed(server: Server) -> None:
    """Also where the kill left half a transaction on disk."""
    task_id = await server.launch("team", {"teams": teams(MANY)})
    for _ in range(5):
        await further(server, task_id)
        send((await server.task(task_id))["child"]["pid"])
        answers = await asyncio.gather(*(server.ask("GET", "/team/teams") for _ in range(10)))
        assert {answer.status for answer in answers} == {200}
    await server.until_status(task_id, "completed")


# The setting.


async def test_the_directory_stands_where_the_operator_says(tmp_path: Path) -> None:
    """And nowhere else."""
    path = tmp_path / "else where" / "teams.db"
    path.parent.mkdir()
    async with serving(tmp_path / "data", INTERMISSION_DIRECTORY_URL=f"sqlite:///{path}") as server:
        task_id = await server.launch("team", {"teams": teams(10)})
        await server.until_status(task_id, "completed")
        assert len((await server.ask("GET", "/team/teams")).json["items"]) == 20
        assert path.exists()
        assert not (server.data / "directory.db").exists()


def test_a_folder_that_is_not_there_is_refused_at_start(tmp_path: Path) -> None:
    """By the name of the setting, and not by the first task."""
    done = serve(tmp_path / "data", INTERMISSION_DIRECTORY_URL=f"sqlite:///{tmp_path}/none/teams.db")
    assert done.returncode == 1
    assert f"the folder {tmp_path}/none cannot be written to; set INTERMISSION_DIRECTORY_URL" in done.stderr
