"""The life of a task, against the table of the design written out a second time."""

import pytest

from intermission.state.status import (
    RESTING,
    STREAM_TABLE,
    TABLE,
    VERBS,
    WITH_CHILD,
    Event,
    Reason,
    Status,
    after,
    allowed,
)

LIFE = """
pending      claimed → running · pause → paused · terminate → terminating · refused → failed
running      pause → pausing · terminate → terminating · completed → completed · errored → retrying
running      exhausted → failed · refused → failed · stopped → paused
running      drained → pending · lost → pending · preempted → pending
pausing      pause → pausing · terminate → terminating · stopped → paused · completed → completed
pausing      errored → paused · lost → paused · drained → paused · exhausted → failed · refused → failed
paused       resume → pending · pause → paused · terminate → terminating
retrying     due → pending · resume → pending · pause → paused · terminate → terminating
terminating  terminate → terminating · claimed → terminating · lost → terminating · drained → terminating
terminating  errored → terminating · cleaned → gone · clean_failed → failed
completed    delete → gone
failed       resume → pending · terminate → terminating
"""
"""What leads where. ``stopped`` while running is a full disk; a terminating task is claimed for each try of `clean`."""

STREAM_LIFE = """
running      pause → pausing · terminate → terminating · completed → completed · disconnected → paused
running      errored → paused · lost → paused · drained → paused · stopped → paused · exhausted → failed
running      refused → failed
pausing      pause → pausing · terminate → terminating · stopped → paused · completed → completed
pausing      errored → paused · lost → paused · drained → paused · exhausted → failed · refused → failed
paused       connected → running · resume → paused · pause → paused · terminate → terminating
terminating  terminate → terminating · claimed → terminating · lost → terminating · drained → terminating
terminating  errored → terminating · cleaned → gone · clean_failed → failed
completed    delete → gone
failed       resume → paused · terminate → terminating
"""
"""The same for stream services, which begin as ``paused`` and run while a request brings their bytes."""

ALLOWED = {
    "pending": "pause terminate",
    "running": "pause terminate",
    "pausing": "terminate",
    "paused": "resume terminate",
    "retrying": "pause resume terminate",
    "terminating": "",
    "completed": "delete",
    "failed": "resume terminate",
    "gone": "",
}
"""What a person may ask for; asking again for what is under way or so is answered, but not offered."""


def edges(life: str) -> dict[tuple[str, str], str]:
    """A table, parsed."""
    found = {}
    for line in life.strip().splitlines():
        status, _, steps = line.partition(" ")
        for step in steps.split("·"):
            event, _, target = step.partition("→")
            assert (status, event.strip()) not in found
            found[status, event.strip()] = target.strip()
    return found


def reachable(start: Status, without: Status | None = None) -> set[Status]:
    """Every status that some course of events leads to."""
    found, seen = {start}, set[Status]()
    while new := found - seen:
        seen |= new
        found |= {target for (status, _), target in TABLE.items() if status in new and status is not without}
    return found


@pytest.mark.parametrize(("table", "life"), [(TABLE, LIFE), (STREAM_TABLE, STREAM_LIFE)], ids=["tasks", "streams"])
def test_the_table_is_the_design(table: dict[tuple[Status, Event], Status], life: str) -> None:
    """Edge for edge, nothing more and nothing less."""
    assert {(str(status), str(event)): str(target) for (status, event), target in table.items()} == edges(life)


def test_a_stream_task_never_waits_for_its_turn() -> None:
    """Nobody but its client can bring its bytes."""
    found = {Status.PAUSED} | {status for edge, target in STREAM_TABLE.items() for status in (edge[0], target)}
    assert found == set(Status) - {Status.PENDING, Status.RETRYING}


@pytest.mark.parametrize(
    ("status", "reason", "verbs"),
    [
        (Status.PAUSED, Reason.AWAITING_DATA, "pause resume terminate"),
        (Status.PAUSED, Reason.DISCONNECTED, "pause resume terminate"),
        (Status.PAUSED, Reason.NO_SPACE, "pause resume terminate"),
        (Status.PAUSED, Reason.REQUESTED, "resume terminate"),
        (Status.RUNNING, None, "pause terminate"),
        (Status.FAILED, Reason.EXHAUSTED, "resume terminate"),
        (Status.COMPLETED, None, "delete"),
    ],
)
def test_what_a_stream_task_allows(status: Status, reason: Reason | None, verbs: str) -> None:
    """One that waits for its client can be told to take nothing from it, and then to take it again."""
    assert " ".join(allowed(status, reason, stream=True)) == verbs


