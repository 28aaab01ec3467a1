"""Which rows a client wants: conditions, compiled once to functions of a cell (CSV) or of a value (JSON Lines)."""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, time
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

Value = str | int | float | None
"""A value of JSON as conditions see it; None stands for whatever is neither a string nor a number."""
Test = Callable[[str], bool]
ValueTest = Callable[[Value], bool]

_EXACT: Final = 2.0**53
"""From here on two integers may be the same float."""

_INTEGER: Final = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_NUMBER: Final = re.compile(r"\s*[+-]?(\d+(?:\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOMENT: Final = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?",
    re.ASCII,
)
_COMMON: Final = {frozenset(["integer", "number"]): "number", frozenset(["date", "datetime"]): "datetime"}
_MISSING: Final = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"})


def _operand(value: object) -> object:
    # One fault in plain words, where a union of types would report one for each of its members.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PydanticCustomError("operand", "Input should be a string or a number")
    return value


Operand = Annotated[str | int | Annotated[float, Field(allow_inf_nan=False)], BeforeValidator(_operand)]
_Operators = TypedDict(
    "_Operators",
    {
        "eq": Operand,
        "lt": Operand,
        "gt": Operand,
        "in": Annotated[list[Operand], Field(min_length=1, max_length=1000)],
    },
    total=False,
)


def _not_empty(condition: _Operators) -> _Operators:
    if not condition:
        raise PydanticCustomError("condition", "Input should have one of eq, lt, gt and in")
    return condition


Condition = Annotated[_Operators, AfterValidator(_not_empty), Field(json_schema_extra={"minProperties": 1})]
"""What a cell or value must be; all of several must hold.

Of CSV, numbers compare with the number in a cell and strings with its text. Of JSON Lines, numbers compare with numbers
and strings with strings: nothing else ever meets a condition.
"""


def number(cell: str) -> int | float | None:
    """The number that a cell holds, or None. Integers are exact; ``1_000``, ``nan`` and ``inf`` are no numbers."""
    try:
        value = float(cell)
    except ValueError:
        return None
    if -_EXACT < value < _EXACT and cell.isascii() and "_" not in cell:
        return value
    return _exact(cell)


def moment(text: str) -> datetime | None:
    """The instant that an ISO 8601 date (its midnight) or date-time names, or None. Without an offset it is UTC."""
    if not _MOMENT.fullmatch(text):
        return None
    try:
        value = datetime.fromisoformat(text)
    except ValueError:  # the 30th of February
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def last_moment(text: str) -> datetime | None:
    """As `moment`, but of a date its last microsecond."""
    start = moment(text)
    return datetime.combine(start, time.max, UTC) if start and _DATE.fullmatch(text) else start


def compile_condition(condition: Condition) -> Iterator[Test]:
    """The tests that a cell must all pass."""
    if "eq" in condition:
        yield _one_of([condition["eq"]])
    if "in" in condition:
        yield _one_of(condition["in"])
    if "lt" in condition:
        yield _below(condition["lt"])
    if "gt" in condition:
        yield _above(condition["gt"])


def compile_value_condition(condition: Condition) -> Iterator[ValueTest]:
    """The tests that a value of JSON must all pass."""
    if "eq" in condition:
        yield frozenset([condition["eq"]]).__contains__  # a string is no number, and 5 is 5.0
    if "in" in condition:
        yield frozenset(condition["in"]).__contains__
    if "lt" in condition:
        yield _compares(operator.gt, condition["lt"])
    if "gt" in condition:
        yield _compares(operator.lt, condition["gt"])


def compile_dates(from_date: str | None, to_date: str | None) -> Test:
    """A test for a date or date-time between two others, both included. A cell that is neither does not pass."""
    lower = (moment(from_date) if from_date else None) or datetime.min.replace(tzinfo=UTC)
    upper = (last_moment(to_date) if to_date else None) or datetime.max.replace(tzinfo=UTC)

    @lru_cache(1024)  # rows of one time mostly stand together: 40 ns instead of 400
    def test(cell: str) -> bool:
        value = moment(cell)
        return value is not None and lower <= value <= upper

    return test


def guess_value_type(values: Iterable[Value]) -> str:
    """As `guess_type`, of values of JSON: a string is text or a moment, whatever its digits; ``json`` is a mixture."""
    kinds = {_value_kind(value) for value in values}
    return _COMMON.get(frozenset(kinds)) or (kinds.pop() if len(kinds) == 1 else "json")


def guess_type(cells: Iterable[str]) -> str:
    """What a column holds, by some of its cells: ``integer``, ``number``, ``date``, ``datetime`` or ``text``."""
    known = [cell for cell in cells if cell not in _MISSING]
    kinds = {_kind(cell) for cell in known}
    return _COMMON.get(frozenset(kinds)) or (kinds.pop() if len(kinds) == 1 else "text")


def _kind(cell: str) -> str:
    if _INTEGER.fullmatch(cell):
        return "integer"
    if number(cell) is not None:
        return "number"
    if moment(cell) is None:
        return "text"
    return "date" if _DATE.fullmatch(cell) else "datetime"


def _value_kind(value: Value) -> str:
    if value is None:
        return "json"
    if isinstance(value, str):
        return "text" if moment(value) is None else _kind(value)
    return "integer" if isinstance(value, int) or value.is_integer() else "number"


def _exact(cell: str) -> int | float | None:
    if not _NUMBER.fullmatch(cell):
        return None
    try:
        return int(cell)
    except ValueError:  # a fraction, an exponent, or more digits than int takes
        return float(cell)


def _one_of(operands: Sequence[str | float]) -> Test:
    texts = frozenset(value for value in operands if isinstance(value, str))
    numbers = frozenset(value for value in operands if not isinstance(value, str))
    if not numbers:
        return texts.__contains__  # C's own comparison: half the price of a lambda, and it is paid for every row
    return lambda cell: cell in texts or number(cell) in numbers


def _compares(holds: Callable[[Any, Any], bool], operand: str | float) -> ValueTest:
    kinds = (str,) if isinstance(operand, str) else (int, float)
    return lambda value: isinstance(value, kinds) and holds(operand, value)


def _below(operand: str | float) -> Test:
    if isinstance(operand, str):
        return operand.__gt__  # the operand is greater than the cell: the cell is less
    bound = operand
    return lambda cell: (value := number(cell)) is not None and value < bound


def _above(operand: str | float) -> Test:
    if isinstance(operand, str):
        return operand.__lt__
    bound = operand
    return lambda cell: (value := number(cell)) is not None and value > bound
