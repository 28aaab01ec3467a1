"""The settings: one frozen object, read once, that names whatever is wrong with it.

Flags win over the environment (``INTERMISSION_*``), that over a TOML file, that over defaults that work with none.
Every value remembers which of them it came from and under which name, because a complaint has to use the name that the
person wrote. pydantic checks the values. pydantic-settings would add little: it reads only the process's own
environment, does not see a misspelt name, and does not tell where a value came from.
"""

import difflib
import ipaddress
import keyword
import os
import re
import reprlib
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import quote, unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]
Source = Literal["flag", "environment", "file", "default"]

_PREFIX: Final = "INTERMISSION_"
_FILE: Final = "config"  # not a setting but where settings are read: --config or INTERMISSION_CONFIG
_SQLITE: Final = "sqlite:///"
_SECRET_BYTES: Final = 32  # RFC 7518, section 3.2: a key for HS256 is at least as long as its hash
_UNSHOWN: Final = frozenset({"jwt_secret", "database_url", "directory_url"})  # a URL may hold a password
_MAX_USER_UPLOADS: Final = 100
_ORIGIN: Final = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_HOST_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")


class ConfigError(Exception):
    """Settings that cannot be used; its text has one line for each fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there. A name other than localhost might be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# The validators below raise a bare ValueError: what is wrong is said by the description of the field.


def _no_bool(value: object) -> object:
    """Refuse TOML's ``true``, which Python would take for the number 1."""
    if isinstance(value, bool):
        raise ValueError  # noqa: TRY004 -- pydantic takes a TypeError for a bug of ours
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _host(value: str) -> str:
    if not _HOST_NAME.fullmatch(value):
        ipaddress.ip_address(value)
    return value


def _absolute(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError
    return Path(os.path.abspath(os.path.expanduser(value)))


def _url_of(path: str | Path) -> str:
    return _SQLITE + quote(os.fsencode(path))


def _path_of(url: str) -> str:
    return unquote(url.removeprefix(_SQLITE), errors="surrogateescape")


def _sqlite_url(value: str) -> str:
    path = _path_of(value)
    if not value.startswith(_SQLITE) or path in {"", ":memory:"} or path.endswith("/") or "\0" in path:
        raise ValueError
    if "?" in value or "#" in value:  # a query would end up in the name of the file
        raise ValueError
    return _url_of(os.path.abspath(path))


def _long_enough(value: SecretStr | None) -> SecretStr | None:
    if value is not None and len(value.get_secret_value().encode()) < _SECRET_BYTES:
        raise ValueError
    return value


def _split(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value):
        raise ValueError
    return value


def _network(value: str) -> str:
    return str(ipaddress.ip_network(value))


def _module(value: str) -> str:
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in value.split(".")):
        raise ValueError
    return value


