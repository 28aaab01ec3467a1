"""Tasks over HTTP: how they look, how they are listed, and what the verbs answer."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import pytest_asyncio
from harness import Json, Server, flawless, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE: Final = {
    *("id", "service", "user", "status", "reason", "params", "priority", "labels", "attempt", "errors_left"),
    *("progress", "checkpoint", "result", "error", "child", "files", "created_at", "started_at", "finished_at"),
    *("due_at", "allowed", "retry"),
}
LISTED: Final = WHOLE - {"params", "result", "files", "child", "retry"}
TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
VERBS: Final = ("pause", "resume", "terminate")
FOREVER: Final = {"steps": 1_000_000}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here, with room for what they leave running."""
    async with flawless(tmp_path_factory.mktemp("tasks"), INTERMISSION_MAX_RUNNING="64") as running:
        yield running


async def started(server: Server, service: str, labels: Json | None = None, **params: Any) -> str:
    """A task with labels."""
    answer = await server.ask("POST", "/tasks", json={"service": service, "params": params, "labels": labels or {}})
    assert answer.status == 202, answer.body
    return str(answer.json["id"])


async def ids(server: Server, query: str) -> list[str]:
    """What a list with these filters has on its first page."""
    answer = await server.ask("GET", f"/tasks?{query}")
    assert answer.status == 200, answer.body
    return [item["id"] for item in answer.json["items"]]


# How a task looks.


async def test_a_task_that_runs(server: Server) -> None:
    """Every field of a running task is there, of its type, and says what is so."""
    body = {"service": "counter", "params": {"limit": 10**6, "delay_s": 0.01}, "priority": 3, "labels": {"k": "v"}}
    task_id = (await server.ask("POST", "/tasks", json=body)).json["id"]
    task = await server.until(task_id, lambda task: (task["progress"] or {}).get("per_second"))
    assert set(task) == WHOLE
    for field, value in {
        **body,
        "id": task_id,
        "user": "local",
        "status": "running",
        "reason": None,
        "attempt": 1,
        "errors_left": 4,
        "result": None,
        "error": None,
        "finished_at": None,
        "due_at": None,
        "allowed": ["pause", "terminate"],
    }.items():
        assert task[field] == value, field
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", task_id)
    assert set(task["progress"]) == {"done", "total", "unit", "percent", "per_second", "eta_s"}
    progress, checkpoint, child = task["progress"], task["checkpoint"], task["child"]
    assert progress["done"] == checkpoint["sequence"] == checkpoint["state"]["next"] > 1
    assert (progress["total"], progress["unit"]) == (10**6, "numbers")
    assert progress["percent"] == round(progress["done"] / 10**4, 1)
    assert 10 < progress["per_second"] <= 100
    assert progress["eta_s"] == pytest.approx((10**6 - progress["done"]) / progress["per_second"], rel=0.01)
    assert set(checkpoint) == {"sequence", "saved_at", "version", "state"}
    assert checkpoint["version"] == 1
    assert set(child) == {"pid", "node", "started_at", "cpu_s", "rss_bytes"}
    assert child["node"] == "localhost"
    assert child["pid"] in [process.pid for process in server.descendants()]
    assert child["cpu_s"] >= 0
    assert child["rss_bytes"] > 1 << 20
    times = [task["created_at"], task["started_at"], child["started_at"], checkpoint["saved_at"]]
    assert all(TIME.fullmatch(time) for time in times)
    assert times[0] <= times[1] <= times[3]
    size = len("".join(f"{n}\n" for n in range(progress["done"])))
    assert task["files"] == [
        {
            "name": "numbers.txt",
            "size_bytes": size,
            "media_type": "text/plain",
            "href": f"/tasks/{task_id}/files/numbers.txt",
        }
    ]


