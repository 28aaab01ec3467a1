"""The OpenAPI document: every route is in it, and it is one by the specification."""

import json
import re
from typing import Any, Final

import pytest
from aiohttp import web
from api_tools import PUBLIC, address, bare
from harness import Json
from openapi_spec_validator import OpenAPIV31SpecValidator

from intermission.handlers import registry
from intermission.handlers.base import RESERVED
from intermission.supervisor.routes import auth, openapi

OF_OURS: Final = [*registry.BUILT_IN, "toys", "verb_toys"]
HANDLERS: Final = registry.load(OF_OURS).handlers


def made(public: Any = auth.PUBLIC) -> Json:
    """The document with every handler of the tests, as a client gets it."""
    document = openapi.document(bare().router.routes(), HANDLERS, "1.2.3", public)
    return dict(json.loads(json.dumps(document)))


def operations(document: Json) -> dict[tuple[str, str], Json]:
    """Each operation by its method and address."""
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def test_every_route_is_in_it() -> None:
    """Nothing is left out and nothing made up: every address of the router, and every service's own five."""
    there = set()
    routes = list(bare().router.routes())
    readable = {route.resource for route in routes if route.method == "GET"}
    for route in routes:
        if route.method == "HEAD" and route.resource in readable:
            continue  # that of a GET is implied
        path = address(route)
        services = HANDLERS if "{service}" in path else [""]
        there |= {(route.method, path.replace("{service}", service)) for service in services}
    assert set(operations(made())) == there
    assert {("POST", f"/counter/{verb}") for verb in ("start", "pause", "resume", "terminate")} < there


def test_a_route_that_is_not_described() -> None:
    """There is no document with a gap in it."""

    async def forgotten(request: web.Request) -> web.StreamResponse:
        """Do something."""
        raise NotImplementedError(request)

    app = bare()
    app.router.add_get("/tasks/{id}/forgotten", forgotten)
    with pytest.raises(AttributeError, match="operation"):
        openapi.document(app.router.routes(), HANDLERS, "1")


@pytest.mark.parametrize("public", [None, auth.PUBLIC], ids=["without tokens", "with tokens"])
@pytest.mark.parametrize("modules", [(), registry.BUILT_IN, OF_OURS], ids=["no service", "built in", "all"])
def test_it_is_openapi(public: Any, modules: list[str]) -> None:
    """It is valid by the specification's own schema, whatever services there are, and no two operations share an id."""
    handlers = registry.load(modules).handlers
    document = json.loads(json.dumps(openapi.document(bare().router.routes(), handlers, "1.2.3", public)))
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    assert document["openapi"].startswith("3.1.")
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(set(ids)) == len(ids)
    tags = [tag["name"] for tag in document["tags"]]
    assert {tag for operation in operations(document).values() for tag in operation["tags"]} == set(tags)
    assert len(set(tags)) == len(tags)


def test_every_reference_leads_somewhere() -> None:
    """Every schema that is referred to is there, none is left behind, and none refers to what only pydantic knows."""
    document = made()
    named = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)))
    assert all(name.startswith("#/components/schemas/") for name in named)
    there = set(document["components"]["schemas"])
    assert {name.rpartition("/")[2] for name in named} == there
    assert "$defs" not in json.dumps(document)


def test_everything_is_said_in_words() -> None:
    """Every operation has a summary; every parameter that is not part of the address is explained."""
    for (method, path), operation in operations(made()).items():
        assert len(operation["summary"]) > 10, (method, path)
        assert "Raises" not in operation.get("description", "")
        for parameter in operation["parameters"]:
            assert parameter["in"] == "path" or parameter["description"], (method, path, parameter["name"])


@pytest.mark.parametrize("service", HANDLERS)
def test_a_services_own_params(service: str) -> None:
    """The body of a start is described as the service's params, its types kept apart from those of other services."""
    document = made()
    body = document["paths"][f"/{service}/start"]["post"]["requestBody"]
    if HANDLERS[service].stream:
        assert body["content"].keys() == {"application/octet-stream", "multipart/form-data"}
        return
    schema = body["content"]["application/json"]["schema"]
    assert schema == {"$ref": f"#/components/schemas/{service}.params"}
    params = HANDLERS[service].params.json_schema("validation")
    assert body["required"] == bool(params.get("required"))
    own = {name: schema for name, schema in document["components"]["schemas"].items() if name.startswith(f"{service}.")}
    text = json.dumps(own).replace(f"#/components/schemas/{service}.", "#/$defs/")
    definitions = params.pop("$defs", {})
    renamed = {f"{service}.{name}": schema for name, schema in definitions.items()}
    assert json.loads(text) == json.loads(json.dumps({f"{service}.params": params, **renamed}))


