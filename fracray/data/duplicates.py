"""Which pictures are the same, or nearly: links between them, and the sets that the links make.

Knows arrays, hashes and indices only: nothing of files, labels or manifests.
"""

from collections.abc import Iterable, Sequence

import numpy as np

Link = tuple[int, int]

THUMB = 64  # side of the thumbnails that are compared, px
_TILE = 8

# 64-bit perceptual hashes within 18 bits propose, tiles decide. On FracAtlas copies (re-encoded, rescaled, or cut at
# the bottom) agree in 0.53 of their textured tiles or more; of the other pairs, one of a patient exposed twice without
# moving reaches 0.50 and the next 0.39. Mirrored and rotated copies were sought there, and there are none.
_HASH_DISTANCE = 18
_TILE_CORRELATION = 0.99
_TILES_AGREEING = 0.5
_TEXTURE = 3.0  # gray levels, standard deviation within a tile
_TEXTURED_TILES = 8
_MANY = 1024  # thumbnails or pairs held as floats at a time: 16 MB


def near_duplicates(thumbs: np.ndarray, hashes: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs that show the same exposure, with the share (0.5 to 1] of their textured tiles that agree.

    thumbs: (n, THUMB, THUMB) uint8, gray. hashes: (n,) uint64, DCT hashes of the same pictures (imagehash.phash).
    Hashes near in Hamming distance propose a pair. Then its thumbnails are compared tile by tile (8x8 px, normalised
    correlation), which a change of brightness or a missing part leaves standing and another exposure of the same limb
    does not. Time grows with the square of n; memory with n (some 70 bytes each beside its thumbnail) and with
    the pairs that are found: leave out pictures that are known to be equal.
    """
    count = len(thumbs)
    textured = np.zeros((count, (THUMB // _TILE) ** 2), dtype=bool)
    for at in range(0, count, _MANY):
        textured[at : at + _MANY] = _tiles(thumbs[at : at + _MANY]).std(2) >= _TEXTURE
    found: list[tuple[int, int, float]] = []
    for start in range(0, count, 512):
        near = np.bitwise_count(hashes[start : start + 512, None] ^ hashes[None]) <= _HASH_DISTANCE
        left, right = np.nonzero(np.triu(near, k=start + 1))
        left += start
        for block in range(0, len(left), _MANY):
            a, b = left[block : block + _MANY], right[block : block + _MANY]
            counted = textured[a] | textured[b]
            agree = (_correlation(_tiles(thumbs[a]), _tiles(thumbs[b])) >= _TILE_CORRELATION) & counted
            share = agree.sum(1) / np.maximum(counted.sum(1), 1)
            keep = (share > _TILES_AGREEING) & (counted.sum(1) >= _TEXTURED_TILES)
            found += zip(a[keep].tolist(), b[keep].tolist(), share[keep].tolist(), strict=True)
    return found


def _tiles(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails as tiles less their mean: (n, tiles, pixels) float32."""
    side = THUMB // _TILE
    tiles = thumbs.astype(np.float32).reshape(len(thumbs), side, _TILE, side, _TILE)
    tiles = tiles.transpose(0, 1, 3, 2, 4).reshape(len(thumbs), side * side, -1)
    return tiles - tiles.mean(2, keepdims=True)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2)
    return np.einsum("ptk,ptk->pt", a, b) / (lengths + 1e-6)


def equal(keys: Iterable[str]) -> list[Link]:
    """Links from the first of each key to the others; '' equals nothing."""
    first: dict[str, int] = {}
    return [(seen, at) for at, key in enumerate(keys) if key and (seen := first.setdefault(key, at)) != at]


def components(count: int, links: Sequence[Link]) -> np.ndarray:
    """The number of the connected component of each of `count` things, given the linked pairs: (count,) int."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def connected_sets(count: int, links: Sequence[Link]) -> list[list[int]]:
    """The connected sets of two or more among `count` things, each ascending, in order of their first."""
    members: dict[int, list[int]] = {}
    for thing, component in enumerate(components(count, links).tolist()):
        members.setdefault(component, []).append(thing)
    return [things for things in members.values() if len(things) > 1]
