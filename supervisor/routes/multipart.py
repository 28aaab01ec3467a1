"""The one file of a ``multipart/form-data`` body (RFC 7578), cut out of it as it comes, in one pass.

aiohttp's own reader would be as fast, but it takes a preamble of any length, holds the last two blocks of the file back
however long the next one takes, does not say whether a form was cut short, and drops the first slashes of a name. Here
nothing is held back but what may be the beginning of a boundary, and all that is not the file is bounded.
"""

import re
from typing import Final

from aiohttp import web

from intermission.supervisor.routes import bodies, requests
from intermission.supervisor.routes.problems import Problem, misfit

MEDIA_TYPE: Final = "multipart/form-data"
CONTENT: Final = {
    "schema": {
        "type": "object",
        "properties": {
            "file": {
                "type": "string",
                "contentMediaType": "application/octet-stream",
                "description": "The file, with its `filename`. The part may have another name, but there is only one",
            }
        },
        "required": ["file"],
        "additionalProperties": False,
    },
    "encoding": {"file": {"contentType": "*/*"}},
}
"""What the OpenAPI document says of such a body."""
MOST_BESIDE_BYTES: Final = 64 << 10
"""How much of a form may be something else than its file: what is before it, its head, what is behind it."""
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_BOUNDARY_PARAMETER: Final = re.compile(r';\s*boundary\s*=\s*(?:"([^"]*)"|([^\s;"]+))', re.IGNORECASE)
_FIELD: Final = re.compile(r"([!#$%&'*+\-.^_`|~\w]+):([^\0\r\n]*)", re.ASCII)
_MEDIA: Final = re.compile(r"[!#$%&'*+\-.^_`|~\w]{1,127}/[!#$%&'*+\-.^_`|~\w]{1,127}", re.ASCII)
_AS_IT_IS: Final = frozenset({"binary", "8bit", "7bit"})


class CutError(ConnectionError):
    """The form has ended before its closing boundary."""


