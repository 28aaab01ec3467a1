"""A folder goes with all that is in it, whatever a handler has made there; nothing beside it does."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from intermission.supervisor import removal
from intermission.supervisor.removal import remove_folder

DEPTH: Final = 3000
"""Deeper than Python's stack, and than the longest path of the system: its names alone are 6,000 bytes."""


def nest(folder: Path, depth: int) -> None:
    """Make so many folders, each in the other, with a file in each."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """No more than so many can be opened than there are."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """One of a task, with a neighbour. Where it stays, it goes at the end: pytest cannot remove what is so deep."""
    (tmp_path / "tasks" / "neighbour").mkdir(parents=True)
    (tmp_path / "tasks" / "one").mkdir()
    yield tmp_path / "tasks" / "one"
    subprocess.run(["rm", "-rf", tmp_path / "tasks"], check=True)


def test_a_folder_of_any_depth(folder: Path) -> None:
    """With few descriptors, which the server needs for others."""
    nest(folder, DEPTH)
    with few_descriptors(8):
        assert remove_folder(folder) == DEPTH
    assert os.listdir(folder.parent) == ["neighbour"]


def test_a_folder_with_many_beside_each_other(folder: Path) -> None:
    """Each file is counted once, in whatever order the folders are left."""
    for number in range(50):
        inner = folder / str(number) / "inner"
        inner.mkdir(parents=True)
        (inner / "one").touch()
        (inner / "two").touch()
        nest(inner, number % 4)
    assert remove_folder(folder) == 50 * 2 + sum(number % 4 for number in range(50))
    assert os.listdir(folder.parent) == ["neighbour"]


def test_one_that_is_not_there(folder: Path) -> None:
    """An earlier try got this far."""
    assert remove_folder(folder.with_name("none")) == 0


def test_where_links_lead_nothing_is_removed(folder: Path, tmp_path: Path) -> None:
    """Links go as files do; one in the place of the folder itself is none of ours, and an error."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (folder / "inner").mkdir()
    (folder / "inner" / "link").symlink_to(elsewhere)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    assert remove_folder(folder) == 2
    folder.symlink_to(elsewhere)
    with pytest.raises(NotADirectoryError):
        remove_folder(folder)
    assert (elsewhere / "file").exists()


def test_a_try_that_was_cut_short_is_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the first one left."""
    nest(folder, 40)
    real, tries = os.rmdir, iter(range(20))

    def rmdir(name: str, *, dir_fd: int) -> None:
        if next(tries, None) is None:
            raise OSError("no more")
        real(name, dir_fd=dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr(removal.os, "rmdir", rmdir)
        with pytest.raises(OSError, match="no more"):
            remove_folder(folder)
    assert folder.exists()
    remove_folder(folder)
    assert os.listdir(folder.parent) == ["neighbour"]


def test_one_that_is_moved_meanwhile(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way back leads elsewhere then; what is there is not ours."""
    nest(folder, 2)
    away = tmp_path / "away"
    away.mkdir()
    real = removal._remove_files

    def remove_files(here: int) -> tuple[int, list[str]]:
        found = real(here)
        if found[1] == []:
            (folder / "d" / "d").rename(away / "d")
        return found

    monkeypatch.setattr(removal, "_remove_files", remove_files)
    with pytest.raises(OSError, match="moved"):
        remove_folder(folder)
    assert os.listdir(away) == ["d"]


def test_a_removal_survives_a_power_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is away for good before its row may be deleted: nothing else would find it again."""
    synced: list[tuple[Path, bool]] = []
    (folder / "log").write_text("x")
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{fd}")), folder.exists()))
        real(fd)

    monkeypatch.setattr(removal.os, "fsync", fsync)
    assert remove_folder(folder) == 1
    assert synced == [(folder.parent, False)]
