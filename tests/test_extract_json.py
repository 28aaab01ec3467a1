"""The service ``extract`` from JSON Lines, to JSON Lines, and from uploads: exact whatever the pauses, as from CSV."""

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fake_task import FakeTask, Saved, attempt, inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from intermission.handlers import Fatal, Invalid, Upload, records
from intermission.handlers.extract import extract
from intermission.handlers.sources import list_sources

UPLOAD_ID = "01934567-89ab-7def-8123-456789abcdef"

FLIGHTS = [
    {"carrier": "UA", "distance": 1400, "time_hour": "2013-01-01T05:00:00Z", "tail": {"no": "N1", "x": [1, None]}},
    {"carrier": "AA", "distance": 1089.5, "time_hour": "2013-01-02", "tail": None},
    {"carrier": "9", "distance": "1000", "time_hour": "2013-01-03"},
    {"carrier": 9, "distance": True, "time_hour": 20130103, "tail": "a,b\r\nc"},
    {"distance": None, "carrier": None},
    {},
]
LINES = [json.dumps(row, ensure_ascii=False) for row in FLIGHTS]
TRICKY = (
    '\ufeff{"id": 1, "text": "two\\nlines, \\"quoted\\"", "more": {"b": [1, 2.50, null]}}\r\n'
    "\n"
    '  {"id": 1.0e2, "text": "naïve, 東京 😀", "more": null}  \n'
    '{"text": "lone\\rreturn \\u2028", "id": 123456789012345678901234567890}\n'
    " \t\n"
    '{"id": "5", "text": "", "more": false}\n'
    '{}\n{"more": "the last one has no newline"}'
).encode()


def source(root: Path, data: bytes, name: str = "rows.jsonl") -> Path:
    """Put a source there; its folder."""
    folder = root / "sources"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return folder


def run(root: Path, data: bytes, name: str = "rows.jsonl", **params: Any) -> bytes:
    """What an undisturbed run writes."""
    done = attempt(extract, {"source": "rows", **params}, root / "task", sources=source(root, data, name))
    return (root / "task" / done.result.file).read_bytes()


def lines(rows: list[str]) -> bytes:
    """Rows as JSON Lines."""
    return "".join(row + "\n" for row in rows).encode()


# From JSON Lines.


def test_to_csv_writes_each_value_as_its_text(tmp_path: Path) -> None:
    """Strings as they are, numbers digit for digit, nested values as their JSON, nothing for null and for no key."""
    found = list(csv.reader(io.StringIO(run(tmp_path, TRICKY).decode(), newline="")))
    assert found == [
        ["id", "text", "more"],
        ["1", 'two\nlines, "quoted"', '{"b": [1, 2.50, null]}'],
        ["1.0e2", "naïve, 東京 😀", ""],
        ["123456789012345678901234567890", "lone\rreturn \u2028", ""],
        ["5", "", "false"],
        ["", "", ""],
        ["", "", "the last one has no newline"],
    ]


def test_to_json_lines_copies_the_rows_as_they_are(tmp_path: Path) -> None:
    """Without columns nothing is written anew; only blanks around an object and blank lines go."""
    found = run(tmp_path, TRICKY, format="jsonl")
    assert found == lines([line.strip() for line in TRICKY.decode("utf-8-sig").split("\n") if line.strip()])


def test_chosen_columns_keep_their_text_and_order(tmp_path: Path) -> None:
    """A key that is not there stays away; a null is a null."""
    found = run(tmp_path, TRICKY, format="jsonl", columns=["more", "id"])
    assert found.decode().splitlines() == [
        '{"more":{"b": [1, 2.50, null]},"id":1}',
        '{"more":null,"id":1.0e2}',
        '{"id":123456789012345678901234567890}',
        '{"more":false,"id":"5"}',
        "{}",
        '{"more":"the last one has no newline"}',
    ]


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({"carrier": {"eq": "UA"}}, [0]),
        ({"carrier": {"eq": "9"}}, [2]),
        ({"carrier": {"eq": 9}}, [3]),
        ({"carrier": {"in": ["AA", 9.0]}}, [1, 3]),
        ({"carrier": {"gt": "A"}}, [0, 1]),
        ({"distance": {"gt": 1000}}, [0, 1]),
        ({"distance": {"lt": 1089.6}}, [1]),
        ({"distance": {"gt": "0"}}, [2]),
        ({"distance": {"eq": 1}}, []),
        ({"tail": {"gt": ""}}, [3]),
        ({"tail": {"eq": ""}}, []),
        ({"distance": {"gt": 0, "lt": 1100}, "carrier": {"in": ["AA", "UA"]}}, [1]),
    ],
)
def test_where_compares_values(tmp_path: Path, where: dict[str, Any], kept: list[int]) -> None:
    """A string is no number and a number no string; null, booleans, nested values and missing keys meet nothing."""
    assert run(tmp_path, lines(LINES), format="jsonl", where=where) == lines([LINES[at] for at in kept])


