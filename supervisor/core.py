"""The supervisor: decides, and is the only one that changes a task's status.

Everything goes one way: somebody asks or an attempt ends, the table says whether that is possible, the store commits
it (guarded, so that losing a race is an answer), and only then it is acted on and told to those who wait.
"""

import asyncio
import contextlib
import functools
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, Literal
from weakref import WeakValueDictionary

import structlog

from intermission.handlers.inputs import CONTENT, Inputs
from intermission.handlers.registry import AnyHandler, Registry
from intermission.handlers.schema import Fault, Invalid, Unencodable
from intermission.state.ids import new_id
from intermission.state.models import (
    Change,
    Earlier,
    Key,
    NewTask,
    Query,
    Quota,
    RetryPolicy,
    Task,
    Tombstone,
    Usage,
)
from intermission.state.status import Event, Reason, Status, allowed, changes
from intermission.state.store import Store, StoreError, StoreFullError
from intermission.supervisor import inputs
from intermission.supervisor.apart import Apart
from intermission.supervisor.attempt import Attempt
from intermission.supervisor.carrier import Carrier
from intermission.supervisor.cleaner import Cleaner
from intermission.supervisor.crowd import Crowd
from intermission.supervisor.errors import (
    AmbiguousError,
    ConflictError,
    CrowdedError,
    ForgottenError,
    GoneError,
    HeldError,
    InUseError,
    KeyReusedError,
    LengthError,
    NoneEligibleError,
    NoSpaceError,
    OffsetError,
    QuotaError,
    UnavailableError,
    UnknownServiceError,
    UnknownTaskError,
    there,
)
from intermission.supervisor.inotify import Inotify
from intermission.supervisor.ledger import Ledger
from intermission.supervisor.places import Places
from intermission.supervisor.process import wire
from intermission.supervisor.process.launcher import Launcher
from intermission.supervisor.retention import Retention
from intermission.supervisor.retry import policy
from intermission.supervisor.steady import SteadyClock, since_boot
from intermission.supervisor.stream import Delivery, agreed_length, announced, is_whole, received
from intermission.supervisor.usage import ChildView, usage

