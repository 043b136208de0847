"""Paths and URIs as a user types them. Imports next to nothing, so that a wrong one is refused at once."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from fracray.config import PHANTOM
from fracray.errors import InputError

_NAMES = r"[\w-]*(?:secret|passw|token|credential|signature)[\w-]*|[\w-]*key|sig|pwd"
_SECRET = re.compile(rf"([?&](?:{_NAMES})=)[^&\s]*", re.IGNORECASE)  # an option of a URI
_USER = re.compile(r"://[^/?\s]*@")


def below(location: str, name: str) -> str:
    """The path or URI of `name` in the folder at `location`; the URI may end in options."""
    address, question, query = location.partition("?")
    return f"{address.rstrip('/')}/{name}{question}{query}"


def around(location: str) -> str:
    """The folder that the folder at `location`, a full path or a URI, lies in; at the top of a store that itself."""
    address, question, query = location.partition("?")
    scheme, dashes, path = address.rpartition("://")
    outer = path.rstrip("/").rpartition("/")[0]
    return f"{scheme}{dashes}{outer or path}{question}{query}"


def refuse_outside(location: str, names: Iterable[str]) -> None:
    """InputError where the name of an object leads out of the folder at `location`: a store takes any name."""
    if strange := next((name for name in names if name.startswith("/") or ".." in PurePosixPath(name).parts), None):
        raise InputError(f"{location}: {strange}: this name leads out of the folder; rename it")


def refuse_secret(location: str) -> None:
    """InputError for a URI with a password, or with an option that is one.

    Runs and checkpoints store their URIs and are passed on to others.
    """
    if "://" not in location:
        return
    uri, option = urlsplit(location), _SECRET.search(location)
    if uri.password or option:
        named = f" {option[1][1:-1]}" if option else ""
        raise InputError(f"{uri.scheme}://...@{uri.hostname}: leave the secret{named} out; pass it in the environment")


def without_secret(text: str) -> str:
    """A text whose URIs have no user, password or option that is a secret: what libraries say may repeat them."""
    return _SECRET.sub(r"\1...", _USER.sub("://...@", text))


def data_source(path: str) -> str:
    """The source that --data names, as an absolute path, since a run may be resumed from another folder.

    Raises InputError for a path that does not exist and as `refuse_secret`.
    """
    refuse_secret(path)
    if path == PHANTOM or "://" in path:
        return path
    source = Path(path).expanduser().absolute()
    if not source.exists():
        raise InputError(f"{path}: no such file or folder; name a FracAtlas folder, its zip, or an imported set")
    return str(source)


def require_local(location: str, complaint: str) -> None:
    """InputError of `complaint` where a local path does not exist; a URI is not looked for."""
    if "://" not in location and not Path(location).expanduser().exists():
        raise InputError(f"{location}: {complaint}")


def require_path(path: str, wanted: str) -> None:
    """InputError where PATH does not exist, naming what is `wanted`."""
    full = os.path.expanduser(path)
    if path.startswith("~") and full == path:
        raise InputError(f"PATH {path}: no such user; write the path in full")
    if not os.path.exists(full):
        raise InputError(f"{os.path.abspath(full)}: no such file or folder; name {wanted}")
