"""The command `intermission`. What is slow to import is imported by the subcommand that needs it."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

_FLAGS: Final = (
    ("host", "ADDRESS", "127.0.0.1", "Where to listen; beyond this machine only with INTERMISSION_JWT_SECRET set."),
    ("port", "PORT", "8080", "The port to listen on; 0 takes any free one."),
    ("data-dir", "FOLDER", "./var", "Where the database and the files of tasks are kept."),
    ("max-running", "N", "twice the cores", "How many tasks run at once; 1 makes a strictly sequential queue."),
    ("max-uploads", "N", "1000", "How many uploads may be under way at once; they are not counted as running."),
    ("max-user-uploads", "N", "100 with a secret", "How many of these may be of one user."),
    ("max-upload-bytes", "BYTES", "none", "The largest upload that is taken."),
    ("max-user-bytes", "BYTES", "none", "What all uploads of one user may come to."),
    ("max-user-unfinished", "N", "10000", "How many uploads of one user may be unfinished."),
    ("upload-idle-s", "SECONDS", "60", "How long an upload may bring nothing before it is paused."),
    (
        "upload-min-rate",
        "BYTES",
        "1024",
        "A second, over three times upload-idle-s: what is slower is paused. 0: none.",
    ),
    ("upload-expires-days", "DAYS", "7", "How long an upload is kept that no client goes on with."),
    (
        "cors-origins",
        "ORIGINS",
        "none",
        "Origins whose pages may upload, like https://example.org, separated by commas.",
    ),
    (
        "trusted-proxies",
        "NETWORKS",
        "none",
        "Proxies that are believed about the address clients see: IP addresses or networks, separated by commas.",
    ),
    ("handlers", "MODULES", "none", "Python modules with handlers of your own, separated by commas."),
    ("drain-s", "SECONDS", "8", "How long running tasks may take to save their place when the server stops."),
    ("retention-days", "DAYS", "30", "How long completed and failed tasks are kept, with their files and logs."),
    ("log-level", "LEVEL", "info", "debug, info, warning or error."),
    ("log-format", "FORMAT", "console on a terminal, json elsewhere", "console or json."),
    ("config", "FILE", "none", "A TOML file with settings, such as: port = 8080"),
)
"""Name, what stands for the value, default, help. The values themselves are checked in one place: `Config`."""

_TOKEN_DAYS: Final = 30

_MAIN_HELP: Final = """Long tasks you can pause: each one an operating-system process of its own, controlled over HTTP.

\b
Examples:
  intermission serve                          on http://127.0.0.1:8080, data in ./var
  intermission serve --port 9000 --handlers acme.tasks
  INTERMISSION_MAX_RUNNING=1 intermission serve
  intermission config                         what is in force, and why
  intermission token anna                     a token for the user anna, where a secret is set
"""

_EPILOG: Final = """Flags win over the environment, the environment over the file, the file over defaults.
INTERMISSION_JWT_SECRET, INTERMISSION_DATABASE_URL and INTERMISSION_DIRECTORY_URL have no flag: flags can be read by
everybody on the machine."""

_SIGNING_HELP: Final = """\b
Examples:
  export INTERMISSION_JWT_SECRET=$(openssl rand -hex 32)      for the server too: it is what makes tokens true
  curl -H "Authorization: Bearer $(intermission token anna)" localhost:8080/tasks
  intermission token root --admin --hours 1                   sees and controls everybody's tasks

A token cannot be revoked; another secret revokes all of them. Give powerful tokens short lives."""


def _settings(command: _Command) -> _Command:
    """Give a command a flag for each setting."""
    for name, metavar, default, text in reversed(_FLAGS):
        variable = "INTERMISSION_" + name.replace("-", "_").upper()
        command = click.option(f"--{name}", metavar=metavar, help=f"{text}  [{variable}; default: {default}]")(command)
    return command


@contextmanager
def _complaints() -> Iterator[None]:
    """Turn unusable settings into a message and exit code 2."""
    from intermission.supervisor.config import ConfigError

    try:
        yield
    except ConfigError as error:
        click.echo("intermission: these settings cannot be used:", err=True)
        for fault in error.faults:
            click.echo(f"  {fault}", err=True)
        sys.exit(2)


@click.group(help=_MAIN_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="intermission", message="%(prog)s %(version)s")
def main() -> None:
    """Run the command line."""


@main.command(epilog=_EPILOG)
@_settings
def serve(**flags: str | None) -> None:
    """Start the server. It runs until SIGTERM or Ctrl-C, then lets running tasks save their place."""
    from intermission.supervisor.config import Config

    with _complaints():
        config = Config.load(flags, os.environ)

    from intermission.supervisor import app, logs

    logs.configure(config.log_level, config.log_format)
    sys.exit(app.serve(config))


@main.command(epilog=_EPILOG)
@_settings
def config(**flags: str | None) -> None:
    """Print the settings in force as NAME=value, and where each one comes from. Secrets are hidden."""
    from intermission.supervisor.config import Config

    with _complaints():
        settings, origins = Config.load_with_origins(flags, os.environ)
    lines = [(_line(field, value), origins[field]) for field, value in settings]
    width = max(len(line) for line, _ in lines)
    for line, origin in lines:
        click.echo(f"{line:<{width}}  # {origin.source} {origin.name}".rstrip())


@main.command(epilog=_SIGNING_HELP)
@click.argument("user")
@click.option("--admin", is_flag=True, help="An administrator: sees and controls everybody's tasks.")
@click.option("--days", metavar="N", type=click.IntRange(1, 3650), help="How long it is valid; 30 if nothing is said.")
@click.option("--hours", metavar="N", type=click.IntRange(1, 87600), help="The same in hours.")
@click.option("--config", "file", metavar="FILE", help="The server's TOML file, if the secret is there.")
def token(user: str, *, admin: bool, days: int | None, hours: int | None, file: str | None) -> None:
    """Print a token with which USER may ask a server that has the same INTERMISSION_JWT_SECRET."""
    from intermission.supervisor import tokens
    from intermission.supervisor.config import Config

    if days is not None and hours is not None:
        raise click.UsageError("give --days or --hours, not both")
    with _complaints():
        secret = Config.load({"config": file}, os.environ).jwt_secret
    if secret is None:
        raise click.UsageError(
            "there is no secret to sign with: set INTERMISSION_JWT_SECRET to the server's, 32 bytes or more "
            "(`openssl rand -hex 32` makes one). A server without a secret asks nobody for a token"
        )
    life_s = hours * 3600 if hours is not None else (days or _TOKEN_DAYS) * 86400
    try:
        click.echo(tokens.sign(secret.get_secret_value(), user, admin=admin, now=time.time(), life_s=life_s))
    except tokens.TokenError as error:
        raise click.UsageError(str(error)) from None


def _line(field: str, value: object) -> str:
    """Write a setting as a shell or an env file would; commented out where it has no value."""
    from pydantic import SecretStr

    from intermission.supervisor.config import variable

    match value:
        case None:
            return f"# {variable(field)}="
        case SecretStr():
            text = "********"
        case tuple():
            text = ",".join(value)
        case _:
            text = str(value)
    return f"{variable(field)}={shlex.quote(text)}"


if __name__ == "__main__":
    main(prog_name="intermission")
