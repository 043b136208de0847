"""The published versions of FracAtlas. Imports nothing slow: the help of the download lists them."""

from dataclasses import dataclass

API = "https://api.figshare.com/v2/articles/22363012"
DOI = "https://doi.org/10.6084/m9.figshare.22363012"


@dataclass(frozen=True)
class Release:
    """A version of FracAtlas as published: figshare's version number, md5 and, if known, bytes of the archive."""

    version: int
    md5: str
    size: int | None = None


RELEASES = {
    7: Release(7, "fe9da2c7c285915ebee69dfdab8fd396", 338_436_460),
    6: Release(6, "931dd40ad6e070bb0724d66cfbbef9f0"),
}
