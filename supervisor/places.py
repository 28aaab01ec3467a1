"""Where things lie on disk."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from intermission.handlers import disk
from intermission.handlers.base import output_path
from intermission.supervisor.process.child import LOG_NAME
from intermission.supervisor.process.live import FILES_NAME

_BLOCK_BYTES: Final = 512
"""What `st_blocks` counts, whatever the blocks of the file system are."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where tasks keep their files, where sources are, and where teams are."""

    tasks: Path
    sources: Path
    directory: Path

    def folder(self, task_id: str) -> Path:
        """A task's own folder."""
        return self.tasks / task_id

    def output(self, task_id: str, name: str) -> Path:
        """One of its outputs."""
        return output_path(self.folder(task_id) / FILES_NAME, name)

    def log(self, task_id: str) -> Path:
        """What it printed."""
        return self.folder(task_id) / LOG_NAME

    def free_bytes(self) -> int:
        """Room on the disk of the tasks, as anybody but root may use it."""
        now = os.statvfs(self.tasks)
        return now.f_bavail * now.f_frsize

    def reserve(self, task_id: str, name: str, size: int) -> None:
        """Keep room for an output that is to come, though there is no child yet. Raises OSError."""
        path = self.output(task_id, name)
        self.folder(task_id).mkdir(exist_ok=True, mode=0o700)
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            disk.reserve(file.fileno(), size, self.tasks)

    def room(self, task_id: str | None = None) -> int:
        """The bytes that there is space for; to a task, its outputs', which may have been reserved already."""
        free = self.free_bytes()
        if task_id is not None:
            with contextlib.suppress(FileNotFoundError), os.scandir(self.folder(task_id) / FILES_NAME) as entries:
                for found in (entry.stat(follow_symlinks=False) for entry in entries):
                    free += max(found.st_blocks * _BLOCK_BYTES - found.st_size, 0)
        return free
