"""The OpenAPI 3.1 document, generated from the routes.

Each is described where it stands: by its docstring, and by an `Operation`, whose types pydantic describes.
"""

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any, Final, cast

from aiohttp import web
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from intermission.handlers.registry import AnyHandler
from intermission.handlers.schema import Describer
from intermission.supervisor.routes import multipart, shapes, streams
from intermission.supervisor.routes.operation import File, Operation, Params

Json = dict[str, Any]
_SERVICE: Final = "/{service}/"
_COMPONENTS: Final = "#/components/schemas/"
_JSON: Final = "application/json"
_INFO: Final = {
    "title": "Intermission",
    "summary": "Long tasks you can pause.",
    "description": (
        "Every task is a process of its own: start it, watch it, pause it, resume it where it stopped, terminate it. "
        "Errors are problems (RFC 9457). Somebody else's task is 404, as one that never was; a token whose `scope` "
        "has the word `admin` sees and controls everybody's."
    ),
    "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
}
_BEARER: Final = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "Its `sub` is the user."}
_FOREIGN, _NO_TOKEN = 403, 401
_EXPECTATION, _CODING = 417, 501
_OF_BODIES: Final = (_EXPECTATION, _CODING)
_OF_PARAMS: Final = (400, 408, 413, 415, 422)
_PROBLEMS: Final = {
    400: "The body is not JSON in UTF-8 or broke off, or a header is not as it should be.",
    _NO_TOKEN: "There is no token, or it is not valid.",
    _FOREIGN: "The Host is not this machine, or the Origin is not this server; or an upload that is made of parts was "
    "sent bytes.",
    404: "There is no such thing, or it is somebody else's.",
    408: "Nothing, or too little, came for too long: resume an upload at `offset`, send anything else again.",
    409: "Not now: see `allowed` for what is, `tasks` for those in the way or that could be meant, `offset` for where "
    "to go on.",
    410: "The task is gone.",
    405: "The address does not take this method; see `Allow`.",
    411: "There is neither a body nor a length.",
    412: "The client speaks another version of tus, or the file is not the one that is named.",
    413: "The body is larger than is taken, or than was announced.",
    _EXPECTATION: "Expect is something else than 100-continue.",
    415: "The body is of a type that is not taken, or it is packed.",
    416: "Nothing is in that range.",
    422: "Something does not fit: `errors` has every fault.",
    423: "Somebody has paused it, or it has failed: resume it first.",
    460: "The body does not give the checksum that was announced; nothing of it is kept.",
    _CODING: "The body has another Transfer-Encoding than chunked.",
    503: "The server is starting or stopping, or its database does not answer: try again.",
    507: "The disk is full, or the user has stored as much or begun as many uploads as one may.",
}
_OF_PROBLEMS: Final = {
    405: ("Allow",),
    408: ("Upload-Offset",),
    409: ("Upload-Offset",),
    412: ("ETag", "Tus-Version"),
    413: ("Upload-Length",),
    416: ("Content-Range",),
    423: ("Upload-Offset",),
    503: ("Retry-After", "Upload-Offset"),
    507: ("Upload-Offset",),
}
"""What an error tells in headers, where its operation sends such, and `_OF_ANY`; its version to who speaks tus."""
_OF_ANY: Final = frozenset({"Allow", "Retry-After"})
_INTERIMS: Final = {
    104: "Upload Resumption Supported: before the answer, to who says Upload-Draft-Interop-Version. At a creation it "
    "tells where the upload can be resumed; while bytes come, how many of them need not be sent again.",
}
_SENT: Final = {
    "Location": "The task's address.",
    "Idempotency-Replayed": "`true`: the task is that of the same start before.",
    "Preference-Applied": "The wait that was asked for, as it was granted.",
    "Allow": "What the address takes.",
    "Retry-After": "In so many seconds.",
    "ETag": "Of the file at this length.",
    "Upload-Offset": "Of a stream service's task: how many bytes of its data are durable.",
    "Upload-Length": "Of a stream service's task: how many bytes its data has, if that is known.",
    "Upload-Defer-Length": "`1` while nobody knows how many bytes the data has.",
    "Upload-Draft-Interop-Version": "As the request says it.",
    "Upload-Complete": "`?1` of an upload whose data is complete, else `?0`.",
    "Upload-Limit": "What limits an upload: `max-size` in bytes, `max-age` in seconds from now.",
    "Accept-Patch": "What may be appended to an upload.",
    "Upload-Metadata": "As it was sent at the creation.",
    "Upload-Expires": "When it is gone if nobody goes on with it.",
    "Upload-Concat": "As it was sent at the creation.",
    "Tus-Version": "The versions of tus that are spoken.",
    "Tus-Extension": "What there is beyond the core.",
    "Tus-Checksum-Algorithm": "What a body can be checked with.",
    "Tus-Max-Size": "The largest upload that is taken, if there is a limit.",
    "Repr-Digest": "What a complete upload comes to (RFC 9530), as it was wanted.",
    "Content-Range": "Which part this is, where a part was asked for.",
}


