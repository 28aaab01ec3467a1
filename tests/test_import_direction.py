"""One way through the code: routes → supervisor → process, with state and handlers below."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "state": ("intermission.handlers", "intermission.supervisor"),
    "handlers": ("intermission.state", "intermission.supervisor"),
    "supervisor/process": ("intermission.state", "intermission.supervisor.routes", "aiohttp", "aiosqlite"),
    "supervisor": ("intermission.supervisor.routes",),
    "supervisor/routes": ("intermission.supervisor.process", "intermission.supervisor.carrier", "aiosqlite"),
}
IN_CHILDREN = ("child", "fault", "forkserver", "incoming", "live", "pages", "ring", "slot", "tree", "wire")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder: str) -> None:
    """No file imports from above itself."""
    files = list((ROOT / folder).glob("*.py"))
    assert files
    for path in files:
        if path == ROOT / "supervisor" / "app.py":  # where all is put together
            continue
        wrong = {name for name in imports(path) if name.startswith(FORBIDDEN[folder])}
        assert not wrong, f"{path.name} imports {wrong}"


@pytest.mark.parametrize("module", IN_CHILDREN)
def test_a_child_carries_no_server(module: str) -> None:
    """What is loaded in the fork server costs memory in every child: only handlers and its own modules."""
    names = imports(ROOT / "supervisor" / "process" / f"{module}.py")
    ours = {name for name in names if name.startswith("intermission.")}
    allowed = ("intermission.handlers", "intermission.supervisor.process")
    assert all(name.startswith(allowed) for name in ours), ours
    assert not names & {"asyncio", "structlog", "psutil", "aiohttp"}
