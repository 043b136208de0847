"""Who may ask: a token, or, without one, only this machine's own programs and pages. Knows HTTP, and no pictures."""

import hmac
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fracray.errors import InputError
from fracray.serving.limits import RefusedError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST = 16  # characters of a token
# What a browser or a load balancer asks for before there is a token. None of it tells anything of a picture.
OPEN = ("/health", "/ready", "/docs", "/openapi.json")


def read_token(path: str, setting: str) -> str:
    """The token in a file, which `setting` names: its only line. InputError where there is none, or a short one."""
    try:
        token = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{setting} {path}: cannot be read: {error}; name a file with a token") from None
    if len(token) < SHORTEST or not token.isascii() or len(token.split()) != 1:
        raise InputError(
            f"{setting} {path}: expected one line of at least {SHORTEST} letters and digits; make one with "
            "`openssl rand -hex 32`"
        )
    return token


class Guard:
    """Checks the headers of requests. token: '' for none; host: the name or address that is served."""

    def __init__(self, token: str, host: str) -> None:
        self._token, self._names = token, {*LOOPBACK, host.strip("[]").lower()}

    def check(self, path: str, headers: Mapping[str, str], page: bool) -> None:
        """RefusedError 401 for a wrong token, 403 for a page of another site. page: a file of the page is asked for."""
        if self._token:
            if page or path in OPEN:
                return
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self._token.encode())  # takes as long for every guess
            if scheme.lower() != "bearer" or not right:
                words = "the token is wrong or missing; send the header 'Authorization: Bearer TOKEN'"
                raise RefusedError(401, words, {"WWW-Authenticate": "Bearer"})
            return
        # A page from elsewhere, open in a browser on this machine, can send requests here, and with a name of its own
        # that points to 127.0.0.1 read the answers.
        asked = _name(f"//{headers.get('host', '')}")
        origin = headers.get("origin")
        if asked not in self._names or (origin is not None and _name(origin) not in self._names):
            raise RefusedError(403, "asked by the page of another site; open http://127.0.0.1 with this server's port")


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
