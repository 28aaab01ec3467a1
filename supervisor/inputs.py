"""What a task may use, found for it: the uploads that its params name, if they are its user's."""

import json
from collections.abc import Mapping
from typing import Final, TypeGuard

from intermission.handlers.inputs import CONTENT, Inputs, Upload, upload_id
from intermission.handlers.registry import AnyHandler
from intermission.handlers.schema import Fault, Invalid
from intermission.state.models import Task, Tombstone
from intermission.state.status import Status
from intermission.state.store import Store
from intermission.supervisor.apart import Apart
from intermission.supervisor.places import Places

UPLOAD: Final = "upload"
"""The service whose completed tasks can be named."""


def references(handler: AnyHandler, params: object) -> dict[str, str]:
    """The ids of the uploads that the params name, by their JSON pointers."""
    named: dict[str, str] = {}
    for function in handler.references:
        found: Mapping[str, str] = function(params)
        named |= {pointer: task_id for pointer, text in found.items() if (task_id := upload_id(text))}
    return named


async def of(task: Task, handler: AnyHandler, store: Store, places: Places, apart: Apart) -> Inputs:
    """The inputs of a task that is about to be launched. What is not there is left out: its handler meets the fault.

    Raises `HandlerError`, `UnavailableError` and `StoreError`.
    """
    named: Mapping[str, str] = {}
    if handler.references:
        named = await apart.run(handler.service, _saved_references, handler, task.params)
    found = [await store.get(task_id, task.user) for task_id in set(named.values())]
    return Inputs(
        places.sources, places.directory, {one.id: _upload(one, places) for one in found if _is_complete(one)}
    )


def none(places: Places) -> Inputs:
    """The inputs of a task of which nobody can tell what uploads it names."""
    return Inputs(places.sources, places.directory)


async def find(store: Store, places: Places, user: str, named: Mapping[str, str]) -> Inputs:
    """The inputs for these uploads. Raises `Invalid` for each that is no completed upload of the user."""
    uploads, faults = dict[str, Upload](), list[Fault]()
    for pointer, task_id in named.items():
        task = await store.get(task_id, user)
        if _is_complete(task):
            uploads[task_id] = _upload(task, places)
        else:
            faults.append(Fault(pointer, _missing(task)))
    if faults:
        raise Invalid(faults)
    return Inputs(places.sources, places.directory, uploads)


def _saved_references(handler: AnyHandler, params: str) -> Mapping[str, str]:
    """As `references`, of params as they are stored."""
    try:
        return references(handler, handler.params.load(params))
    except Invalid:  # the code does not take them any more; the child says so
        return {}


def _is_complete(found: Task | Tombstone | None) -> TypeGuard[Task]:
    return isinstance(found, Task) and found.service == UPLOAD and found.status is Status.COMPLETED


def _upload(task: Task, places: Places) -> Upload:
    result = json.loads(task.result or "{}")
    return Upload(
        id=task.id,
        path=places.output(task.id, CONTENT),
        filename=result["filename"],
        media_type=result["media_type"],
        size_bytes=result["size_bytes"],
        sha256=result["sha256"],
        crc32c=result.get("crc32c"),  # which uploads of an earlier version do not have
    )


def _missing(found: Task | Tombstone | None) -> str:
    if isinstance(found, Task) and found.service == UPLOAD:
        return f"this upload is {found.status}: it can be used once it is completed"
    return "there is no such upload of yours"
