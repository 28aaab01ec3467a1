"""The image, built and run without a container engine: each stage is an overlay over this machine's own root.

Every command is read from the Dockerfile, so what passes here is what an engine would run. Not shown by it: that the
base image has what this machine has (a Python with venv, useradd), and that an engine reads the file as we do.
"""

import base64
import contextlib
import fnmatch
import hmac
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).parents[1]
WORK: Final = Path("/mnt")
"""Hidden behind a file system of our own, in a mount namespace of our own."""
PYTHON: Final = Path(sys.executable).resolve()
SECRET: Final = secrets.token_hex(32)
ORPHAN: Final = "(setsid sleep 0.2 &)"
WITHIN_S: Final = 20.0


@dataclass
class Stage:
    """An image while it is built: its root and what its instructions have set."""

    root: Path
    environment: dict[str, str]
    workdir: str = "/"
    user: str = "root"
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def path(self, text: str) -> Path:
        """Where a path of the image is on this machine."""
        return self.root / os.path.normpath(os.path.join(self.workdir, text)).lstrip("/")


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command that must succeed."""
    return subprocess.run(command, check=True, text=True, **options)


# Building.


def instructions() -> Iterator[tuple[str, str]]:
    """Each instruction of the Dockerfile with its arguments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    for instruction in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        if instruction.strip():
            name, _, rest = instruction.partition(" ")
            yield name, rest.strip()


def fresh_root(name: str) -> Path:
    """This machine's root, changed by nobody, in which everybody may use its Python."""
    place = WORK / name
    upper, work, root = (place / part for part in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir(parents=True)
    run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", str(root))
    for system in ("proc", "dev"):
        run("mount", "--rbind", f"/{system}", str(root / system))
    for folder in PYTHON.parents:
        inside = root / str(folder).lstrip("/")
        inside.chmod(inside.stat().st_mode | 0o055)
    return root


def build() -> Stage:
    """Carry out the Dockerfile; its last stage."""
    stages: dict[str, Stage] = {}
    for name, rest in instructions():
        print(f"{name} {rest[:100]}", flush=True)
        if name == "FROM":
            alias = rest.partition(" AS ")[2] or f"stage{len(stages)}"
            pip = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
            path = f"{PYTHON.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            stages[alias] = Stage(fresh_root(alias), {"PATH": path, "HOME": "/root", **pip})
        elif name != "ARG":
            step([*stages.values()][-1], name, rest, stages)
    return [*stages.values()][-1]


def step(stage: Stage, name: str, rest: str, stages: dict[str, Stage]) -> None:
    """One instruction of a stage."""
    match name:
        case "WORKDIR":
            stage.workdir = rest
            stage.path(".").mkdir(parents=True, exist_ok=True)
        case "COPY":
            copy(*rest.split(), stage)
        case "RUN":
            run_in(stage, rest, stages)
        case "ENV":
            for setting in shlex.split(rest):
                key, _, value = setting.partition("=")
                stage.environment[key] = value.replace("$PATH", stage.environment["PATH"])
        case "USER":
            stage.user = rest
        case "ENTRYPOINT" | "CMD":
            stage.command += json.loads(rest)
        case "HEALTHCHECK":
            stage.health = json.loads(rest.partition(" CMD ")[2])
        case "VOLUME" | "EXPOSE":
            pass
        case _:
            raise SystemExit(f"{name}: this check does not know it")


def run_in(stage: Stage, rest: str, stages: dict[str, Stage]) -> None:
    """A command of the build, with what is mounted for it."""
    with contextlib.ExitStack() as stack:
        if mount := re.match(r"--mount=type=bind,from=(\w+),source=/,target=(\S+)\s+", rest):
            target = stage.path(mount[2])
            target.mkdir()
            run("mount", "--bind", str(stages[mount[1]].root), str(target))
            stack.callback(target.rmdir)
            stack.callback(run, "umount", str(target))
            rest = rest[mount.end() :]
        command = ("chroot", str(stage.root), "/bin/sh", "-c", f"cd {stage.workdir} && {rest}")
        run(*command, env=stage.environment)


def copy(source: str, target: str, stage: Stage) -> None:
    """From the context, without what .dockerignore leaves out."""
    into = stage.path(target)
    patterns = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and not line.startswith("#")]

    def is_left_out(path: Path) -> bool:
        parts, out = path.relative_to(ROOT).parts, False
        above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        for pattern in patterns:
            wanted = pattern.removeprefix("!").removeprefix("**/")
            named = parts if pattern.startswith("**/") else above
            if any(fnmatch.fnmatchcase(name, wanted) for name in named):
                out = not pattern.startswith("!")
        return out

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if is_left_out(Path(folder) / name)}

    if source == ".":
        shutil.copytree(ROOT, into, ignore=ignore, dirs_exist_ok=True)
        print("  the context:", ", ".join(sorted(path.name for path in into.iterdir())))
    else:
        shutil.copy(ROOT / source, into)


# Running.


