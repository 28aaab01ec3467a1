"""The command `intermission`. What is slow to import is imported by the subcommand that needs it."""

import os
import shlex
import sys
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
    ("max-upload-bytes", "BYTES", "none", "The largest upload that is taken."),
    ("upload-idle-s", "SECONDS", "60", "How long an upload may bring nothing before it is paused."),
    ("handlers", "MODULES", "none", "Python modules with handlers of your own, separated by commas."),
    ("drain-s", "SECONDS", "8", "How long running tasks may take to save their place when the server stops."),
    ("log-level", "LEVEL", "info", "debug, info, warning or error."),
    ("log-format", "FORMAT", "console on a terminal, json elsewhere", "console or json."),
    ("config", "FILE", "none", "A TOML file with settings, such as: port = 8080"),
)
"""Name, what stands for the value, default, help. The values themselves are checked in one place: `Config`."""

_MAIN_HELP: Final = """Long tasks you can pause: each one an operating-system process of its own, controlled over HTTP.

\b
Examples:
  intermission serve                          on http://127.0.0.1:8080, data in ./var
  intermission serve --port 9000 --handlers acme.tasks
  INTERMISSION_MAX_RUNNING=1 intermission serve
  intermission config                         what is in force, and why
"""

_EPILOG: Final = """Flags win over the environment, the environment over the file, the file over defaults.
INTERMISSION_JWT_SECRET, INTERMISSION_DATABASE_URL and INTERMISSION_DIRECTORY_URL have no flag: flags can be read by
everybody on the machine."""


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
