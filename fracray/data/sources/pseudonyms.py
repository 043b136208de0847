"""Hashes of patient and study identifiers: they link images without naming anyone.

Patient ids are short enough to try all of them, so a plain hash can be reversed. Each is hashed with a secret salt,
which is kept apart from the hashes. Knows nothing of radiographs.
"""

import hmac
import os
import re
import secrets
from pathlib import Path

from fracray.errors import InputError

_BYTES = 32  # of a salt, written as twice as many hex digits


class Pseudonyms:
    """Hashes with one salt: equal identifiers of a kind have equal hashes of 16 hex digits; '' stays ''."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def __call__(self, kind: str, identifier: str) -> str:
        if not identifier:
            return ""
        return hmac.new(self._salt, f"{kind}\0{identifier}".encode(), "sha256").hexdigest()[:16]


def read_salt(path: Path) -> bytes:
    """The salt in a file; InputError if it cannot be read or was not written by `new_salt`."""
    try:
        if not path.is_file():
            raise InputError(f"--salt {path}: no such file; name the salt of an earlier import, or leave it out")
        with open(path, "rb") as file:
            salt = file.read(1024).strip()
    except OSError as error:
        raise InputError(f"--salt {path}: not readable: {error.strerror}") from None
    if not re.fullmatch(rb"[0-9a-f]{%d}" % (2 * _BYTES), salt):
        size = path.stat().st_size
        raise InputError(
            f"--salt {path}: {size:,} bytes, not the {2 * _BYTES} hex digits of a salt; name the file "
            "'salt' of an earlier import, or leave it out"
        )
    return salt


def new_salt(path: Path) -> bytes:
    """A random salt, written to the new file `path`, which only its owner may read."""
    salt = secrets.token_hex(_BYTES).encode()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(salt + b"\n")
    return salt
