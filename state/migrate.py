"""Numbered migrations: ``schema/NNNN_*.sql``, applied in order, each in a transaction of its own."""

import sqlite3
from importlib import resources
from typing import Final

from intermission.state.store import SchemaError

APPLICATION_ID: Final = 0x494E544D
"""``INTM`` in the file's header: the database is ours (https://sqlite.org/pragma.html#pragma_application_id)."""


def refuse(db: sqlite3.Connection) -> None:
    """Raise `SchemaError` for a database that is newer than this code, or not ours; an empty one is nobody's."""
    try:
        have, owner = _number(db, "user_version"), _number(db, "application_id")
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise SchemaError(f"the file is no database: {error}") from error
    if owner != APPLICATION_ID and (owner or have or tables):
        raise SchemaError("the database belongs to another program: choose another INTERMISSION_DATABASE_URL")
    if have > (known := len(_scripts())):
        raise SchemaError(f"the database has version {have} and this program knows {known}: use a newer program")


def migrate(db: sqlite3.Connection) -> None:
    """Bring the database to this code's version. One that failed half-way is as it was before that step."""
    for version, script in enumerate(_scripts(), 1):
        if version <= _number(db, "user_version"):
            continue
        try:
            db.executescript(
                f"BEGIN IMMEDIATE;\n{script}\n;"
                f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {version};\nCOMMIT;"
            )
        except BaseException:
            if db.in_transaction:
                db.rollback()
            raise


def _number(db: sqlite3.Connection, pragma: str) -> int:
    (number,) = db.execute(f"PRAGMA {pragma}").fetchone()
    return int(number)


def _scripts() -> list[str]:
    folder = resources.files("intermission.state") / "schema"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [file.read_text(encoding="utf-8") for file in files]
