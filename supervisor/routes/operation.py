"""How a route is described for the document, where it stands: what it takes and what it answers, as types."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from pydantic.json_schema import JsonSchemaMode

_Route = TypeVar("_Route", bound=Callable[..., Any])


class Params:
    """Stands for the params of a service."""


class File:
    """Stands for a file that a service takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a route takes and answers; parameters are the fields of TypedDicts. Decorates the route."""

    answers: Mapping[int, Any]
    """By status: a type that is sent as JSON, a text or several that name other media types, or None for nothing."""
    problems: Collection[int] = ()
    """The statuses of its errors, without those of any body and of the guard."""
    path: tuple[Any, ...] = ()
    query: tuple[Any, ...] = ()
    headers: tuple[Any, ...] = ()
    body: Any = None
    """As an answer, or the media types that it may have; `Params` and `File` for those of the service it is for."""
    sends: Collection[str] = ()
    """Headers that an answer may have."""
    interims: Mapping[int, Collection[str]] = field(default_factory=dict)
    """By status: the headers of each answer that may come before the answer."""
    filed: Callable[..., Any] | None = None
    """What also answers for a service that takes a file: a function that is described itself."""
    streamed: Callable[..., Any] | None = None
    """What answers in the route's place for a stream service: a function that is described itself."""

    def __call__(self, route: _Route) -> _Route:
        """Leave the description at the route."""
        cast("Any", route).operation = self
        return route

    def types(self) -> Iterator[tuple[Any, JsonSchemaMode]]:
        """What is sent as JSON, either way."""
        if self.body not in (Params, File) and not isinstance(self.body, str | tuple | None):
            yield self.body, "validation"
        typed = (type_ for type_ in self.answers.values() if not isinstance(type_, str | tuple | None))
        yield from ((type_, "serialization") for type_ in typed)
