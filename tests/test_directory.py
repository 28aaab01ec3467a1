"""The service ``team`` without processes: its rows, its files, and each of them once from every checkpoint."""

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_task import FakeTask, Saved, attempt, inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from intermission.handlers import Fatal, Invalid, Upload, directory, records, team
from intermission.handlers.directory import Directory, Entry, Position

Json = dict[str, Any]
UPLOAD_ID = "01934567-89ab-7def-8123-456789abcdef"
FILE = f"upload:{UPLOAD_ID}"
MEMORY = next(filter(os.path.isdir, ["/dev/shm"]), None)  # noqa: S108 -- a folder of its own in it, where a transaction need not wait for a disk
ROWS = [
    ("red", "ada@example.org", "Ada", "lead"),
    ("red", "grace@example.org", "", ""),
    ("blue", "ADA@example.org", "", ""),
    ("red", "Ada@Example.org", "", ""),
    ("red", "nobody", "", ""),
    ("", "x@example.org", "", ""),
    ("green", "", "", ""),
    ("blue", "d'arcy+x@sub.example.org", 'D\'Arcy, "F"', ""),
    ("red", "last@example.org", "naïve", "b"),
]
REJECTED = [
    (5, "the team has this e-mail from an earlier row"),
    (6, "not an e-mail address"),
    (7, "no team"),
    (8, "no e-mail"),
]


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder in memory."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches and transactions."""
    monkeypatch.setattr(records, "BATCH_BYTES", 40)
    monkeypatch.setattr(team, "BATCH_ROWS", 2)
    monkeypatch.setattr(team, "_REPORTED_AT_ONCE", 2)


