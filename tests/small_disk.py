"""A disk of a few megabytes that a test may fill: a tmpfs in a mount namespace of its own, which needs no root.

A process holds the namespace, so that a server may be killed and started again on it; the test reaches into it through
``/proc/PID/root``. When that process ends, and it ends with the test's, the disk is gone.
"""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_tools import TOYS
from harness import HERE, Server

_MOUNT = 'mount -t tmpfs -o "$1" none "$2" && echo mounted && exec cat'


@dataclass(frozen=True)
class SmallDisk:
    """The disk as the test sees it, and what to run a program with that is to see it too."""

    root: Path
    before: tuple[str, ...]

    @property
    def free_bytes(self) -> int:
        """What is left."""
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_bsize

    def fill(self, left: int = 0) -> Path:
        """Write a file that leaves so many bytes; delete it to have them back."""
        ballast = self.root / "ballast"
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while (room := self.free_bytes - left) > 0:
                file.write(bytes(min(room, 1 << 20)))
        return ballast

    def fill_names(self, left: int) -> list[Path]:
        """Make empty files until only so many more can be made; delete them to undo it."""
        made = []
        while os.statvfs(self.root).f_favail > left:
            made.append(self.root / f"name{len(made)}")
            made[-1].touch()
        return made


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[SmallDisk]:
    """A disk with these options of tmpfs. Skips the test where no namespace can be made."""
    mount = folder / "disk"
    mount.mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", options, str(mount)]
    try:
        holder = subprocess.Popen(
            command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError:
        pytest.skip("a small disk needs util-linux (unshare, nsenter), which is not installed here")
    with holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip(f"a small disk cannot be mounted here: {holder.stderr.read().decode().strip()}")
        enter = ("nsenter", "--target", str(holder.pid), "--user", "--mount", "--wd", "--preserve-credentials")
        yield SmallDisk(Path(f"/proc/{holder.pid}/root{mount}"), enter)


@asynccontextmanager
async def cramped(disk: SmallDisk) -> AsyncIterator[Server]:
    """A server whose data folder is on the small disk; at the end it stops in order and has left no process."""
    settings = {"INTERMISSION_HANDLERS": TOYS, "INTERMISSION_MAX_RUNNING": "10"}
    server = Server(disk.root / "data", settings, before=disk.before)
    try:
        await server.start()
        yield server
        assert await server.stop() == 0
        assert server.survivors() == []
    finally:
        await server.close()
