"""What a file is, by its bytes. What a client says of it decides only between kinds that nothing can run.

Formats of text have no mark of their own: there a client's word is taken, for the kinds below, where the bytes are
text and do not begin as markup does. So nothing comes out of here that a browser would execute from our origin.
"""

import codecs
import re
from pathlib import Path
from typing import Final

import filetype  # type: ignore[import-untyped]  # it has no types

UNKNOWN: Final = "application/octet-stream"
TEXTS: Final = frozenset(
    {
        *("text/plain", "text/csv", "text/tab-separated-values", "text/markdown"),
        *("application/json", "application/jsonl", "application/x-jsonlines", "application/x-ndjson"),
    }
)
"""Kinds of text that are inert."""
_KNOWN: Final = TEXTS | {kind.mime for kind in filetype.types}
_HEAD_BYTES: Final = 8 << 10
"""As much as the library looks at."""
_BINARY: Final = re.compile("[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
"""Characters that no text has (https://mimesniff.spec.whatwg.org, binary data byte)."""


def found(path: Path, claimed: str) -> str:
    """The media type of a file of which somebody has said that it is ``claimed``."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return sniffed(head, claimed)


def sniffed(head: bytes, claimed: str) -> str:
    """The media type of a file that begins so."""
    kind = claimed.partition(";")[0].strip().lower()
    if kind in TEXTS and _is_text(head):
        return kind
    known: str | None = filetype.guess_mime(head)
    return known or UNKNOWN


def inert(kind: str) -> str:
    """The media type, if it is one that can be found; those of uploads that an earlier version kept were claimed."""
    return kind if kind in _KNOWN else UNKNOWN


def _is_text(head: bytes) -> bool:
    try:
        # A character that the head cuts in two is no fault; an incremental decoder waits for the rest of it.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return False
    return not _BINARY.search(text) and not text.lstrip().startswith("<")