async def test_a_task_that_is_accepted(server: Server) -> None:
    """A start is 202 with the task, its params with their defaults, and its address."""
    by_service = await server.ask("POST", "/counter/start", json={"limit": 2.0})
    by_body = await server.ask("POST", "/tasks", json={"service": "counter", "params": {"limit": 2}})
    for answer in (by_service, by_body):
        assert answer.status == 202
        task = answer.json
        assert set(task) == WHOLE
        assert answer.headers["Location"] == f"/tasks/{task['id']}"
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Preference-Applied" not in answer.headers
        assert task["status"] in {"pending", "running"}
        assert task["params"] == {"limit": 2, "delay_s": 0.0}
        assert (task["priority"], task["labels"], task["files"], task["child"]) == (0, {}, [], None)
        assert (await server.ask("GET", answer.headers["Location"])).json["id"] == task["id"]


async def test_a_task_that_completed(server: Server) -> None:
    """A completed task has its result, no child and no reason, and can only be deleted."""
    task = await server.until_status(await server.launch("counter", {"limit": 3}), "completed")
    assert set(task) == WHOLE
    assert task["result"] == {"counted": 3}
    assert (task["child"], task["error"], task["reason"]) == (None, None, None)
    assert (task["progress"]["done"], task["progress"]["percent"]) == (3, 100)
    assert task["progress"]["eta_s"] in {0, None}
    assert task["allowed"] == ["delete"]
    assert task["created_at"] <= task["started_at"] <= task["finished_at"]
    assert [file["size_bytes"] for file in task["files"]] == [6]


async def test_a_task_that_paused(server: Server) -> None:
    """A paused task says why, keeps its checkpoint and has no child."""
    task_id = await server.launch("steps", FOREVER)
    await server.until_progress(task_id)
    answer = await server.verb(task_id, "pause")
    assert answer.status == 200
    assert "Location" not in answer.headers
    task = answer.json
    assert set(task) == WHOLE
    assert (task["status"], task["reason"], task["child"]) == ("paused", "requested", None)
    assert task["checkpoint"]["state"]["n"] == task["progress"]["done"] > 0
    assert task["finished_at"] is None
    assert task["allowed"] == ["resume", "terminate"]
    assert await server.task(task_id) == task


async def test_a_task_that_failed(server: Server) -> None:
    """A failed task carries the error of its last attempt, whole."""
    task = await server.until_status(await server.launch("faulty", {"kind": "raise"}), "failed")
    assert set(task) == WHOLE
    assert (task["reason"], task["errors_left"], task["attempt"]) == ("exhausted", 0, 3)
    assert task["allowed"] == ["resume", "terminate"]
    assert task["finished_at"]
    error = task["error"]
    assert set(error) == {"kind", "type", "message", "traceback", "exit_code", "signal", "attempt"}
    assert (error["kind"], error["type"], error["message"]) == ("exception", "ValueError", "this cannot be")
    assert error["attempt"] == 3
    assert "in _raise" in error["traceback"]
    task = await server.until_status(await server.launch("faulty", {"kind": "segv"}), "failed")
    assert (task["error"]["kind"], task["error"]["signal"], task["error"]["type"]) == ("signal", "SIGSEGV", None)


async def test_numbers_that_json_does_not_have(server: Server) -> None:
    """A state or progress that is not a number is null: an answer is JSON that every client can read."""
    task_id = await server.launch("odd")
    await server.until_status(task_id, "completed")
    answer = await server.ask("GET", f"/tasks/{task_id}")
    assert not re.search(rb"NaN|Infinity", answer.body)
    assert answer.json["result"] == {"value": None}
    assert answer.json["checkpoint"]["state"] == {"value": None}
    assert answer.json["progress"]["done"] is None


@pytest.mark.parametrize("text", ["", "\0", "\u2028\x7f", "Zoë 李 👩\u200d🚀", '"\\/', "\r\n\t", "</script>"])
async def test_text_comes_back_as_it_was_sent(server: Server, text: str) -> None:
    """Params and labels are kept to the last character."""
    sent = {"service": "deaf", "labels": {"text": text}}
    task_id = (await server.ask("POST", "/tasks", json=sent)).json["id"]
    assert (await server.task(task_id))["labels"] == {"text": text}
    await server.verb(task_id, "terminate")
    answer = await server.ask("POST", "/steps/start", json={"steps": 0, "mark": text})
    assert (await server.task(answer.json["id"]))["params"]["mark"] == text