class Config(BaseModel):
    """What is in force. The description of a field completes the sentence "it must be …"."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    host: Annotated[str, BeforeValidator(_lower), AfterValidator(_host)] = Field(
        default="127.0.0.1", description="an IP address or a host name, without brackets or port"
    )
    port: Annotated[int, BeforeValidator(_no_bool)] = Field(
        default=8080, ge=0, le=65535, description="a whole number from 0 to 65535"
    )
    """0: any free port."""
    data_dir: Annotated[Path, BeforeValidator(_absolute)] = Field(default=Path("var"), description="a path")
    database_url: Annotated[str, AfterValidator(_sqlite_url)] = Field(
        default_factory=lambda data: _url_of(data["data_dir"] / "intermission.db"),
        description="sqlite:/// and the path of a file",
    )
    directory_url: Annotated[str, AfterValidator(_sqlite_url)] = Field(
        default_factory=lambda data: _url_of(data["data_dir"] / "directory.db"),
        description="sqlite:/// and the path of a file",
    )
    jwt_secret: Annotated[SecretStr | None, AfterValidator(_long_enough)] = Field(
        default=None, description=f"a text of {_SECRET_BYTES} bytes or more"
    )
    max_running: Annotated[int, BeforeValidator(_no_bool)] = Field(
        default_factory=lambda: 2 * (os.cpu_count() or 1), ge=1, description="a whole number from 1"
    )
    max_uploads: Annotated[int, BeforeValidator(_no_bool)] = Field(
        default=1000, ge=1, description="a whole number from 1"
    )
    max_user_uploads: Annotated[int, BeforeValidator(_no_bool)] = Field(
        default_factory=lambda data: data["max_uploads"] if data["jwt_secret"] is None else _MAX_USER_UPLOADS,
        ge=1,
        description="a whole number from 1",
    )
    """Without a secret there is one user, who is everyone."""
    max_upload_bytes: Annotated[int | None, BeforeValidator(_no_bool)] = Field(
        default=None, ge=1, description="a whole number of bytes from 1"
    )
    """None: as much as there is space for."""
    max_user_bytes: Annotated[int | None, BeforeValidator(_no_bool)] = Field(
        default=None, ge=1, description="a whole number of bytes from 1"
    )
    """None: as much as there is space for."""
    max_user_unfinished: Annotated[int, BeforeValidator(_no_bool)] = Field(
        default=10_000, ge=1, description="a whole number from 1"
    )
    upload_idle_s: Annotated[float, BeforeValidator(_no_bool)] = Field(
        default=60.0, gt=0, allow_inf_nan=False, description="a number of seconds above 0"
    )
    upload_min_rate: Annotated[int, BeforeValidator(_no_bool)] = Field(
        default=1024, ge=0, description="a whole number of bytes a second, 0 or more"
    )
    """0: an upload may be as slow as it likes, as long as it is not idle."""
    upload_expires_days: Annotated[float, BeforeValidator(_no_bool)] = Field(
        default=7.0, gt=0, le=36_500, description="a number of days, more than 0 and at most 36500"
    )
    """How long an upload waits for its client."""
    cors_origins: Annotated[
        tuple[Annotated[str, BeforeValidator(_lower), AfterValidator(_origin)], ...], BeforeValidator(_split)
    ] = Field(default=(), description="origins like https://example.org or http://localhost:3000, separated by commas")
    trusted_proxies: Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_split)] = Field(
        default=(), description="IP addresses or networks like 10.0.0.0/8, separated by commas"
    )
    """Who is believed when it says under which address a client sees us."""
    handlers: Annotated[tuple[Annotated[str, AfterValidator(_module)], ...], BeforeValidator(_split)] = Field(
        default=(), description="names of Python modules, separated by commas"
    )
    drain_s: Annotated[float, BeforeValidator(_no_bool)] = Field(
        default=8.0, ge=0, allow_inf_nan=False, description="a number of seconds, 0 or more"
    )
    retention_days: Annotated[float, BeforeValidator(_no_bool)] = Field(
        default=30.0, gt=0, le=36_500, description="a number of days, more than 0 and at most 36500"
    )
    """How long completed and failed tasks are kept, and what is left of those that are gone."""
    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = Field(
        default="info", description="debug, info, warning or error"
    )
    log_format: Annotated[LogFormat, BeforeValidator(_lower)] = Field(
        default_factory=lambda: "console" if sys.stderr.isatty() else "json", description="console or json"
    )

    @field_validator("directory_url")
    @classmethod
    def _apart(cls, url: str, info: ValidationInfo) -> str:
        if url == info.data.get("database_url"):  # children write the directory, and never the server's own database
            raise PydanticCustomError("shared", "the directory needs a file of its own")
        return url

    @field_validator("jwt_secret")
    @classmethod
    def _guarded(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        host = info.data.get("host")
        if secret is None and host is not None and not is_loopback(host):
            raise PydanticCustomError("exposed", "a host that other machines can reach needs a secret")
        return secret

    @classmethod
    def load(cls, flags: Mapping[str, object], environ: Mapping[str, str]) -> Self:
        """Read the settings; ``flags`` are by field name, None where not given. Raises `ConfigError`."""
        return cls.load_with_origins(flags, environ)[0]

    @classmethod
    def load_with_origins(
        cls, flags: Mapping[str, object], environ: Mapping[str, str]
    ) -> tuple[Self, Mapping[str, "Origin"]]:
        """Do as `load` does, and tell where each value came from, by field name."""
        faults: list[str] = []
        given = _from_file(flags, environ, faults) | _from_environment(environ, faults) | _from_flags(flags)
        config = cls._checked(given, faults)
        # Raised outside of any except clause: a chained ValidationError would be printed with what it was given.
        if config is None or faults:
            raise ConfigError(faults)
        return config, {field: given[field].origin if field in given else _DEFAULT for field in cls.model_fields}

    @classmethod
    def _checked(cls, given: Mapping[str, "_Given"], faults: list[str]) -> Self | None:
        try:
            return cls.model_validate({field: value.value for field, value in given.items()})
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False)
            faults += [fault for detail in details if (fault := _fault(detail, given))]
            return None

    @property
    def sources_dir(self) -> Path:
        """What clients uploaded and operators put there for tasks to read."""
        return self.data_dir / "sources"

    @property
    def tasks_dir(self) -> Path:
        """One folder for each task."""
        return self.data_dir / "tasks"

    @property
    def database_path(self) -> Path:
        """The file behind ``database_url``."""
        return Path(_path_of(self.database_url))

    @property
    def directory_path(self) -> Path:
        """The file behind ``directory_url``."""
        return Path(_path_of(self.directory_url))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from, and under which name the person wrote it."""

    source: Source
    name: str


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    origin: Origin