def document(
    routes: Iterable[web.AbstractRoute],
    handlers: Mapping[str, AnyHandler],
    version: str,
    public: Collection[str] | None = None,
) -> Json:
    """The document. ``public`` are the addresses that need no token; None where nobody has one.

    Raises AttributeError for a route that is not described.
    """
    known = list(routes)
    readable = {route.resource for route in known if route.method == "GET"}
    described = [
        (path, route.method, _function(route, service), service)
        for route in known
        if route.method != "HEAD" or route.resource not in readable  # that of a GET is understood
        for path, service in _addresses(route, handlers)
    ]
    writer = _Writer(handlers, [function.operation for _, _, function, _ in described], public)
    paths: dict[str, Json] = {}
    for path, method, function, service in described:
        paths.setdefault(path, {})[method.lower()] = writer.item(path, function, service)
    rooms = dict.fromkeys(map(_room, paths))
    services = {name: {"description": handler.description} for name, handler in handlers.items()}
    secured = {} if public is None else {"securitySchemes": {"bearer": _BEARER}}
    return {
        "openapi": "3.1.0",
        "info": {**_INFO, "version": version},
        "servers": [{"url": "/"}],
        "security": [] if public is None else [{"bearer": []}],
        "tags": [{"name": name, **services.get(name, {})} for name in rooms],
        "paths": paths,
        "components": {"schemas": writer.schemas, **secured},
    }


def _addresses(route: web.AbstractRoute, handlers: Mapping[str, AnyHandler]) -> Iterator[tuple[str, AnyHandler | None]]:
    """The route's own address; of one that every service has, each service's."""
    path = "" if route.resource is None else route.resource.canonical
    if not path.startswith(_SERVICE):
        yield path, None
        return
    for name, handler in handlers.items():
        yield f"/{name}/{path.removeprefix(_SERVICE)}", handler


def _function(route: web.AbstractRoute, service: AnyHandler | None) -> Any:
    """What answers, and is described."""
    function = cast("Any", route.handler)
    streamed = service is not None and service.stream and function.operation.streamed
    return streamed or function


def _room(path: str) -> str:
    """The first part of an address, under which it is shown: a service's name, or one that no service may have."""
    return path.split("/")[1].removesuffix(".json")