def test_a_stream_services_own_requests() -> None:
    """Where the work is the body of a request, that is what is described: with its headers, not as params."""
    document = made()
    named = {
        path: {parameter["name"] for parameter in document["paths"][f"/upload/{path}"]["post"]["parameters"]}
        for path in ("start", "resume", "pause")
    }
    assert named["start"] == {
        *("filename", "Upload-Length", "Content-Disposition", "Idempotency-Key"),
        *("Repr-Digest", "Content-Digest", "Want-Repr-Digest"),
        *("Upload-Complete", "Upload-Draft-Interop-Version"),
    }
    assert named["resume"] == {"task", "Prefer", "Upload-Offset", "Content-Digest", "Want-Repr-Digest"}
    assert named["pause"] == {"task", "Prefer"}
    assert "upload.params" not in document["components"]["schemas"]


def test_who_announces_a_digest_may_want_one() -> None:
    """Both decide which are computed, so wherever the one is taken the other is."""
    taking = {
        line: names
        for line, operation in operations(made()).items()
        if "Repr-Digest" in (names := {parameter["name"] for parameter in operation["parameters"]})
    }
    assert {("POST", "/upload/start"), ("POST", "/upload/files"), ("POST", "/csv/start")} <= taking.keys()
    assert [line for line, names in taking.items() if "Want-Repr-Digest" not in names] == []


def test_a_form_and_its_file() -> None:
    """Wherever one is taken, and nowhere else: one part, which is a file of any type."""
    taking = {
        path: content["multipart/form-data"]
        for (_, path), operation in operations(made()).items()
        if "multipart/form-data" in (content := operation.get("requestBody", {}).get("content", {}))
    }
    assert taking.keys() >= {"/upload/start", "/csv/start", "/team/start"}
    assert "/upload/resume" not in taking
    for form in taking.values():
        schema = form["schema"]
        assert (schema["required"], list(schema["properties"])) == (["file"], ["file"])
        assert schema["properties"]["file"]["contentMediaType"] == "application/octet-stream"
        assert (schema["additionalProperties"], form["encoding"]["file"]) == (False, {"contentType": "*/*"})


def test_what_comes_before_the_answer() -> None:
    """104 is described where it may come, with its headers: of what appends no address, for it is known there."""
    found = {
        line: set(operation["responses"]["104"]["headers"])
        for line, operation in operations(made()).items()
        if "104" in operation["responses"]
    }
    appended = {"Upload-Draft-Interop-Version", "Upload-Offset"}
    created = appended | {"Location", "Upload-Limit"}
    streams = {("POST", f"/{name}/start"): created for name, handler in HANDLERS.items() if handler.stream}
    assert found == {
        **streams,
        ("POST", "/upload/files"): created,
        ("PATCH", "/upload/files/{id}"): appended,
        ("POST", "/upload/files/{id}"): appended,
    }


def test_what_an_error_tells_in_headers() -> None:
    """Clients of uploads go on by them; of what has no such header none is told."""
    responses = {line: operation["responses"] for line, operation in operations(made()).items()}

    def told(line: tuple[str, str], status: int) -> set[str]:
        return set(responses[line][str(status)]["headers"])

    assert told(("POST", "/upload/resume"), 409) == {"Upload-Offset"}
    assert told(("POST", "/upload/resume"), 413) == {"Upload-Length"}
    assert told(("POST", "/tasks/{id}/resume"), 409) == {"Upload-Offset"}
    assert told(("PATCH", "/upload/files/{id}"), 412) == {"Tus-Version"}
    assert told(("PATCH", "/upload/files/{id}"), 503) == {"Retry-After", "Upload-Offset"}
    assert told(("GET", "/tasks/{id}/files/{name}"), 412) == {"ETag"}
    assert told(("GET", "/tasks/{id}/files/{name}"), 416) == {"Content-Range"}
    assert told(("DELETE", "/tasks/{id}"), 409) == set()
    for line, operation in operations(made()).items():
        assert ("requestBody" in operation) == ({"417", "501"} <= responses[line].keys()), line


def test_who_may_ask() -> None:
    """With a secret, everything but what tells nothing asks for a bearer token and may answer 401; without, nothing."""
    document = made()
    assert document["security"] == [{"bearer": []}]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for (method, path), operation in operations(document).items():
        public = path in PUBLIC
        assert operation.get("security") == ([] if public else None)
        assert ("401" in operation["responses"]) is not public
        # An upload that is made of parts takes no bytes, whoever sends them.
        takes_bytes = path == "/upload/files/{id}" and method in {"PATCH", "POST"}
        assert ("403" in operation["responses"]) is takes_bytes
    document = made(public=None)
    assert document["security"] == []
    assert "securitySchemes" not in document["components"]
    for operation in operations(document).values():
        assert "security" not in operation
        assert {"401", "403"} & set(operation["responses"]) == {"403"}


def test_no_service_can_take_an_address_of_the_api() -> None:
    """The first part of every address that is not a service's is reserved, or could be no service's name."""
    first = {address(route).split("/")[1] for route in bare().router.routes()}
    assert {name for name in first if re.fullmatch("[a-z][a-z0-9_]*", name)} - set(HANDLERS) <= RESERVED
