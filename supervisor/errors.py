"""What the supervisor refuses, and why. `intermission.supervisor.routes.problems` turns each into an HTTP answer."""

from typing import Final

from intermission.state.models import Quota, Task, Tombstone, Usage
from intermission.state.status import Event


class SupervisorError(Exception):
    """Something that was asked for cannot be done."""


class UnknownServiceError(SupervisorError):
    """There is no handler of this name."""

    def __init__(self, service: str, known: list[str]) -> None:
        super().__init__(f"there is no service {service!r}; there are: {', '.join(known)}")


class UnknownTaskError(SupervisorError):
    """There is no such task, or it is somebody else's."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"there is no task {task_id}")


_BY_KEY: Final = ", and it is what this Idempotency-Key stands for: start another under another key"


class GoneError(SupervisorError):
    """The task was terminated or deleted; its tombstone is all that is left."""

    def __init__(self, tombstone: Tombstone, *, by_key: bool = False) -> None:
        """``by_key``: somebody wanted to start a task, and not to have this one."""
        super().__init__(f"the task {tombstone.id} is gone{_BY_KEY if by_key else ''}")
        self.tombstone = tombstone


class ForgottenError(SupervisorError):
    """The task that an Idempotency-Key stands for is gone, and so is its tombstone."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"the task {task_id} is gone{_BY_KEY}")


def there(found: Task | Tombstone) -> Task:
    """The task that was found; somebody may have terminated it meanwhile. Raises `GoneError`."""
    if isinstance(found, Tombstone):
        raise GoneError(found)
    return found


class ConflictError(SupervisorError):
    """The table does not have this edge: not now."""

    def __init__(self, task: Task, verb: Event) -> None:
        can = ", ".join(task.allowed) or "nothing but waiting"
        super().__init__(f"a task that is {task.status} cannot be told to {verb}; possible now: {can}")
        self.task = task


class InUseError(SupervisorError):
    """An upload that unfinished tasks read cannot be deleted."""

    def __init__(self, upload_id: str, task_ids: list[str]) -> None:
        super().__init__(f"the upload {upload_id} is read by unfinished tasks: wait for them, or terminate them first")
        self.task_ids = task_ids


class KeyReusedError(SupervisorError):
    """An Idempotency-Key was given before, for another start."""

    def __init__(self, task_id: str) -> None:
        super().__init__(
            f"this Idempotency-Key started {task_id}, and asked for something else: give each start its own"
        )


class OffsetError(SupervisorError):
    """Bytes were sent for another place than where the task goes on."""

    def __init__(self, task: Task, offset: int) -> None:
        super().__init__(f"the data goes on at byte {offset}: send Upload-Offset: {offset} and the bytes from there")
        self.task = task
        self.offset = offset


class LengthError(SupervisorError):
    """A length was told that cannot be that of the data, or is not what was told before."""

    def __init__(self, length: int, why: str) -> None:
        super().__init__(f"the data cannot have {length} bytes in all: {why}")


class HeldError(SupervisorError):
    """Bytes were sent to a task that somebody has stopped, and nobody has resumed."""

    def __init__(self, task: Task, offset: int) -> None:
        super().__init__(f"it is {task.status}: resume it, and then send the bytes from Upload-Offset: {offset}")
        self.task = task
        self.offset = offset


class CrowdedError(SupervisorError):
    """As many uploads as are allowed at once are under way: of all users, or of one."""

    def __init__(self, user: str | None, most: int) -> None:
        """``user`` None: of all."""
        whose = "as this server takes" if user is None else f"of {user!r} as one user may have"
        super().__init__(
            f"as many uploads are under way {whose} at once ({most}): try again when one of them has ended"
        )


class QuotaError(SupervisorError):
    """A user's uploads would come to more than one user may have."""

    def __init__(self, usage: Usage, quota: Quota, wanted: int) -> None:
        """``wanted``: how many bytes more."""
        if usage.unfinished >= quota.unfinished:
            why = f"{usage.unfinished} uploads of one user are unfinished, and no more may be: go on with them"
        else:
            why = f"{wanted} bytes more are too many: of {quota.bytes} that one user may have {usage.bytes} are taken"
        super().__init__(f"{why}, or delete or terminate some")
        self.usage = usage
        self.quota = quota
        self.excess = usage.bytes + wanted - (quota.bytes or 0)
        """How many bytes less could be had."""


class UnavailableError(SupervisorError):
    """The server is starting or draining, or has come to a limit of the system."""


class NoSpaceError(SupervisorError):
    """The disk is full."""


class HandlerError(SupervisorError):
    """The code of a handler's author made a mistake in the server itself."""

    def __init__(
        self, service: str, fault: BaseException, what: str = "made a mistake; the server's log says more"
    ) -> None:
        """``fault``: what it raised, which may tell what is none of the client's business."""
        super().__init__(f"the code of the service {service!r} {what}")
        self.fault = fault


class StuckError(HandlerError):
    """It does not return."""

    def __init__(self, service: str, within_s: float) -> None:
        what = f"did not return within {within_s:g} s"
        fault = TimeoutError(f"the code of the service {service!r} {what}")
        super().__init__(service, fault, f"{what}; try again later")


class AmbiguousError(SupervisorError):
    """A verb without a task's id fits several tasks."""

    def __init__(self, verb: Event, task_ids: list[str]) -> None:
        super().__init__(f"{len(task_ids)} of your tasks could be told to {verb}: name one with ?task=")
        self.task_ids = task_ids


class NoneEligibleError(SupervisorError):
    """A verb without a task's id fits no task."""

    def __init__(self, service: str, verb: Event) -> None:
        super().__init__(f"none of your {service} tasks can be told to {verb} now")
