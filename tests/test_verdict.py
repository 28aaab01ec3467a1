"""What follows from an ending: each way in which an attempt can end, for a task that runs and one that is pausing."""

from dataclasses import replace

import pytest

from intermission.handlers.base import Retry
from intermission.state.models import Checkpoint, ErrorInfo, Task
from intermission.state.status import Event, Reason, Status, after
from intermission.supervisor.attempt import Ending
from intermission.supervisor.process import wire
from intermission.supervisor.process.launcher import Exit
from intermission.supervisor.verdict import Moment, error_of, verdict

RUNNING = Task(
    id="t",
    service="s",
    user="u",
    status=Status.RUNNING,
    reason=None,
    params="{}",
    priority=0,
    labels={},
    attempt=3,
    errors_left=4,
    losses=0,
    lost_sequence=-1,
    checkpoint=None,
    result=None,
    error=None,
    created_at=0.0,
    started_at=0.0,
    finished_at=None,
    due_at=None,
    stream=False,
)
PAUSING = replace(RUNNING, status=Status.PAUSING, reason=Reason.REQUESTED)
NOW = Moment(1000.0, draining=False, uniform=max)
KILLED = Exit(signal=9)
CLEAN = Exit(exit_code=0)
RAISED = Ending(exit=Exit(exit_code=1), report=wire.Errored("exception", "ValueError", "no", "trace"))


def saved(sequence: int) -> Checkpoint:
    """A checkpoint."""
    return Checkpoint(sequence=sequence, attempt=3, version=1, state="{}", outputs={}, progress=None, saved_at=0.0)