async def test_an_id_is_what_it_is_called_everywhere(server: Server) -> None:
    """An id may be percent-encoded, as any part of an address; in upper case it is another, unknown one."""
    task_id = await server.launch("counter", {"limit": 0})
    encoded = task_id.replace("-", "%2D")
    assert (await server.exactly(f"GET /tasks/{encoded}")).json["id"] == task_id
    assert (await server.exactly(f"GET /counter/status?task={encoded}")).json["id"] == task_id
    problem(await server.exactly(f"GET /tasks/{task_id.upper()}"), 404, "unknown-task")


async def test_head_of_a_task(server: Server) -> None:
    """HEAD is GET without the body."""
    task_id = await server.launch("counter", {"limit": 0})
    await server.until_status(task_id, "completed")
    for path in ("", "/attempts", "/events"):
        get = await server.ask("GET", f"/tasks/{task_id}{path}")
        head = await server.ask("HEAD", f"/tasks/{task_id}{path}")
        assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", get.headers["Content-Length"])


# Lists.


async def test_what_lists_leave_out(server: Server) -> None:
    """Items of lists have everything but what may be large, and say the same as the task itself."""
    task_id = await started(server, "counter", {"test": "items"}, limit=2)
    whole = await server.until_status(task_id, "completed")
    for path in ("/tasks?label=test:items", "/counter/status?label=test:items"):
        answer = await server.ask("GET", path)
        assert set(answer.json) == {"items", "next"}
        [item] = answer.json["items"]
        assert set(item) == LISTED
        assert set(item["checkpoint"]) == {"sequence", "saved_at", "version"}
        assert {**item, "checkpoint": None} == {name: whole[name] for name in LISTED} | {"checkpoint": None}


async def test_the_status_of_a_service(server: Server) -> None:
    """``/{service}/status`` is one task, whole, with ``?task=``, else a list of the service's tasks."""
    mine = await started(server, "counter", {"test": "status"}, limit=0)
    other = await started(server, "steps", {"test": "status"}, steps=0)
    await server.until_status(mine, "completed")
    assert (await server.ask("GET", f"/counter/status?task={mine}")).json == await server.task(mine)
    listed = await server.ask("GET", "/counter/status?label=test:status")
    assert [item["id"] for item in listed.json["items"]] == [mine]
    assert sorted(await ids(server, "label=test:status")) == sorted([mine, other])


async def test_filters(server: Server) -> None:
    """Statuses add up; a service and labels narrow down; together they are one question."""
    completed = await started(server, "counter", {"test": "filters", "colour": "red"}, limit=0)
    await server.until_status(completed, "completed")
    running = await started(server, "steps", {"test": "filters", "colour": "blue"}, **FOREVER)
    await server.until_status(running, "running")
    paused = await started(server, "steps", {"test": "filters", "colour": "red"}, **FOREVER)
    await server.until_progress(paused)
    await server.verb(paused, "pause")
    for query, expected in {
        "": [paused, running, completed],
        "&status=running": [running],
        "&status=completed&status=paused": [paused, completed],
        "&status=failed&status=terminating&status=pausing&status=retrying&status=pending": [],
        "&service=steps": [paused, running],
        "&service=steps&status=completed": [],
        "&service=nope": [],
        "&label=colour:red": [paused, completed],
        "&label=colour:red&status=paused&service=steps": [paused],
        "&label=colour:green": [],
        "&label=colour:": [],
        "&label=color:red": [],
        "&limit=1": [paused],
        f"&cursor={paused}": [running, completed],
        f"&cursor={completed}": [],
    }.items():
        assert await ids(server, "label=test:filters" + query) == expected, query
    await server.verb(running, "terminate")


@pytest.mark.parametrize(
    ("value", "query"),
    [
        ("a:b", "a:b"),
        ("", ""),
        ("a b", "a+b"),
        ("100%", "100%25"),
        ("Zoë", "Zo%C3%AB"),
        ("a\u200db\xa0c", "a%E2%80%8Db%C2%A0c"),
    ],
)
async def test_values_of_labels(server: Server, value: str, query: str) -> None:
    """A label is found by its whole value, whatever text that is: a colon, a space, nothing."""
    task_id = await started(server, "counter", {"odd": value}, limit=0)
    assert (await server.exactly(f"GET /tasks?label=odd:{query}")).json["items"][0]["id"] == task_id
    assert (await server.exactly(f"GET /tasks?label=odd:{query}x")).json["items"] == []


