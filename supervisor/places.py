"""Where things lie on disk."""

import os
from dataclasses import dataclass
from pathlib import Path

from intermission.handlers.base import output_path
from intermission.supervisor.process.child import FILES_NAME, LOG_NAME


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
        disk = os.statvfs(self.tasks)
        return disk.f_bavail * disk.f_frsize