class _Writer:
    """Writes operations, and keeps the schemas that they refer to."""

    def __init__(
        self, handlers: Mapping[str, AnyHandler], operations: Iterable[Operation], public: Collection[str] | None
    ) -> None:
        types: dict[tuple[Any, JsonSchemaMode], None] = {(shapes.Problem, "serialization"): None}
        types |= {pair: None for operation in operations for pair in operation.types()}
        adapters = [(type_, mode, TypeAdapter(type_)) for type_, mode in types]
        self._refs, described = TypeAdapter.json_schemas(
            adapters, ref_template=_COMPONENTS + "{model}", schema_generator=Describer
        )
        self.schemas: Json = described.get("$defs", {})
        self._public = public
        for name, handler in handlers.items():
            if handler.stream:
                continue  # its start takes data
            # Every service has its Params: a name of its own keeps them apart.
            schema = handler.params.json_schema("validation", f"{_COMPONENTS}{name}.{{model}}")
            self.schemas |= {f"{name}.{model}": of for model, of in schema.pop("$defs", {}).items()}
            self.schemas[f"{name}.params"] = schema

    def item(self, path: str, function: Any, service: AnyHandler | None) -> Json:
        """One method of an address."""
        operation: Operation = function.operation
        if service is not None and service.body is not None and operation.filed is not None:
            return self._joined(path, function, operation.filed, service)
        return self._item(path, function, operation, service)

    def _joined(self, path: str, function: Any, filed: Any, service: AnyHandler) -> Json:
        """One method that takes params or a file: what is said of either, of an answer what the first says."""
        item = self._item(path, function, function.operation, service)
        other = self._item(path, filed, filed.operation, service)
        known = {(parameter["in"], parameter["name"]) for parameter in item["parameters"]}
        item["parameters"] += [p for p in other["parameters"] if (p["in"], p["name"]) not in known]
        item["requestBody"]["content"] |= other["requestBody"]["content"]
        item["responses"] = other["responses"] | item["responses"]
        item["description"] = f"{item['description']}\n\n{other['summary']}. {other['description']}"
        return item

    def _item(self, path: str, function: Any, operation: Operation, service: AnyHandler | None) -> Json:
        summary, _, rest = inspect.cleandoc(function.__doc__).partition("\n\n")
        item: Json = {
            "operationId": f"{_room(path)}_{function.__name__}",
            "summary": " ".join(summary.split()).rstrip("."),
            "tags": [_room(path)],
            "parameters": [
                *(parameter for type_ in operation.path for parameter in _parameters("path", type_)),
                *(parameter for type_ in operation.query for parameter in _parameters("query", type_)),
                *(parameter for type_ in operation.headers for parameter in _parameters("header", type_)),
            ],
            "responses": self._responses(path, operation),
        }
        if rest:
            item["description"] = rest
        if operation.body is not None:
            item["requestBody"] = self._body(operation, service)
        if self._public and path in self._public:
            item["security"] = []
        return item

    def _body(self, operation: Operation, service: AnyHandler | None) -> Json:
        """The body of a request: left out, it stands for an empty object, where that would fit."""
        if isinstance(operation.body, str | tuple):
            return {"content": _of_kinds(operation.body)}
        if operation.body is File and service is not None:
            return {"content": _of_kinds(streams.file_types(service))}
        schema = self._refs.get((operation.body, "validation"))
        if operation.body is Params and service is not None:
            schema = {"$ref": f"{_COMPONENTS}{service.service}.params"}
        described = self.schemas[cast("Json", schema)["$ref"].removeprefix(_COMPONENTS)]
        return {"required": "required" in described, "content": {_JSON: {"schema": schema}}}

    def _responses(self, path: str, operation: Operation) -> Json:
        problems = {*operation.problems, *(() if operation.body is None else _OF_BODIES)}
        if not isinstance(operation.body, str | tuple | None):
            problems.update(_OF_PARAMS)
        if self._public is None:
            problems.add(_FOREIGN)
        elif path not in self._public:
            problems.add(_NO_TOKEN)
        told = {*operation.sends, *_OF_ANY}
        if any("Tus-Resumable" in type_.__annotations__ for type_ in operation.headers):
            told.add("Tus-Version")
        problem = {"application/problem+json": {"schema": self._refs[shapes.Problem, "serialization"]}}
        return {
            **{
                str(status): {"description": _INTERIMS[status], "headers": _sent(names)}
                for status, names in operation.interims.items()
            },
            **{str(status): self._answer(operation, status, type_) for status, type_ in operation.answers.items()},
            **{
                str(status): {
                    "description": _PROBLEMS[status],
                    "content": problem,
                    "headers": _sent(name for name in _OF_PROBLEMS.get(status, ()) if name in told),
                }
                for status in sorted(problems)
            },
        }

    def _answer(self, operation: Operation, status: int, type_: Any) -> Json:
        answer: Json = {"description": HTTPStatus(status).phrase}
        match type_:
            case None:
                pass
            case str() | tuple():
                answer["content"] = _of_kinds(type_)
            case _:
                answer["content"] = {_JSON: {"schema": self._refs[type_, "serialization"]}}
        if operation.sends:
            answer["headers"] = _sent(operation.sends)
        return answer


def _of_kinds(kinds: str | tuple[str, ...]) -> Json:
    """A content of which, but for a form, only the media types are known."""
    forms = {multipart.MEDIA_TYPE: multipart.CONTENT}
    return {kind: forms.get(kind, {}) for kind in ((kinds,) if isinstance(kinds, str) else kinds)}


def _sent(names: Iterable[str]) -> Json:
    return {name: {"description": _SENT[name], "schema": {"type": "string"}} for name in names}


@cache  # most are those of many routes
def _parameters(where: str, type_: Any) -> list[Json]:
    """Each field as a parameter."""
    schema = TypeAdapter(type_).json_schema()
    required = schema.get("required", ())
    return [
        {
            "name": name,
            "in": where,
            "required": name in required,
            "description": described.pop("description", ""),
            "schema": described,
        }
        for name, described in schema["properties"].items()
    ]