async def test_pages_while_tasks_come_and_go(server: Server) -> None:
    """Following ``next`` shows every task once and in order, whatever is started and deleted meanwhile."""
    label = {"test": "pages"}
    made = [await started(server, "counter", label, limit=0) for _ in range(23)]
    for task_id in made:
        await server.until_status(task_id, "completed")
    deleted = made[3]
    seen: list[str] = []
    path = "/tasks?label=test:pages&limit=5"
    answer = await server.ask("GET", path)
    while True:
        page = answer.json
        assert len(page["items"]) <= 5
        seen += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        await started(server, "counter", label, limit=0)
        if len(seen) == 10:
            assert (await server.ask("DELETE", f"/tasks/{deleted}")).status == 204
            assert (await server.ask("DELETE", f"/tasks/{seen[-1]}")).status == 204  # the cursor itself
        answer = await server.ask("GET", f"{path}&cursor={page['next']}")
    assert seen == [task_id for task_id in reversed(made) if task_id != deleted]


async def test_limits_of_pages(server: Server) -> None:
    """A page has 50 tasks if nothing is said and at most 200; a full last page is known to be the last."""
    made = [await started(server, "counter", {"test": "limits"}, limit=0) for _ in range(52)]

    async def page(query: str) -> tuple[int, bool]:
        answer = (await server.ask("GET", f"/tasks?label=test:limits{query}")).json
        return len(answer["items"]), answer["next"] is not None

    assert await page("") == (50, True)
    assert await page("&limit=200") == (52, False)
    assert await page("&limit=52") == (52, False)
    assert await page("&limit=51") == (51, True)
    assert await page("&limit=1") == (1, True)
    assert await page(f"&limit=2&cursor={made[2]}") == (2, False)


# Verbs.


async def test_verbs_without_a_task(server: Server) -> None:
    """A verb without ``?task=``: none that could is 404, one that could is told, several are 409 with their ids."""
    for verb in VERBS:
        said = problem(await server.ask("POST", f"/committer/{verb}"), 404, "none-eligible")
        assert verb in said["detail"]
    first = await server.launch("committer", FOREVER)
    await server.until_progress(first)
    paused = await server.ask("POST", "/committer/pause")
    assert (paused.status, paused.json["id"], paused.json["status"]) == (200, first, "paused")
    second = await server.launch("committer", FOREVER)
    await server.until_progress(second)
    problem_ = problem(await server.ask("POST", "/committer/terminate"), 409, "several-tasks")
    assert sorted(problem_["tasks"]) == sorted([first, second])
    resumed = await server.ask("POST", "/committer/resume")  # only one of them is paused
    assert (resumed.status, resumed.json["id"]) == (202, first)
    assert sorted(problem(await server.ask("POST", "/committer/pause"), 409, "several-tasks")["tasks"]) == sorted(
        [first, second]
    )
    assert (await server.ask("POST", f"/committer/terminate?task={second}")).status == 200
    gone = await server.ask("POST", "/committer/terminate")
    assert (gone.status, gone.json["id"], gone.json["status"]) == (200, first, "terminated")
    problem(await server.ask("POST", "/committer/terminate"), 404, "none-eligible")


async def test_a_task_of_another_service(server: Server) -> None:
    """A task is no task of another service, while it is there and when it is gone."""
    task_id = await server.launch("steps", FOREVER)
    lines = [("GET", "status"), *(("POST", verb) for verb in VERBS)]
    for method, verb in lines:
        problem(await server.ask(method, f"/counter/{verb}?task={task_id}"), 404, "unknown-task")
    await server.until_status(task_id, "running")
    assert (await server.ask("POST", f"/steps/terminate?task={task_id}")).status == 200
    for method, verb in lines:
        problem(await server.ask(method, f"/counter/{verb}?task={task_id}"), 404, "unknown-task")
        problem(await server.ask(method, f"/steps/{verb}?task={task_id}"), 410, "gone")


