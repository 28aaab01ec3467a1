"""Digests that go on in another process: their state is text, small enough for every checkpoint.

CRC-32C is its own state. Of SHA-256, `hashlib` objects cannot be saved. libcrypto's own functions work on a plain
struct of 112 bytes, at the same speed; they are deprecated there, so they are tried once before they are trusted.
Without them the bytes are read again.
"""

import _hashlib
import base64
import ctypes
import hashlib
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import crc32c

Algorithm = Literal["sha-256", "crc32c"]
"""What the whole can be digested with, as RFC 9530 names it."""
CHECKSUMS: Final = {"sha1": 20, "sha256": 32, "crc32c": 4, "md5": 16}
"""What tus can check the body of one request with, and how many bytes each gives."""
CHECKSUM_MISMATCH: Final = "ChecksumMismatch"
"""The type of the error of a body that was not what it was announced to be."""
_CONTEXT_BYTES: Final = 112
_DIGEST_BYTES: Final = 32
_BLOCK_BYTES: Final = 1 << 20


class Digest(Protocol):
    """A digest of all that it was updated with."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in some more."""

    def save(self) -> str:
        """The state, for `resumed`; empty where it cannot be saved."""

    def hexdigest(self) -> str | None:
        """The digest in hexadecimal; the last thing to be asked. None of what nobody wants to know."""


class Crc32c:
    """The cyclic redundancy check of RFC 9260, appendix A; its digest is the number's four bytes, big-endian."""

    def __init__(self, saved: str = "") -> None:
        self._value = int(saved or "0", 16)

    def update(self, data: bytes | memoryview, /) -> None:
        """See `Digest.update`."""
        self._value = crc32c.crc32c(data, self._value)

    def save(self) -> str:
        """See `Digest.save`."""
        return self.hexdigest()

    def digest(self) -> bytes:
        """As `hashlib` has it."""
        return self._value.to_bytes(4, "big")

    def hexdigest(self) -> str:
        """See `Digest.hexdigest`."""
        return self.digest().hex()


class Unwanted:
    """A digest that nobody wants: it costs nothing."""

    def update(self, data: bytes | memoryview, /) -> None:
        """See `Digest.update`."""

    def save(self) -> str:
        """See `Digest.save`."""
        return ""

    def hexdigest(self) -> None:
        """See `Digest.hexdigest`."""


def sha256(saved: str, path: Path, size: int) -> Digest:
    """The SHA-256 of a file's first ``size`` bytes, from what was saved after them or from the bytes themselves."""
    if _LIBRARY is not None and (saved or not size):
        return _Native(_LIBRARY, base64.b64decode(saved))
    digest: Digest = _Reread() if _LIBRARY is None else _Native(_LIBRARY)
    if size:
        with path.open("rb") as file:
            while size and (block := file.read(min(size, _BLOCK_BYTES))):
                digest.update(block)
                size -= len(block)
    return digest


class Checksum:
    """What the body of one request has to give, and what it gives so far."""

    def __init__(self, algorithm: str, expected: bytes) -> None:
        """``algorithm``: crc32c, or as `hashlib` names it."""
        self._found = Crc32c() if algorithm == "crc32c" else hashlib.new(algorithm, usedforsecurity=False)
        self._expected = expected

    def update(self, data: bytes | memoryview) -> None:
        """Take in some more."""
        self._found.update(data)

    def fits(self) -> bool:
        """Whether it is what was announced."""
        return self._found.digest() == self._expected


class _Native:
    """libcrypto's SHA256_CTX in a buffer of ours."""

    def __init__(self, library: Any, saved: bytes = b"") -> None:
        self._library = library
        self._context = ctypes.create_string_buffer(saved, _CONTEXT_BYTES)
        if not saved:
            library.SHA256_Init(self._context)

    def update(self, data: bytes | memoryview, /) -> None:
        """See `Digest.update`."""
        begin = data if isinstance(data, bytes) else ctypes.byref(ctypes.c_char.from_buffer(data))
        self._library.SHA256_Update(self._context, begin, len(data))

    def save(self) -> str:
        """See `Digest.save`."""
        return base64.b64encode(self._context.raw).decode()

    def hexdigest(self) -> str:
        """See `Digest.hexdigest`."""
        digest = ctypes.create_string_buffer(_DIGEST_BYTES)
        self._library.SHA256_Final(digest, self._context)
        return digest.raw.hex()


class _Reread:
    """The standard library's, which cannot be saved."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def update(self, data: bytes | memoryview, /) -> None:
        """See `Digest.update`."""
        self._sha256.update(data)

    def save(self) -> str:
        """See `Digest.save`."""
        return ""

    def hexdigest(self) -> str:
        """See `Digest.hexdigest`."""
        return self._sha256.hexdigest()


def _library() -> Any:
    """The libcrypto that this Python uses, if its SHA-256 does what it should through a save; else None."""
    try:
        library = ctypes.CDLL(_hashlib.__file__)  # looks in what it is linked with, too
        library.SHA256_Init.argtypes = [ctypes.c_void_p]
        library.SHA256_Update.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        library.SHA256_Final.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        first = _Native(library)
        first.update(b"a" * 100)
        second = _Native(library, base64.b64decode(first.save()))
        second.update(b"b" * 100)
        right = second.hexdigest() == hashlib.sha256(b"a" * 100 + b"b" * 100).hexdigest()
    except (OSError, AttributeError):
        return None
    return library if right else None


_LIBRARY: Final = _library()
