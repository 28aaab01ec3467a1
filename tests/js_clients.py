"""The clients that are written in JavaScript: installed where they are, from a lock, by npm."""

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

CLIENTS = Path(__file__).with_name("clients")
needs_node = pytest.mark.skipif(shutil.which("npm") is None, reason="there is no Node.js with npm here")


def install() -> None:
    """Make node_modules fit the lock; once, whoever else wants the same at this moment."""
    lock, stamp = CLIENTS / "package-lock.json", CLIENTS / "node_modules" / ".fits"
    with lock.open("rb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        wanted = hashlib.sha256(opened.read()).hexdigest()
        if not stamp.exists() or stamp.read_text() != wanted:
            subprocess.run(["npm", "ci", "--loglevel=error"], cwd=CLIENTS, check=True, timeout=300)
            stamp.write_text(wanted)


def bundle(source: str, to: Path) -> None:
    """A module with all that it imports, as one for a browser."""
    command = [
        str(CLIENTS / "node_modules" / ".bin" / "esbuild"),
        source,
        "--bundle",
        "--format=esm",
        f"--outfile={to}",
    ]
    subprocess.run([*command, "--log-level=error"], cwd=CLIENTS, check=True, timeout=60)