async def test_resume_goes_on(server: Server) -> None:
    """Resume is 202 with the task under way; the same task, the next attempt, from its checkpoint."""
    task_id = await server.launch("steps", FOREVER)
    await server.until_progress(task_id, 3)
    paused = (await server.verb(task_id, "pause")).json
    answer = await server.verb(task_id, "resume")
    assert answer.status == 202
    assert answer.json["status"] in {"pending", "running"}
    assert answer.json["reason"] is None
    later = await server.until_progress(task_id, paused["progress"]["done"] + 1)
    assert (later["attempt"], later["id"]) == (2, task_id)
    assert later["started_at"] == paused["started_at"]
    await server.verb(task_id, "terminate")


@pytest.mark.parametrize(
    ("status", "not_now"),
    [
        ("running", {"resume", "delete"}),
        ("paused", {"delete"}),
        ("completed", {"pause", "resume", "terminate"}),
        ("failed", {"pause", "delete"}),
    ],
)
async def test_what_is_not_possible_now(server: Server, status: str, not_now: set[str]) -> None:
    """A verb at the wrong time is 409, says what is possible, and changes nothing."""
    services: dict[str, tuple[str, Json]] = {
        "running": ("steps", FOREVER),
        "paused": ("steps", FOREVER),
        "completed": ("counter", {"limit": 0}),
        "failed": ("faulty", {"kind": "fatal"}),
    }
    task_id = await server.launch(*services[status])
    if status == "paused":
        await server.until_progress(task_id)
        await server.verb(task_id, "pause")
    before = await server.until_status(task_id, status)
    for verb in not_now:
        answer = await (server.ask("DELETE", f"/tasks/{task_id}") if verb == "delete" else server.verb(task_id, verb))
        said = problem(answer, 409, "not-now")
        assert (said["id"], said["task_status"], said["allowed"]) == (task_id, status, before["allowed"])
        assert verb in said["detail"]
        assert verb not in said["allowed"]
    assert (await server.task(task_id))["status"] == status
    if status != "completed":
        assert (await server.verb(task_id, "terminate")).status == 200


async def test_asking_twice(server: Server) -> None:
    """A pause of what is paused is 200: it is so."""
    task_id = await server.launch("steps", FOREVER)
    await server.until_progress(task_id)
    first = await server.verb(task_id, "pause")
    second = await server.verb(task_id, "pause")
    assert (first.status, second.status) == (200, 200)
    assert first.json == second.json
    events = (await server.ask("GET", f"/tasks/{task_id}/events")).json["items"]
    assert [event["event"] for event in events].count("pause") == 1


async def test_a_task_that_waits_for_its_turn(server: Server) -> None:
    """A pending task is paused, and terminated, at once; nothing of it was ever there."""
    first = await server.launch("single", {"delay_s": 600})
    await server.until_status(first, "running")
    second = (await server.ask("POST", "/single/start", json={})).json
    assert (second["status"], second["allowed"]) == ("pending", ["pause", "terminate"])
    assert (second["attempt"], second["started_at"], second["checkpoint"], second["progress"]) == (0, None, None, None)
    for part in ("attempts", "files/x"):
        answer = await server.ask("GET", f"/tasks/{second['id']}/{part}")
        assert answer.status == (200 if part == "attempts" else 404)
    health = (await server.ask("GET", "/health")).json
    assert (health["pending"], health["max_running"]) == (1, 64)
    assert health["running"] >= 1
    paused = await server.verb(second["id"], "pause")
    assert (paused.status, paused.json["status"], paused.json["attempt"]) == (200, "paused", 0)
    gone = await server.verb(second["id"], "terminate")
    assert gone.json["receipt"] == {"processes": [], "survivors": 0, "cleaned": True, "files_deleted": 0}
    assert (await server.verb(first, "terminate")).status == 200


# The end.


def every_way(task_id: str, service: str) -> list[tuple[str, str]]:
    """Every request for one task."""
    parts = ("", "/attempts", "/events", "/log", "/files/lines.txt")
    return [
        *(("GET", f"/tasks/{task_id}{part}") for part in parts),
        *(("POST", f"/tasks/{task_id}/{verb}") for verb in VERBS),
        ("DELETE", f"/tasks/{task_id}"),
        ("GET", f"/{service}/status?task={task_id}"),
        *(("POST", f"/{service}/{verb}?task={task_id}") for verb in VERBS),
    ]


