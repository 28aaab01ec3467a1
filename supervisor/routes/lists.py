"""Lists of tasks: filters, pages and cursors."""

import re
from typing import Annotated, Final

from aiohttp import web
from pydantic import Field, WithJsonSchema, with_config
from typing_extensions import TypedDict

from intermission.state.models import Query
from intermission.state.status import Status
from intermission.supervisor.errors import UnknownTaskError
from intermission.supervisor.routes import requests, shapes, views
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.problems import Problem, misfit

PARAMETERS: Final = ("status", "label", "limit", "cursor")
REPEATABLE: Final = ("status", "label")
_DEFAULT_LIMIT: Final = 50
_MAX_LIMIT: Final = 200
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


@with_config(use_attribute_docstrings=True)
class Limit(TypedDict, total=False):
    """What every list takes."""

    limit: Annotated[int, Field(ge=1, le=_MAX_LIMIT)]
    """How many at most; 50 if nothing is said."""


@with_config(use_attribute_docstrings=True)
class Filters(TypedDict, total=False):
    """What every list of tasks takes."""

    status: list[shapes.TaskStatus]
    """Only tasks of this status; may be given several times."""
    label: list[shapes.Label]
    """Only tasks with this label, as `name:value`; may be given several times."""
    cursor: shapes.TaskId
    """The `next` of the page before."""


@with_config(use_attribute_docstrings=True)
class Before(TypedDict, total=False):
    """Where the page before ended, where that is a number."""

    cursor: Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{_NUMBER.pattern}$"})]
    """The `next` of the page before."""


async def page(
    request: web.Request, values: dict[str, list[str]], user: str | None, service: str | None
) -> web.Response:
    """One page of what the caller may see of a user's tasks (None: everybody's), newest first.

    Raises `Problem` (422) for filters that are none.
    """
    query = Query(
        user=user,
        service=service,
        statuses=_statuses(values.get("status", [])),
        labels=_labels(values.get("label", [])),
        before=_cursor(values),
        limit=limit(values),
    )
    if request[CALLER].scope not in (None, user):  # somebody else's tasks: as if there were none
        return requests.answer(request, {"items": [], "next": None})
    found = await request.app[SUPERVISOR].store.find(query)
    return requests.answer(request, {"items": [views.task_item(task) for task in found.items], "next": found.next})


def limit(values: dict[str, list[str]]) -> int:
    """How many items a page may have. Raises `Problem` (422)."""
    return requests.integer(values, "limit", _DEFAULT_LIMIT, 1, _MAX_LIMIT)


def _no_cursor() -> Problem:
    """A cursor that no page has given."""
    return _misfit("cursor", "Must be the next of the page before")


def before(values: dict[str, list[str]]) -> int | None:
    """A cursor that is a number. Raises `Problem` (422)."""
    if "cursor" not in values:
        return None
    if not _NUMBER.fullmatch(values["cursor"][0]):
        raise _no_cursor()
    return int(values["cursor"][0])


def _statuses(given: list[str]) -> frozenset[Status]:
    known = [status.value for status in Status if status is not Status.GONE]
    if wrong := [text for text in given if text not in known]:
        raise _misfit("status", f"{', '.join(map(repr, wrong))}: there are {', '.join(known)}")
    return frozenset(map(Status, given))


def _labels(given: list[str]) -> dict[str, str]:
    if any(not text.partition(":")[0] or ":" not in text for text in given):
        raise _misfit("label", "Must be a name, a colon and a value")
    labels = dict(text.split(":", 1) for text in given)
    if len(labels) < len(given):
        raise _misfit("label", "A name is given twice, and no task has two values of it")
    return labels


def _cursor(values: dict[str, list[str]]) -> str | None:
    if "cursor" not in values:
        return None
    try:
        return requests.task_id(values["cursor"][0])
    except UnknownTaskError:
        raise _no_cursor() from None


def _misfit(parameter: str, detail: str) -> Problem:
    return misfit([{"parameter": parameter, "detail": detail}], "the query does not fit")