def given_as(root: Path, form: str) -> tuple[Json, dict[str, Upload]]:
    """The rows above in one of the ways to send them: the params, and the uploads that they name."""
    match form:
        case "csv":
            return uploaded(root, csv_of(ROWS), "a.csv")
        case "jsonl":
            keys = ("team", "email", "name", "role")
            return uploaded(root, "\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in ROWS), "a.jsonl")
    teams: list[Json] = []
    for name, rows in itertools.groupby(ROWS, key=lambda row: row[0]):
        teams.append({"name": name, "members": [{"email": r[1], "name": r[2], "role": r[3]} for r in rows]})
    return uploaded(root, json.dumps({"teams": teams}), "a.json") if form == "json" else ({"teams": teams}, {})


def csv_of(rows: list[tuple[str, str, str, str]]) -> str:
    """As CSV, its columns in another order than ours."""
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    return "".join(f"{e},{t},{r},{n}\n" for t, e, n, r in [("Team", " email", "name", "ROLE"), *quoted])


def uploaded(root: Path, text: str | bytes, filename: str | None) -> tuple[Json, dict[str, Upload]]:
    """An upload with this content."""
    path = root / "content"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {"file": FILE}, {UPLOAD_ID: Upload(UPLOAD_ID, path, filename, "text/plain", path.stat().st_size, "00")}


def run(root: Path, params: Json, uploads: dict[str, Upload] | None = None, **more: Any) -> Any:
    """Run a task to its end, or to where it pauses."""
    return attempt(team.team, params, root / "task", sources=root / "sources", uploads=uploads, **more)


def tables(root: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in the directory, but for the times."""
    with closing(sqlite3.connect(root / "directory.db")) as connection:
        queries = {
            "team": "SELECT user, name, members, task FROM team ORDER BY id",
            "member": "SELECT t.name, m.email, m.name, m.role, m.task FROM member m JOIN team t ON t.id = m.team"
            " ORDER BY t.id, m.address",
            "position": "SELECT * FROM position",
            "rejected": "SELECT * FROM rejected",
        }
        return {table: connection.execute(query).fetchall() for table, query in queries.items()}


def emails(root: Path) -> list[tuple[str, str]]:
    """Each member as team and e-mail."""
    return [(row[0], row[1]) for row in tables(root)["member"]]


# What is added, and what is not.


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "inline"])
def test_every_way_to_send_rows_adds_the_same(root: Path, form: str) -> None:
    """A team once, a member of it once, the rest rejected; and the directory keeps nothing else of the task."""
    done = run(root, *given_as(root, form))
    found = tables(root)
    named = [] if form in {"csv", "jsonl"} else [("local", "green", 0, "0193")]  # a team that was asked for by name
    assert found["team"] == [("local", "red", 3, "0193"), ("local", "blue", 2, "0193"), *named]
    assert found["member"] == [
        ("red", "ada@example.org", "Ada", "lead", "0193"),
        ("red", "grace@example.org", None, None, "0193"),
        ("red", "last@example.org", "naïve", "b", "0193"),
        ("blue", "ADA@example.org", None, None, "0193"),
        ("blue", "d'arcy+x@sub.example.org", 'D\'Arcy, "F"', None, "0193"),
    ]
    assert (found["position"], found["rejected"]) == ([], [])
    assert (done.result.teams, done.result.members) == (2 + len(named), 5)
    reasons = [one.reason for one in done.result.rejected_rows]
    wanted = [reason for _, reason in REJECTED]
    assert reasons == (wanted if not named else [*wanted[:2], "no team", *wanted[2:]])
    assert done.result.rejected == len(reasons)


def test_rejected_rows_say_where_they_stand(root: Path) -> None:
    """In a file by their line, counted with the header; without one by their pointer. The output has them all."""
    params, uploads = given_as(root, "csv")
    done = run(root, params, uploads)
    assert [(one.line, one.reason) for one in done.result.rejected_rows] == REJECTED
    assert (root / "task" / "rejected.csv").read_text().splitlines()[:3] == [
        "line,pointer,team,email,reason",
        "5,,red,Ada@Example.org,the team has this e-mail from an earlier row",
        "6,,red,nobody,not an e-mail address",
    ]
    done = run(root, {"teams": [{"name": "red", "members": [{"email": "new@x"}, {"email": "x y@z"}]}]})
    assert [(one.line, one.pointer) for one in done.result.rejected_rows] == [(None, "/teams/0/members/1")]


def test_nothing_rejected_leaves_no_output(root: Path) -> None:
    """An empty list of faults is no file."""
    done = run(root, {"teams": [{"name": "red", "members": [{"email": "a@x"}]}, {"name": "empty"}]})
    assert (done.result.teams, done.result.members, done.result.rejected) == (2, 1, 0)
    assert not (root / "task" / "rejected.csv").exists()


def test_many_rejected_rows_are_all_in_the_output(root: Path) -> None:
    """The result has the first twenty, so that it stays small."""
    done = run(root, {"teams": [{"name": "red", "members": [{"email": f"x{n}"} for n in range(1200)]}]})
    assert (done.result.rejected, len(done.result.rejected_rows)) == (1200, 20)
    lines = (root / "task" / "rejected.csv").read_text().splitlines()
    assert lines[1:] == [f",/teams/0/members/{n},red,x{n},not an e-mail address" for n in range(1200)]


def test_what_was_there_before_stays_as_it_is(root: Path) -> None:
    """A team of the same user gets the new members, one who is in it already is rejected; other users' are others."""
    run(root, {"teams": [{"name": "red", "members": [{"email": "old@x", "role": "lead"}]}]})
    other(root, user="local", rows=[("red", "second@x")])
    other(root, user="eve", rows=[("red", "old@x")])
    done = run(
        root, {"teams": [{"name": "red", "members": [{"email": "OLD@x"}, {"email": "second@X"}, {"email": "n@x"}]}]}
    )
    assert (done.result.teams, done.result.members) == (0, 1)
    assert [one.reason for one in done.result.rejected_rows][1] == "the team has this e-mail already"
    assert [row[:3] for row in tables(root)["team"]] == [("local", "red", 3), ("eve", "red", 1)]


def other(root: Path, user: str, rows: list[tuple[str, str]], task: str = "other") -> None:
    """Another task adds these."""
    with closing(Directory(root / "directory.db", task, user)) as opened:
        entries = [Entry(n, None, name, email) for n, (name, email) in enumerate(rows)]
        opened.add(entries, Position(), (1, 1), strict=True)
        opened.forget()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("red,", "no e-mail"),
        (",a@x", "no team"),
        ("  ,a@x", "no team"),
        ("red,a", "not an e-mail address"),
        ("red,@x", "not an e-mail address"),
        ("red,a@", "not an e-mail address"),
        ("red,a@b@c", "not an e-mail address"),
        ("red,a b@x", "not an e-mail address"),
        ("red,a@x\u00a0y", "not an e-mail address"),
        ("red,a@x\x07", "not an e-mail address"),
        ("red,Ada <a@x>", "not an e-mail address"),
        ("red," + "a" * 253 + "@x", "the e-mail has more than 254 characters"),
        ("r" * 201 + ",a@x", "the team has more than 200 characters"),
        ('"r\ned",a@x', "the team has a control character"),
        ("red,a@x,1", "3 cells where the header has 2"),
        ("red", "1 cell where the header has 2"),
        ("red," + "a" * 252 + "@x", None),
        ('  red  ,"\ta@x "', None),
        ("ré d,ü@ö", None),
    ],
)
def test_which_rows_are_good(root: Path, row: str, reason: str | None) -> None:
    """One @ with something on each side, no blanks, and not without end."""
    done = run(root, *uploaded(root, f"team,email\n{row}\n", "a.csv"))
    assert [(one.line, one.reason) for one in done.result.rejected_rows] == ([(2, reason)] if reason else [])
    assert len(emails(root)) == (not reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{}", "'team': Field required"),
        ('{"team": "red"}', "'email': Field required"),
        ('{"team": "red", "email": null}', "'email': Input should be a valid string"),
        ('{"team": "red", "email": "a@x", "name": 5}', "'name': Input should be a valid string"),
        ('{"team": "red", "email": "a@x", "age": 5}', "'age': Unknown field"),
        ('{"team": "red", "email": "a@x"', "not JSON: Expecting ',' delimiter at line 1, column 31"),
        ('["red", "a@x"]', "Input should be an object"),
        ('{"team": "red", "email": "a\\ud800@x"}', r"a string holds half of a surrogate pair (\ud800 to \udfff)"),
        ('{"team": "red", "email": "a@x", "name": null}', None),
    ],
)
def test_which_lines_of_json_are_good(root: Path, row: str, reason: str | None) -> None:
    """A line that is broken takes no others along."""
    text = f'{{"team": "red", "email": "1@x"}}\n\n{row}\n{{"team": "red", "email": "2@x"}}'
    done = run(root, *uploaded(root, text, "a.ndjson"))
    assert [(one.line, one.reason) for one in done.result.rejected_rows] == ([(3, reason)] if reason else [])
    assert done.result.members == (2 if reason else 3)


