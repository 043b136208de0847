"""Identifiers of patients and studies, turned into hashes that tie images together and name nobody.

A patient id is short enough that all can be tried: a bare hash of it is the id itself to whoever tries. So each is
hashed with a secret salt, which is kept apart from the hashes. Knows nothing of radiographs.
"""

import hmac
import os
import secrets
from pathlib import Path

from fracray.errors import InputError

LEAST = 16  # bytes of a salt


class Pseudonyms:
    """Hashes by one salt: equal identifiers of a kind have equal hashes, 16 hex digits; '' stays ''."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def __call__(self, kind: str, identifier: str) -> str:
        if not identifier:
            return ""
        return hmac.new(self._salt, f"{kind}\0{identifier}".encode(), "sha256").hexdigest()[:16]


def read_salt(path: Path) -> bytes:
    """The salt in a file; InputError where it cannot be read or is short enough to be guessed."""
    try:
        if not path.is_file():
            raise InputError(f"--salt {path}: no such file; name the salt of an earlier import, or leave it out")
        salt = path.read_bytes().strip()
    except OSError as error:
        raise InputError(f"--salt {path}: not readable: {error.strerror}") from None
    if len(salt) < LEAST:
        raise InputError(f"--salt {path}: {len(salt)} bytes can be guessed; give {LEAST} random ones or more")
    return salt


def new_salt(path: Path) -> bytes:
    """A random salt, written to the new file `path`, which nobody but its owner may read."""
    salt = secrets.token_hex(32).encode()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(salt + b"\n")
    return salt
