"""Removing a folder with all that is in it, however deep it is and whatever its permissions are.

A handler may nest folders until the path of the innermost is longer than the system takes. So nothing here has a path:
one folder is open at a time, and the way back is ``..``. No symbolic link is followed.
"""

import os
import stat
from pathlib import Path
from typing import Final

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def remove_folder(folder: Path) -> int:
    """Delete a task's folder; how many files were in it. None there is no error: an earlier try got this far.

    It would stay away after a power cut too.
    """
    if not os.path.lexists(folder):
        return 0
    count = 0
    here = os.open(folder.parent, _FOLDER)
    try:
        way: list[tuple[str, os.stat_result]] = []  # down to here: the name of each folder, and the one that it is in
        left = [[folder.name]]  # the folders that are still in each of those, and here
        while left[-1] or way:
            if left[-1]:
                name = left[-1].pop()
                way.append((name, os.fstat(here)))
                here = _closing(here, _enter(name, here))
                files, folders = _remove_files(here)
                count += files
                left.append(folders)
            else:
                left.pop()
                name, above = way.pop()
                here = _closing(here, os.open("..", _FOLDER, dir_fd=here))
                if not os.path.samestat(os.fstat(here), above):
                    raise OSError(f"{name!r} was moved while it was being removed")
                os.rmdir(name, dir_fd=here)
        os.fsync(here)
    finally:
        os.close(here)
    return count


def _closing(before: int, now: int) -> int:
    os.close(before)
    return now


def _enter(name: str, parent: int) -> int:
    """Open a folder that is to be emptied: one that a handler has made read-only can be emptied by nobody else."""
    found = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{found}", stat.S_IRWXU)  # `fchmod` wants one that can be read already
        return os.open(".", _FOLDER, dir_fd=found)
    finally:
        os.close(found)


def _remove_files(here: int) -> tuple[int, list[str]]:
    """Delete what is no folder; how many there were, and the folders."""
    count, folders = 0, []
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=here)
                count += 1
    return count, folders