def test_huge_cells_do_not_fill_the_directory(root: Path) -> None:
    """What is shown of a rejected row is cut."""
    done = run(root, *uploaded(root, "team,email\n" + "t" * 400_000 + "," + "e" * 400_000 + "\n", "a.csv"))
    (one,) = done.result.rejected_rows
    assert (len(one.team), len(one.email)) == (200, 254)


# Stopping at the first bad row.


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", ["csv", "jsonl", "inline"])
def test_stop_keeps_what_came_before_the_first_bad_row(root: Path, form: str) -> None:
    """Also within a transaction; a resume fails there again, and adds nothing twice."""
    params, uploads = given_as(root, form)
    start: Saved | None = None
    for _ in range(3):
        task = fake(root, params | {"on_error": "stop"}, uploads, start)
        with pytest.raises(Fatal) as caught:
            team.team.run(task)
        task.close()
        place = {"csv": "line 5", "jsonl": "line 4", "inline": "/teams/2/members/0"}[form]
        assert str(caught.value) == f"{place}: the team has this e-mail from an earlier row"
        assert emails(root) == [("red", "ada@example.org"), ("red", "grace@example.org"), ("blue", "ADA@example.org")]
        (position,) = tables(root)["position"]
        assert position[3:] == (2, 3, 0)
        assert (task.state.members, task.state.offset) == (3, position[1])
        start = task.saved[-1]