ENDINGS = {
    "completed": (Ending(exit=CLEAN, report=wire.Completed("7")), Event.COMPLETED, Event.COMPLETED),
    "completed, then killed": (Ending(exit=KILLED, report=wire.Completed("7")), Event.COMPLETED, Event.COMPLETED),
    "paused": (Ending(exit=CLEAN, stopped=True), Event.DRAINED, Event.STOPPED),
    "paused, then raised": (replace(RAISED, stopped=True), Event.DRAINED, Event.STOPPED),
    "paused, then killed": (Ending(exit=KILLED, stopped=True), Event.DRAINED, Event.STOPPED),
    "did not pause in time": (Ending(exit=KILLED, forced=True), Event.DRAINED, Event.STOPPED),
    "raised": (RAISED, Event.ERRORED, Event.ERRORED),
    "raised for good": (
        replace(RAISED, report=wire.Errored("exception", "Fatal", "no", final=True)),
        Event.EXHAUSTED,
        Event.EXHAUSTED,
    ),
    "segfault": (Ending(exit=Exit(signal=11)), Event.ERRORED, Event.ERRORED),
    "exit without a word": (Ending(exit=CLEAN), Event.ERRORED, Event.ERRORED),
    "killed from outside": (Ending(exit=KILLED), Event.LOST, Event.LOST),
    "fork server lost": (Ending(exit=Exit(lost="it died")), Event.LOST, Event.LOST),
    "broke the protocol": (Ending(exit=Exit(signal=9, fault="garbage")), Event.ERRORED, Event.ERRORED),
    "broke the protocol after completing": (
        Ending(exit=Exit(signal=9, fault="garbage"), report=wire.Completed("7")),
        Event.ERRORED,
        Event.ERRORED,
    ),
    "paused, then over a limit": (
        Ending(exit=KILLED, stopped=True, limit=Reason.LIMIT_WALL),
        Event.DRAINED,
        Event.STOPPED,
    ),
    "over a limit, then over its grace": (
        Ending(exit=KILLED, forced=True, limit=Reason.LIMIT_WALL),
        Event.REFUSED,
        Event.REFUSED,
    ),
    "over a limit": (Ending(exit=KILLED, limit=Reason.LIMIT_WALL), Event.REFUSED, Event.REFUSED),
    "unreadable": (Ending(exit=Exit(), unreadable="short"), Event.REFUSED, Event.REFUSED),
    "full disk": (
        Ending(exit=Exit(exit_code=1), report=wire.Errored("exception", "OSError", "full", no_space=True)),
        Event.STOPPED,
        Event.STOPPED,
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_each_ending(name: str) -> None:
    """The event is the expected one, and the table knows where it leads."""
    ending, running, pausing = ENDINGS[name]
    for task, expected in ((RUNNING, running), (PAUSING, pausing)):
        change = verdict(task, ending, Retry(), NOW)
        assert change.event is expected
        assert after(task.status, change.event) is not None
        assert change.end is not None
        assert change.end.outcome is expected


def test_reasons_of_a_pause() -> None:
    """Requested if it saved its place, forced if it was ended, errored if it erred on the way, no_space as it says."""
    cases = [("paused", Reason.REQUESTED), ("did not pause in time", Reason.FORCED), ("raised", Reason.ERRORED)]
    for name, reason in [*cases, ("full disk", Reason.NO_SPACE)]:
        assert verdict(PAUSING, ENDINGS[name][0], Retry(), NOW).reason is reason


def test_errors_use_up_the_budget() -> None:
    """Four errors: three are retried, each later than the one before, the fourth is the end."""
    task, waits = RUNNING, []
    for left in (3, 2, 1):
        change = verdict(task, RAISED, Retry(base_s=1.0), NOW)
        assert (change.event, change.errors_left) == (Event.ERRORED, left)
        assert change.due_at is not None
        waits.append(change.due_at - NOW.at)
        task = replace(task, errors_left=left)
    assert waits == [1.0, 2.0, 4.0]
    change = verdict(task, RAISED, Retry(), NOW)
    assert (change.event, change.reason) == (Event.EXHAUSTED, Reason.EXHAUSTED)
    assert isinstance(change.error, ErrorInfo)
    assert change.error.message == "no"


def test_interruptions_are_free() -> None:
    """Losses never touch the retry budget."""
    change = verdict(RUNNING, ENDINGS["killed from outside"][0], Retry(), NOW)
    assert not isinstance(change.errors_left, int)


def test_losses_at_one_place() -> None:
    """The second loss is immediate, the third waits and counts as suspicious, the fifth is the end."""
    task, seen = replace(RUNNING, checkpoint=saved(7)), []
    for _ in range(5):
        change = verdict(task, Ending(exit=KILLED, checkpoint=saved(7)), Retry(), NOW)
        seen.append((change.event, change.due_at is not None))
        task = replace(task, losses=change.losses, lost_sequence=change.lost_sequence)
    assert seen == [
        (Event.LOST, False),
        (Event.LOST, False),
        (Event.LOST, True),
        (Event.LOST, True),
        (Event.REFUSED, False),
    ]


def test_progress_between_losses_forgives_them() -> None:
    """A task that gets on between its losses may be lost for ever."""
    task = RUNNING
    for n in range(1, 50):
        change = verdict(task, Ending(exit=KILLED, checkpoint=saved(n)), Retry(), NOW)
        assert (change.event, change.losses, change.due_at) == (Event.LOST, 1, None)
        task = replace(task, losses=1, lost_sequence=n, checkpoint=saved(n))


def test_losses_are_forgotten_beyond_their_place() -> None:
    """However an attempt ends that got over the place, what was lost there is past; one that did not remembers it."""
    suspect = replace(RUNNING, checkpoint=saved(7), losses=3, lost_sequence=7)
    for name, (ending, *_) in ENDINGS.items():
        change = verdict(suspect, replace(ending, checkpoint=saved(8)), Retry(), NOW)
        assert change.losses in (0, 1), name
        change = verdict(suspect, replace(ending, checkpoint=saved(7)), Retry(), NOW)
        assert change.losses == 4 or not isinstance(change.losses, int), name


def test_drained_is_not_lost() -> None:
    """While we go down, a child that had to be ended is drained: no loss is counted."""
    for task, reason in ((RUNNING, None), (PAUSING, Reason.FORCED)):
        change = verdict(task, Ending(exit=KILLED), Retry(), replace(NOW, draining=True))
        assert (change.event, change.reason) == (Event.DRAINED, reason)
        assert not isinstance(change.losses, int)


STREAM = replace(RUNNING, stream=True)
STREAM_ENDINGS = {
    "the client went away": (Ending(exit=CLEAN, stopped=True, disconnected=Reason.DISCONNECTED), "disconnected"),
    "the client will send more": (Ending(exit=CLEAN, stopped=True, disconnected=Reason.AWAITING_DATA), "awaiting_data"),
    "did not stop when its client had gone": (Ending(exit=KILLED, forced=True), "disconnected"),
    "killed": (Ending(exit=KILLED), "disconnected"),
    "lost": (Ending(exit=Exit(lost="the fork server died")), "disconnected"),
    "raised": (RAISED, "disconnected"),
    "crashed": (Ending(exit=Exit(signal=11)), "disconnected"),
    "a full disk": (replace(RAISED, report=wire.Errored("exception", "OSError", "", no_space=True)), "no_space"),
}


@pytest.mark.parametrize(("ending", "reason"), STREAM_ENDINGS.values(), ids=STREAM_ENDINGS)
def test_a_stream_task_waits_for_its_client(ending: Ending, reason: str) -> None:
    """However its request ended, nothing is launched again by itself and nothing of its budget is used up."""
    change = verdict(STREAM, ending, Retry(), NOW)
    assert STREAM.after(change.event) is Status.PAUSED
    assert change.reason == reason
    assert change.due_at is None
    assert not isinstance(change.errors_left, int)
    assert not isinstance(change.losses, int)


def test_a_stream_task_that_was_paused_or_drained() -> None:
    """A pause that was asked for stays one; a drain leaves the client to come again."""
    stopped = Ending(exit=CLEAN, stopped=True)
    pausing = replace(STREAM, status=Status.PAUSING)
    for task, draining, reason in ((pausing, False, "requested"), (STREAM, True, "disconnected")):
        change = verdict(task, stopped, Retry(), replace(NOW, draining=draining))
        assert (task.after(change.event), change.reason) == (Status.PAUSED, reason)
    assert verdict(pausing, Ending(exit=KILLED), Retry(), NOW).reason is Reason.REQUESTED
    assert verdict(pausing, RAISED, Retry(), NOW).reason is Reason.ERRORED


def test_a_stream_task_fails_only_for_good() -> None:
    """What no other request can mend."""
    fatal = replace(RAISED, report=wire.Errored("exception", "Fatal", "no", final=True))
    change = verdict(STREAM, fatal, Retry(), NOW)
    assert (STREAM.after(change.event), change.reason) == (Status.FAILED, Reason.EXHAUSTED)


def test_what_was_terminated_is_not_lost() -> None:
    """The record of the attempt says that somebody wanted it so."""
    change = verdict(replace(RUNNING, status=Status.TERMINATING), Ending(exit=KILLED), Retry(), NOW)
    assert change.end is not None
    assert (change.end.outcome, change.end.signal, change.end.error) == (Event.TERMINATE, "SIGKILL", None)


@pytest.mark.parametrize(
    ("ending", "kind", "message"),
    [
        (Ending(exit=Exit(), unreadable="too short"), "exception", "too short"),
        (Ending(exit=Exit(lost="it died")), "signal", "its process was lost: it died"),
        (Ending(exit=KILLED), "signal", "its process was killed by SIGKILL"),
        (Ending(exit=Exit(exit_code=0)), "exit", "its process exited with 0 before the handler returned"),
    ],
)
def test_words_for_an_end_without_a_word(ending: Ending, kind: str, message: str) -> None:
    """An attempt that could not say why it ended, a `clean` too, has an error that says it."""
    error = error_of(ending, 3)
    assert (error.kind, error.message, error.type, error.attempt) == (kind, message, None, 3)
