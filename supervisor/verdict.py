"""What follows for a task when an attempt has ended. Pure: the table says what is possible, this says what happened."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from intermission.handlers.base import Retry
from intermission.state.models import AttemptEnd, Change, ErrorInfo, Keep, Task
from intermission.state.status import Event, Reason, Status
from intermission.supervisor import retry as retries
from intermission.supervisor.attempt import Ending
from intermission.supervisor.process import wire
from intermission.supervisor.process.launcher import Exit

_FROM_OUTSIDE: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGHUP})
"""Nobody's bug: an operator or the kernel's OOM killer ended it. Counted as a loss, which is free but watched."""
_LIMITS: Final = {
    Reason.LIMIT_WALL: "it ran longer than its handler's wall limit",
    Reason.LIMIT_CPU: "it used more CPU time than its handler's limit",
    Reason.LIMIT_MEMORY: "it used more memory than its handler's limit",
    Reason.LIMIT_LOG: "its log grew over 64 MiB: print less",
    Reason.STALLED: "no checkpoint for longer than its handler's stall_after_s: call checkpoint() more often",
}


@dataclass(frozen=True, slots=True)
class Moment:
    """The world in which a verdict is given."""

    at: float
    draining: bool
    uniform: Callable[[float, float], float]


def verdict(task: Task, ending: Ending, retry: Retry, moment: Moment) -> Change:
    """The step of a running or pausing task whose attempt ended so."""
    change = _step(task, ending, retry, moment)
    if task.losses and isinstance(change.losses, Keep) and _reached(task, ending) != task.lost_sequence:
        change = replace(change, losses=0, lost_sequence=-1)  # it has got over the place: no need to be alone any more
    return replace(change, checkpoint=ending.checkpoint, end=attempt_end(ending, change, moment.at))


def _loss(task: Task, reached: int, at: float) -> Change:
    """The step of a task whose child vanished, nobody's fault: free, unless it happens at one place again and again."""
    if task.stream:  # the client decides when it comes again, so nothing is launched in a loop
        return Change(task=task, event=Event.LOST, at=at, reason=_stream_reason(task))
    losses = task.losses + 1 if reached == task.lost_sequence else 1
    error = ErrorInfo(kind="signal", type=None, message="its process was lost", attempt=task.attempt)
    if losses >= retries.GIVE_UP_AFTER and task.status is Status.RUNNING:
        message = f"its process was lost {losses} times at the same checkpoint; resume it to try again"
        error = replace(error, message=message)
        return Change(
            task=task, event=Event.REFUSED, at=at, reason=Reason.LOST, error=error, losses=0, lost_sequence=-1
        )
    wait_s = retries.loss_wait_s(losses)
    return Change(
        task=task,
        event=Event.LOST,
        at=at,
        reason=Reason.REQUESTED if task.status is Status.PAUSING else None,
        losses=losses,
        lost_sequence=reached,
        due_at=at + wait_s if wait_s and task.status is Status.RUNNING else None,
    )


def attempt_end(ending: Ending, change: Change, at: float) -> AttemptEnd:
    """The attempt's own record."""
    end = ending.exit
    return AttemptEnd(
        ended_at=at,
        outcome=change.event,
        exit_code=end.exit_code,
        signal=None if end.signal is None else _signal_name(end.signal),
        cpu_s=end.cpu_s,
        peak_memory_bytes=end.peak_memory_bytes,
        error=change.error if isinstance(change.error, ErrorInfo) else None,
    )


def error_of(ending: Ending, attempt: int) -> ErrorInfo:
    """Why the attempt errored, in the words of the handler, its exit or its signal."""
    end, report = ending.exit, ending.report
    kind, message = _fault(ending)
    if kind is None and isinstance(report, wire.Errored):
        return ErrorInfo(
            kind=report.kind,
            type=report.type,
            message=report.message or f"the handler raised {report.type}",
            traceback=report.traceback,
            exit_code=report.exit_code,
            attempt=attempt,
        )
    if kind is not None:
        return ErrorInfo(kind=kind, type=None, message=message, attempt=attempt)
    if end.signal is not None:
        name = _signal_name(end.signal)
        return ErrorInfo(
            kind="signal", type=None, message=f"its process was killed by {name}", signal=name, attempt=attempt
        )
    message = f"its process exited with {end.exit_code} before the handler returned"
    return ErrorInfo(kind="exit", type=None, message=message, exit_code=end.exit_code, attempt=attempt)