def test_a_file_that_breaks_keeps_what_came_before(root: Path) -> None:
    """A quote that is never closed cannot be skipped."""
    task = fake(root, *uploaded(root, 'team,email\nred,a@x\nred,b@x\nred,"c@x\n', "a.csv"))
    with pytest.raises(Fatal, match="line 4: a quote that is never closed"):
        team.team.run(task)
    task.close()
    assert emails(root) == [("red", "a@x"), ("red", "b@x")]


def fake(root: Path, params: Json, uploads: dict[str, Upload], start: Saved | None = None) -> FakeTask:
    """A task whose end is for the test to see."""
    checked = team.team.params.check(params)
    return FakeTask(team.team, checked, root / "task", inputs(root / "sources", uploads), start)


# Pauses and losses.


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "inline"])
def test_every_row_once_from_every_checkpoint(root: Path, form: str) -> None:
    """Interrupted after any checkpoint, and carried on from that or any earlier one: nothing is there twice or missing.

    An earlier one is what remains if the process is killed after the directory has committed and before the checkpoint
    is saved. From before the last, which says that all is done, nothing can be carried on once that is committed.
    """
    params, uploads = given_as(root, form)
    whole = run(root, params, uploads)
    expected, report = tables(root), (root / "task" / "rejected.csv").read_bytes()
    last = len(whole.saved)
    assert last >= 7
    for end, begin in itertools.product(range(1, last + 1), range(last + 1)):
        if begin > end or (end == last and begin < last):
            continue
        (root / "directory.db").unlink()
        shutil.rmtree(root / "task")
        paused = run(root, params, uploads, pause_at=end)
        assert paused.saved == whole.saved[:end]
        done = run(root, params, uploads, start=whole.saved[begin - 1] if begin else None)
        assert done.result == whole.result
        assert tables(root) == expected
        assert (root / "task" / "rejected.csv").read_bytes() == report


