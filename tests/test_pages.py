"""Huge pages for what a fork server has in memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

from harness import serving

_THP = Path("/sys/kernel/mm/transparent_hugepage")
KNOWN = _THP.exists() and tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 1)
"""Whether this kernel can do it when it is asked to."""
WRITTEN = """
from intermission.supervisor.process import pages
block = bytearray(b"x") * (16 << 20)
pages.collapse()
assert block == bytearray(b"x") * (16 << 20)
print(open("/proc/self/smaps_rollup").read())
"""


def huge_kb(rollup: str) -> int:
    """What is in huge pages."""
    (line,) = (line for line in rollup.splitlines() if line.startswith("AnonHugePages:"))
    return int(line.split()[1])


def test_what_was_written_to_is_put_into_huge_pages() -> None:
    """And is what it was; a kernel that cannot do it changes nothing."""
    done = subprocess.run([sys.executable, "-c", WRITTEN], check=True, capture_output=True, text=True)
    assert (huge_kb(done.stdout) > 0) is KNOWN


async def test_the_fork_server_has_some(tmp_path: Path) -> None:
    """Else each fork would copy an entry for every 4 KiB."""
    async with serving(tmp_path) as server:
        rollup = Path(f"/proc/{server.fork_server.pid}/smaps_rollup").read_text()
    assert (huge_kb(rollup) > 0) is KNOWN