_DEFAULT: Final = Origin("default", "")


def variable(field: str) -> str:
    """The environment's name for a setting."""
    return _PREFIX + field.upper()


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _from_flags(flags: Mapping[str, object]) -> dict[str, _Given]:
    return {
        field: _Given(value, Origin("flag", _flag(field)))
        for field, value in flags.items()
        if value is not None and field != _FILE
    }


def _from_environment(environ: Mapping[str, str], faults: list[str]) -> dict[str, _Given]:
    known = {variable(field): field for field in Config.model_fields}
    ours = {name: value for name, value in environ.items() if name.upper().startswith(_PREFIX)}
    ours.pop(variable(_FILE), None)
    faults += [_unknown(name, name[len(_PREFIX) :], variable) for name in sorted(ours.keys() - known.keys())]
    return {known[name]: _Given(ours[name], Origin("environment", name)) for name in ours if name in known}


def _from_file(flags: Mapping[str, object], environ: Mapping[str, str], faults: list[str]) -> dict[str, _Given]:
    said, path = _flag(_FILE), flags.get(_FILE)
    if path is None:
        said, path = variable(_FILE), environ.get(variable(_FILE))
    if path is None:
        return {}
    try:
        values = tomllib.loads(Path(str(path)).read_bytes().decode())
    except OSError as error:
        faults.append(f"{said}: cannot read {_shown(path)}: {error.strerror}")
        return {}
    except ValueError as error:
        faults.append(f"{said}: {_shown(path)} is not TOML in UTF-8: {error}")
        return {}
    known = Config.model_fields
    named = {key: Origin("file", f"{key} (in {path})") for key in values}
    faults += [_unknown(named[key].name, key) for key in values if key not in known]
    return {key: _Given(value, named[key]) for key, value in values.items() if key in known}


def _unknown(name: str, key: str, say: Callable[[str], str] = str) -> str:
    near = difflib.get_close_matches(key.lower(), [*Config.model_fields, _FILE], n=1)
    return f"{name}: there is no such setting" + (f"; did you mean {say(near[0])}?" if near else "")


def _fault(detail: ErrorDetails, given: Mapping[str, _Given]) -> str | None:
    """One fault in our own words; None for what only follows from another one."""
    if detail["type"] == "default_factory_not_called":
        return None
    if detail["type"] == "exposed":
        return _exposed(given["host"])
    if detail["type"] == "shared":
        said = next(given[field].origin.name for field in ("directory_url", "database_url") if field in given)
        return f"{said}: the directory and the server's own database must be two files"
    field = str(detail["loc"][0])
    fault = f"{given[field].origin.name}: must be {Config.model_fields[field].description}"
    return fault if field in _UNSHOWN else f"{fault}, not {_shown(given[field].value)}"


def _exposed(host: _Given) -> str:
    return (
        f"{host.origin.name}: other machines can reach {_shown(host.value)}, so {variable('jwt_secret')} has to be set "
        f"({_SECRET_BYTES} bytes or more; `openssl rand -hex 32` makes one). Without it only 127.0.0.1, ::1 and "
        "localhost are served"
    )


def _shown(value: object) -> str:
    return _REPR.repr(value)


_REPR: Final = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