WORDS = st.sampled_from(["a@x", "A@x", "b@x", "c@x", "bad", "", "d@y"])
LINES = st.lists(st.tuples(st.sampled_from(["red", "blue", ""]), WORDS), max_size=14)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    rows=LINES,
    before=st.lists(
        st.tuples(st.sampled_from(["red", "blue"]), st.sampled_from(["a@x", "d@y"])), unique=True, max_size=2
    ),
    stops=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=5),
    batch_rows=st.integers(1, 4),
)
def test_any_rows_and_any_losses(
    rows: list[tuple[str, str]], before: list[tuple[str, str]], stops: list[tuple[int, int]], batch_rows: int
) -> None:
    """Random rows, rows that are there already, and stops that lose some checkpoints: as a set would have it."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(team, "BATCH_ROWS", batch_rows)
        root = Path(folder)
        other(root, "local", before)
        params, uploads = uploaded(root, "team,email\n" + "".join(f"{t},{e}\n" for t, e in rows), "a.csv")
        done = run_with_losses(root, params, uploads, stops)
        found = {(name, email.lower()) for name, email in emails(root)}
        task_teams = [name for _, name, _, task in tables(root)["team"] if task == "0193"]
        left = tables(root)
    known, bad = set(before), []
    for line, (name, email) in enumerate(rows, 2):
        if not name or "@" not in email or (name, email.lower()) in known:
            bad.append(line)
        else:
            known.add((name, email.lower()))
    assert found == known
    assert done.members == len(known) - len(before)
    assert (done.teams, done.rejected) == (len(task_teams), len(bad))
    assert [one.line for one in done.rejected_rows] == bad
    assert left["position"] == left["rejected"] == []
    assert {(name, count) for _, name, count, _ in left["team"]} == {
        (name, sum(t == name for t, _ in known)) for name in {t for t, _ in known}
    }


def run_with_losses(root: Path, params: Json, uploads: dict[str, Upload], stops: list[tuple[int, int]]) -> Any:
    """Run to the end; each stop is a checkpoint to stop at, and how many of the last ones are lost."""
    kept: list[Saved] = []
    for number, lost in [*stops, (None, 0)]:
        end = run(root, params, uploads, start=kept[-1] if kept else None, pause_at=number)
        kept += end.saved
        if end.result is not None:
            return end.result
        if not json.loads(kept[-1].state)["finished"]:
            kept = kept[: max(len(kept) - lost, 0)]
    raise AssertionError


def test_a_directory_that_was_exchanged_is_noticed(root: Path) -> None:
    """Carrying on in another one would add the second half alone, and say that all is done."""
    params, uploads = given_as(root, "csv")
    saved = run(root, params, uploads, pause_at=1).saved[-1]
    (root / "directory.db").unlink()
    task = fake(root, params, uploads, saved)
    with pytest.raises(Fatal, match="the directory does not know what this task has added"):
        team.team.run(task)
    task.close()


# Cleaning up.


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("checkpoint", [1, 3, 5])
def test_clean_removes_what_the_task_added_and_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: int
) -> None:
    """Others' teams and members stay, also a team of the task's that has members of others: one of those has it then.

    Twice is as once.
    """
    monkeypatch.setattr(directory, "_DELETED_AT_ONCE", 2)
    params, uploads = given_as(root, "csv")
    other(root, "local", [("blue", "first@x")], "earlier")
    other(root, "eve", [("red", "ada@example.org")], "eves")
    saved = run(root, params, uploads, pause_at=checkpoint).saved[-1]
    other(root, "local", [("red", "theirs@x")], "later")
    for _ in range(2):
        task = fake(root, params, uploads, saved)
        for clean in team.team.cleans:
            clean(task)
        found = tables(root)
        assert found["team"] == [
            ("local", "blue", 1, "earlier"),
            ("eve", "red", 1, "eves"),
            ("local", "red", 1, "later"),
        ]
        assert [row[1] for row in found["member"]] == ["first@x", "ada@example.org", "theirs@x"]
        assert (found["position"], found["rejected"]) == ([], [])


@pytest.mark.parametrize("order", list(itertools.permutations(["first", "second", "third"])))
def test_a_team_goes_with_the_last_who_has_members_in_it(root: Path, order: tuple[str, ...]) -> None:
    """Whoever created it, and in whatever order they are removed; never before."""
    for task in ("first", "second", "third"):
        other(root, "local", [("red", f"{task}@x")], task)
    for number, task in enumerate(order, 1):
        for _ in range(2):  # as after a crash
            with closing(Directory(root / "directory.db", task, "local")) as opened:
                opened.remove()
        assert [row[2] for row in tables(root)["team"]] == ([3 - number] if number < 3 else [])


def test_a_team_stays_with_members_of_no_task(root: Path) -> None:
    """Another program has added them: the team is nobody's then, and no task takes it away."""
    other(root, "local", [("red", "ada@x")], "first")
    with closing(sqlite3.connect(root / "directory.db")) as connection:
        connection.execute("INSERT INTO member SELECT id, 'by@hand', 'by@hand', NULL, NULL, NULL, 0 FROM team")
        connection.commit()
    other(root, "local", [("red", "grace@x")], "second")
    for task in ("first", "second"):
        with closing(Directory(root / "directory.db", task, "local")) as opened:
            opened.remove()
    assert tables(root)["team"] == [("local", "red", 1, None)]


def test_clean_of_a_task_that_added_nothing(root: Path) -> None:
    """It may have been terminated before its first row, with no directory there yet."""
    task = fake(root, {"teams": [{"name": "red"}]}, {})
    for clean in team.team.cleans:
        clean(task)
    assert tables(root)["team"] == []


# What refuses a start.