async def test_what_is_left_of_a_terminated_task(server: Server) -> None:
    """Terminate is 200 with the receipt; from then on every request for it is 410 with that same receipt."""
    task_id = await server.launch("steps", FOREVER)
    task = await server.until_progress(task_id)
    answer = await server.verb(task_id, "terminate")
    assert answer.status == 200
    assert set(answer.json) == {"id", "status", "receipt"}
    assert (answer.json["id"], answer.json["status"]) == (task_id, "terminated")
    receipt = answer.json["receipt"]
    assert set(receipt) == {"processes", "survivors", "cleaned", "files_deleted"}
    assert (receipt["survivors"], receipt["cleaned"]) == (0, True)
    assert receipt["files_deleted"] >= 2
    [process] = receipt["processes"]
    assert set(process) == {"pid", "name", "started_at"}
    assert process["pid"] == task["child"]["pid"]
    assert process["name"]
    assert TIME.fullmatch(process["started_at"])
    for method, path in every_way(task_id, "steps"):
        said = problem(await server.ask(method, path), 410, "gone")
        assert (said["id"], said["service"], said["receipt"]) == (task_id, "steps", receipt)
        assert TIME.fullmatch(said["gone_at"])
    assert task_id not in await ids(server, "limit=200")
    assert not (server.data / "tasks" / task_id).exists()


async def test_a_completed_task_is_deleted(server: Server) -> None:
    """DELETE is 204; record, files and log are gone, and every request for it is 410 without a receipt."""
    task_id = await server.launch("counter", {"limit": 3})
    await server.until_status(task_id, "completed")
    folder = server.data / "tasks" / task_id
    assert folder.exists()
    answer = await server.ask("DELETE", f"/tasks/{task_id}")
    assert (answer.status, answer.body) == (204, b"")
    assert not folder.exists()
    for method, path in every_way(task_id, "counter"):
        assert problem(await server.ask(method, path), 410, "gone")["receipt"] is None
    assert task_id not in await ids(server, "limit=200")


async def test_a_task_is_deleted_once(server: Server) -> None:
    """Of many who delete a task at the same moment one has deleted it; the others hear that it is gone."""
    for _ in range(5):
        task_id = await server.launch("counter", {"limit": 1})
        await server.until_status(task_id, "completed")
        answers = await asyncio.gather(*(server.ask("DELETE", f"/tasks/{task_id}") for _ in range(8)))
        assert sorted(answer.status for answer in answers) == [204] + [410] * 7


async def test_a_task_is_terminated_once(server: Server) -> None:
    """Everybody who terminates a task at the same moment gets the one receipt, or hears that it is gone."""
    task_id = await server.launch("steps", FOREVER)
    await server.until_progress(task_id)
    answers = await asyncio.gather(*(server.verb(task_id, "terminate") for _ in range(8)))
    assert {answer.status for answer in answers} <= {200, 410}
    receipts = [answer.json["receipt"] for answer in answers]
    assert all(receipt == receipts[0] for receipt in receipts)
    assert len(receipts[0]["processes"]) == 1


# The history.


async def test_attempts(server: Server) -> None:
    """Each attempt has its begin, and once it is over its end: how, with what, at what cost."""
    task_id = await server.launch("steps", {"steps": 100})
    await server.until_progress(task_id)
    [now] = (await server.ask("GET", f"/tasks/{task_id}/attempts")).json["items"]
    fields = {
        *("attempt", "kind", "started_at", "ended_at", "outcome", "exit_code", "signal", "cpu_s"),
        *("peak_memory_bytes", "error"),
    }
    assert set(now) == fields
    assert (now["attempt"], now["kind"]) == (1, "run")
    assert TIME.fullmatch(now["started_at"])
    assert {now[field] for field in fields - {"attempt", "kind", "started_at"}} == {None}
    await server.verb(task_id, "pause")
    await server.verb(task_id, "resume")
    await server.until_status(task_id, "completed")
    answer = (await server.ask("GET", f"/tasks/{task_id}/attempts")).json
    assert answer["next"] is None
    first, second = answer["items"]
    assert (first["attempt"], first["outcome"], first["exit_code"]) == (1, "stopped", 0)
    assert (second["attempt"], second["outcome"], second["exit_code"]) == (2, "completed", 0)
    for attempt in (first, second):
        assert attempt["started_at"] <= attempt["ended_at"]
        assert 0 < attempt["cpu_s"] < 5
        assert attempt["peak_memory_bytes"] > 1 << 20
        assert (attempt["signal"], attempt["error"]) == (None, None)


