"""On a Python whose build knows less of Linux than there is: uploads work, or the server says what is lacking."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tus_tools import ask, content, create, patch
from upload_tools import MIB, WAYS, data, sha256, upload
from verb_tools import playing
from yarl import URL

WITHOUT = "import os; del os.pidfd_open"
NO_LIBC = "import intermission.supervisor.process.ring as ring; ring._create = None"
SERVE = "import sys; sys.argv[1:] = ['serve', '--port', '0']; from intermission.supervisor.cli import main; main()"


@pytest.mark.parametrize("way", WAYS)
async def test_uploads(tmp_path: Path, way: str) -> None:
    """They are copied, and joined, by what the system has, whatever its Python has."""
    handlers = WAYS[way]["INTERMISSION_HANDLERS"]
    async with playing(tmp_path, INTERMISSION_HANDLERS=f"{handlers},older_build") as server:
        whole = data(3 * MIB)
        assert (await upload(server, whole)).json["result"]["sha256"] == sha256(whole)
        paths = []
        for part in (whole[:MIB], whole[MIB:]):
            paths.append(await create(server, len(part), Upload_Concat="partial"))
            assert (await patch(server, paths[-1], part, 0)).status == 204
        answer = await ask(server, "POST", Upload_Concat=f"final;{paths[0]} {paths[1]}")
        assert answer.status == 201, answer.body
        assert await content(server, URL(answer.headers["Location"]).path) == whole


@pytest.mark.parametrize(("lacking", "said"), [(WITHOUT, "os.pidfd_open"), (NO_LIBC, "glibc 2.27 or later, or musl")])
def test_what_it_cannot_do_without(tmp_path: Path, lacking: str, said: str) -> None:
    """The start is refused in one line, which says what to do about it."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INTERMISSION_")}
    command = [sys.executable, "-c", f"{lacking}; {SERVE}"]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
