"""What clients say that data comes to, and what they are told of it (RFC 9530).

`Repr-Digest` is of the whole, `Content-Digest` of one body, and `Want-Repr-Digest` says what a client would like to be
told. Unknown algorithms and malformed wishes are left aside, as the RFC has it; a malformed digest is refused,
for whoever sent it believes that it is verified.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, get_args

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from intermission.handlers.digest import Algorithm
from intermission.state.models import Task
from intermission.state.status import Status
from intermission.supervisor.inputs import UPLOAD
from intermission.supervisor.routes.problems import Problem

WANTED: Final = {"Want-Repr-Digest": "sha-256=10, crc32c=5"}
"""What is sent with an answer that has found fault with a digest: which there are."""
WANTED_OF_CONTENT: Final = {"Want-Content-Digest": "sha-512=10, sha-256=9, crc32c=5"}
SENDS: Final = ("Repr-Digest",)
_USUAL: Final[Algorithm] = "sha-256"
"""What is computed for who says nothing of it."""
_OF_CONTENT: Final = {"sha-512": "sha512", "sha-256": "sha256", "crc32c": "crc32c"}
"""What a body can be checked with, the strongest first, and what a `Checksum` calls it."""
_FIELDS: Final[Mapping[Algorithm, str]] = {"sha-256": "sha256", "crc32c": "crc32c"}
"""What params and results call it."""
_BYTES: Final[Mapping[str, Mapping[str, int]]] = {
    "Repr-Digest": {"sha-256": 32, "crc32c": 4},
    "Content-Digest": {"sha-512": 64, "sha-256": 32, "crc32c": 4},
}
"""How many each gives, of what is known in which header."""
_WISH: Final = re.compile(r"\d|10", re.ASCII)
_MEMBER: Final = re.compile(r"[ \t]*([A-Za-z*][\w.*-]*)=([^; \t]+)[ \t]*(?:;.*)?", re.ASCII)
_DIGEST: Final = re.compile(r":([A-Za-z0-9+/]*)={0,2}:")

_ALGORITHMS: Final = " or ".join(get_args(Algorithm))
_MEMBERS: Final = r"^[a-z][a-z0-9-]*=:[A-Za-z0-9+/]*={0,2}:(, [a-z][a-z0-9-]*=:[A-Za-z0-9+/]*={0,2}:)*$"
Announcing = TypedDict(
    "Announcing",
    {
        "Repr-Digest": Annotated[
            str,
            Field(pattern=_MEMBERS, description=f"What all of it must come to (RFC 9530): {_ALGORITHMS}"),
        ]
    },
    total=False,
)
Covering = TypedDict(
    "Covering",
    {
        "Content-Digest": Annotated[
            str,
            Field(pattern=_MEMBERS, description="What this body must come to (RFC 9530), or nothing of it is kept"),
        ]
    },
    total=False,
)
Wanting = TypedDict(
    "Wanting",
    {
        "Want-Repr-Digest": Annotated[
            str, Field(description=f"Which digest to tell (RFC 9530): {_ALGORITHMS}; of 0, which not")
        ]
    },
    total=False,
)


def asked(request: web.Request) -> dict[str, Any]:
    """What a start says of digests, as fields of `BodyInfo`. Raises `Problem` (400).

    Computed is what the client wants; else what it announces; else SHA-256, unless the client says that it does not
    want that. And always what it announces, to check it.
    """
    announced = _digests(request, "Repr-Digest")
    known = [name for name in get_args(Algorithm) if name in announced]
    wishes = _wishes(request)
    usual = known or ([] if wishes.get(_USUAL) == 0 else [_USUAL])
    digests = sorted({*(_wanted(request) or usual), *known})
    return {
        "sha256": announced.get("sha-256", b"").hex() or None,
        # Left out where there is nothing to say: a start is known by its fields when it is sent again.
        **({"crc32c": announced["crc32c"].hex()} if "crc32c" in announced else {}),
        **({"digests": digests} if digests != [_USUAL] else {}),
    }


def of_content(request: web.Request) -> tuple[str, bytes] | None:
    """What this body has to give: the strongest of what is said, as a `Checksum` takes it. Raises `Problem` (400)."""
    given = _digests(request, "Content-Digest")
    return next(((checksum, given[name]) for name, checksum in _OF_CONTENT.items() if name in given), None)


def are_announced(request: web.Request) -> bool:
    """Whether it says of the whole or of this body what it comes to. Raises `Problem` (400)."""
    return bool(_digests(request, "Repr-Digest") or _digests(request, "Content-Digest"))


def check_announced(request: web.Request, task: Task) -> None:
    """Refuse a digest of the whole that is not verified, for its creation did not announce it. Raises `Problem` (400).

    The digests that are computed from its first byte on are those that were asked for then.
    """
    given, info = _digests(request, "Repr-Digest"), json.loads(task.params)
    for name, field in _FIELDS.items():
        if name in given and info.get(field) != given[name].hex():
            detail = (
                "Repr-Digest is verified if it is sent with the request that creates the upload, and this one was not: "
                "send Content-Digest to have this body verified"
            )
            raise Problem(400, "unverified-digest", detail, headers=WANTED_OF_CONTENT)


def wanted(request: web.Request, task: Task) -> dict[str, str]:
    """The header that tells a complete upload's digests, of those that the client wants."""
    names = _wanted(request)
    return _header({name: text for name, text in _known(task).items() if name in names}) if names else {}


