"""Where a task goes on: the newest checkpoint whose outputs are all there."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from intermission.state.models import Checkpoint
from intermission.supervisor.process.slot import SlotWriter
from intermission.supervisor.restore import UnreadableError, durable, last, newest


def row(sequence: int, **outputs: int) -> Checkpoint:
    """A checkpoint as the store has it."""
    return Checkpoint(sequence=sequence, attempt=1, version=1, state="{}", outputs=outputs, progress=None, saved_at=0.0)


def slots(folder: Path, *lengths: int) -> None:
    """One checkpoint for each length of the file ``out``."""
    to = SlotWriter(folder, attempt=1, version=1, base=0)
    for length in lengths:
        to.write(b"{}", {"out": length}, None, None, None)


def out(folder: Path, size: int) -> None:
    """The output on disk."""
    (folder / "files").mkdir(exist_ok=True)
    (folder / "files" / "out").write_bytes(b"x" * size)


def test_never_saved(tmp_path: Path) -> None:
    """No slot and no row: it starts from the beginning."""
    assert newest(tmp_path, None) is None


def test_the_last_state_is_there_without_the_outputs(tmp_path: Path) -> None:
    """After a SIGKILL between a terminated task's files and its row `clean` runs again, and must know what to undo."""
    assert last(tmp_path, None) is None
    found = last(tmp_path, row(4, out=10))
    assert found is not None
    assert found.sequence == 4
    slots(tmp_path, 10, 20, 30, 40, 50)
    found = last(tmp_path, row(4, out=10))
    assert found is not None
    assert (found.sequence, found.outputs) == (5, {"out": 50})


def test_the_newer_of_slot_and_row_wins(tmp_path: Path) -> None:
    """A SIGKILL between slot and commit loses nothing; a row newer than the slots is possible after a power cut."""
    out(tmp_path, 100)
    slots(tmp_path, 10, 20, 30)
    found = newest(tmp_path, row(1, out=10))
    assert found is not None
    assert (found.sequence, found.outputs) == (3, {"out": 30})
    found = newest(tmp_path, row(9, out=90))
    assert found is not None
    assert found.sequence == 9


def test_a_short_output_leads_to_the_next_older(tmp_path: Path) -> None:
    """A checkpoint that says more than the file holds is passed over."""
    out(tmp_path, 25)
    slots(tmp_path, 10, 20, 30)
    found = newest(tmp_path, row(1, out=10))
    assert found is not None
    assert found.sequence == 2


def test_none_that_fits_is_an_error_not_a_restart(tmp_path: Path) -> None:
    """Work is never thrown away in silence."""
    out(tmp_path, 5)
    slots(tmp_path, 10, 20, 30)
    with pytest.raises(UnreadableError, match="out"):
        newest(tmp_path, row(1, out=10))


def test_a_missing_output_is_a_short_one(tmp_path: Path) -> None:
    """A file that was deleted does not count as empty unless the checkpoint says so."""
    slots(tmp_path, 0)
    found = newest(tmp_path, None)
    assert found is not None
    with pytest.raises(UnreadableError):
        newest(tmp_path / "nowhere", row(5, gone=1))


def test_durable_syncs_what_it_returns(tmp_path: Path) -> None:
    """The outputs that a checkpoint names are synced; one that is missing cannot be."""
    out(tmp_path, 30)
    slots(tmp_path, 30)
    found = durable(tmp_path, None)
    assert found is not None
    assert found.sequence == 1


def test_what_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that the child has not synced itself, and the names that lead to them once in an attempt."""
    synced: list[str] = []

    def note(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "fdatasync", note)
    out(tmp_path, 100)
    slots(tmp_path, 10, 20, 30)
    names = ["files", tmp_path.name, tmp_path.parent.name]

    def of(known: Checkpoint | None, by_child: int) -> list[str]:
        synced.clear()
        durable(tmp_path, known, by_child)
        return synced.copy()

    assert of(None, 0) == ["out", *names]
    assert of(None, 3) == names
    assert of(row(1, out=10), 0) == ["out"]
    assert of(row(1, out=10), 2) == ["out"]
    assert of(row(1, out=10), 3) == []
    assert of(row(1, other=10), 3) == names
    assert of(replace(row(1, out=10), attempt=7), 3) == names
    assert of(row(3, out=30), 0) == []
