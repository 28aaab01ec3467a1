"""Settings: which source wins, what each default is, and what is said about those that cannot be used."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from intermission.supervisor.config import Config, ConfigError, Origin, is_loopback, variable

SECRET = "correct horse battery staple, and more"


def complaint(environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None) -> tuple[str, ...]:
    """The faults of settings that must be refused."""
    with pytest.raises(ConfigError) as caught:
        Config.load(flags or {}, environ or {})
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A path for a TOML file."""
    return tmp_path / "settings.toml"


def test_defaults_work_with_nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no settings at all the server listens on loopback and keeps everything below ./var."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 3)

    config = Config.load({}, {})

    assert (config.host, config.port, config.jwt_secret, config.handlers) == ("127.0.0.1", 8080, None, ())
    assert config.data_dir == tmp_path / "var"
    assert config.database_path == tmp_path / "var" / "intermission.db"
    assert config.directory_path == tmp_path / "var" / "directory.db"
    assert config.sources_dir == tmp_path / "var" / "sources"
    assert config.tasks_dir == tmp_path / "var" / "tasks"
    assert (config.max_running, config.drain_s, config.log_level) == (6, 8.0, "info")


@pytest.mark.parametrize(("terminal", "log_format"), [(True, "console"), (False, "json")])
def test_log_format_follows_the_terminal(terminal: bool, log_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """People read the log on a terminal, programs read it elsewhere."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)

    assert Config.load({}, {}).log_format == log_format


def test_every_setting_can_come_from_the_environment(tmp_path: Path) -> None:
    """Each variable reaches its field, as the type that the field has."""
    config = Config.load(
        {},
        {
            "INTERMISSION_HOST": "0.0.0.0",  # noqa: S104 -- nothing listens here
            "INTERMISSION_PORT": "0",
            "INTERMISSION_DATA_DIR": str(tmp_path),
            "INTERMISSION_DATABASE_URL": f"sqlite:///{tmp_path}/a%20b.db",
            "INTERMISSION_DIRECTORY_URL": f"sqlite:///{tmp_path}/teams.db",
            "INTERMISSION_JWT_SECRET": SECRET,
            "INTERMISSION_MAX_RUNNING": "1",
            "INTERMISSION_MAX_UPLOADS": "2",
            "INTERMISSION_MAX_USER_UPLOADS": "7",
            "INTERMISSION_MAX_UPLOAD_BYTES": "3",
            "INTERMISSION_MAX_USER_BYTES": "8",
            "INTERMISSION_MAX_USER_UNFINISHED": "9",
            "INTERMISSION_UPLOAD_IDLE_S": "4.5",
            "INTERMISSION_UPLOAD_MIN_RATE": "5",
            "INTERMISSION_UPLOAD_EXPIRES_DAYS": "1.5",
            "INTERMISSION_CORS_ORIGINS": "https://Example.org, http://[::1]:3000",
            "INTERMISSION_TRUSTED_PROXIES": "10.1.0.0/16, ::1,127.0.0.1",
            "INTERMISSION_HANDLERS": "acme.tasks, other,",
            "INTERMISSION_DRAIN_S": "0.5",
            "INTERMISSION_RETENTION_DAYS": "0.5",
            "INTERMISSION_LOG_LEVEL": "DEBUG",
            "INTERMISSION_LOG_FORMAT": "json",
            "PATH": "/bin",
        },
    )

    assert config.jwt_secret is not None
    assert config.jwt_secret.get_secret_value() == SECRET
    assert config.model_dump(exclude={"jwt_secret", "database_url", "directory_url"}) == {
        "host": "0.0.0.0",  # noqa: S104 -- nothing listens here
        "port": 0,
        "data_dir": tmp_path,
        "max_running": 1,
        "max_uploads": 2,
        "max_user_uploads": 7,
        "max_upload_bytes": 3,
        "max_user_bytes": 8,
        "max_user_unfinished": 9,
        "upload_idle_s": 4.5,
        "upload_min_rate": 5,
        "upload_expires_days": 1.5,
        "cors_origins": ("https://example.org", "http://[::1]:3000"),
        "trusted_proxies": ("10.1.0.0/16", "::1/128", "127.0.0.1/32"),
        "handlers": ("acme.tasks", "other"),
        "drain_s": 0.5,
        "retention_days": 0.5,
        "log_level": "debug",
        "log_format": "json",
    }
    assert config.database_path == tmp_path / "a b.db"
    assert config.directory_path == tmp_path / "teams.db"


def test_flags_beat_environment_beats_file_beats_defaults(file: Path) -> None:
    """Each source wins over the ones below it, and each value remembers where it came from."""
    file.write_text("port = 1\nmax_running = 1\ndrain_s = 1\nhandlers = ['acme.tasks']\n")
    environ = {"INTERMISSION_PORT": "2", "INTERMISSION_MAX_RUNNING": "2", "INTERMISSION_CONFIG": str(file)}

    config, origins = Config.load_with_origins({"port": "3", "drain_s": None}, environ)

    assert (config.port, config.max_running, config.drain_s, config.handlers) == (3, 2, 1.0, ("acme.tasks",))
    assert origins["port"] == Origin("flag", "--port")
    assert origins["max_running"] == Origin("environment", "INTERMISSION_MAX_RUNNING")
    assert origins["drain_s"] == Origin("file", f"drain_s (in {file})")
    assert origins["host"] == Origin("default", "")
    assert origins.keys() == Config.model_fields.keys()


def test_flag_names_the_file_before_the_environment_does(file: Path) -> None:
    """``--config`` wins over INTERMISSION_CONFIG as a whole: the other file is not read."""
    file.write_text("port = 1\n")

    assert Config.load({"config": str(file)}, {"INTERMISSION_CONFIG": "/there/is/none"}).port == 1


BAD = [
    ("HOST", "", "an IP address or a host name, without brackets or port"),
    ("HOST", "[::1]", "an IP address or a host name, without brackets or port"),
    ("HOST", "localhost:80", "an IP address or a host name, without brackets or port"),
    ("PORT", "abc", "a whole number from 0 to 65535"),
    ("PORT", "", "a whole number from 0 to 65535"),
    ("PORT", "-1", "a whole number from 0 to 65535"),
    ("PORT", "65536", "a whole number from 0 to 65535"),
    ("PORT", "80.5", "a whole number from 0 to 65535"),
    ("DATA_DIR", "", "a path"),
    ("MAX_RUNNING", "0", "a whole number from 1"),
    ("MAX_RUNNING", "many", "a whole number from 1"),
    ("MAX_UPLOADS", "0", "a whole number from 1"),
    ("MAX_USER_UPLOADS", "0", "a whole number from 1"),
    ("MAX_UPLOAD_BYTES", "1e9", "a whole number of bytes from 1"),
    ("MAX_USER_BYTES", "0", "a whole number of bytes from 1"),
    ("MAX_USER_UNFINISHED", "0", "a whole number from 1"),
    ("UPLOAD_IDLE_S", "0", "a number of seconds above 0"),
    ("UPLOAD_MIN_RATE", "-1", "a whole number of bytes a second, 0 or more"),
    ("UPLOAD_EXPIRES_DAYS", "0", "a number of days, more than 0 and at most 36500"),
    ("CORS_ORIGINS", "*", "origins like https://example.org or http://localhost:3000, separated by commas"),
    (
        "CORS_ORIGINS",
        "https://a.org/",
        "origins like https://example.org or http://localhost:3000, separated by commas",
    ),
    ("TRUSTED_PROXIES", "*", "IP addresses or networks like 10.0.0.0/8, separated by commas"),
    ("TRUSTED_PROXIES", "10.0.0.1/8", "IP addresses or networks like 10.0.0.0/8, separated by commas"),
    ("TRUSTED_PROXIES", "proxy.example.org", "IP addresses or networks like 10.0.0.0/8, separated by commas"),
    ("HANDLERS", "acme tasks", "names of Python modules, separated by commas"),
    ("HANDLERS", "ok,1bad", "names of Python modules, separated by commas"),
    ("HANDLERS", "acme..tasks", "names of Python modules, separated by commas"),
    ("HANDLERS", "acme/tasks.py", "names of Python modules, separated by commas"),
    ("HANDLERS", "acme.class", "names of Python modules, separated by commas"),
    ("DRAIN_S", "-1", "a number of seconds, 0 or more"),
    ("DRAIN_S", "nan", "a number of seconds, 0 or more"),
    ("DRAIN_S", "inf", "a number of seconds, 0 or more"),
    ("DRAIN_S", "8s", "a number of seconds, 0 or more"),
    ("RETENTION_DAYS", "0", "a number of days, more than 0 and at most 36500"),
    ("RETENTION_DAYS", "never", "a number of days, more than 0 and at most 36500"),
    ("RETENTION_DAYS", "nan", "a number of days, more than 0 and at most 36500"),
    ("LOG_LEVEL", "loud", "debug, info, warning or error"),
    ("LOG_FORMAT", "xml", "console or json"),
]


@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_a_bad_value_is_refused_by_name(name: str, value: str, expected: str) -> None:
    """The complaint names the variable as it was written, what it must be, and what it is."""
    assert complaint({f"INTERMISSION_{name}": value}) == (f"INTERMISSION_{name}: must be {expected}, not {value!r}",)


@pytest.mark.parametrize("setting", ["DATABASE_URL", "DIRECTORY_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@db/tasks",
        "mysql:hunter2",
        "sqlite://hunter2",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:////var/lib/",
        "sqlite:////var/lib/x.db?mode=ro&key=hunter2",
        "sqlite:////var/x%00.db",
    ],
)
def test_a_bad_database_url_is_refused_unshown(setting: str, url: str) -> None:
    """A URL may hold a password, so the complaint does not repeat it."""
    assert complaint({f"INTERMISSION_{setting}": url}) == (
        f"INTERMISSION_{setting}: must be sqlite:/// and the path of a file",
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"DATABASE_URL": "sqlite:////x/a.db", "DIRECTORY_URL": "sqlite:////x/./a.db"}, "DIRECTORY_URL"),
        ({"DATA_DIR": "/x", "DIRECTORY_URL": "sqlite:////x/intermission.db"}, "DIRECTORY_URL"),
        ({"DATA_DIR": "/x", "DATABASE_URL": "sqlite:////x/directory.db"}, "DATABASE_URL"),
    ],
)
def test_the_directory_is_not_the_servers_own_database(settings: dict[str, str], named: str) -> None:
    """Children write the directory; the server's own database is the server's alone."""
    assert complaint({f"INTERMISSION_{name}": value for name, value in settings.items()}) == (
        f"INTERMISSION_{named}: the directory and the server's own database must be two files",
    )


@pytest.mark.parametrize("secret", ["", "hunter2", "x" * 31])
def test_a_short_secret_is_refused_unshown(secret: str) -> None:
    """RFC 7518 asks for 32 bytes; an empty variable is a mistake, not a wish to go without."""
    assert complaint({"INTERMISSION_JWT_SECRET": secret}) == (
        "INTERMISSION_JWT_SECRET: must be a text of 32 bytes or more",
    )


def test_secret_is_measured_in_bytes() -> None:
    """Sixteen letters of two bytes each are enough."""
    assert Config.load({}, {"INTERMISSION_JWT_SECRET": "é" * 16}).jwt_secret is not None


def test_every_fault_is_listed_at_once(file: Path) -> None:
    """Nobody should have to start five times to learn of five mistakes."""
    file.write_text("port = true\nlog_levle = 'info'\nmax_running = 1.5\n")

    faults = complaint(
        {"INTERMISSION_PROT": "1", "INTERMISSION_DATA_DIR": "", "INTERMISSION_CONFIG": str(file)},
        {"host": "0.0.0.0", "drain_s": "soon"},  # noqa: S104 -- nothing listens here
    )

    assert [fault.partition(":")[0] for fault in faults] == [
        f"log_levle (in {file})",
        "INTERMISSION_PROT",
        f"port (in {file})",
        "INTERMISSION_DATA_DIR",
        "--host",
        f"max_running (in {file})",
        "--drain-s",
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("INTERMISSION_PROT", "; did you mean INTERMISSION_PORT?"),
        ("intermission_port", "; did you mean INTERMISSION_PORT?"),
        ("INTERMISSION_JWT_SECRT", "; did you mean INTERMISSION_JWT_SECRET?"),
        ("INTERMISSION_CONFG", "; did you mean INTERMISSION_CONFIG?"),
        ("INTERMISSION_XYZZY", ""),
    ],
)
def test_an_unknown_variable_is_refused_with_a_guess(name: str, hint: str) -> None:
    """A misspelt name would otherwise be ignored in silence. Its value, perhaps a secret, is not repeated."""
    assert complaint({name: "8080"}) == (f"{name}: there is no such setting{hint}",)


def test_an_unknown_key_in_the_file_is_refused_with_a_guess(file: Path) -> None:
    """The same holds for the file."""
    file.write_text("max_runing = 1\n[server]\nport = 1\n")

    assert complaint(flags={"config": file}) == (
        f"max_runing (in {file}): there is no such setting; did you mean max_running?",
        f"server (in {file}): there is no such setting",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"port: 8080", "is not TOML in UTF-8"), (b"\xff\xfe", "is not TOML in UTF-8"), (None, "No such file")],
)
def test_an_unreadable_file_is_refused_by_name(
    file: Path, content: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The complaint names the flag, the file and the reason."""
    monkeypatch.chdir(file.parent)
    if content is not None:
        file.write_bytes(content)

    (fault,) = complaint(flags={"config": file.name})

    assert fault.startswith("--config: ")
    assert repr(file.name) in fault
    assert message in fault


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com", "127.1"])  # noqa: S104
def test_no_listening_beyond_loopback_without_a_secret(host: str) -> None:
    """Whoever reaches the port could start and stop everything; the complaint says what to do."""
    (fault,) = complaint({"INTERMISSION_HOST": host})

    assert fault.startswith(f"INTERMISSION_HOST: other machines can reach '{host}'")
    assert "INTERMISSION_JWT_SECRET" in fault
    assert Config.load({}, {"INTERMISSION_HOST": host, "INTERMISSION_JWT_SECRET": SECRET}).host == host
    with pytest.raises(ValidationError):  # nor when the object is built by hand
        Config(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LocalHost"])
def test_loopback_needs_no_secret(host: str) -> None:
    """These are reached from this machine only."""
    assert is_loopback(Config.load({}, {"INTERMISSION_HOST": host}).host)


@pytest.mark.parametrize("folder", ["a b", "q?#%20", "ü", "bytes\udcff"])
def test_database_stands_in_any_data_folder(tmp_path: Path, folder: str) -> None:
    """What a URL has to escape does not change the name of the file."""
    config = Config.load({"data_dir": str(tmp_path / folder)}, {})

    assert config.database_path == tmp_path / folder / "intermission.db"


def test_relative_paths_start_where_the_server_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made absolute once, so a later change of folder does not move the data; ~ is the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")

    assert Config.load({"data_dir": "../data"}, {}).data_dir == tmp_path.parent / "data"
    assert Config.load({"data_dir": "~/data"}, {}).data_dir == Path("/home/somebody/data")
    assert Config.load({}, {"INTERMISSION_DATABASE_URL": "sqlite:///a.db"}).database_path == tmp_path / "a.db"


def test_settings_cannot_be_changed() -> None:
    """Whoever holds the object may rely on it."""
    config = Config.load({}, {})

    with pytest.raises(ValidationError):
        config.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("secret", [SECRET, "hunter2"])
def test_no_complaint_and_no_repr_shows_the_secret(secret: str, file: Path) -> None:
    """Neither a good secret beside a fault nor a bad one gets into a message, or into what hangs on the exception."""
    file.write_text("jwt_secret = 5\nport = 'x'\n")

    with pytest.raises(ConfigError) as caught:
        Config.load({"config": file}, {"INTERMISSION_JWT_SECRET": secret, "INTERMISSION_MAX_RUNNING": "0"})

    assert secret not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert SECRET not in repr(Config.load({}, {"INTERMISSION_JWT_SECRET": SECRET}))


@pytest.mark.parametrize("field", Config.model_fields)
def test_every_setting_says_what_it_must_be(field: str) -> None:
    """A complaint is made of the field's description, so none may lack one."""
    assert Config.model_fields[field].description
    assert variable(field) == f"INTERMISSION_{field.upper()}"