def test_every_status_can_be_reached() -> None:
    """From pending, where every task begins."""
    assert reachable(Status.PENDING) == set(Status)


@pytest.mark.parametrize("status", Status)
def test_there_is_always_a_way_to_be_gone(status: Status) -> None:
    """No task can get stuck: a person, or the supervisor alone, can end it from wherever it is."""
    assert Status.GONE in reachable(status)


def test_what_is_gone_stays_gone() -> None:
    """No event leads out of it."""
    assert [event for event in Event if after(Status.GONE, event) is not None] == []


def test_what_is_completed_can_only_be_deleted() -> None:
    """It does not run again, and there is nothing to undo."""
    assert [event for event in Event if after(Status.COMPLETED, event) is not None] == [Event.DELETE]


def test_what_is_terminating_never_runs_again() -> None:
    """But for the way through failed, where a `clean` that failed for good is parked for a person."""
    assert reachable(Status.TERMINATING, without=Status.FAILED) == {Status.TERMINATING, Status.FAILED, Status.GONE}


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.TERMINATING, Status.COMPLETED, Status.GONE}))
def test_terminate_is_possible_wherever_something_may_still_happen(status: Status) -> None:
    """A person's request outranks everything."""
    assert after(status, Event.TERMINATE) is Status.TERMINATING


@pytest.mark.parametrize("event", [Event.ERRORED, Event.LOST, Event.DRAINED])
def test_what_was_asked_for_outranks_an_error(event: Event) -> None:
    """A task that is being paused or terminated is neither retried nor carried on."""
    assert after(Status.PAUSING, event) is Status.PAUSED
    assert after(Status.TERMINATING, event) is Status.TERMINATING


@pytest.mark.parametrize("event", [Event.LOST, Event.DRAINED, Event.PREEMPTED])
def test_an_interruption_is_not_a_failure(event: Event) -> None:
    """What was running carries on."""
    assert after(Status.RUNNING, event) is Status.PENDING


@pytest.mark.parametrize("status", sorted(WITH_CHILD))
def test_whatever_may_have_a_process_can_lose_it(status: Status) -> None:
    """Recovery at start is this one event."""
    assert after(status, Event.LOST) is not None


def test_only_a_claim_leads_to_running() -> None:
    """So no process is without a row that says so, written before it."""
    assert {(status, event) for (status, event), target in TABLE.items() if target is Status.RUNNING} == {
        (Status.PENDING, Event.CLAIMED)
    }


def test_a_task_at_rest_is_moved_by_people_only() -> None:
    """Neither time nor a child takes it anywhere."""
    assert {event for status, event in TABLE if status in RESTING} <= set(VERBS)


def test_resting_and_with_a_child_are_apart() -> None:
    """And neither holds what is gone."""
    assert not RESTING & WITH_CHILD
    assert Status.GONE not in RESTING | WITH_CHILD


@pytest.mark.parametrize("status", Status)
def test_what_is_allowed(status: Status) -> None:
    """The verbs of each status, as clients see them in ``allowed`` and in a 409."""
    assert " ".join(allowed(status)) == ALLOWED[status]


@pytest.mark.parametrize("reason", Reason)
def test_a_failed_clean_is_not_resumed(reason: Reason) -> None:
    """Its effects may be half undone. Every other failure can be resumed."""
    verbs = allowed(Status.FAILED, reason)
    assert (Event.RESUME in verbs) is (reason is not Reason.CLEAN_FAILED)
    assert Event.TERMINATE in verbs


@pytest.mark.parametrize("status", Status)
def test_what_is_allowed_leads_somewhere_else(status: Status) -> None:
    """And asking again is possible where it is not offered, so that a repeated request is no conflict."""
    for verb in allowed(status):
        assert after(status, verb) not in {None, status}
    for verb in set(VERBS) - set(allowed(status)):
        assert after(status, verb) in {None, status}


@pytest.mark.parametrize(
    ("status", "verb"),
    [(Status.PAUSED, Event.PAUSE), (Status.PAUSING, Event.PAUSE), (Status.TERMINATING, Event.TERMINATE)],
)
def test_asking_again_is_no_conflict(status: Status, verb: Event) -> None:
    """It leaves the status as it is."""
    assert after(status, verb) is status
