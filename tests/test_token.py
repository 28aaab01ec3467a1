"""The command ``intermission token``: what it prints a server takes, and what it cannot make it says."""

import subprocess
import time
from pathlib import Path

import jwt
import pytest
from test_cli import SECRET, run

from intermission.supervisor import tokens

DAY_S = 86400


def made(*args: str, folder: Path | None = None, **settings: str) -> tuple[dict[str, object], float]:
    """The claims of a token that must be good, and for how long it is."""
    before = time.time()
    done = run("token", *args, folder=folder, **(settings or {"jwt_secret": SECRET}))
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    claims = jwt.decode(line, SECRET, algorithms=["HS256"])
    assert claims["iat"] <= time.time() + 1
    return claims, round(claims["exp"] - before)


def refused(*args: str, **settings: str) -> str:
    """What it says where it cannot."""
    done: subprocess.CompletedProcess[str] = run("token", *args, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr
    return " ".join(done.stderr.split())


def test_a_token_for_a_user() -> None:
    """It says who, from when and until when, and nothing of an administrator; thirty days if nothing is said."""
    claims, life_s = made("anna")
    assert set(claims) == {"sub", "iat", "exp"}
    assert claims["sub"] == "anna"
    assert life_s == pytest.approx(30 * DAY_S, abs=5)


@pytest.mark.parametrize(
    ("args", "life_s"), [(["--days", "1"], DAY_S), (["--hours", "1"], 3600), (["--days", "3650"], 3650 * DAY_S)]
)
def test_how_long_a_token_lives(args: list[str], life_s: int) -> None:
    """In days or in hours."""
    assert made("anna", *args)[1] == pytest.approx(life_s, abs=5)


def test_an_administrators() -> None:
    """An administrator's scope says so."""
    assert made("--admin", "Zoë Müller")[0].items() >= {"sub": "Zoë Müller", "scope": "admin"}.items()


def test_the_secret_of_the_servers_file(tmp_path: Path) -> None:
    """The secret may be in the file that the server reads, named by the flag or in the environment."""
    (tmp_path / "our.toml").write_text(f'jwt_secret = "{SECRET}"\n')
    assert made("anna", "--config", "our.toml", folder=tmp_path, log_level="info")[0]["sub"] == "anna"
    assert made("anna", folder=tmp_path, config="our.toml")[0]["sub"] == "anna"


def test_no_secret() -> None:
    """Without a secret there is nothing to sign with: it says what to set, and how to make one."""
    said = refused("anna")
    assert "set INTERMISSION_JWT_SECRET" in said
    assert "openssl rand -hex 32" in said


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], "Missing argument 'USER'"),
        ([""], "a printable string of 1 to 256 characters"),
        (["a" * 257], "a printable string of 1 to 256 characters"),
        (["an\nna"], "a printable string of 1 to 256 characters"),
        (["anna", "berta"], "unexpected extra argument (berta)"),
        (["anna", "--days", "0"], "0 is not in the range"),
        (["anna", "--days", "-1"], "-1 is not in the range"),
        (["anna", "--days", "3651"], "3651 is not in the range"),
        (["anna", "--days", "soon"], "'soon' is not a valid integer"),
        (["anna", "--hours", "1.5"], "'1.5' is not a valid integer"),
        (["anna", "--days", "1", "--hours", "1"], "--days or --hours, not both"),
        (["anna", "--secret", "x"], "No such option '--secret'"),
    ],
)
def test_what_cannot_be_made(args: list[str], named: str) -> None:
    """A user that no server would take, a life that is none: a sentence and exit code 2."""
    assert named in refused(*args, jwt_secret=SECRET)


@pytest.mark.parametrize("secret", ["", "hunter2", "x" * 31, "é" * 15])
def test_a_secret_that_is_too_short(secret: str) -> None:
    """Short secrets can be guessed (RFC 7518, section 3.2): neither a token nor a server is made with one."""
    for command in (["token", "anna"], ["serve"]):
        done = run(*command, jwt_secret=secret)
        assert (done.returncode, done.stdout) == (2, "")
        assert "INTERMISSION_JWT_SECRET: must be a text of 32 bytes or more" in done.stderr
        assert secret == "" or secret not in done.stderr


def test_help() -> None:
    """The help says what a token is for, with examples that can be pasted."""
    text = run("token", "--help").stdout
    for part in ("INTERMISSION_JWT_SECRET", "intermission token anna", "--admin --hours 1", "30"):
        assert part in text


def test_leeway() -> None:
    """There is none: a token ends in the second that it says, and begins in the one that it says."""
    now = int(time.time())
    with pytest.raises(tokens.TokenError, match="expired"):
        tokens.read(SECRET, jwt.encode({"sub": "anna", "exp": now}, SECRET, "HS256"))
    with pytest.raises(tokens.TokenError, match="not yet valid"):
        tokens.read(SECRET, jwt.encode({"sub": "anna", "exp": now + 60, "nbf": now + 5}, SECRET, "HS256"))
    claims = tokens.read(SECRET, jwt.encode({"sub": "anna", "exp": now + 5, "nbf": now}, SECRET, "HS256"))
    assert claims == tokens.Claims("anna", admin=False)
