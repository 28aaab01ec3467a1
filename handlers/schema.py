"""One type that a client or a handler's author named (params, state, result): checked in, written out, described."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Final, Generic, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.json_schema import (
    DEFAULT_REF_TEMPLATE,
    GenerateJsonSchema,
    JsonSchemaMode,
    JsonSchemaWarningKind,
)
from pydantic_core import PydanticSerializationError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with an input. ``pointer`` is a JSON pointer (RFC 6901); empty for the whole."""

    pointer: str
    message: str


class Invalid(ValueError):  # noqa: N818 -- it reads as what it says: the input is invalid
    """An input does not fit. Carries every fault, not only the first."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{f.pointer or '/'}: {f.message}" for f in faults))
        self.faults = tuple(faults)


_CONFIG: Final = ConfigDict(
    extra="forbid", ser_json_inf_nan="constants", json_schema_serialization_defaults_required=True
)
"""What a type gets where its author has decided nothing: no unknown fields, NaN comes back from a checkpoint, and what
has a default is described as always there in what is written."""

_DOUBLE_DIGITS: Final = 308
"""An integer of so many digits is surely within the range of a double."""

_MESSAGES: Final = {
    "unexpected_keyword_argument": "Unknown field",  # as pydantic says it of a dataclass
    "extra_forbidden": "Unknown field",
}


class Unencodable(ValueError):  # noqa: N818 -- the state is unencodable
    """A value cannot be written as JSON of its declared type; the message says where."""


class Schema(Generic[T]):
    """A type with its JSON: strict on the way in, exact on the way out.

    Strict means that ``"5"`` is no integer; ``5.0`` is one, as JSON Schema has it. Unknown fields are faults.
    """

    def __init__(self, type_: type[T]) -> None:
        self.type = type_
        self._adapter: TypeAdapter[T] = TypeAdapter(_closed(type_))
        # The bare serializer: TypeAdapter.dump_json costs 2 µs more, and a checkpoint has 6.
        self._to_json = self._adapter.serializer.to_json
        self.has_code = _has_code(self._adapter.core_schema)
        """Whether to check a value runs code of the type's author, which may do or wait for anything."""
        # A type may describe itself. One that fails at it makes its own module fail here, and not every look at the
        # services, which shows all of them.
        for mode in get_args(JsonSchemaMode):
            self.json_schema(mode)

    def load(self, text: bytes | str) -> T:
        """The value of what `encode` wrote: straight, for it was checked on its way in. Raises `Invalid`."""
        try:
            return self._adapter.validate_json(text, strict=True)
        except ValidationError as error:
            raise Invalid(_faults(error)) from None

    def decode(self, text: bytes | str) -> T:
        """The value of a JSON text. Raises `Invalid` with every fault."""
        return self.check(loads(text))

    def check(self, value: object) -> T:
        """The typed value of parsed JSON. Raises `Invalid` with every fault."""
        # Through JSON once more: only pydantic's JSON mode takes lists for tuples and strings for dates in strict.
        try:
            return self.load(json.dumps(value, ensure_ascii=False).encode())
        except RecursionError:  # what could just be parsed cannot always be written, from deeper in the stack
            raise Invalid([Fault("", "nested too deeply")]) from None
        except UnicodeEncodeError:
            raise Invalid([Fault("", r"a string holds half of a surrogate pair (\ud800 to \udfff)")]) from None

    def encode(self, value: T) -> bytes:
        """The value as JSON. Raises `Unencodable` where it is not what its type says."""
        try:
            text = self._to_json(value, warnings="error")
            if b"null" in text:  # pydantic writes None for a value of any type, and would not read it again
                self.load(text)
        except (PydanticSerializationError, UnicodeEncodeError, RecursionError, ValueError) as error:
            raise Unencodable(" ".join(str(error).split())) from None
        return text

    def json_schema(self, mode: JsonSchemaMode, refs: str = DEFAULT_REF_TEMPLATE) -> dict[str, Any]:
        """JSON Schema (2020-12) of what `decode` takes (validation) or of what `encode` writes (serialization).

        Types of its own are in ``$defs``, and referred to as ``refs`` says.
        """
        return self._adapter.json_schema(mode=mode, ref_template=refs, schema_generator=Describer)


class Describer(GenerateJsonSchema):
    """Says nothing of what JSON Schema has no words for, where pydantic would refuse the whole, or warn.

    And it says of a mapping whose keys must match that no others are taken.
    """

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {  # noqa: RUF012 -- as pydantic declares it
        "skipped-choice",
        "non-serializable-default",
    }

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:  # noqa: ARG002
        """Anything, as far as is known."""
        return {}

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        """Closed where there are patterns: JSON Schema's own rule is that these say nothing of the other keys."""
        described = super().dict_schema(schema)
        return {"additionalProperties": False, **described} if "patternProperties" in described else described


def loads(text: bytes | str) -> Any:
    """Parse JSON (RFC 8259, so without NaN), in which a float without fraction is an integer. Raises `Invalid`."""
    try:
        # Decoded here: json would guess at UTF-16 and UTF-32, and let halves of surrogate pairs pass.
        text = text.decode() if isinstance(text, bytes) else text
        return json.loads(text, parse_float=_number, parse_int=_integer, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Invalid([Fault("", f"not UTF-8: {error.reason} at byte {error.start}")]) from None
    except json.JSONDecodeError as error:
        raise Invalid([Fault("", f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}")]) from None
    except RecursionError:
        raise Invalid([Fault("", "not JSON that can be read: nested too deeply")]) from None
    except ValueError as error:  # a number of more than 4,300 digits, a NaN
        raise Invalid([Fault("", f"not JSON that can be read: {error}")]) from None


def pointer(location: Sequence[int | str]) -> str:
    """The JSON pointer (RFC 6901) of these keys and indices."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def _number(text: str) -> float | int:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return int(value) if value.is_integer() else value


def _integer(text: str) -> int:
    if len(text) > _DOUBLE_DIGITS:
        _number(text)  # a field of type float would make it infinite
    return int(text)


def _no_constant(name: str) -> float:
    message = f"{name} is no JSON number"
    raise ValueError(message)


def _closed(type_: type[T]) -> type[T]:
    """The type, refusing unknown fields where its author has not decided otherwise."""
    if not isinstance(cast("object", type_), type):
        return type_  # `int | None` is no class
    if is_dataclass(type_):
        cast("Any", type_).__pydantic_config__ = _CONFIG | getattr(type_, "__pydantic_config__", ConfigDict())
    elif issubclass(type_, BaseModel):
        missing = {key: value for key, value in _CONFIG.items() if key not in type_.model_config}
        if missing:
            cast("dict[str, Any]", type_.model_config).update(missing)
            type_.model_rebuild(force=True)
    return type_


def _has_code(schema: object) -> bool:
    """Whether a validator, a ``__post_init__`` or the like is in this part of pydantic's core schema."""
    if isinstance(schema, dict):
        own = schema.get("post_init") or schema.get("custom_init") or str(schema.get("type")).startswith("function-")
        return bool(own) or any(_has_code(part) for part in schema.values())
    return isinstance(schema, list | tuple) and any(_has_code(part) for part in schema)


def _faults(error: ValidationError) -> list[Fault]:
    # include_input would echo what may be secret, include_context may hold what JSON cannot carry.
    details = error.errors(include_url=False, include_input=False, include_context=False)
    return [Fault(pointer(d["loc"]), _MESSAGES.get(d["type"], d["msg"])) for d in details]
