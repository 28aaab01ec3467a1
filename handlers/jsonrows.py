"""Records of a JSON Lines file: an object on each line, its values kept as the text that they are in the file."""

import io
from collections.abc import Generator, Sequence
from typing import Final

import msgspec

from intermission.handlers.filters import Value, number
from intermission.handlers.records import MAX_RECORD_BYTES, Broken, Records, not_utf8

Object = dict[str, msgspec.Raw]
"""A row: each value is its JSON text, so numbers keep their digits and nested values their form."""

_decode: Final = msgspec.json.Decoder(Object).decode
_decode_string: Final = msgspec.json.Decoder(str).decode
_NULL: Final = b"null"
_QUOTE: Final = ord('"')
_NUMBER: Final = frozenset(b"-0123456789")


class JsonRows(Records[str]):
    """See `Records`. A record is the text of its line, which `parse` takes apart."""

    def batch(self) -> Generator[str, None, None]:
        """See `Records.batch`."""
        raw = self._read()
        final = self.offset + len(raw) >= self.end
        return self._records(raw if final else raw[: raw.rfind(b"\n") + 1])

    def _records(self, data: bytes) -> Generator[str, None, None]:
        first, rows, lines, used = self.line, 0, 0, 0
        line = b""
        try:
            for line in io.BytesIO(data):
                text = line.decode().strip(" \t\r\n")
                used += len(line)
                lines += 1
                if text:
                    self.at = first + lines - 1
                    rows += 1
                    yield text
        except UnicodeDecodeError as error:
            raise Broken(first + lines, not_utf8(error)) from None
        finally:
            if lines:
                self._used(used, lines, rows)
        if not lines:
            self._grow()

    def parse(self, text: str) -> Object:
        """The object that the record given last is. Raises `Broken`."""
        try:
            return _decode(text)
        except msgspec.ValidationError:
            raise Broken(self.at, "not a JSON object") from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise Broken(self.at, f"not JSON: {error}") from None

    def sample(self, count: int) -> list[Object]:
        """As `take`, parsed."""
        found: list[Object] = []
        most = self.offset + MAX_RECORD_BYTES
        # One after the other, so that a broken one is named by its own line.
        while len(found) < count and self.offset <= most and (texts := self.take(1)):
            found += map(self.parse, texts)
        return found

    def text(self, raw: msgspec.Raw) -> str:
        """A value as the text of a cell: a string's characters, nothing for null, anything else as its JSON."""
        data = bytes(raw)
        if data[0] == _QUOTE:
            return self._string(data)
        return "" if data == _NULL else data.decode()

    def value(self, raw: msgspec.Raw | None) -> Value:
        """A value as conditions see it: a string, a number, or None for anything else."""
        if raw is None:
            return None
        data = bytes(raw)
        if data[0] == _QUOTE:
            return self._string(data)
        return number(data.decode()) if data[0] in _NUMBER else None

    def _string(self, data: bytes) -> str:
        try:
            return _decode_string(data)
        except msgspec.DecodeError:
            raise Broken(self.at, r"a string holds half of a surrogate pair (\ud800 to \udfff)") from None


def is_null(raw: msgspec.Raw) -> bool:
    """Whether a value is null, which is as good as none."""
    return bytes(raw) == _NULL


def keys(objects: Sequence[Object]) -> list[str]:
    """Every key of these rows, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in objects for key in row))