_MOST_NAMED: Final = 200
_LEAST_FREE_BYTES: Final = 16 << 20
"""With less room on the disk nothing is accepted: what there is needs it to come to an end."""
_CLEANED_WITHIN_S: Final = 60.0
"""How long to wait until a task that is withdrawn is cleaned; after that it goes on in the background."""
_LOOKED_UP_AT_ONCE: Final = 1000
"""Folders whose tasks may be gone. A list that is asked for meanwhile waits for 1 ms."""
_KILLED_WITHIN_S: Final = 5.0
"""How long it may take, after its grace, until a child that is taken over from is dead, and what it had is durable."""
_ENDS_WITHIN_S: Final = 0.5
"""How long it may take, at the end of a drain, until the trees that are to be ended are dead."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Start:
    """What a start has come to: a task, new or of the same start before."""

    task: Task
    replayed: bool = False


class Supervisor:
    """See the module. What routes may call comes first, the machinery below it."""

    def __init__(
        self,
        store: Store,
        launcher: Launcher,
        registry: Registry,
        places: Places,
        *,
        syncs: Executor,
        removals: Executor,
        max_running: int,
        crowd: Crowd,
        quota: Quota,
        keep_s: float,
        uploads_s: float,
    ) -> None:
        """``syncs`` are the threads in which attempts wait for the disk, so that a slow one stops nobody else.

        ``removals`` are those in which folders are removed, for the same reason.
        ``keep_s`` is how long completed and failed tasks, and what is left of those that are gone, are kept.
        ``uploads_s`` is how long uploads are kept that no client goes on with.
        """
        self.store = store
        self.registry = registry
        self.max_running = max_running
        self.crowd = crowd
        self.quota = quota
        self.places = places
        self._launcher = launcher
        self.inotify = Inotify()
        self._ledger = Ledger(store, uploads_s)
        self.watchers = self._ledger.watchers
        self.apart = Apart()
        """Where the code of services runs that the server needs."""
        self._cleaner = Cleaner(
            self._ledger, launcher, registry, places, apart=self.apart, syncs=syncs, removals=removals
        )
        self._carrier = Carrier(
            self._ledger,
            launcher,
            registry,
            places,
            self._cleaner,
            apart=self.apart,
            syncs=syncs,
            max_running=max_running,
            crowd=crowd,
        )
        self._retention = Retention(
            store,
            self._expire,
            self._remove_left,
            keep_s=keep_s,
            uploads_s=uploads_s,
            clock=SteadyClock(time.time, since_boot),
        )
        self._changes = WeakValueDictionary[str, asyncio.Lock]()
        self.phase: Literal["starting", "ok", "draining"] = "starting"

    @property
    def ready(self) -> bool:
        """Whether starts are accepted."""
        return self.phase == "ok"

    @property
    def running(self) -> int:
        """Tasks with a child now."""
        return self._carrier.running

    def child(self, task_id: str) -> ChildView | None:
        """What the task's child uses now; None without one."""
        return usage(self._carrier.child(task_id))

    def service(self, name: str) -> str:
        """The name of a service that there is. Raises `UnknownServiceError`."""
        return self._handler(name).service

    def is_stream(self, service: str) -> bool:
        """Whether it is one whose work is the body of requests."""
        return self._handler(service).stream

    # Verbs.

    async def start(
        self,
        service: str,
        params: object,
        user: str,
        *,
        priority: int = 0,
        labels: Mapping[str, str] | None = None,
        retry: RetryPolicy | None = None,
        due_at: float | None = None,
        key: Key | None = None,
        brings: bool = False,
    ) -> Start:
        """Accept a task; it is on disk when this returns. With a key that is known, the task that it stands for.

        ``params`` is parsed JSON; with ``due_at`` the task stays pending until then. ``brings``: the bytes of an upload
        come with this request, and its child keeps the room for them; else that is kept here.

        Raises `UnknownServiceError`, `Invalid`, `HandlerError`, `UnavailableError`, `NoSpaceError` and `QuotaError`;
        with a key also `KeyReusedError`, `GoneError` and `ForgottenError`.
        """
        self._require_ready()
        handler = self._handler(service)
        value, text, named = await self._read(handler, params)
        async with contextlib.AsyncExitStack() as held:
            for upload_id in sorted(set(named.values())):  # none of them may be deleted from under us
                await held.enter_async_context(self._changing(upload_id))
            given = await inputs.find(self.store, self.places, user, named)
            if handler.checks:
                await self.apart.run(service, _run_checks, handler, value, given)
            now, stream = time.time(), handler.stream and not named  # what is made of uploads waits for no body
            fresh = NewTask(
                id=new_id(),
                service=service,
                user=user,
                params=text,
                created_at=now,
                priority=priority,
                labels=dict(labels or {}),
                errors_left=policy(handler.retry, retry).errors,
                retry=retry,
                due_at=now + self._ledger.uploads_s if stream else due_at,
                uploads=tuple(set(named.values())),
                key=key,
                stream=stream,
                bytes=(json.loads(text)["size_bytes"] or 0) if handler.stream else None,
                quota=self.quota if handler.stream else None,
            )
            if self.places.free_bytes() < _LEAST_FREE_BYTES:
                message = f"less than {_LEAST_FREE_BYTES >> 20} MiB of the disk are free: free some, then try again"
                raise NoSpaceError(message)
            if due_at is None:  # before the insert is awaited, so that the claim that follows joins it in one commit
                self._carrier.wake()
            try:
                added = await self.store.add(fresh)
            except StoreFullError as error:
                raise NoSpaceError(str(error)) from error
        if isinstance(added, Usage):
            raise QuotaError(added, self.quota, fresh.bytes or 0)
        if isinstance(added, Earlier):
            return await self._earlier(added, key, user)
        if due_at is not None:
            self._carrier.watch()
        if stream and service == inputs.UPLOAD and added.bytes and not brings:
            await self._keep_room(added, added.bytes, withdrawn=key is None)
        return Start(added)

    async def _keep_room(self, task: Task, size: int, *, withdrawn: bool) -> None:
        """Have the disk keep room for an upload before anybody is told of it. Raises `NoSpaceError`.

        ``withdrawn``: whether the task is terminated then. Not with a key, as another request may have been told of it.
        Where room cannot be kept now, or the server is killed before, its first attempt does it.
        """
        try:
            try:
                await asyncio.to_thread(self.places.reserve, task.id, CONTENT, size)
            finally:
                await self._leave_nothing_of_gone(task.id)
        except OSError as error:
            if error.errno not in wire.NO_DISK:
                _log.warning("no room could be kept for an upload", task=task.id, error=str(error))
                return
            if withdrawn:
                await self.withdraw(task, by=task.user)
            message = f"there is no space for {size} bytes ({error.strerror}); try again later"
            raise NoSpaceError(message) from error

    async def _leave_nothing_of_gone(self, task_id: str) -> None:
        """Remove what was just made for a task, if somebody has terminated it before: its folder was removed then."""
        now = await self.store.get(task_id)
        if not isinstance(now, Task) or now.status is Status.TERMINATING:
            await self._cleaner.finished(task_id, _CLEANED_WITHIN_S)
            async with self._changing(task_id):
                await self._remove_folder(task_id)

    async def _earlier(self, earlier: Earlier, key: Key | None, user: str) -> Start:
        """What a key stands for."""
        if key is None or earlier.digest != key.digest:
            raise KeyReusedError(earlier.task_id)
        try:
            return Start(await self.get(earlier.task_id, user), replayed=True)
        except GoneError as error:
            raise GoneError(error.tombstone, by_key=True) from None
        except UnknownTaskError:  # kept for less long than its key
            raise ForgottenError(earlier.task_id) from None

    async def get(self, task_id: str, user: str | None) -> Task:
        """The task. Raises `UnknownTaskError` and `GoneError`."""
        found = await self.store.get(task_id, user)
        if found is None:
            raise UnknownTaskError(task_id)
        return there(found)

    async def of_service(self, service: str, task_id: str, user: str | None) -> Task:
        """The task, if it is one of this service. Raises as `get`."""
        found = await self.store.get(task_id, user)
        if found is None or found.service != service:
            raise UnknownTaskError(task_id)
        return there(found)

    async def only(self, service: str, user: str, verb: Event) -> Task:
        """The user's only task of this service that can be told so.

        Raises `NoneEligibleError`, `AmbiguousError`, and as `get` where it has gone meanwhile.
        """
        kinds = {self._handler(service).stream, False}  # of a stream service, some tasks wait for no body
        statuses = frozenset(s for s in Status if any(verb in allowed(s, stream=stream) for stream in kinds))
        query = Query(user=user, service=service, statuses=statuses, limit=_MOST_NAMED)
        eligible: list[Task] = []
        while True:
            page = await self.store.find(query)
            eligible += [task for task in page.items if verb in task.allowed]
            if page.next is None or len(eligible) > 1:
                break
            query = replace(query, before=page.next)
        match eligible:
            case []:
                raise NoneEligibleError(service, verb)
            case [task]:
                return await self.get(task.id, user)  # the whole: a list leaves its params out
            case several:
                raise AmbiguousError(verb, [task.id for task in several])

    async def pause(self, task_id: str, user: str | None, by: str) -> Task:
        """Ask a task to stop: paused at once if it has no child, else pausing. Raises as `get`, and `ConflictError`."""
        # Not while somebody connects: to the store, an upload that is paused for another reason is the same as before.
        async with self._changing(task_id):
            task = await self._ask(task_id, user, by, Event.PAUSE, reason=Reason.REQUESTED)
        if task.status is Status.PAUSING:
            self._carrier.pause(task_id)
        return task

    async def resume(self, task_id: str, user: str | None, by: str) -> Task:
        """Let a paused, failed or retrying task go on. Raises as `pause`, and `UnknownServiceError`."""
        task = await self._ask(task_id, user, by, Event.RESUME)
        self._carrier.wake()
        if task.due_at is not None:
            self._carrier.watch()
        return (await self._ended(task_id, by) if is_whole(task) else None) or task

    async def terminate(self, task_id: str, user: str | None, by: str) -> Task:
        """Have a task's tree killed, its effects undone and its state deleted; `wait` tells when it is gone."""
        task = await self._ask(task_id, user, by, Event.TERMINATE)
        if not self._carrier.end(task_id):  # else its attempt cannot settle as anything else, and hands it over itself
            self._cleaner.finish(task)
        return task

    async def take_over(self, task_id: str, user: str | None) -> Task:
        """Stop the request that brings bytes to a task, and keep them; the task then.

        Raises as `get`, and `UnavailableError` where its child does not end in time.
        """
        async with self._taken_over(task_id, user) as task:
            return task

    async def connect(self, task_id: str, user: str | None, by: str, delivery: Delivery) -> Attempt:
        """Launch a stream service's task for bytes that are about to come; where to put them.

        A request that brings it bytes already is taken over from. Raises as `pause`, `OffsetError`, `LengthError`,
        `HeldError`, `CrowdedError`, `QuotaError` and `UnavailableError`; nothing else has changed then.
        """
        async with self._taken_over(task_id, user) as found:  # so that of several requests each has its turn
            task = found
            while True:
                params = self._accepted(task, delivery)
                size = max(agreed_length(task, delivery.length) or 0, delivery.end)
                reserve = functools.partial(self.reserve, task, size)
                if task.after(Event.CONNECTED) is None:
                    await reserve()  # what is refused stays paused
                    await self._ask(task_id, user, by, Event.RESUME)
                elif (attempt := await self._carrier.connect(task, by, params, delivery, reserve)) is not None:
                    return attempt
                task = await self.get(task_id, user)

    async def withdraw(self, task: Task, by: str | None) -> None:
        """Have nothing be left of a task without a child, unless it has had one since, or another status.

        ``by`` None: its time is over.
        """
        change = Change(task=task, event=Event.TERMINATE, at=time.time(), by=by)
        if terminating := await self._ledger.advance(change):
            self._cleaner.finish(terminating)
            await self._cleaner.finished(task.id, _CLEANED_WITHIN_S)

    async def reserve(self, task: Task, size: int) -> None:
        """Have an upload count with so many bytes, before they come. Raises `QuotaError`."""
        if task.bytes is None or task.bytes >= size or await self.store.reserve(task, size, self.quota.bytes):
            return
        now, usage = await self.store.get(task.id), await self.store.usage(task.user)
        more = size - (now.bytes or 0) if isinstance(now, Task) else 0
        if more > 0 and not self.quota.allows(usage, more):  # else somebody was first, and will be met again
            raise QuotaError(usage, self.quota, more)

    async def delete(self, task_id: str, user: str | None, by: str | None) -> Tombstone:
        """Delete a completed task: its record, files and log. Raises as `pause`, and `InUseError`.

        The record goes first, in one commit: until then the task is whole, and from then on it is gone, for whoever
        asks. Its folder follows. If that is cut short, the next start finds it by the tombstone (`_remove_left`).

        ``by`` None: its time is over.
        """
        # One at a time: a second one should find the tombstone, and not before the folder is away.
        async with self._changing(task_id):
            task = await self.get(task_id, user)
            if task.after(Event.DELETE) is None:
                raise ConflictError(task, Event.DELETE)
            if users := await self.store.users_of(task.id, _MOST_NAMED):
                raise InUseError(task.id, users)
            now = time.time()
            tombstone = Tombstone(id=task.id, service=task.service, user=task.user, gone_at=now, by=by, receipt=None)
            if not await self._ledger.bury(Change(task=task, event=Event.DELETE, at=now, by=by), tombstone):
                raise GoneError(tombstone)
            await self._remove_folder(task.id)
            return tombstone

    async def wait(self, task_id: str, until: Callable[[Task], bool], timeout_s: float) -> Task | Tombstone:
        """Wait until the task is so, or gone, or time is over; as it then is. Raises `UnknownTaskError`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            change = self.watchers.next_change(task_id)
            try:
                found = await self.store.get(task_id)
                if found is None:
                    raise UnknownTaskError(task_id)
                over = self.watchers.closed or loop.time() >= deadline
                if isinstance(found, Tombstone) or over or until(found):
                    return found
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await change
            finally:
                self.watchers.forget(task_id, change)

    async def wait_gone(self, task_id: str, timeout_s: float) -> Task | Tombstone:
        """As `wait`, until the task is not terminating any more."""
        return await self.wait(task_id, lambda task: task.status is not Status.TERMINATING, timeout_s)

    # From start to stop.

    async def open(self) -> None:
        """Carry on what an earlier generation left, then accept starts."""
        left = await self._carrier.open()
        await asyncio.gather(*(self._ended(task_id, by=None) for task_id in left))  # which commits them together
        self._retention.open()
        self.phase = "ok"

    async def drain(self, within_s: float) -> None:
        """Stop in good order: every child saves its place and exits; what did not within the time is ended."""
        self.phase = "draining"
        await self._retention.close()
        await self._carrier.drain(within_s)
        ends = [asyncio.create_task(room.close()) for room in (self._carrier, self._cleaner)]
        await asyncio.wait(ends, timeout=_ENDS_WITHIN_S)
        await self._launcher.close()  # if its fork server is frozen, only now will the rest have ended
        await asyncio.gather(*ends)
        self.watchers.close()
        self.inotify.close()

    # Inside.

    async def _remove_left(self) -> None:
        """Remove the folders of tasks that are gone: a delete was cut short before it came to them.

        Not every folder without a row: beside the wrong database, that would be everybody's.
        """
        names = await asyncio.to_thread(os.listdir, self.places.tasks)
        for first in range(0, len(names), _LOOKED_UP_AT_ONCE):
            for task_id in await self.store.gone(names[first : first + _LOOKED_UP_AT_ONCE]):
                async with self._changing(task_id):
                    await self._remove_folder(task_id)

    async def _remove_folder(self, task_id: str) -> None:
        """Remove the folder of a task that is gone. What cannot be removed now is tried again by the next start."""
        try:
            await self._cleaner.remove_files(task_id)
        except OSError as error:
            _log.error("a task is gone, but its folder could not be removed", task=task_id, error=str(error))

    async def _expire(self, task: Task) -> None:
        """End a task whose time is over, unless somebody was first: delete a completed one, terminate any other.

        What a failed one did outside is half a job that nobody came back for, and with its row goes what could undo it.
        """
        if task.status is Status.PAUSED:
            found = await self.store.get(task.id)
            if not isinstance(found, Task) or found.due_at is None or found.due_at > time.time():
                return  # since it was listed, its client or its user has come back
            task = found
        if task.status is Status.COMPLETED:
            with contextlib.suppress(GoneError, UnknownTaskError, InUseError):
                await self.delete(task.id, user=None, by=None)
        else:
            await self.withdraw(task, by=None)

    def _require_ready(self) -> None:
        if not self.ready:
            message = "the server is starting or stopping; try again in a moment"
            raise UnavailableError(message)

    def _handler(self, service: str) -> AnyHandler:
        handler = self.registry.handlers.get(service)
        if handler is None:
            raise UnknownServiceError(service, sorted(self.registry.handlers))
        return handler

    async def _read(self, handler: AnyHandler, params: object) -> tuple[object, str, Mapping[str, str]]:
        """As `_read`, apart where code of the handler's author takes part. A thread costs a third of all starts."""
        if handler.params.has_code or handler.references:
            return await self.apart.run(handler.service, _read, handler, params)
        return _read(handler, params)

    @contextlib.asynccontextmanager
    async def _taken_over(self, task_id: str, user: str | None) -> AsyncIterator[Task]:
        """The task, to be changed by nobody else, once no request brings it bytes. Raises as `take_over`.

        While a child is waited for, others may change the task: a pause reaches the child all the same.
        """
        while True:
            async with self._changing(task_id):
                attempt = self._carrier.attempt(task_id)
                task = await self.get(task_id, user)
                if attempt is None or not task.stream:
                    yield task
                    return
                attempt.intake.hand_over()
            try:
                async with asyncio.timeout(attempt.handler.pause_grace_s + _KILLED_WITHIN_S):
                    await attempt.settled.wait()
            except TimeoutError:
                message = "the process that has taken its data does not end; try again in a moment"
                raise UnavailableError(message) from None

    async def _ended(self, task_id: str, by: str | None) -> Task | None:
        """An upload, once it is on its way to its end without its client; None: that is needed, or is not wanted."""
        async with self._changing(task_id):
            task = await self.store.get(task_id)
            if not isinstance(task, Task) or task.status is not Status.PAUSED or task.is_held or not is_whole(task):
                return None
            try:
                attempt = await self._carrier.connect(task, by, task.params)
            except (CrowdedError, UnavailableError, StoreError) as error:
                _log.warning("an upload that is whole could not be completed", task=task_id, error=str(error))
                return None
            if attempt is None:
                return None
            attempt.intake.end()
            return attempt.task

    def _accepted(self, task: Task, delivery: Delivery) -> str:
        """The params that a task has once it takes a delivery. Raises as `connect`."""
        self._require_ready()
        if task.after(Event.CONNECTED) is None and task.after(Event.RESUME) is None:
            raise ConflictError(task, Event.RESUME)
        place = received(task)
        if task.is_held and not delivery.lifts:
            raise HeldError(task, place)
        if place != delivery.offset:
            raise OffsetError(task, place)
        size_bytes = agreed_length(task, delivery.length)
        if (
            size_bytes is not None and delivery.end > size_bytes
        ):  # whoever told it was first, and this one has not heard
            raise LengthError(delivery.end, f"it was said before that it has {size_bytes}, and that stands")
        self.crowd.check(task.user)  # once more when it connects, but then its pause has been lifted
        if size_bytes == announced(task):
            return task.params
        return json.dumps({**json.loads(task.params), "size_bytes": size_bytes}, ensure_ascii=False)

    def _changing(self, task_id: str) -> asyncio.Lock:
        """Held by whoever deletes a task's files, sends it bytes or pauses it, or needs its files for a moment."""
        return self._changes.setdefault(task_id, asyncio.Lock())

    async def _ask(self, task_id: str, user: str | None, by: str, verb: Event, reason: Reason | None = None) -> Task:
        """Take the step that a person asks for, reading again for as long as somebody else is first."""
        while True:
            task = await self.get(task_id, user)
            if not changes(task.status, task.reason, verb, stream=task.stream):
                if task.after(verb) is not task.status:
                    raise ConflictError(task, verb)
                return task
            try:
                changed = await self._ledger.advance(self._wish(task, verb, by, reason))
            except StoreFullError as error:
                raise NoSpaceError(str(error)) from error
            if changed is not None:
                return changed

    def _wish(self, task: Task, verb: Event, by: str, reason: Reason | None) -> Change:
        change = Change(task=task, event=verb, at=time.time(), by=by, reason=reason)
        if verb in (Event.PAUSE, Event.RESUME) and task.attempt == 0 and (task.due_at or 0) > change.at:
            change = replace(change, due_at=task.due_at)  # somebody wants it to start then, and not before
        if verb is Event.RESUME:
            retry = policy(self._handler(task.service).retry, task.retry)
            if task.stream:
                change = replace(change, reason=Reason.AWAITING_DATA)
            if task.status is Status.FAILED:
                return replace(change, errors_left=retry.errors, error=None, losses=0, lost_sequence=-1)
        return change


def _read(handler: AnyHandler, params: object) -> tuple[object, str, Mapping[str, str]]:
    """The params as their type, as JSON with their defaults, and the uploads that they name. Raises `Invalid`."""
    value = handler.params.check(params)
    try:
        text = handler.params.encode(value).decode()
    except Unencodable as error:
        raise Invalid([Fault("", str(error))]) from None
    return value, text, inputs.references(handler, value)


def _run_checks(handler: AnyHandler, params: object, given: Inputs) -> None:
    for check in handler.checks:
        check(params, given)
