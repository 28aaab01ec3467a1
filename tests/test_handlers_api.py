"""What handlers' authors rely on: declarations refused in words, strict schemas, upgrades, and the registry."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import pytest
from fake_task import attempt
from pydantic import BaseModel, ConfigDict, Field, field_validator, with_config

from intermission.handlers import Handler, Invalid, Limits, Output, Retry, Task, handler
from intermission.handlers.base import LONGEST_S, RESERVED, output_path
from intermission.handlers.counter import counter
from intermission.handlers.registry import BUILT_IN, load
from intermission.handlers.schema import Schema, Unencodable


@dataclass
class Item:
    """Something nested."""

    n: int = 0


@dataclass
class Params:
    """One field of each kind that strictness is about."""

    n: int = 0
    x: float = 0.0
    text: str = ""
    flag: bool = False
    day: date | None = None
    item: Item = field(default_factory=Item)
    items: list[Item] = field(default_factory=list)
    pair: tuple[int, str] = (0, "")
    anything: Any = None


@dataclass
class Place:
    """A state with a default for everything."""

    at: int = 0


class Model(BaseModel):
    """The same as a pydantic model."""

    at: int = 0
    x: float = 0.0


def declared(**options: Any) -> Handler[Params, Place, dict[str, int]]:
    """A handler with these options."""

    @handler(**{"service": "toy"} | options)
    def toy(task: Task[Params, Place]) -> dict[str, int]:
        return {"at": task.state.at}

    return toy


# Declarations.


def test_a_body_that_is_a_file_goes_into_a_field_of_the_params() -> None:
    """It is named in the declaration; without one a service takes no files."""
    assert declared(body="text").body == "text"
    assert declared(body="text", body_types=("text/csv",)).body_types == ("text/csv",)
    assert declared().body is None


@pytest.mark.parametrize(("field", "reason"), [("file", "/file: Unknown field"), ("n", "/n: Input should be a valid")])
def test_a_body_for_a_field_that_cannot_take_it_is_refused(field: str, reason: str) -> None:
    """One that there is not, one of another type: when the module is imported."""
    with pytest.raises(TypeError, match=rf"params of nothing but an upload in '{field}' do not fit \({reason}"):
        declared(body=field)


def test_a_body_whose_params_need_more_is_refused() -> None:
    """A start with nothing but a file could never be accepted."""

    @dataclass
    class Needy:
        file: str
        team: str

    def toy(task: Task[Needy, Place]) -> int:
        return task.state.at

    toy.__annotations__["task"] = Task[Needy, Place]
    with pytest.raises(TypeError, match="/team: "):
        handler("toy", body="file")(toy)


@pytest.mark.parametrize(
    "name", ["", "Upload", "9lives", "a-b", "a/b", "a.b", "_a", "é", "a\n", "a" * 64, *sorted(RESERVED)]
)
def test_names_that_no_service_may_have(name: str) -> None:
    """Refused when the module is imported, in words that say what would do."""
    with pytest.raises(ValueError, match="cannot be a service's name"):
        declared(service=name)


@pytest.mark.parametrize("value", [-1.0, 1e13, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("retry.base_s", lambda value: {"retry": Retry(base_s=value)}),
        ("retry.cap_s", lambda value: {"retry": Retry(cap_s=value)}),
        ("limits.cpu_s", lambda value: {"limits": Limits(cpu_s=value)}),
        ("limits.wall_s", lambda value: {"limits": Limits(wall_s=value)}),
        ("pause_grace_s", lambda value: {"pause_grace_s": value}),
        ("stall_after_s", lambda value: {"stall_after_s": value}),
    ],
)
def test_times_that_cannot_be(name: str, options: Callable[[float], dict[str, Any]], value: float) -> None:
    """A time that is in no calendar could not be shown: each list with the task in it would fail."""
    with pytest.raises(ValueError, match=re.escape(f"toy: {name} is {value}, and must be from 0 to")):
        declared(**options(value))
    declared(**options(LONGEST_S))


@pytest.mark.parametrize("errors", [0, -1, 2.5, 1001, 2**70])
def test_errors_that_no_policy_may_allow(errors: Any) -> None:
    """What a start may say, a declaration may as well, and no more."""
    with pytest.raises(ValueError, match=r"toy: retry\.errors is .*, and must be a whole number from 1 to 1000"):
        declared(retry=Retry(errors=errors))


def test_what_a_declaration_keeps() -> None:
    """Options, defaults that are objects of their own, and the types of the annotations."""
    toy = declared(service="a" * 63, version=3, retry=Retry(errors=1), max_running=2)
    assert (toy.service, toy.version, toy.retry.errors, toy.max_running) == ("a" * 63, 3, 1, 2)
    assert (toy.params.type, toy.state.type, toy.result.type) == (Params, Place, dict[str, int])
    assert (declared().retry, declared().limits.memory_bytes) == (Retry(), None)


def test_annotations_may_be_strings() -> None:
    """As ``from __future__ import annotations`` makes them all."""

    @handler("toy")
    def toy(task: "Task[Params, Place]") -> "int | None":
        return task.state.at

    assert toy.result.check(None) is None
    assert toy.state.type is Place


def bare(task):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, D103
    return task


def no_result(task: Task[Params, Place]):  # type: ignore[no-untyped-def]  # noqa: ANN201, D103
    return task


def no_task() -> int:  # noqa: D103
    return 0


def no_types(task: Task) -> int:  # type: ignore[type-arg]  # noqa: D103
    return task.state.at


def other_first(number: int) -> int:  # noqa: D103
    return number


@pytest.mark.parametrize("function", [bare, no_result, no_task, no_types, other_first])
def test_functions_without_the_annotations_are_refused(function: Callable[..., Any]) -> None:
    """The message is the line to write."""
    name = function.__name__
    with pytest.raises(TypeError, match=rf"{name} must be annotated: def {name}\(task: Task\[Params, State\]\) -> "):
        handler("toy")(function)


@dataclass
class Endless:
    """A state that cannot begin."""

    at: int


class EndlessModel(BaseModel):
    """The same as a pydantic model."""

    at: int


def endless(task: Task[Params, Endless]) -> int:  # noqa: D103
    return task.state.at


def endless_model(task: Task[Params, EndlessModel]) -> int:  # noqa: D103
    return task.state.at


@pytest.mark.parametrize("function", [endless, endless_model])
def test_a_state_without_defaults_is_refused(function: Callable[[Any], int]) -> None:
    """For a task begins at the state that its type gives without arguments."""
    with pytest.raises(TypeError, match=r"Endless.* must have a default for every field"):
        handler("toy")(function)


# Schemas.


def faults(schema: Schema[Any], text: bytes | str) -> dict[str, str]:
    """Every fault of an input, by pointer."""
    with pytest.raises(Invalid) as caught:
        schema.decode(text)
    return {fault.pointer: fault.message for fault in caught.value.faults}


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        ('{"n": "5"}', "/n"),
        ('{"n": 5.5}', "/n"),
        ('{"n": true}', "/n"),
        ('{"n": null}', "/n"),
        ('{"x": "0.5"}', "/x"),
        ('{"text": 5}', "/text"),
        ('{"flag": 1}', "/flag"),
        ('{"flag": "yes"}', "/flag"),
        ('{"day": "tomorrow"}', "/day"),
        ('{"m": 5}', "/m"),
        ('{"item": {"m": 5}}', "/item/m"),
        ('{"items": [{"n": 1}, {"n": "1"}]}', "/items/1/n"),
        ('{"a/b~c": 5}', "/a~1b~0c"),
        ('{"pair": [1]}', "/pair/1"),
        ("[]", ""),
        ("null", ""),
        ('"text"', ""),
        ("", ""),
        ("{", ""),
        ('{"n": 1} x', ""),
        (b'{"text": "\xff"}', ""),
        ('{"text": "\\ud800"}', ""),
        ('{"\\udfff": 1}', ""),
        ('{"x": NaN}', ""),
        ('{"x": -Infinity}', ""),
        ('{"x": 1e400}', ""),
        ('{"n": ' + "9" * 5000 + "}", ""),
    ],
)
def test_what_does_not_fit_is_a_fault(text: bytes | str, pointer: str) -> None:
    """Strict: no value is turned into one of another type, and each fault is at its JSON pointer."""
    assert set(faults(Schema(Params), text)) == {pointer}


@pytest.mark.parametrize("depth", [150, 400, 900, 1000, 1100, 5000, 100_000])
def test_deep_nesting_is_read_or_refused(depth: int) -> None:
    """Never a RecursionError, whichever of the parsers gives up first."""
    text = '{"anything": ' + "[" * depth + "]" * depth + "}"
    if depth > 150:
        assert set(faults(Schema(Params), text)) == {""}
    else:
        assert Schema(Params).decode(text).anything == json.loads(text)["anything"]


def test_what_fits() -> None:
    """5.0 is an integer, an integer a number, a list a tuple, a text a date, and two half pairs are a letter."""
    text = '{"n": 5.0, "x": 5, "day": "2013-01-31", "pair": [1e2, "a"], "text": "\\ud83d\\ude00", "items": [{}]}'
    value = Schema(Params).decode(text)
    assert value == Params(5, 5.0, "😀", day=date(2013, 1, 31), pair=(100, "a"), items=[Item()])
    assert isinstance(value.n, int)
    assert Schema(Params).decode(Schema(Params).encode(value)) == value


def test_all_faults_at_once_and_in_plain_words() -> None:
    """With what is wrong, and without echoing what was sent."""
    found = faults(Schema(Params), '{"n": "secret", "x": "secret", "m": "secret", "item": {"n": null}}')
    assert set(found) == {"/n", "/x", "/m", "/item/n"}
    assert found["/m"] == "Unknown field"
    assert "secret" not in str(found)


def test_models_are_as_strict_as_dataclasses() -> None:
    """Unknown fields are refused, unless their author decided otherwise."""

    class Open(BaseModel):
        model_config = ConfigDict(extra="ignore")
        at: int = 0

    assert faults(Schema(Model), '{"at": "1", "to": 2}').keys() == {"/at", "/to"}
    assert Schema(Open).decode('{"at": 1, "to": 2}') == Open(at=1)


def test_what_an_author_decides_is_added_to() -> None:
    """Configuring a dataclass for one thing does not open it for unknown fields."""

    @with_config(title="Titled")
    @dataclass
    class Titled:
        at: int = 0

    @with_config(extra="ignore")
    @dataclass
    class Open:
        at: int = 0

    assert faults(Schema(Titled), '{"to": 2}').keys() == {"/to"}
    assert Schema(Titled).json_schema("validation")["title"] == "Titled"
    assert Schema(Open).decode('{"at": 1, "to": 2}') == Open(at=1)


@pytest.mark.parametrize("schema", [Schema(Params), Schema(Model)])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_state_keeps_what_json_has_no_number_for(schema: Schema[Any], number: float) -> None:
    """A client cannot send NaN, yet a handler may compute it, and must find it again."""
    found = schema.load(schema.encode(schema.type(x=number))).x
    assert found == number or (math.isnan(found) and math.isnan(number))


def endless_list() -> list[Any]:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        Params(n="5"),  # type: ignore[arg-type]
        Params(text="\ud800"),
        Params(item=None),  # type: ignore[arg-type]
        Params(anything=object()),
        Params(anything=endless_list()),
        Params(items=[None]),  # type: ignore[list-item]
        Params(n=None),  # type: ignore[arg-type]
        None,
        {"n": 5},
    ],
    ids=["text for a number", "half a pair", "none", "object", "endless", "none in", "no number", "nothing", "dict"],
)
def test_what_is_not_of_its_type_cannot_be_saved(value: Any) -> None:
    """It would not come back; so the checkpoint refuses it instead of the resume."""
    with pytest.raises(Unencodable):
        Schema(Params).encode(value)


@pytest.mark.parametrize("type_", [int | None, dict[str, int], list[Item], None])
def test_results_need_not_be_classes(type_: Any) -> None:
    """Anything that pydantic can check."""
    schema = Schema(type_)
    value = {int | None: 5, dict[str, int]: {"a": 1}}.get(type_)
    assert schema.load(schema.encode([] if type_ == list[Item] else value)) == ([] if type_ == list[Item] else value)


def test_the_json_schema_is_what_clients_may_send() -> None:
    """Defaults, and no other fields."""
    described = Schema(Params).json_schema("validation")
    assert described["additionalProperties"] is False
    assert described["properties"]["n"] == {"default": 0, "title": "N", "type": "integer"}


def test_the_json_schema_of_what_is_written() -> None:
    """What has a default may be left out by a client, and is always there in what is stored."""
    assert "required" not in Schema(Place).json_schema("validation")
    assert Schema(Place).json_schema("serialization")["required"] == ["at"]


def test_a_json_schema_with_references_of_its_own() -> None:
    """Types of a type are kept apart, and referred to as is said."""
    described = Schema(Params).json_schema("validation", "#/elsewhere/{model}")
    assert described["$defs"].keys() == {"Item"}
    assert described["properties"]["items"]["items"] == {"$ref": "#/elsewhere/Item"}


def test_a_json_schema_of_what_cannot_be_described() -> None:
    """What JSON Schema has no words for is anything; keys that must match are the only ones."""

    class Model(BaseModel):
        call: Callable[[], int] = len
        when: object = object()
        best: float = math.inf
        labels: dict[Annotated[str, Field(pattern="^[a-z]$")], int] = {}

    properties = Schema(Model).json_schema("validation")["properties"]
    assert "type" not in properties["call"]
    assert "type" not in properties["when"]
    assert properties["labels"]["additionalProperties"] is False
    assert properties["labels"]["patternProperties"] == {"^[a-z]$": {"type": "integer"}}
    json.dumps(properties)


def test_a_services_description() -> None:
    """The first paragraph of its docstring, as one line."""

    @handler("described")
    def described(task: Task[Params, Place]) -> None:
        """Do what it does."""
        raise NotImplementedError(task)

    @handler("silent")
    def silent(task: Task[Params, Place]) -> None:
        raise NotImplementedError(task)

    assert described.description == "Do what it does."
    described.run.__doc__ = "Do what\n    it does.\n\n    And more of it.\n    "
    assert described.description == "Do what it does."
    assert silent.description == ""


# Saved states and versions.


def test_a_state_of_this_version_is_read_as_it_is() -> None:
    """No upgrade is asked for."""
    assert declared(version=7).restore('{"at": 5}', 7) == Place(5)


def test_upgrades_are_chained() -> None:
    """From the version that saved the state to this one, each once and in order."""
    toy = declared(version=3)

    @toy.upgrade(1)
    def _(state: dict[str, Any]) -> dict[str, Any]:
        return {"position": state["pos"]}

    @toy.upgrade(2)
    def _(state: dict[str, Any]) -> dict[str, Any]:
        return {"at": state["position"] + 1}

    assert toy.restore('{"pos": 5}', 1) == Place(6)
    assert toy.restore('{"position": 5}', 2) == Place(6)
    assert toy.restore('{"at": 5}', 3) == Place(5)


def test_a_state_that_leads_nowhere_is_a_lookup_error() -> None:
    """From the future, without an upgrade, or with one that raises: all name the version, none starts from zero."""
    toy = declared(version=2)
    with pytest.raises(LookupError, match="saved by version 3 of the handler, and this is version 2"):
        toy.restore('{"at": 5}', 3)
    with pytest.raises(LookupError, match=r"no upgrade from version 1 .* add @toy.upgrade\(1\)"):
        toy.restore('{"at": 5}', 1)

    @toy.upgrade(1)
    def _(state: dict[str, Any]) -> dict[str, Any]:
        return {"at": state["at"] + None}

    with pytest.raises(LookupError, match="upgrade from version 1 of the state raised TypeError"):
        toy.restore('{"at": 5}', 1)


@pytest.mark.parametrize("state", ['{"at": "5"}', '{"to": 5}', "{", "[]"])
def test_a_state_that_does_not_fit_is_invalid(state: str) -> None:
    """Also what an upgrade made of it."""
    toy = declared(version=2)
    toy.upgrade(1)(lambda raw: {"at": str(raw["at"])})
    with pytest.raises(Invalid):
        toy.restore(state, 2)
    with pytest.raises(Invalid):
        toy.restore('{"at": 5}', 1)


def test_nan_survives_an_upgrade() -> None:
    """What `encode` wrote is read again, whatever a client may send."""

    @handler("toy", version=2)
    def toy(task: Task[Params, Model]) -> int:
        return task.state.at

    toy.upgrade(1)(lambda raw: raw)
    assert math.isnan(toy.restore('{"at": 1, "x": NaN}', 1).x)


# Outputs.


def test_an_output_appends_text_and_bytes_as_they_are(tmp_path: Path) -> None:
    """In the order of writing; its length counts what was written, also when it is closed; a reopened one goes on."""
    path = tmp_path / "out"
    with Output(path, tmp_path) as out:
        out.write("é\r\n")
        out.write_bytes(b"\xff")
        out.write("\n")
        assert out.length() == 6
        assert path.read_bytes() == b"\xc3\xa9\r\n\xff\n"
    assert out.length() == 6
    with Output(path, tmp_path) as out:
        out.write("x")
        assert out.length() == 7


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "a/b", "/etc/passwd", "a\0", "a b", "é", "a\n", "a" * 201]
)
def test_outputs_are_plain_files_of_the_task(name: str, tmp_path: Path) -> None:
    """No name is a path."""
    with pytest.raises(ValueError, match="cannot be an output's name"):
        output_path(tmp_path, name)
    assert output_path(tmp_path, "rows-1.csv") == tmp_path / "rows-1.csv"


def test_the_counter_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The smallest complete handler, paused at every number."""
    start = None
    for _ in range(12):
        end = attempt(counter, {"limit": 10}, tmp_path, sources=tmp_path, start=start, pause_at=1)
        start = end.saved[-1] if end.saved else start
    assert end.result.counted == 10
    assert (tmp_path / "numbers.txt").read_text().split() == [str(n) for n in range(10)]