@pytest.mark.parametrize(
    ("params", "faults"),
    [
        ({}, {"": "give either teams or file"}),
        ({"teams": [{"name": "a"}], "file": FILE}, {"": "give either teams or file"}),
        ({"teams": []}, {"/teams": "List should have at least 1 item after validation, not 0"}),
        (
            {"teams": [{"members": [{"name": "x"}]}]},
            {"/teams/0/name": "Field required", "/teams/0/members/0/email": ""},
        ),
        ({"teams": [{"name": 5, "x": 1}]}, {"/teams/0/name": "", "/teams/0/x": "Unknown field"}),
        ({"teams": "red"}, {"/teams": "Input should be a valid array"}),
        ({"file": "flights"}, {"/file": "Input should be upload: and the id of a completed upload"}),
        ({"file": "upload:../x"}, {"/file": "Input should be upload: and the id of a completed upload"}),
        ({"file": FILE[:-1] + "0"}, {"/file": f"there is no {FILE[:-1]}0"}),
        ({"teams": [{"name": "a"}], "on_error": "ignore"}, {"/on_error": "Input should be 'skip' or 'stop'"}),
    ],
)
def test_params_that_do_not_fit(root: Path, params: Json, faults: dict[str, str]) -> None:
    """Exactly one of both, each field of its type, none unknown, at any depth."""
    found = refused(root, params)
    assert found.keys() == faults.keys()
    assert all(found[pointer].startswith(message) for pointer, message in faults.items())


@pytest.mark.parametrize(
    ("filename", "content", "message"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.json", b"", "the file is empty"),
        (None, b"\n", "the header has no column 'team': there may be team, email, name, role"),
        ("a.csv", b"red,ada@example.org\n", "the header has no column 'team'"),
        ("a.csv", b"team,mail\nred,a@x\n", "the header has no column 'email'"),
        ("a.csv", b"team;email\n", "the header has no column 'team'"),
        ("a.csv", b"team,email,age\n", "the header has a column 'age': there may be team, email, name, role"),
        ("a.csv", b"team,email,Team\n", "the header has 2 columns 'team'"),
        ("a.csv", b"team,em\xffail\n", "line 1: not UTF-8"),
        ("a.json", b" " * (8 << 20) + b"{}", "a JSON document may have 8 MiB; send a larger one as JSON Lines or CSV"),
    ],
)
def test_files_that_are_refused_at_once(root: Path, filename: str, content: bytes, message: str) -> None:
    """Whatever their first line or their size shows."""
    params, uploads = uploaded(root, content, filename)
    found = refused(root, params, uploads)
    assert list(found) == ["/file"]
    assert found["/file"].startswith(message)
    assert not (root / "directory.db").exists()


def refused(root: Path, params: Json, uploads: dict[str, Upload] | None = None) -> dict[str, str]:
    """The faults that refuse a start, by pointer."""
    with pytest.raises(Invalid) as caught:
        run(root, params, uploads)
    return {fault.pointer: fault.message for fault in caught.value.faults}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"teams": [{"name": "red", "members": [{"mail": "x"}]}]}', "/teams/0/members/0/email: Field required"),
        ("[]", "Input should be an object"),
        ('{"teams": [', "not JSON"),
    ],
)
def test_a_document_that_does_not_fit_fails_the_task(root: Path, text: str, message: str) -> None:
    """It is read in the child alone, and adds nothing."""
    task = fake(root, *uploaded(root, text, "a.json"))
    with pytest.raises(Fatal) as caught:
        team.team.run(task)
    task.close()
    assert str(caught.value).startswith(f"{FILE}: ")
    assert message in str(caught.value)
    assert emails(root) == []


def test_the_upload_is_named() -> None:
    """What the server must keep while the task is unfinished; nothing where there is none."""
    (named,) = team.team.references
    assert named(team.team.params.check({"file": FILE})) == {"/file": FILE}
    assert named(team.team.params.check({"teams": [{"name": "a"}]})) == {}
    assert team.team.body == "file"


# The database.


def test_lists_are_pages_of_one_users_teams(root: Path) -> None:
    """The newest first; a directory that nobody has made yet is empty."""
    path = root / "directory.db"
    assert directory.teams(path, "local", None, 10) == []
    path.touch(0o600)
    assert directory.teams(path, "local", None, 10) == []
    other(root, "local", [(f"t{n}", f"{m}@x") for n in range(5) for m in range(n + 1)])
    other(root, "eve", [("hers", "a@x")])
    page = directory.teams(path, "local", None, 3)
    assert [(one.name, one.members, one.task) for one in page] == [
        ("t4", 5, "other"),
        ("t3", 4, "other"),
        ("t2", 3, "other"),
    ]
    assert [one.name for one in directory.teams(path, "local", page[-1].id, 3)] == ["t1", "t0"]


