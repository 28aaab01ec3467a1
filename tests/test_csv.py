"""The service ``csv``: each row is logged once, whatever the pauses and kills."""

import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from disturbing import disturb
from fake_task import FakeTask, attempt, inputs
from harness import Server, seeded
from verb_tools import nothing_left, playing

from intermission.handlers import Fatal, Invalid, Upload, records
from intermission.handlers.csv_log import csv_log

ROWS = b'\xef\xbb\xbfid,name\r\n1,"Ada\r\nL."\r\n\r\n2,"na\xc3\xafve, \xe2\x80\xa8"\n3,last'
LOGGED = 'line 2: ["1","Ada\\r\\nL."]\nline 5: ["2","naïve, \u2028"]\nline 6: ["3","last"]\n'


def source(root: Path, data: bytes, name: str = "rows.csv") -> Path:
    """Put a source there; its folder."""
    folder = root / "sources"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("lost", [False, True], ids=["paused", "lost"])
@pytest.mark.parametrize("batch_bytes", [1, 30, records.BATCH_BYTES])
def test_each_row_is_logged_once_from_every_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int, lost: bool
) -> None:
    """With the line in which it begins, the same after any pause or loss."""
    monkeypatch.setattr(records, "BATCH_BYTES", batch_bytes)
    folder, params = source(tmp_path, ROWS), {"source": "rows"}
    whole = attempt(csv_log, params, tmp_path / "whole", sources=folder)
    assert (tmp_path / "whole" / "rows.log").read_text() == LOGGED
    assert whole.result.rows == 3
    for number, saved in enumerate(whole.saved, 1):
        task = tmp_path / f"task{number}"
        attempt(csv_log, params, task, sources=folder, pause_at=None if lost else number)
        second = attempt(csv_log, params, task, sources=folder, start=saved)
        assert (second.result, second.saved) == (whole.result, whole.saved[number:])
        assert (task / "rows.log").read_text() == LOGGED


@pytest.mark.parametrize("data", [b"", b"a,b", b"a,b\n\n"])
def test_no_rows(tmp_path: Path, data: bytes) -> None:
    """Nothing to log is no error."""
    done = attempt(csv_log, {"source": "rows"}, tmp_path / "task", sources=source(tmp_path, data))
    assert done.result.rows == 0
    assert (tmp_path / "task" / "rows.log").read_bytes() == b""


def test_an_upload(tmp_path: Path) -> None:
    """The file of an upload, whatever it is called."""
    content = tmp_path / "content"
    content.write_bytes(ROWS)
    task_id = "01934567-89ab-7def-8123-456789abcdef"
    uploads = {task_id: Upload(task_id, content, "../x.csv", "text/csv", len(ROWS), "00")}
    attempt(csv_log, {"source": f"upload:{task_id}"}, tmp_path / "task", sources=tmp_path, uploads=uploads)
    assert (tmp_path / "task" / "rows.log").read_text() == LOGGED
    (named,) = csv_log.references
    assert named(csv_log.params.check({"source": f"upload:{task_id}"})) == {"/source": f"upload:{task_id}"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../rows", "'../rows' cannot be a source's name"),
        ("none", "no source is named 'none'"),
        ("objects", "objects is JSON Lines, and this service reads CSV"),
        ("broken", "line 1: a quote that is never closed"),
        ("upload:x", "'upload:x' names no upload"),
    ],
)
def test_what_refuses_a_start(tmp_path: Path, name: str, message: str) -> None:
    """A source that is not there, or not what this service reads."""
    source(tmp_path, b"{}", "objects.jsonl")
    folder = source(tmp_path, b'a,"b\n', "broken.csv")
    with pytest.raises(Invalid) as caught:
        attempt(csv_log, {"source": name}, tmp_path / "task", sources=folder)
    assert [fault.pointer for fault in caught.value.faults] == ["/source"]
    assert caught.value.faults[0].message.startswith(message)


def test_a_ragged_row_fails_with_its_line(tmp_path: Path) -> None:
    """What was logged before it stays at its checkpoint."""
    task = fake(tmp_path, source(tmp_path, b"a,b\n1,2\n3\n"))
    with pytest.raises(Fatal, match="line 3 of rows: 1 cell where the header has 2"):
        csv_log.run(task)
    task.close()


def test_a_source_that_changed_fails_the_task(tmp_path: Path) -> None:
    """An offset into another file means nothing."""
    folder, params = source(tmp_path, ROWS), {"source": "rows"}
    saved = attempt(csv_log, params, tmp_path / "task", sources=folder, pause_at=1).saved[-1]
    source(tmp_path, ROWS + b"\n4,x\n")
    task = FakeTask(csv_log, csv_log.params.check(params), tmp_path / "task", inputs(folder), saved)
    with pytest.raises(Fatal, match="changed since this task began to read it"):
        csv_log.run(task)
    task.close()


def fake(root: Path, folder: Path, **more: Any) -> FakeTask:
    """A task over the source ``rows``."""
    return FakeTask(csv_log, csv_log.params.check({"source": "rows"}), root / "task", inputs(folder), **more)


# With real processes.


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server."""
    async with playing(tmp_path / "data") as running:
        yield running
        await nothing_left(running)


async def test_kills_and_pauses_leave_no_trace(server: Server) -> None:
    """300,000 rows, disturbed up to ten times: each is there once, in order."""
    chance = seeded()
    data = "n,text\n" + "".join(f'{n},"row, {n}"\n' for n in range(300_000))
    (server.data / "sources" / "rows.csv").write_text(data)
    task_id = await server.launch("csv", {"source": "rows"})
    assert await disturb(server, task_id, chance, 10) >= 3
    done = await server.until_status(task_id, "completed")
    assert done["result"] == {"rows": 300_000}
    found = (await server.file(task_id, "rows.log")).decode().splitlines()
    rows = list(csv.reader(io.StringIO(data)))[1:]
    assert [line.partition(": ")[0] for line in found] == [f"line {n}" for n in range(2, 300_002)]
    assert [json.loads(line.partition(": ")[2]) for line in found] == rows
