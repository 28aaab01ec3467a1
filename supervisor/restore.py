"""Where a task goes on: the newest checkpoint that is whole, from the slots of this boot or the store's row."""

import os
from collections.abc import Sequence
from pathlib import Path

from intermission.state.models import Checkpoint, Progress
from intermission.supervisor.process.live import FILES_NAME
from intermission.supervisor.process.slot import Slot, read_slots


class UnreadableError(Exception):
    """There are checkpoints, but the outputs on disk are shorter than each of them says."""


def newest(folder: Path, row: Checkpoint | None) -> Checkpoint | None:
    """The newest checkpoint whose outputs are all there; None for a task that never saved one.

    Raises `UnreadableError` where none fits: starting from zero would throw away work in silence.
    """
    return fitting(folder, _known(folder, row))


def fitting(folder: Path, known: Sequence[Checkpoint]) -> Checkpoint | None:
    """The first of these whose outputs are all there; None for none. Raises as `newest`."""
    if not known:
        return None
    lengths = _lengths(folder / FILES_NAME)
    for checkpoint in known:
        if all(lengths.get(name, 0) >= length for name, length in checkpoint.outputs.items()):
            return checkpoint
    short = [name for name, length in known[0].outputs.items() if lengths.get(name, 0) < length]
    message = f"outputs are shorter than the last checkpoint says, or missing: {', '.join(sorted(short))}"
    raise UnreadableError(message)


def last(folder: Path, row: Checkpoint | None) -> Checkpoint | None:
    """The newest checkpoint, whatever has become of its outputs: for `clean`, which may find them half deleted."""
    return next(iter(_known(folder, row)), None)


def durable(folder: Path, row: Checkpoint | None, synced: int = 0) -> Checkpoint | None:
    """As `newest`, once its outputs would survive a power cut: only then may the store be told of it.

    The child has synced the outputs itself as they are in the checkpoint of the sequence ``synced``.
    """
    checkpoint = newest(folder, row)
    if checkpoint is None or (row is not None and checkpoint.sequence <= row.sequence):
        return checkpoint
    files = folder / FILES_NAME
    if checkpoint.sequence > synced:
        for name in checkpoint.outputs:
            _fsync(files / name, os.O_RDONLY)
    # The names that lead there were synced with the row. Another attempt may have made its files anew.
    known = row.outputs if row is not None and row.attempt == checkpoint.attempt else {}
    if checkpoint.outputs.keys() - known.keys():
        for directory in (files, folder, folder.parent):
            sync_folder(directory)
    return checkpoint


def sync_folder(folder: Path) -> None:
    """Make what was last created in this folder, or removed from it, survive a power cut."""
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        if flags & os.O_DIRECTORY:
            os.fsync(fd)
        else:
            os.fdatasync(fd)
    finally:
        os.close(fd)


def _known(folder: Path, row: Checkpoint | None) -> list[Checkpoint]:
    """Every checkpoint that there is, newest first."""
    known = [_checkpoint(slot) for slot in read_slots(folder)]
    if row is not None:
        known.append(row)
    return sorted(known, key=lambda one: one.sequence, reverse=True)


def _lengths(files: Path) -> dict[str, int]:
    try:
        with os.scandir(files) as entries:
            return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}
    except FileNotFoundError:
        return {}


def _checkpoint(slot: Slot) -> Checkpoint:
    progress = None if slot.done is None else Progress(done=slot.done, total=slot.total, unit=slot.unit)
    return Checkpoint(
        sequence=slot.sequence,
        attempt=slot.attempt,
        version=slot.version,
        state=slot.state.decode(),
        outputs=slot.outputs,
        progress=progress,
        saved_at=slot.saved_at,
    )