class Container:
    """The image's own command as process 1 of a namespace, as its own user."""

    def __init__(self, stage: Stage, **settings: str) -> None:
        uid, _, gid = stage.user.partition(":")
        self._ids = ("--setuid", uid, "--setgid", gid)
        self._log = WORK / "log"
        self._environment = {k: v for k, v in stage.environment.items() if not k.startswith("PIP_")} | settings
        inside = ("chroot", f"--userspec={stage.user}", str(stage.root), "env", f"--chdir={stage.workdir}")
        start = f"mount -t proc proc {stage.root}/proc && exec {shlex.join([*inside, *stage.command])}"
        namespaces = ("unshare", "--pid", "--fork", "--mount", "--kill-child")
        with self._log.open("w") as log:
            self._outside = subprocess.Popen([*namespaces, "sh", "-c", start], env=self._environment, stderr=log)
        while not (children := self._children()) and self._outside.poll() is None:
            time.sleep(0.01)
        self.init = children[0]
        """The pid of its process 1, out here."""

    def _children(self) -> list[int]:
        pid = self._outside.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, however far it got: with its process 1 goes the whole namespace."""
        if self._outside.poll() is None:
            os.kill(self.init, signal.SIGKILL)
            self._outside.wait()

    def wait(self) -> int:
        """Its exit code."""
        return self._outside.wait(WITHIN_S)

    @property
    def said(self) -> str:
        """Its log."""
        return self._log.read_text()

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command that comes in from outside, as ``docker exec`` and the health check do."""
        enter = ("nsenter", "--target", str(self.init), "--pid", "--mount", "--root", "--wd", *self._ids)
        options: Any = {"env": self._environment, "text": True, "capture_output": True}
        return subprocess.run([*enter, *command], check=False, **options)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """A request to the server."""
        port = self._environment["INTERMISSION_PORT"]
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        request.add_header("Authorization", f"Bearer {token()}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=WITHIN_S) as answer:
            return json.load(answer)


def token() -> str:
    """A bearer token (RFC 7519), without a library: this script runs with the machine's own Python."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    claims = {"sub": "check", "exp": time.time() + 3600}
    signed = ".".join(part(json.dumps(member).encode()) for member in ({"alg": "HS256"}, claims))
    return f"{signed}.{part(hmac.digest(SECRET.encode(), signed.encode(), 'sha256'))}"


def until(what: str, condition: Callable[[], object]) -> None:
    """Wait until it is so, and say so."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"FAILED within {WITHIN_S} s: {what}")
        time.sleep(0.05)
    print(f"ok: {what}", flush=True)


def expect(what: str, *, so: bool) -> None:
    """Say that it is so."""
    if not so:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}", flush=True)


def check(stage: Stage) -> None:
    """Run it, use it, stop it, and see what another one makes of what is left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with Container(stage, INTERMISSION_PORT=port) as container:
        so = container.wait() == 2 and "INTERMISSION_JWT_SECRET" in container.said
        expect("without a secret it refuses to start", so=so)
    with Container(stage, INTERMISSION_PORT=port, INTERMISSION_JWT_SECRET=SECRET) as container:
        task = use(container, stage)
    with Container(stage, INTERMISSION_PORT=port, INTERMISSION_JWT_SECRET=SECRET) as container:
        until("it starts again on the same data", lambda: container.inside(*stage.health).returncode == 0)
        until("the task carried on to its end", lambda: container.ask("GET", f"/tasks/{task}")["status"] == "completed")
        expect("in its second attempt", so=container.ask("GET", f"/tasks/{task}")["attempt"] == 2)
        stop(container)


def use(container: Container, stage: Stage) -> str:
    """What an engine and its users do with it; the task that it was stopped with."""
    until("the health check passes once it listens", lambda: container.inside(*stage.health).returncode == 0)
    uid = stage.user.partition(":")[0]
    status = Path(f"/proc/{container.init}/status").read_text()
    expect(f"process 1 runs as {uid}", so=re.search(rf"^Uid:(\t{uid}){{4}}$", status, re.MULTILINE) is not None)
    expect("a command from outside leaves an orphan", so=container.inside("sh", "-c", ORPHAN).returncode == 0)
    until("it is reaped", lambda: "sleep" not in container.inside("ps", "-e", "-o", "comm=").stdout)
    task = str(container.ask("POST", "/counter/start", {"limit": 400, "delay_s": 0.01})["id"])
    until("a task runs", lambda: container.ask("GET", f"/tasks/{task}")["progress"])
    stop(container)
    expect("nothing was said that only a mistake makes it say", so="Traceback" not in container.said)
    return task


def stop(container: Container) -> None:
    """As ``docker stop`` does."""
    started = time.monotonic()
    os.kill(container.init, signal.SIGTERM)
    expect("SIGTERM to process 1 ends it in order", so=container.wait() == 0)
    took_s = time.monotonic() - started
    expect(f"in {took_s:.1f} s: `docker stop` grants 10", so=took_s < 10)


def main() -> None:
    """See the module."""
    run("mount", "-t", "tmpfs", "tmpfs", str(WORK))  # hidden from everybody else, and gone with us
    try:
        check(build())
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"FAILED: {shlex.join(error.cmd)}") from None
    print("the container is sound")


if __name__ == "__main__":
    main()