@pytest.mark.parametrize(
    ("start", "end", "kept"),
    [("2013-01-01", "2013-01-01", [0]), ("2013-01-02", None, [1, 2]), (None, "2013-01-02", [0, 1])],
)
def test_dates_are_strings(tmp_path: Path, start: str | None, end: str | None, kept: list[int]) -> None:
    """They apply to the first key of the first row that holds one; the number 20130103 is no date."""
    found = run(tmp_path, lines(LINES), format="jsonl", from_date=start, to_date=end)
    assert found == lines([LINES[at] for at in kept])


def test_numbers_compare_exactly(tmp_path: Path) -> None:
    """Integers beyond a double do not become their neighbours."""
    rows = ['{"n": 9007199254740993}', '{"n": 9007199254740992}', '{"n": 9007199254740992.0}', '{"n": 1e400}']
    assert run(tmp_path, lines(rows), format="jsonl", where={"n": {"eq": 9007199254740993}}) == lines(rows[:1])
    assert run(tmp_path, lines(rows), format="jsonl", where={"n": {"gt": 9007199254740993}}) == lines(rows[3:])


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n \r\n"])
def test_no_rows(tmp_path: Path, data: bytes, form: str) -> None:
    """An empty file gives an empty one."""
    assert run(tmp_path, data, format=form) == b""


# From CSV.


def test_cells_become_strings(tmp_path: Path) -> None:
    """A cell is text, and stays what it is: 007 is no number."""
    data = b'id,"the ""name""",note\r\n007,"na\xc3\xafve\r\n",\r\n1.50,x,"a,b"\r\n'
    found = run(tmp_path, data, "rows.csv", format="jsonl")
    assert found.decode() == (
        '{"id":"007","the \\"name\\"":"naïve\\r\\n","note":""}\n{"id":"1.50","the \\"name\\"":"x","note":"a,b"}\n'
    )
    assert run(tmp_path, data, "rows.csv", format="jsonl", columns=["note"]) == b'{"note":""}\n{"note":"a,b"}\n'


def test_two_columns_of_one_name_are_no_keys(tmp_path: Path) -> None:
    """An object has no key twice; to leave both out is possible."""
    data = b"a,a,b\n1,2,3\n"
    with pytest.raises(Invalid) as caught:
        run(tmp_path, data, "rows.csv", format="jsonl")
    assert [fault.pointer for fault in caught.value.faults] == ["/format"]
    assert run(tmp_path, data, "rows.csv", format="jsonl", columns=["b"]) == b'{"b":"3"}\n'


# Pauses and losses.


@pytest.mark.parametrize("lost", [False, True], ids=["paused", "lost"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
@pytest.mark.parametrize("params", [{"format": "csv"}, {"format": "jsonl", "columns": ["id"]}])
def test_resume_after_every_checkpoint_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any], name: str, lost: bool
) -> None:
    """From any checkpoint on, paused there or lost long after it: the same bytes and the same result."""
    monkeypatch.setattr(records, "BATCH_BYTES", 1)
    data = TRICKY if name == "rows.jsonl" else b'id,n\n1,"a\nb"\n\n2,\n"3\r\n",x'
    folder, params = source(tmp_path, data, name), {"source": "rows", **params}
    whole = attempt(extract, params, tmp_path / "whole", sources=folder)
    expected = (tmp_path / "whole" / whole.result.file).read_bytes()
    assert len(whole.saved) >= 4
    for number, saved in enumerate(whole.saved, 1):
        task = tmp_path / f"task{number}"
        attempt(extract, params, task, sources=folder, pause_at=None if lost else number)
        second = attempt(extract, params, task, sources=folder, start=saved)
        assert second.result == whole.result
        assert second.saved == whole.saved[number:]
        assert (task / whole.result.file).read_bytes() == expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.sampled_from('ab,"\r\n\\ é😀0\u2028\x00'), max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=3,
)  # fmt: skip
ROWS = st.lists(st.dictionaries(st.sampled_from(["a", "b", 'c"', "é"]), VALUES, max_size=4), max_size=8)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(rows=ROWS, spaced=st.booleans(), batch_bytes=st.integers(1, 60), stops=st.lists(st.integers(1, 4), max_size=5))
def test_any_pauses_of_any_rows_leave_no_trace(
    rows: list[dict[str, Any]], spaced: bool, batch_bytes: int, stops: list[int]
) -> None:
    """Random rows, batches and stops: to CSV what each value is as text, to JSON Lines the same objects."""
    separators = (", ", " : ") if spaced else (",", ":")
    texts = [json.dumps(row, ensure_ascii=spaced, separators=separators) for row in rows]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BATCH_BYTES", batch_bytes)
        folder = source(Path(root), lines(texts))
        as_json = stopped(Path(root, "json"), folder, stops, format="jsonl")
        as_csv = stopped(Path(root, "csv"), folder, stops, format="csv")
    assert as_json == lines(texts)
    header = [keys] if keys else []
    found = list(csv.reader(io.StringIO(as_csv.decode(), newline="")))
    assert found == [*header, *([cell(row.get(key), separators) for key in keys] for row in rows)]


