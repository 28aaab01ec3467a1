"""What is known of a stream service's data: how much is there, how much there is in all, and what a request brings."""

import json
import socket
from dataclasses import dataclass

from intermission.state.models import Task
from intermission.state.status import Status
from intermission.supervisor.attempt import Attempt
from intermission.supervisor.errors import LengthError


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a request says of the bytes that it brings to a stream service's task."""

    offset: int = 0
    """Where they belong."""
    end: int = 0
    """Where they end, as far as that is known."""
    length: int | None = None
    """How many there are in all, if that is told only now."""
    checksum: tuple[str, bytes] | None = None
    """What this body has to give, by which algorithm; if it does not, nothing of it is kept."""
    connection: socket.socket | None = None
    """Where the child may read them itself."""
    lifts: bool = True
    """Whether it also resumes what somebody has paused, or what has failed."""


def received(of: Task | Attempt) -> int:
    """How many bytes of a stream service's data are done with, durably."""
    return 0 if of.checkpoint is None else int(json.loads(of.checkpoint.state)["received"])


def announced(task: Task) -> int | None:
    """How many bytes a stream service's data has in all; None while nobody knows."""
    size_bytes: int | None = json.loads(task.params)["size_bytes"]
    return received(task) if size_bytes is None and task.status is Status.COMPLETED else size_bytes


def is_whole(task: Task) -> bool:
    """Whether a stream service's task has all of its data, so that no client is needed to complete it."""
    if not task.stream:
        return False
    params = json.loads(task.params)
    return not params.get("open_ended") and params["size_bytes"] == received(task)


def agreed_length(task: Task, length: int | None) -> int | None:
    """How many bytes it has in all, once a client says so too. Raises `LengthError`."""
    known = announced(task)
    if length is None or length == known:
        return known
    if known is not None:
        raise LengthError(length, f"it was said before that it has {known}, and that stands")
    if length < received(task):
        raise LengthError(length, f"{received(task)} are here already")
    return length