def test_the_directory_is_its_owners_alone(root: Path) -> None:
    """Wherever it stands: people's addresses are in it."""
    other(root, "local", [("red", "a@x")])
    assert {path.stat().st_mode & 0o777 for path in root.glob("directory.db*")} == {0o600}


def test_a_directory_of_a_newer_version_is_left_alone(root: Path) -> None:
    """What a newer server has made of it, this one does not know."""
    path = root / "directory.db"
    with closing(Directory(path, "x", "y")) as opened:
        opened._connection.execute("PRAGMA user_version = 2")
    with pytest.raises(sqlite3.DatabaseError, match="the directory has version 2, and this code knows version 1"):
        Directory(path, "x", "y")


HALF = """
import os, signal, sys
from pathlib import Path
from intermission.handlers.directory import Directory, Entry, Position
opened = Directory(Path(sys.argv[1]), "killed", "local")
opened._connection.execute("PRAGMA cache_size = 1")  # so that much is on disk before the commit
connection = opened._connection
class Killing:
    def __getattr__(self, name): return getattr(connection, name)
    def execute(self, statement, *values):
        if statement == "COMMIT":
            os.kill(os.getpid(), signal.SIGKILL)
        return connection.execute(statement, *values)
opened._connection = Killing()
opened.add([Entry(n, None, f"t{n % 9}", f"{n}@x") for n in range(3000)], Position(), (1, 1), strict=True)
"""


def test_a_reader_is_first_after_a_kill_in_the_middle(root: Path) -> None:
    """Half a transaction is on disk: whoever comes first undoes it, and it may be a list."""
    path = root / "directory.db"
    other(root, "local", [("before", "a@x")])
    done = subprocess.run([sys.executable, "-c", HALF, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.path.getsize(f"{path}-journal") > 0
    assert [(one.name, one.members) for one in directory.teams(path, "local", None, 10)] == [("before", 1)]
    assert emails(root) == [("before", "a@x")]


WAITING = """
import sys
from intermission.handlers.directory import _Queue
queue = _Queue(sys.argv[1])
print("asks", flush=True)
print(queue.enter(), flush=True)
sys.stdin.read()
"""


def test_writers_come_in_their_order_and_the_dead_leave_the_queue(root: Path) -> None:
    """Three wait for the first; the second of them is killed, and the last is then behind the one before."""
    path = str(root / "queue")
    queue = directory._Queue(path)
    ticket = queue.enter()
    command = [sys.executable, "-c", WAITING, path]
    with contextlib.ExitStack() as stack:
        waiting = []
        for number in (2, 3, 4):
            one = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(one.kill)
            assert one.stdout is not None
            assert one.stdout.readline() == "asks\n"
            deadline = time.monotonic() + 20
            while int.from_bytes(Path(path).read_bytes(), "big") < number:
                assert time.monotonic() < deadline
            waiting.append(one)
        second, third, fourth = waiting
        third.kill()
        third.wait()
        assert not select.select([second.stdout, fourth.stdout], [], [], 0)[0]
        queue.leave(ticket)
        for one, number in [(second, 2), (fourth, 4)]:
            assert one.stdout is not None
            assert one.stdout.readline() == f"{number}\n"
            one.communicate()
    queue.close()


def test_a_full_disk_is_an_error_of_the_disk(root: Path) -> None:
    """So the task pauses until there is space; the transaction leaves nothing."""
    with closing(Directory(root / "directory.db", "task", "local")) as opened:
        opened._connection.execute("PRAGMA max_page_count = 20")
        entries = [Entry(n, None, "red", f"{n:0100}@x") for n in range(2000)]
        with pytest.raises(OSError, match="No space left"):
            opened.add(entries, Position(), (1, 1), strict=True)
        assert opened.position() is None
    assert emails(root) == []
