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
_PAIRS = 2**21  # hashes compared at a time: 16 MB


def _waves() -> np.ndarray:
    """The eight lowest cosine waves of a tile, flattened: (8, 64) float32."""
    line = np.cos(np.pi * (np.arange(_TILE) + 0.5) * np.arange(3)[:, None] / _TILE)
    waves = [np.outer(line[u], line[v]).ravel() for u in range(3) for v in range(3) if u or v]
    return np.array(waves, dtype=np.float32)


# Whether a tile goes with or against each wave. Copies in FracAtlas differ in 0.20 of these at most, other pairs of
# near hashes in 0.43 by the median: at 0.3 one in sixty of those is left, and no copy is lost.
_SHAPES = _waves()
_SHAPES_DIFFERING = 0.3


def near_duplicates(thumbs: np.ndarray, hashes: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs that show the same exposure, with the share (0.5 to 1] of their textured tiles that agree.

    thumbs: (n, THUMB, THUMB) uint8, gray. hashes: (n,) uint64, DCT hashes of the same pictures (imagehash.phash).
    Hashes near in Hamming distance propose a pair; of these the coarse shapes of their tiles must not differ too much.
    Then its thumbnails are compared tile by tile (8x8 px, normalised correlation), which a change of brightness or a
    missing part leaves standing and another exposure of the same limb does not. Time grows with the square of n (some
    four nanoseconds a pair); memory with n (some 150 bytes each; `thumbs` may be a map of a file) and with the pairs
    that are found: leave out pictures that are known to be equal.
    """
    count = len(thumbs)
    textured = np.zeros(count, dtype=np.uint64)
    shapes = np.zeros((count, len(_SHAPES)), dtype=np.uint64)
    for at in range(0, count, _MANY):
        tiles = _tiles(thumbs[at : at + _MANY])
        textured[at : at + _MANY] = _packed(tiles.std(2) >= _TEXTURE)
        for number, shape in enumerate(_SHAPES):
            shapes[at : at + _MANY, number] = _packed(tiles @ shape > 0)
    found: list[tuple[int, int, float]] = []
    rows = max(1, _PAIRS // max(count, 1))
    for start in range(0, count, rows):
        near = np.bitwise_count(hashes[start : start + rows, None] ^ hashes[None, start:]) <= _HASH_DISTANCE
        left, right = (ends + start for ends in np.nonzero(near))
        left, right = left[left < right], right[left < right]
        counted = textured[left] | textured[right]
        differing = np.bitwise_count((shapes[left] ^ shapes[right]) & counted[:, None]).sum(1, dtype=np.int64)
        tiles_counted = np.bitwise_count(counted)
        alike = differing <= _SHAPES_DIFFERING * len(_SHAPES) * tiles_counted
        alike &= tiles_counted >= _TEXTURED_TILES
        left, right, counted = left[alike], right[alike], counted[alike]
        for block in range(0, len(left), _MANY):
            a, b, tiles_of = left[block : block + _MANY], right[block : block + _MANY], counted[block : block + _MANY]
            used = _unpacked(tiles_of)
            agree = (_correlation(_tiles(thumbs[a]), _tiles(thumbs[b])) >= _TILE_CORRELATION) & used
            share = agree.sum(1) / used.sum(1)
            keep = share > _TILES_AGREEING
            found += zip(a[keep].tolist(), b[keep].tolist(), share[keep].tolist(), strict=True)
    return found


def _packed(bits: np.ndarray) -> np.ndarray:
    """(n, 64) bool as (n,) uint64."""
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _unpacked(words: np.ndarray) -> np.ndarray:
    """What `_packed` packed."""
    return np.unpackbits(words[:, None].view(np.uint8), axis=1).astype(bool)


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