def _fault(ending: Ending) -> tuple[str | None, str]:
    """What went wrong beyond what the handler and its process could say: the kind of error, and the words for it."""
    if ending.unreadable is not None:
        return "exception", ending.unreadable
    if ending.limit is not None:
        return "stall" if ending.limit is Reason.STALLED else "limit", _LIMITS[ending.limit]
    if ending.exit.fault is not None:
        return "protocol", ending.exit.fault
    if ending.exit.lost is not None:
        return "signal", f"its process was lost: {ending.exit.lost}"
    return None, ""


def _signal_name(number: int) -> str:
    """``SIGSEGV`` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def was_lost(end: Exit) -> bool:
    """Whether the child vanished from outside, so that nobody erred."""
    return end.lost is not None or (end.signal in _FROM_OUTSIDE)


def _reached(task: Task, ending: Ending) -> int:
    """The sequence of its last checkpoint, whether or not the store had heard of it."""
    last = ending.checkpoint or task.checkpoint
    return last.sequence if last else 0


def _step(task: Task, ending: Ending, retry: Retry, moment: Moment) -> Change:
    at, attempt = moment.at, task.attempt
    report = ending.report
    if ending.unreadable is not None:
        error = error_of(ending, attempt)
        return Change(task=task, event=Event.REFUSED, at=at, reason=Reason.STATE_UNREADABLE, error=error)
    if isinstance(report, wire.Completed) and ending.exit.fault is None:
        return Change(task=task, event=Event.COMPLETED, at=at, result=report.result, error=None)
    if ending.stopped or (ending.forced and ending.limit is None):
        return _paused(task, ending, moment)
    if ending.limit is not None:
        return Change(task=task, event=Event.REFUSED, at=at, reason=ending.limit, error=error_of(ending, attempt))
    if report is None and ending.exit.fault is None and was_lost(ending.exit):
        return _drained_or_lost(task, ending, moment)
    return _errored(task, ending, retry, moment)


def _paused(task: Task, ending: Ending, moment: Moment) -> Change:
    if task.status is Status.RUNNING and task.stream and not moment.draining:
        why = ending.disconnected or Reason.DISCONNECTED
        return Change(task=task, event=Event.DISCONNECTED, at=moment.at, reason=why)
    if task.status is Status.RUNNING:  # nobody paused it: we are going down, and asked every child to stop
        return Change(task=task, event=Event.DRAINED, at=moment.at, reason=_stream_reason(task))
    reason = Reason.REQUESTED if ending.stopped else Reason.FORCED
    return Change(task=task, event=Event.STOPPED, at=moment.at, reason=reason)


def _stream_reason(task: Task) -> Reason | None:
    """Why a task whose child vanished is where it then is."""
    if task.status is Status.PAUSING:
        return Reason.REQUESTED
    return Reason.DISCONNECTED if task.stream else None


def _drained_or_lost(task: Task, ending: Ending, moment: Moment) -> Change:
    if task.status is Status.TERMINATING:  # not lost: we killed it
        return Change(task=task, event=Event.TERMINATE, at=moment.at)
    if moment.draining:
        reason = Reason.FORCED if task.status is Status.PAUSING else _stream_reason(task)
        return Change(task=task, event=Event.DRAINED, at=moment.at, reason=reason)
    return _loss(task, _reached(task, ending), moment.at)


def _errored(task: Task, ending: Ending, retry: Retry, moment: Moment) -> Change:
    report, error = ending.report, error_of(ending, task.attempt)
    base = Change(task=task, event=Event.ERRORED, at=moment.at, error=error)
    if isinstance(report, wire.Errored) and report.refusal is not None:
        return replace(base, event=Event.REFUSED, reason=Reason(report.refusal))
    if isinstance(report, wire.Errored) and report.no_space:
        # In `pausing` the table has no other stop than the one that was asked for; the error says what it met.
        return replace(base, event=Event.STOPPED, reason=Reason.NO_SPACE)
    if task.stream and not (isinstance(report, wire.Errored) and report.final):
        return replace(base, reason=Reason.ERRORED if task.status is Status.PAUSING else Reason.DISCONNECTED)
    left = task.errors_left - 1
    if left <= 0 or (isinstance(report, wire.Errored) and report.final):
        return replace(base, event=Event.EXHAUSTED, reason=Reason.EXHAUSTED, errors_left=max(left, 0))
    if task.status is Status.PAUSING:
        return replace(base, reason=Reason.ERRORED, errors_left=left)
    wait_s = retries.backoff_s(retry, retry.errors - 1 - left, moment.uniform)
    return replace(base, errors_left=left, due_at=moment.at + wait_s)
