"""Identifiers of patients and studies, turned into hashes that tie images together and name nobody.

A patient id is short enough that all can be tried: a bare hash of it is the id itself to whoever tries. So each is
hashed with a secret salt, which is kept apart from the hashes. Knows nothing of radiographs.
"""

import hmac
import os
import re
import secrets
from pathlib import Path

from fracray.errors import InputError

_BYTES = 32  # of a salt, which are written as twice as many hex digits


class Pseudonyms:
    """Hashes by one salt: equal identifiers of a kind have equal hashes, 16 hex digits; '' stays ''."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def __call__(self, kind: str, identifier: str) -> str:
        if not identifier:
            return ""
        return hmac.new(self._salt, f"{kind}\0{identifier}".encode(), "sha256").hexdigest()[:16]


def read_salt(path: Path) -> bytes:
    """The salt in a file; InputError where it cannot be read or holds anything but what `new_salt` writes."""
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
            f"--salt {path}: a file of {size:,} bytes, and not the {2 * _BYTES} hex digits of a salt; name the file "
            "'salt' of an earlier import, or leave it out"
        )
    return salt


def new_salt(path: Path) -> bytes:
    """A random salt, written to the new file `path`, which nobody but its owner may read."""
    salt = secrets.token_hex(_BYTES).encode()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(salt + b"\n")
    return salt
