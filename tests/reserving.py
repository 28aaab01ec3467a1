"""A process that, for each line it is told, reserves room for a file and says whether there was some."""

import sys
from pathlib import Path

from intermission.handlers import disk

path, size = Path(sys.argv[1]), int(sys.argv[2])
for _ in sys.stdin:
    with path.open("ab", buffering=0) as file:
        try:
            disk.reserve(file.fileno(), size, path.parent)
        except OSError as error:
            said = error.strerror
        else:
            said = "kept"
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()