class Form:
    """The form that a request's body is."""

    fast_bytes = 0

    def __init__(self, request: web.Request) -> None:
        """Raise `Problem` (400) where it cannot be told apart."""
        self._request = request
        self._content = request.content
        self._delimiter = b"\r\n--" + _boundary(request)
        self._held = bytearray(b"\r\n")  # the first boundary may stand at the very beginning
        self._beside = 0
        self._in_file = False

    @property
    def least_bytes(self) -> int | None:
        """How long its file is at least; None where the request does not say how long it is."""
        length = bodies.body_length(self._request)
        return None if length is None else max(length - MOST_BESIDE_BYTES, 0)

    async def begin(self) -> bodies.Head:
        """Ask for it, and read up to the first byte of the file. Raises `Problem` (400, 415, 422), and as `more`."""
        await requests.go_on(self._request)
        try:
            await self._until(self._delimiter)
            if not await self._another():
                raise _no_file("it is empty")
            return await self._head()
        except CutError:
            raise _malformed("it ends before its file begins") from None

    async def ready(self) -> None:
        """Do nothing: it has been asked for, for its head."""

    def at_hand(self) -> bytes:
        """Nothing: what is here may be the boundary."""
        return b""

    async def more(self) -> bytes:
        """Some more of the file; nothing when the whole form has come, and was one.

        Raises `Problem` (400, 422) for what comes behind the file, and `CutError`.
        """
        while self._in_file:
            block = bytes(self._held) if self._held else await self._block()
            self._held.clear()
            if (end := block.find(self._delimiter)) >= 0:
                self._in_file = False
                self._held += block[end + len(self._delimiter) :]
                certain = block[:end]
            else:
                certain = block[: self._uncertain(block)]
                if len(certain) < len(block):
                    self._held += block[len(certain) :]
                    if not certain:
                        self._held += await self._block()
            if certain:
                return certain
        if await self._another():
            await self._refuse_another()
        self._count(len(self._held))
        while block := await self._content.readany():
            self._count(len(block))
        return b""

    def _uncertain(self, block: bytes) -> int:
        """Where in the block something begins that may be the delimiter; its end, where nothing does."""
        at = block.rfind(b"\r", max(0, len(block) - len(self._delimiter) + 1))
        return at if at >= 0 and self._delimiter.startswith(block[at:]) else len(block)

    async def _block(self) -> bytes:
        """What comes next, which is not nothing. Raises `CutError`."""
        block = await self._content.readany()
        if not block:
            raise CutError
        return block

    async def _until(self, mark: bytes) -> bytes:
        """What stands before the mark, both taken."""
        at = 0
        while (end := self._held.find(mark, at)) < 0:
            at = max(len(self._held) - len(mark) + 1, 0)
            self._check(len(self._held))
            self._held += await self._block()
        self._count(end)
        taken = bytes(self._held[:end])
        del self._held[: end + len(mark)]
        return taken

    async def _another(self) -> bool:
        """Whether, after a boundary, another part begins. It may be the closing one."""
        while len(self._held) < 2:  # noqa: PLR2004 -- as long as what closes
            self._held += await self._block()
        return not self._held.startswith(b"--")

    async def _head(self) -> bodies.Head:
        """That of the file."""
        disposition, fields = await self._part()
        filename = bodies.named(disposition, "filename")
        if filename is None:
            raise misfit([_field(disposition)], "the form does not fit")
        if not filename:
            raise _no_file("none was chosen")
        packed = fields.get("content-transfer-encoding", "binary").lower() not in _AS_IT_IS
        if packed or fields.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "unsupported-media-type", "the file in the form is encoded: send it as it is")
        self._in_file = True
        media_type = fields.get("content-type", "").partition(";")[0].strip().lower()
        return bodies.Head(filename, media_type if _MEDIA.fullmatch(media_type) else "application/octet-stream")

    async def _refuse_another(self) -> None:
        """What comes behind the file would be lost in silence. Raises `Problem` (422)."""
        disposition, _ = await self._part()
        if bodies.named(disposition, "filename") is None:
            raise misfit([_field(disposition)], "the form does not fit, and nothing of it is kept")
        raise Problem(422, "several-files", "the form has more than one file, and nothing is kept: send each by itself")

    async def _part(self) -> tuple[dict[str, str], dict[str, str]]:
        """The head of a part: the parameters of its Content-Disposition, and its other fields."""
        padding, *lines = (await self._until(b"\r\n\r\n")).split(b"\r\n")
        if padding.strip(b" \t"):
            raise _malformed("something follows a boundary in its line")
        fields: dict[str, str] = {}
        for line in lines:
            match = _FIELD.fullmatch(bodies.text(line))
            if match is None or match[1].lower() in fields:
                raise _malformed("the head of a part is not made of fields, each in one line and once")
            fields[match[1].lower()] = match[2].strip()
        kind, disposition = bodies.disposition(fields.pop("content-disposition", ""))
        if kind != "form-data":
            raise _malformed('each part must have a Content-Disposition: form-data; name="…"')
        return disposition, fields

    def _count(self, size: int) -> None:
        self._beside += size
        self._check(0)

    def _check(self, more: int) -> None:
        if self._beside + more > MOST_BESIDE_BYTES:
            raise _malformed(f"more than {MOST_BESIDE_BYTES} bytes of it are no file")


def _boundary(request: web.Request) -> bytes:
    match = _BOUNDARY_PARAMETER.search(request.headers["Content-Type"])
    boundary = (match[1] or match[2] or "") if match else ""
    if not _BOUNDARY.fullmatch(boundary):
        raise _malformed("its Content-Type must have a boundary, of 1 to 70 characters (RFC 2046)")
    return boundary.encode()


def _malformed(why: str) -> Problem:
    return Problem(400, "malformed-form", f"the body is no form of one file: {why}")


def _no_file(why: str) -> Problem:
    return Problem(422, "no-file", f"there is no file in the form: {why}")


def _field(disposition: dict[str, str]) -> dict[str, str]:
    name = bodies.named(disposition, "name") or ""
    return {"parameter": name, "detail": "A form of one file and nothing else is taken; say its name with ?filename="}
