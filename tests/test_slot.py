"""The slot files: the newest whole checkpoint wins, whatever a SIGKILL left of the other."""

import os
from pathlib import Path

import pytest

from intermission.supervisor.process import slot as slots
from intermission.supervisor.process.slot import NAMES, SlotWriter, newest_sequence, read_slots


def writer(folder: Path, base: int = 0, attempt: int = 1) -> SlotWriter:
    """A writer as a child opens it."""
    return SlotWriter(folder, attempt=attempt, version=1, base=base)


def save(to: SlotWriter, text: str, outputs: dict[str, int] | None = None) -> None:
    """One checkpoint."""
    to.write(text.encode(), outputs or {}, None, None, None)


def test_nothing_saved_is_nothing_read(tmp_path: Path) -> None:
    """An empty folder, and one with fresh slot files, have no checkpoint."""
    assert read_slots(tmp_path) == []
    assert newest_sequence(tmp_path) == 0
    writer(tmp_path)
    assert read_slots(tmp_path) == []


def test_the_two_newest_are_there(tmp_path: Path) -> None:
    """Each write replaces the older slot."""
    to = writer(tmp_path)
    for n in range(1, 6):
        save(to, f"{n}")
        assert newest_sequence(tmp_path) == n
    assert [(s.sequence, s.state) for s in read_slots(tmp_path)] == [(5, b"5"), (4, b"4")]


@pytest.mark.parametrize("cut", [0, 1, 10, 23, 24, 30, -1])
def test_a_write_cut_short_is_ignored(tmp_path: Path, cut: int) -> None:
    """The newest slot is damaged at any byte: the one before is the answer."""
    to = writer(tmp_path)
    save(to, "one" * 100)
    save(to, "two" * 100)
    newest = tmp_path / NAMES[1]
    data = newest.read_bytes()
    newest.write_bytes(data[:cut] + bytes(len(data) - len(data[:cut])) if cut >= 0 else data[:-1])
    assert [s.sequence for s in read_slots(tmp_path)] == [1]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Any damaged byte of the payload fails the checksum."""
    to = writer(tmp_path)
    save(to, "one")
    path = tmp_path / NAMES[0]
    whole = path.read_bytes()
    for at in range(24, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read_slots(tmp_path) == []


def test_a_shorter_checkpoint_over_a_longer_one(tmp_path: Path) -> None:
    """What is left of a longer payload behind a shorter one does not matter."""
    to = writer(tmp_path)
    save(to, "x" * 10_000)
    save(to, "y" * 10_000)
    save(to, "z")
    assert [(s.sequence, len(s.state)) for s in read_slots(tmp_path)] == [(3, 1), (2, 10_000)]


def test_the_next_attempt_goes_on_from_its_base(tmp_path: Path) -> None:
    """The slot that holds the base is kept until there are newer ones; sequences only grow."""
    to = writer(tmp_path)
    for n in range(1, 5):
        save(to, f"{n}")
    second = writer(tmp_path, base=4, attempt=2)
    assert [s.sequence for s in read_slots(tmp_path)] == [4]
    save(second, "5")
    assert [(s.sequence, s.attempt) for s in read_slots(tmp_path)] == [(5, 2), (4, 1)]


def test_an_unfit_newer_slot_is_forgotten(tmp_path: Path) -> None:
    """A slot newer than the chosen base (its outputs were too short) must not win the next recovery."""
    to = writer(tmp_path)
    for n in range(1, 5):
        save(to, f"{n}")
    writer(tmp_path, base=3)
    assert [s.sequence for s in read_slots(tmp_path)] == [3]
    writer(tmp_path, base=2)  # base in the row: neither slot holds it
    assert read_slots(tmp_path) == []


def test_another_boot_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut the row counts: slots of another boot are not read."""
    to = writer(tmp_path)
    save(to, "1")
    monkeypatch.setattr(slots, "boot_id", lambda: "another boot")
    assert read_slots(tmp_path) == []


def test_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    """A state may hold what is nobody else's business."""
    to = writer(tmp_path)
    assert os.listdir(tmp_path) == []  # before there is anything to keep
    for n in range(2):
        save(to, f"{n}")
    assert all(os.stat(tmp_path / name).st_mode & 0o077 == 0 for name in NAMES)
