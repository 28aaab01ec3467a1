"""What the README says is what the code does: nothing in it may drift."""

import asyncio
import contextlib
import json
import re
import sqlite3
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from harness import serving

from intermission.state.status import STREAM_TABLE, TABLE, Event, Status
from intermission.supervisor import cli
from intermission.supervisor.config import Config, variable

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def diagram(table: dict[tuple[Status, Event], Status], begin: str) -> str:
    """A table as a diagram: an arrow for each pair of statuses, with every event that leads along it."""
    edges: dict[tuple[Status, Status], list[str]] = {}
    for (status, event), target in table.items():
        if status is not target:
            edges.setdefault((status, target), []).append(event)
    lines = [f"  {a} --> {'[*]' if b is Status.GONE else b}: {', '.join(events)}" for (a, b), events in edges.items()]
    return "\n".join(["stateDiagram-v2", f"  [*] --> {begin}", *lines]) + "\n"


def test_the_diagram_is_the_table() -> None:
    """The life of a task is drawn from the table, and that of an upload from its own."""
    assert blocks("mermaid") == [diagram(TABLE, "pending: start"), diagram(STREAM_TABLE, "paused: start")]


def test_every_setting_is_explained() -> None:
    """The table of settings names each one, in the order of the code, with its default."""
    rows = re.findall(r"^\| `(INTERMISSION_\w+)` \| (.+?) \|", README, re.MULTILINE)
    assert [name for name, _ in rows] == [variable(field) for field in Config.model_fields]
    printed = CliRunner().invoke(cli.main, ["config"], env={}).output
    for name, default in rows:
        if match := re.fullmatch(r"`(\d+|info|127\.0\.0\.1)`", default):
            assert re.search(rf"^{name}={match[1]}(\.0)? ", printed, re.MULTILINE)


def test_every_file_that_is_named_exists() -> None:
    """Links and names of files lead somewhere."""
    named = set(re.findall(r"`((?:tests|scripts|supervisor|handlers|state)/[\w./-]*)`", README))
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


async def paste(block: str, folder: Path, url: str) -> str:
    """Run a block as it stands, but against our own server; what it printed."""
    text = block.replace("localhost:8080", url.removeprefix("http://")).replace("scripts/setup dev\n", "")
    shell = await asyncio.create_subprocess_exec(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        text,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await shell.communicate())[0].decode()
    assert shell.returncode == 0, output
    return output


async def test_the_tour(tmp_path: Path) -> None:
    """The five minutes, pasted block by block."""
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    flights, upload, rest, pause, kill, resume, teams = blocks("bash")
    async with serving(tmp_path / "var") as server:
        await paste(flights, tmp_path, server.url)
        assert '"status":"paused"' in await paste(upload, tmp_path, server.url)
        ours, theirs = [line.split()[0] for line in (await paste(rest, tmp_path, server.url)).splitlines()]
        assert ours == theirs
        assert '"status":"paused"' in await paste(pause, tmp_path, server.url)
        assert kill.startswith("pkill -9")
        await server.kill()
        await server.start()
        assert "resumed.csv" in await paste(resume, tmp_path, server.url)
        assert len((tmp_path / "var" / "resumed.csv").read_bytes().splitlines()) == 1 + 58_665 + 48_110
        receipt, left = (await paste(teams, tmp_path, server.url)).splitlines()[-2:]
        assert '"survivors":0,"cleaned":true,"files_deleted":' in receipt
        assert json.loads(left) == {"items": [], "next": None}


async def test_the_handler_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example runs as it stands: pauses, resumes, keeps each effect once, and undoes them."""
    (tmp_path / "members.py").write_text(blocks("python")[0])
    database = tmp_path / "members.db"
    monkeypatch.setenv("MEMBERS_DB", str(database))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    emails = [f"{n}@example.org" for n in range(20)]

    def stored() -> int:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return int(connection.execute("SELECT count(*) FROM member").fetchone()[0])

    async with serving(tmp_path / "var", INTERMISSION_HANDLERS="members") as server:
        task = await server.launch("members", {"team": "red", "emails": emails})
        await server.until_progress(task, 3)
        assert (await server.verb(task, "pause")).json["status"] == "paused"
        await server.verb(task, "resume", wait_s=30)
        assert (await server.file(task, "added.txt")).decode().split() == emails
        assert stored() == len(emails)
        other = await server.launch("members", {"team": "blue", "emails": emails})
        await server.until_progress(other, 3)
        assert (await server.verb(other, "terminate")).status == 200
        assert stored() == len(emails)


@pytest.mark.timeout(180)
async def test_the_demo() -> None:
    """``scripts/demo`` plays the tour over all three services, and checks each step itself."""
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "scripts" / "demo.py"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await demo.communicate())[0].decode()
    assert demo.returncode == 0, output
    assert output.count("✓") == 6