def cell(value: Any, separators: tuple[str, str]) -> str:
    """What a value is as the text of a cell."""
    if value is None:
        return ""
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=separators[0] == ", ", separators=separators)
    )


def stopped(task: Path, folder: Path, stops: list[int], **params: Any) -> bytes:
    """Run to the end, paused at these checkpoints on the way."""
    start: Saved | None = None
    for number in [*stops, None]:
        end = attempt(extract, {"source": "rows", **params}, task, sources=folder, start=start, pause_at=number)
        if end.result is not None:
            break
        start = end.saved[-1]
    return (task / end.result.file).read_bytes()


# What fails.


@pytest.mark.parametrize("batch_bytes", [8, records.BATCH_BYTES])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"[1]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b'{"a": 1', "not JSON: Input data was truncated"),
        (b'{"a": 1} {"a": 2}', "not JSON: JSON is malformed: trailing characters"),
        (b'{"a": NaN}', "not JSON: JSON is malformed: invalid character (byte 6)"),
        (b'{"a": "\xff"}', "not UTF-8: invalid start byte (0xff, byte 8 of the line)"),
        (b'{"a": "\x00"}', "not JSON: JSON is malformed: invalid character (byte 7)"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON: maximum recursion depth exceeded"),
        (b'{"a": 1, "b": 2}', "the key 'b' is in none of the first 100 rows: name the columns you want"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "a record of more than 1 MiB begins here"),
    ],
)  # fmt: skip
def test_a_broken_row_fails_with_its_line_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int, row: bytes, reason: str
) -> None:
    """After a hundred rows that are right, so that the start was accepted."""
    monkeypatch.setattr(records, "BATCH_BYTES", batch_bytes)
    with pytest.raises(Fatal) as caught:
        run(tmp_path, b'{"a": 1}\n' * 100 + b"\n" + row + b'\n{"a": 3}\n')
    assert str(caught.value).startswith(f"line 102 of rows: {reason}")


@pytest.mark.parametrize(
    ("params", "faults"),
    [
        ({"columns": ["carier"]}, {"/columns/0": "the source rows has no column 'carier'; did you mean 'carrier'?"}),
        ({"where": {"x": {"eq": 1}}}, {"/where/x": "the source rows has no column 'x'"}),
        ({"format": "parquet"}, {"/format": "Input should be 'csv' or 'jsonl'"}),
        ({"format": "jsonl", "order": "carrier"}, {"/order": "Unknown field"}),
        ({"source": "broken"}, {"/source": "line 2: not JSON: "}),
        ({"source": "undated", "from_date": "2013-01-01"}, {"/from_date": "the source undated has no column 'date'"}),
        ({"source": "both"}, {"/source": "the source both is two files, both.csv and both.jsonl"}),
    ],
)
def test_what_refuses_a_start(tmp_path: Path, params: dict[str, Any], faults: dict[str, str]) -> None:
    """Each fault where it is, as from CSV."""
    folder = source(tmp_path, lines(LINES))
    source(tmp_path, b'{"a": 1}\n{"a": \n', "broken.jsonl")
    source(tmp_path, b'{"a": 20130101}\n', "undated.jsonl")
    source(tmp_path, b"a\n", "both.csv")
    source(tmp_path, b'{"a": 1}\n', "both.jsonl")
    with pytest.raises(Invalid) as caught:
        attempt(extract, {"source": "rows", **params}, tmp_path / "task", sources=folder)
    found = {fault.pointer: fault.message for fault in caught.value.faults}
    assert found.keys() == faults.keys()
    assert all(found[pointer].startswith(message) for pointer, message in faults.items())


