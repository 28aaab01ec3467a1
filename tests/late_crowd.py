"""A server on which each first body finds a place free when it looks, as if others took it only then."""

from dataclasses import dataclass

from aiohttp import web

from intermission.handlers import Task, handler
from intermission.supervisor.routes import upload_limits


def _free(request: web.Request) -> None:
    """There was."""


upload_limits.check_crowd = _free


@dataclass
class Nothing:
    """No params, no state."""


@handler("looking")
def looking(task: Task[Nothing, Nothing]) -> None:
    """Nothing; without a handler nobody would import this module."""