def of_file(request: web.Request, task: Task) -> dict[str, str]:
    """The same for an answer that carries the file itself: told also to who has not asked."""
    return wanted(request, task) if "Want-Repr-Digest" in request.headers else _header(_known(task))


def _known(task: Task) -> dict[Algorithm, str]:
    if task.service != UPLOAD or task.status is not Status.COMPLETED or task.result is None:
        return {}
    result = json.loads(task.result)
    return {name: result[field] for name, field in _FIELDS.items() if result.get(field) is not None}


def _header(digests: Mapping[Algorithm, str]) -> dict[str, str]:
    members = (f"{name}=:{base64.b64encode(bytes.fromhex(text)).decode()}:" for name, text in digests.items())
    return {"Repr-Digest": ", ".join(members)} if digests else {}


def _wanted(request: web.Request) -> list[Algorithm]:
    """The known algorithms that are wanted at all."""
    wishes = _wishes(request)
    return [name for name in get_args(Algorithm) if wishes.get(name)]


def _wishes(request: web.Request) -> Mapping[str, int]:
    """How much each algorithm is wanted; nothing where any of it is malformed (RFC 8941, section 4.2)."""
    members = _members(request, "Want-Repr-Digest")
    if members is None or not all(_WISH.fullmatch(text) for text in members.values()):
        return {}
    return {name: int(text) for name, text in members.items()}


def _digests(request: web.Request, header: str) -> dict[str, bytes]:
    """The digests in a header, of the known algorithms."""
    members, known = _members(request, header), _BYTES[header]
    if members is None:
        raise _malformed(header, "have their names and = before them, and commas between them")
    found: dict[str, bytes] = {}
    for name, text in members.items():
        digest = _bytes(text)
        if digest is None:
            raise _malformed(header, "be bytes in base64, each between two colons")
        if len(digest) != known.get(name, len(digest)):
            raise _malformed(header, f"be {known[name]} bytes where they are of {name}")
        found[name] = digest
    return {name: digest for name, digest in found.items() if name in known}


def _members(request: web.Request, header: str) -> dict[str, str] | None:
    """The members of a dictionary (RFC 8941) whose values are bytes or numbers, so without commas; None if it is none.

    A name that comes twice has its last value.
    """
    text = ",".join(request.headers.getall(header, []))
    matches = [_MEMBER.fullmatch(member) for member in text.split(",")] if text.strip() else []
    members = {match[1].lower(): match[2] for match in matches if match}
    return members if all(matches) else None


def _bytes(text: str) -> bytes | None:
    match = _DIGEST.fullmatch(text)
    if match is None:
        return None
    try:
        return base64.b64decode(match[1] + "=" * (-len(match[1]) % 4))  # RFC 8941: without its padding it is the same
    except binascii.Error:
        return None


def _malformed(header: str, must: str) -> Problem:
    told = WANTED_OF_CONTENT if header == "Content-Digest" else WANTED
    return Problem(400, "malformed-header", f"the values of {header} must {must}", headers=told)