def test_sources_are_listed_with_their_keys(tmp_path: Path) -> None:
    """Types are those of the values: a string of digits is text, and a mixture is JSON."""
    folder = source(tmp_path, lines(LINES))
    source(tmp_path, b'{"i": 1, "n": 1.5, "d": "2020-01-01", "t": "5", "z": null}\n{"n": 2, "b": true}', "kinds.jsonl")
    source(tmp_path, b"a\n", "kinds2.csv")
    source(tmp_path, b"", "kinds2.jsonl")
    rows, kinds, both = sorted(
        list_sources(inputs(folder), "", 10), key=lambda one: ["rows", "kinds", "kinds2"].index(one.name)
    )
    assert [(column.name, column.type) for column in kinds.columns] == [
        ("i", "integer"), ("n", "number"), ("d", "date"), ("t", "text"), ("z", "json"), ("b", "json"),
    ]  # fmt: skip
    assert [column.type for column in rows.columns] == ["json", "json", "json", "json"]
    assert (kinds.format, both.format) == ("jsonl", None)
    assert (both.error or "").startswith("the source kinds2 is two files")
    assert [one.name for one in list_sources(inputs(folder), "kinds", 1)] == ["kinds2"]


# From uploads.


def uploaded(root: Path, data: bytes, filename: str | None = None, media_type: str = "text/plain") -> dict[str, Upload]:
    """An upload as a task gets it."""
    path = root / "content"
    path.write_bytes(data)
    return {UPLOAD_ID: Upload(UPLOAD_ID, path, filename, media_type, len(data), "00")}


@pytest.mark.parametrize(
    ("filename", "media_type", "form"),
    [
        ("a.csv", "application/x-ndjson", "csv"),
        ("A.JSONL", "text/csv", "jsonl"),
        ("x.ndjson", "application/octet-stream", "jsonl"),
        ("notes", "application/jsonl; charset=utf-8", "jsonl"),
        (None, "Application/X-NDJSON", "jsonl"),
        (None, "application/octet-stream", "csv"),
        ("rows.txt", "text/csv", "csv"),
    ],
)
def test_the_ending_then_the_media_type_say_what_an_upload_is(
    tmp_path: Path, filename: str | None, media_type: str, form: str
) -> None:
    """And without either it is CSV. The file of the extract has a name of ours."""
    data = b'{"a":"1"}\n' if form == "jsonl" else b"a\n1\n"
    params = {"source": f"upload:{UPLOAD_ID}", "format": "jsonl"}
    uploads = uploaded(tmp_path, data, filename, media_type)
    done = attempt(extract, params, tmp_path / "task", sources=tmp_path / "none", uploads=uploads)
    assert done.result.file == "extract.jsonl"
    assert (tmp_path / "task" / "extract.jsonl").read_bytes() == b'{"a":"1"}\n'


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("upload:nonsense", "'upload:nonsense' names no upload: write upload: and the id of a completed upload"),
        ("upload:../../etc/passwd", "'upload:../../etc/passwd' names no upload: "),
        (f"upload:{UPLOAD_ID[:-1]}0", f"there is no upload:{UPLOAD_ID[:-1]}0"),
        (f"upload:{UPLOAD_ID}", f"upload:{UPLOAD_ID} is a JSON document: send its rows as JSON Lines"),
    ],
)
def test_uploads_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    """Nonsense, one that is not there, one whose rows have no lines."""
    uploads = uploaded(tmp_path, b"{}", "rows.json")
    with pytest.raises(Invalid) as caught:
        attempt(extract, {"source": name}, tmp_path / "task", sources=tmp_path, uploads=uploads)
    assert caught.value.faults[0].pointer == "/source"
    assert caught.value.faults[0].message.startswith(message)


def test_the_source_is_named_as_an_upload_where_it_is_one() -> None:
    """What the server must keep while the task is unfinished."""
    (named,) = extract.references
    assert named(extract.params.check({"source": f"upload:{UPLOAD_ID}"})) == {"/source": f"upload:{UPLOAD_ID}"}


def test_a_broken_upload_fails_the_task_by_its_name(tmp_path: Path) -> None:
    """With the line; what came before it is written."""
    data = b'{"n": 1.5}\n' * 10_000
    uploads = uploaded(tmp_path, data + b"x\n", "n.jsonl")
    params = extract.params.check({"source": f"upload:{UPLOAD_ID}"})
    task = FakeTask(extract, params, tmp_path / "task", inputs(tmp_path, uploads))
    with pytest.raises(Fatal, match=f"line 10001 of upload:{UPLOAD_ID}: not JSON"):
        extract.run(task)
    task.close()
    assert set((tmp_path / "task" / "extract.csv").read_text().splitlines()[1:]) == {"1.5"}
