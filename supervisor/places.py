"""Where things lie on disk."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """Where tasks keep their files, and where sources are."""

    tasks: Path
    sources: Path

    def folder(self, task_id: str) -> Path:
        """A task's own folder."""
        return self.tasks / task_id
