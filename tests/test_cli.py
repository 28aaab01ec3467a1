"""The command line, run as people run it: a process with arguments, an environment, an exit code and two outputs."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from intermission.supervisor.config import Config, variable

SECRET = "correct horse battery staple, and more"


def run(*args: str, folder: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``intermission ARGS`` with only these INTERMISSION_ variables set."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INTERMISSION_")}
    environ |= {variable(field): value for field, value in settings.items()} | {"COLUMNS": "100"}
    command = [str(Path(sys.executable).with_name("intermission")), *args]
    return subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, timeout=30, check=False)


def test_version() -> None:
    """The version is that of the installed distribution."""
    assert run("--version").stdout == f"intermission {importlib.metadata.version('intermission')}\n"


def test_runs_as_a_module() -> None:
    """``python -m`` does the same as the script, under the same name."""
    done = subprocess.run(
        [sys.executable, "-m", "intermission.supervisor.cli", "--help"], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("Usage: intermission ")


def test_help_tells_what_it_is_and_how_to_begin() -> None:
    """The first screen has the product in one line, examples and both commands."""
    done = run("--help")

    assert done.returncode == 0
    for part in ("Long tasks you can pause", "intermission serve --port 9000", "  serve ", "  config "):
        assert part in done.stdout


def test_help_is_quick() -> None:
    """Nothing heavy is imported before a command needs it."""
    heavy = {"aiohttp", "pydantic", "structlog", "rich", "sqlite3", "asyncio"}
    script = "import sys, intermission.supervisor.cli; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("command", ["serve", "config"])
def test_every_flag_names_its_variable_and_default(command: str) -> None:
    """Help and settings agree: a flag for each setting that may have one, with the default that is really in force."""
    text = re.sub(r"\s+", " ", run(command, "--help").stdout)
    flagged = {
        name.lower(): default
        for flag, name, default in re.findall(
            r"--([a-z-]+) [A-Z]+ [^\[]*\[INTERMISSION_(\w+); default: ([^\]]+)\]", text
        )
        if flag == name.lower().replace("_", "-")
    }

    assert flagged.keys() == Config.model_fields.keys() - {"jwt_secret", "database_url", "directory_url"} | {"config"}
    defaults = Config.load({}, {})
    plain = {name: shown for name, shown in flagged.items() if name in {"host", "log_level"} or shown.isdecimal()}
    assert len(plain) >= 10
    assert plain == {name: str(getattr(defaults, name)).removesuffix(".0") for name in plain}


def test_config_prints_what_is_in_force_and_why(tmp_path: Path) -> None:
    """Every setting is there with its value and its source: flag, environment, file or default."""
    (tmp_path / "our.toml").write_text("max_running = 3\n")

    done = run("config", "--port", "9000", "--config", "our.toml", folder=tmp_path, handlers="acme.tasks,other")

    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(re.split(r"\s+# ", line, maxsplit=1) for line in done.stdout.splitlines())
    assert lines == {
        "INTERMISSION_HOST=127.0.0.1": "default",
        "INTERMISSION_PORT=9000": "flag --port",
        f"INTERMISSION_DATA_DIR={tmp_path}/var": "default",
        f"INTERMISSION_DATABASE_URL=sqlite:///{tmp_path}/var/intermission.db": "default",
        f"INTERMISSION_DIRECTORY_URL=sqlite:///{tmp_path}/var/directory.db": "default",
        "# INTERMISSION_JWT_SECRET=": "default",
        "INTERMISSION_MAX_RUNNING=3": "file max_running (in our.toml)",
        "INTERMISSION_MAX_UPLOADS=1000": "default",
        "INTERMISSION_MAX_USER_UPLOADS=1000": "default",
        "# INTERMISSION_MAX_UPLOAD_BYTES=": "default",
        "# INTERMISSION_MAX_USER_BYTES=": "default",
        "INTERMISSION_MAX_USER_UNFINISHED=10000": "default",
        "INTERMISSION_UPLOAD_IDLE_S=60.0": "default",
        "INTERMISSION_UPLOAD_MIN_RATE=1024": "default",
        "INTERMISSION_UPLOAD_EXPIRES_DAYS=7.0": "default",
        "INTERMISSION_CORS_ORIGINS=''": "default",
        "INTERMISSION_TRUSTED_PROXIES=''": "default",
        "INTERMISSION_HANDLERS=acme.tasks,other": "environment INTERMISSION_HANDLERS",
        "INTERMISSION_DRAIN_S=8.0": "default",
        "INTERMISSION_RETENTION_DAYS=30.0": "default",
        "INTERMISSION_LOG_LEVEL=info": "default",
        "INTERMISSION_LOG_FORMAT=json": "default",
    }
    assert not (tmp_path / "var").exists()


def test_what_config_prints_can_be_put_back(tmp_path: Path) -> None:
    """The output is an env file: read back, the same settings are in force."""
    first = run("config", "--data-dir", "a b", folder=tmp_path, drain_s="2")
    words = shlex.split(first.stdout, comments=True)
    settings = dict(word.removeprefix("INTERMISSION_").split("=", 1) for word in words)

    second = run("config", **{name.lower(): value for name, value in settings.items()})

    assert shlex.split(second.stdout, comments=True) == words


@pytest.mark.parametrize(
    ("args", "settings", "named"),
    [
        (["serve", "--port", "abc"], {}, "--port: must be a whole number from 0 to 65535, not 'abc'"),
        (["serve"], {"port": "abc"}, "INTERMISSION_PORT: must be a whole number from 0 to 65535, not 'abc'"),
        (["config"], {"drain_s": "x"}, "INTERMISSION_DRAIN_S: must be a number of seconds, 0 or more, not 'x'"),
        (["serve"], {"prot": "1"}, "INTERMISSION_PROT: there is no such setting; did you mean INTERMISSION_PORT?"),
        (
            ["serve", "--host", "::"],
            {},
            "--host: other machines can reach '::', so INTERMISSION_JWT_SECRET has to be set",
        ),
        (["serve", "--config", "none.toml"], {}, "--config: cannot read 'none.toml': No such file or directory"),
        (["serve", "--prot", "1"], {}, "No such option '--prot'"),
    ],
)
def test_unusable_settings_end_with_a_message_and_code_2(
    args: list[str], settings: dict[str, str], named: str, tmp_path: Path
) -> None:
    """One clear message on stderr that names the setting, nothing on stdout, and never a traceback."""
    done = run(*args, folder=tmp_path, **settings)

    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert "pydantic" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("secret", [SECRET, "hunter2"])
@pytest.mark.parametrize("port", ["8080", "bad"])
def test_the_secret_is_never_printed(secret: str, port: str) -> None:
    """Good or bad, alone or beside another fault, it is in neither output."""
    done = run("config", jwt_secret=secret, port=port)

    assert done.returncode == (0 if secret == SECRET and port == "8080" else 2)
    assert secret not in done.stdout + done.stderr
    if done.returncode == 0:
        assert "INTERMISSION_JWT_SECRET='********'" in done.stdout