async def test_attempts_that_erred(server: Server) -> None:
    """Each keeps its own error; killed by a signal is a signal, left early is an exit code."""
    for kind, error_kind, exit_code, signal in (("segv", "signal", None, "SIGSEGV"), ("exit", "exit", 3, None)):
        task_id = await server.launch("faulty", {"kind": kind, "attempts": 2})
        await server.until_status(task_id, "completed")
        attempts = (await server.ask("GET", f"/tasks/{task_id}/attempts")).json["items"]
        assert [attempt["outcome"] for attempt in attempts] == ["errored", "errored", "completed"]
        for attempt in attempts[:2]:
            assert (attempt["exit_code"], attempt["signal"]) == (exit_code, signal)
            assert (attempt["error"]["kind"], attempt["error"]["attempt"]) == (error_kind, attempt["attempt"])
        assert attempts[2]["error"] is None


async def test_events(server: Server) -> None:
    """The history has every step: what happened, the status after it, and who asked for it."""
    task_id = await server.launch("steps", {"steps": 50})
    await server.until_progress(task_id)
    await server.verb(task_id, "pause")
    await server.verb(task_id, "resume")
    await server.until_status(task_id, "completed")
    answer = (await server.ask("GET", f"/tasks/{task_id}/events")).json
    assert answer["next"] is None
    assert [(e["event"], e["status"], e["reason"], e["attempt"], e["by"]) for e in answer["items"]] == [
        ("created", "pending", None, 0, "local"),
        ("claimed", "running", None, 1, None),
        ("pause", "pausing", "requested", 1, "local"),
        ("stopped", "paused", "requested", 1, None),
        ("resume", "pending", None, 1, "local"),
        ("claimed", "running", None, 2, None),
        ("completed", "completed", None, 2, None),
    ]
    for event in answer["items"]:
        assert set(event) == {"id", "task", "at", "event", "status", "reason", "attempt", "by"}
        assert event["task"] == task_id
        assert TIME.fullmatch(event["at"])
    order = [(event["id"], event["at"]) for event in answer["items"]]
    assert order == sorted(order)
    assert len({event["id"] for event in answer["items"]}) == len(order)


@pytest.mark.parametrize("of", ["attempts", "events"])
async def test_a_long_history(server: Server, of: str) -> None:
    """Comes in pages, oldest first, whose cursors lead through all of it once."""
    created = await server.ask("POST", "/upload/start", headers={"Upload-Length": "60"})
    task_id = created.json["id"]
    for offset in range(60):
        path = f"/upload/resume?task={task_id}"
        answer = await server.ask("POST", path, data=b"x", headers={"Upload-Offset": str(offset)})
        assert answer.status == 200
    path, key = f"/tasks/{task_id}/{of}", {"attempts": "attempt", "events": "id"}[of]
    first = (await server.ask("GET", path)).json
    assert len(first["items"]) == 50
    found, cursor = list[int](), ""
    while True:
        page = (await server.ask("GET", f"{path}?limit=7{cursor}")).json
        found += [item[key] for item in page["items"]]
        if page["next"] is None:
            break
        assert len(page["items"]) == 7
        cursor = f"&cursor={page['next']}"
    assert found == sorted(set(found))
    assert found == [item[key] for item in await server.items(path)]
    assert found[:50] == [item[key] for item in first["items"]]
    assert len(found) == {"attempts": 60, "events": 121}[of]
    for query in ("limit=0", "limit=201", "limit=x", "cursor=x", "cursor=-1", "after=1"):
        problem(await server.ask("GET", f"{path}?{query}"), 422, "invalid")