# The registry.

TOY = """
from dataclasses import dataclass
from intermission.handlers import Task, handler

@dataclass
class Nothing:
    pass

@handler("{service}")
def toy(task: Task[Nothing, Nothing]) -> None:
    pass
"""
UNDESCRIBED = """
class Odd:
    @classmethod
    def __get_pydantic_core_schema__(cls, source, handle):
        return handle.generate_schema(int)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema, handle):
        raise SystemExit("not to be described")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Write a module that can be imported in this test; its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('not today')", "RuntimeError: not today"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os, nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("def broken(:", "SyntaxError"),
        ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
        ("class Mute(Exception):\n def __str__(self): raise ValueError\nraise Mute", "Mute"),
        ("x = 1", "declares no handler: decorate a function with @handler"),
        (TOY.format(service="tasks"), "'tasks' cannot be a service's name"),
        (TOY.format(service="counter"), "the service 'counter' is declared by another module already"),
        (TOY.format(service="toy") + "a = toy\n" + TOY.format(service="toy"), "declares the service 'toy' twice"),
        (UNDESCRIBED + TOY.format(service="toy").replace("-> None", "-> Odd"), "SystemExit: not to be described"),
    ],
    ids=["raises", "exits", "imports", "syntax", "base", "mute", "none", "reserved", "taken", "twice", "undescribed"],
)
def test_a_module_that_cannot_be_used_takes_no_others_along(
    module: Callable[[str, str], str], text: str, reason: str
) -> None:
    """It is a failure with its reason; those before and after it are there."""
    registry = load([*BUILT_IN, module("unusable", text), module("usable", TOY.format(service="other"))])
    assert set(registry.handlers) == {*load(BUILT_IN).handlers, "other"}
    assert registry.modules == [*BUILT_IN, "usable"]
    assert [failure.module for failure in registry.failures] == ["unusable"]
    assert reason in registry.failures[0].error
    assert len(registry.failures[0].error) <= 2000


def test_a_missing_module_is_a_failure() -> None:
    """A misspelt setting does not stop the server."""
    registry = load(["intermission.handlers.counter", "no.such.module"])
    assert set(registry.handlers) == {"counter"}
    assert "No module named 'no'" in registry.failures[0].error


def test_an_interrupt_while_loading_is_for_the_program(module: Callable[[str, str], str]) -> None:
    """Ctrl-C at a slow import ends the start; it is not the module's fault."""
    with pytest.raises(KeyboardInterrupt):
        load([module("slow", "raise KeyboardInterrupt")])


def test_a_module_may_be_named_twice_and_declare_several(module: Callable[[str, str], str]) -> None:
    """The second mention changes nothing; two services in one module are two handlers."""
    both = TOY.format(service="one") + TOY.format(service="two").replace("def toy", "def toy2")
    name = module("both", both)
    registry = load([name, name])
    assert set(registry.handlers) == {"one", "two"}
    assert (registry.modules, registry.failures) == ([name], [])


class Watched(BaseModel):
    """One with a validator of its author's."""

    at: int = 0

    @field_validator("at")
    @classmethod
    def look(cls, at: int) -> int:
        """Let it pass."""
        return at


@dataclass
class Initialized:
    """The same of a dataclass."""

    at: int = 0

    def __post_init__(self) -> None:
        """Let it pass."""


@dataclass
class Around:
    """Has one of them inside."""

    inner: list[Initialized] = field(default_factory=list)


@pytest.mark.parametrize(
    ("type_", "has_code"),
    [(Params, False), (Place, False), (Model, False), (Watched, True), (Initialized, True), (Around, True)],
)
def test_which_types_run_code_of_their_author(type_: type[object], has_code: bool) -> None:
    """Only these are checked in threads, for they may wait for anything."""
    assert Schema(type_).has_code == has_code
