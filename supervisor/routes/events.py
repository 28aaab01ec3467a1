"""``/events``: the history of all of a user's tasks."""

from aiohttp import web
from pydantic import with_config
from typing_extensions import TypedDict

from intermission.supervisor.routes import lists, requests, shapes, views
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import CALLER
from intermission.supervisor.routes.operation import Operation


@with_config(use_attribute_docstrings=True)
class Whose(TypedDict, total=False):
    """Whose events are wanted."""

    user: shapes.Text
    """Only this user's; for administrators."""


def add(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/events", index)


@Operation(query=(lists.Limit, lists.Before, Whose), answers={200: shapes.EventPage}, problems=(422, 503))
async def index(request: web.Request) -> web.StreamResponse:
    """List what happened, newest first: to one's own tasks, and for an administrator to everybody's."""
    values = requests.query(request, "user", "limit", "cursor")
    scope = request[CALLER].scope
    user = values["user"][0] if "user" in values else scope
    before, limit = lists.before(values), lists.limit(values)
    if scope not in (None, user):  # somebody else's: as if there were none
        return requests.answer(request, {"items": [], "next": None})
    found = await request.app[SUPERVISOR].store.find_events(user, before, limit)
    cursor = None if found.next is None else str(found.next)
    page: shapes.EventPage = {"items": [views.event(event) for event in found.items], "next": cursor}
    return requests.answer(request, page)
