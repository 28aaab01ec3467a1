"""``/services``: what there is to start, and with what."""

from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from harness import Server, flawless, pointers, problem
from jsonschema import Draft202012Validator

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIELDS: Final = {
    *("name", "description", "version", "stream", "max_running", "retry", "limits", "params", "state", "result"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with flawless(tmp_path_factory.mktemp("services"), INTERMISSION_HANDLERS="toys,verb_toys") as running:
        yield running


async def test_a_service(server: Server) -> None:
    """What it does, what its author allows it, and what it takes, keeps and returns."""
    service = (await server.ask("GET", "/services/counter")).json
    assert set(service) == FIELDS
    assert service["description"] == "Count to ``limit``, one number a line."
    assert (service["name"], service["version"], service["stream"], service["max_running"]) == (
        *("counter", 1, False, None),
    )
    assert service["retry"] == {"errors": 4, "base_s": 1.0, "cap_s": 300.0}
    assert service["limits"] == {"memory_bytes": None, "cpu_s": None, "wall_s": None}
    limit = service["params"]["properties"]["limit"]
    assert (limit["type"], limit["default"], limit["maximum"]) == ("integer", 1500, 10**12)
    assert service["params"]["additionalProperties"] is False
    assert "required" not in service["params"]
    assert service["state"]["required"] == ["next"]
    assert service["result"]["required"] == ["counted"]


async def test_what_an_author_allows(server: Server) -> None:
    """Limits and retries are the handler's own."""
    items = {item["name"]: item for item in (await server.ask("GET", "/services")).json["items"]}
    assert items["single"]["max_running"] == 1
    assert items["greedy"]["limits"] == {"memory_bytes": None, "cpu_s": None, "wall_s": 0.3}
    assert items["faulty"]["retry"] == {"errors": 3, "base_s": 0.01, "cap_s": 0.02}


async def test_every_service(server: Server) -> None:
    """By name, each as it is by itself, with schemas that are schemas."""
    page = (await server.ask("GET", "/services")).json
    names = [item["name"] for item in page["items"]]
    assert page["next"] is None
    assert names == sorted(names)
    assert {"counter", "extract", "steps"} <= set(names)
    for item in page["items"]:
        assert (await server.ask("GET", f"/services/{item['name']}")).json == item
        assert item["stream"] is (item["name"] in {"upload", "tally"})
        for field in ("params", "state", "result"):
            Draft202012Validator.check_schema(item[field])


async def test_the_schemas_are_what_is_so(server: Server) -> None:
    """A task's params, state and result fit them; what does not fit the params is refused."""
    task = (await server.ask("POST", "/counter/start", json={"limit": 5}, headers={"Prefer": "wait=20"})).json
    service = (await server.ask("GET", "/services/counter")).json
    for field, value in (
        ("params", task["params"]),
        ("state", task["checkpoint"]["state"]),
        ("result", task["result"]),
    ):
        Draft202012Validator(service[field]).validate(value)
    params = Draft202012Validator(service["params"])
    for wrong in ({"limit": -1}, {"limit": "5"}, {"limits": 5}, {"delay_s": 3601}, {"limit": None}):
        assert not params.is_valid(wrong)
        problem(await server.ask("POST", "/counter/start", json=wrong), 422, "invalid")


@pytest.mark.parametrize("name", ["nope", "Counter", "status", "services", "%00", "%ff", "x" * 300, "a%2fb"])
async def test_no_such_service(server: Server, name: str) -> None:
    """An unknown one is 404, and the answer names those that there are."""
    said = problem(await server.exactly(f"GET /services/{name}"), 404, "unknown-service")
    assert "counter, " in said["detail"]


async def test_no_parameters(server: Server) -> None:
    """There is nothing to be asked more closely."""
    for path in ("/services", "/services/counter", "/docs", "/upload", "/openapi.json"):
        assert pointers(problem(await server.ask("GET", f"{path}?limit=1"), 422, "invalid")) == {"limit"}
