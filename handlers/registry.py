"""Finds the handlers: imports modules by name and collects what they declare; one's failure takes no others along."""

import importlib
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from intermission.handlers.base import Handler

BUILT_IN: Final = tuple(f"intermission.handlers.{name}" for name in ("counter", "csv_log", "extract", "team", "upload"))
_MOST_BYTES: Final = 2000
AnyHandler = Handler[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """A module that cannot be used, and why (the last lines of its traceback)."""

    module: str
    error: str


@dataclass(frozen=True, slots=True)
class Registry:
    """Every service that can be started, by name, and the modules that failed."""

    handlers: dict[str, AnyHandler] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def load(modules: Iterable[str]) -> Registry:
    """Import each module and collect its handlers. A module that fails, or names a service twice, is a `Failure`."""
    registry = Registry()
    for name in dict.fromkeys(modules):
        try:
            found = _declared(name)
            _refuse_taken(registry, found)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 -- whatever an author's module raises is theirs alone
            registry.failures.append(Failure(name, _shortened(error)))
            continue
        registry.handlers.update(found)
        registry.modules.append(name)
    return registry


def _declared(name: str) -> dict[str, AnyHandler]:
    module = importlib.import_module(name)
    found: dict[str, AnyHandler] = {}
    for value in vars(module).values():
        if isinstance(value, Handler) and found.setdefault(value.service, value) is not value:
            message = f"{name} declares the service {value.service!r} twice"
            raise LookupError(message)
    if not found:
        message = f"{name} declares no handler: decorate a function with @handler(...)"
        raise LookupError(message)
    return found


def _refuse_taken(registry: Registry, found: dict[str, AnyHandler]) -> None:
    for service, candidate in found.items():
        taken = registry.handlers.get(service)
        if taken is not None and taken is not candidate:
            message = f"the service {service!r} is declared by another module already"
            raise LookupError(message)


def _shortened(error: BaseException) -> str:
    """By its bytes, as a message between processes has room for; what UTF-8 cannot hold is escaped."""
    text = "".join(traceback.format_exception(error, limit=-2)).encode(errors="backslashreplace")
    return text[-_MOST_BYTES:].decode(errors="ignore").strip()
