"""Which pictures are the same or nearly the same: pairs of them, and the sets that the pairs connect.

Knows arrays, hashes and indices only: nothing of files, labels or manifests.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Pair = tuple[int, int]  # positions of two pictures that belong together

THUMB = 64  # side of the thumbnails that are compared, px
_TILE = 8

# 64-bit perceptual hashes within 18 bits propose a pair, tiles decide. On FracAtlas, copies (re-encoded, rescaled, or
# cut at the bottom) agree in at least 0.53 of their textured tiles; of the other pairs, one of a patient exposed twice
# without moving reaches 0.50, the next 0.39. FracAtlas has no mirrored or rotated copies.
_HASH_DISTANCE = 18
_TILE_CORRELATION = 0.99
_TILES_AGREEING = 0.5
_TEXTURE = 3.0  # gray levels, standard deviation within a tile
_TEXTURED_TILES = 8
_MANY = 1024  # thumbnails or pairs held as floats at a time: 16 MB
_PAIRS = 2**21  # hashes compared at a time: 16 MB
_HASH_BITS = 64
_BLOCK = 1024  # hashes of each side multiplied at a time: their products, 4 MB, stay in the cache


def _waves() -> np.ndarray:
    """The eight lowest cosine waves of a tile, flattened: (8, 64) float32."""
    line = np.cos(np.pi * (np.arange(_TILE) + 0.5) * np.arange(3)[:, None] / _TILE)
    waves = [np.outer(line[u], line[v]).ravel() for u in range(3) for v in range(3) if u or v]
    return np.array(waves, dtype=np.float32)


# Whether a tile correlates positively or negatively with each wave. Copies in FracAtlas differ in at most 0.20 of these
# signs, other pairs with near hashes in a median of 0.43: a limit of 0.3 keeps one in sixty of those and every copy.
_SHAPES = _waves()
_SHAPES_DIFFERING = 0.3


def near_duplicates(thumbs: np.ndarray, hashes: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs that show the same exposure, with the share (0.5 to 1] of their textured tiles that agree.

    thumbs: (n, THUMB, THUMB) uint8, gray. hashes: (n,) uint64, DCT hashes of the same pictures (imagehash.phash).
    Hashes near in Hamming distance propose a pair, unless the coarse shapes of its tiles differ too much. Then the
    thumbnails are compared tile by tile (8x8 px, normalised correlation): tiles agree after a change of brightness or
    with a part missing, but not between two exposures of the same limb. Time grows with the square of n (about one
    nanosecond a pair on two cores); memory with n (about 150 bytes each; `thumbs` may be a memory map) and with the
    number of pairs found: leave out pictures that are known to be equal.
    """
    count = len(thumbs)
    signs = np.zeros((count, 1 + len(_SHAPES)), dtype=np.uint64)
    for at in range(0, count, _MANY):
        signs[at : at + _MANY] = signs_of(thumbs[at : at + _MANY])
    found: list[tuple[int, int, float]] = []
    for near in _near_pairs(hashes):
        left, right = near
        alike = _alike(signs[left], signs[right], _SHAPES_DIFFERING)
        left, right = left[alike], right[alike]
        counted = signs[left, 0] | signs[right, 0]
        for block in range(0, len(left), _MANY):
            a, b, tiles_of = left[block : block + _MANY], right[block : block + _MANY], counted[block : block + _MANY]
            used = _unpacked(tiles_of)
            agree = (_correlation(_tiles(thumbs[a]), _tiles(thumbs[b])) >= _TILE_CORRELATION) & used
            share = agree.sum(1) / used.sum(1)
            keep = share > _TILES_AGREEING
            found += zip(a[keep].tolist(), b[keep].tolist(), share[keep].tolist(), strict=True)
    return sorted(found)


def _near_pairs(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of (n,) hashes near in Hamming distance, block by block: the smaller and the larger position of each.

    The distance comes from a product of the bits as -1 and 1, exact in float32: on one core it takes half of the time
    of counting the bits in which two words differ, and BLAS uses all cores.
    """
    least = _HASH_BITS - 2 * _HASH_DISTANCE
    for row in range(0, len(hashes), _BLOCK):
        ours = _as_signs(hashes[row : row + _BLOCK])
        for column in range(row, len(hashes), _BLOCK):
            product = ours @ _as_signs(hashes[column : column + _BLOCK]).T
            left, right = np.divmod(np.flatnonzero(product >= least), product.shape[1])
            left, right = left + row, right + column
            yield left[left < right], right[left < right]


def _as_signs(words: np.ndarray) -> np.ndarray:
    """The bits of (n,) uint64 as -1 and 1: (n, 64) float32."""
    return _unpacked(words).astype(np.float32) * 2 - 1


# Thumbnails are too large to keep with a checkpoint, so `look` keeps the signs of their tiles only. On FracAtlas,
# copies that are encoded again (JPEG quality 20), rescaled (0.33 to 2), brightened or of another gamma differ in at
# most 0.13 of them; at 0.2, all 120 pairs of near duplicates are found, and 25 of 5.9 million other pairs.
LOOK_DIFFERING = 0.2
LOOK_BYTES = 8 * (2 + len(_SHAPES))


def look(thumb: np.ndarray, phash: int) -> bytes:
    """What a picture looks like, for `looks_alike`: LOOK_BYTES of its thumbnail, (THUMB, THUMB) uint8, and hash."""
    return np.array([phash, *signs_of(thumb[None])[0]], dtype="<u8").tobytes()


def looks_alike(new: Sequence[bytes], known: Sequence[bytes]) -> np.ndarray:
    """Which of the pictures `new` show the same exposure as one of `known`, both as their `look`: (n,) bool.

    An empty look is alike to none. Finds copies that were encoded again, rescaled or brightened, not those that were
    turned, or cropped by more than a few pixels.
    """
    places = [at for at, one in enumerate(new) if one]
    ours, theirs = (
        np.frombuffer(b"".join(filter(None, looks)), dtype="<u8").reshape(-1, LOOK_BYTES // 8) for looks in (new, known)
    )
    found = np.zeros(len(new), dtype=bool)
    # Often one new picture: for so few, bits are counted faster than multiplied as in `_near_pairs`.
    rows = max(1, _PAIRS // max(len(theirs), 1))
    for start in range(0, len(ours), rows):
        some = ours[start : start + rows]
        left, right = np.nonzero(np.bitwise_count(some[:, None, 0] ^ theirs[None, :, 0]) <= _HASH_DISTANCE)
        alike = _alike(some[left, 1:], theirs[right, 1:], LOOK_DIFFERING)
        found[np.array(places)[start + left[alike]]] = True
    return found


class KnownLooks:
    """The looks of known pictures, laid out so that one picture is compared with all of them at once."""

    def __init__(self, looks: Sequence[bytes]) -> None:
        words = np.frombuffer(b"".join(filter(None, looks)), dtype="<u8").reshape(-1, LOOK_BYTES // 8)
        self._textured = np.ascontiguousarray(words[:, 1])
        self._signs = np.ascontiguousarray(words[:, 2:].T)
        self._apart = np.empty_like(self._signs)  # memory to work in: asking for it anew takes longer than the work

    def __len__(self) -> int:
        return len(self._textured)

    def differing(self, signs: np.ndarray) -> np.ndarray:
        """The share of its signs, a row of `signs_of`, that differ from those of each known picture: (n,) float32.

        Over the tiles that are textured in one of the two. Two pictures without any relation are at about 0.5, and a
        picture and its negative at 1.
        """
        counted = signs[0] | self._textured
        np.bitwise_xor(signs[1:, None], self._signs, out=self._apart)
        np.bitwise_and(self._apart, counted, out=self._apart)
        differing = np.bitwise_count(self._apart).sum(0, dtype=np.uint16)
        tiles = np.bitwise_count(counted).astype(np.uint16)
        return np.divide(differing, len(_SHAPES) * np.maximum(tiles, 1), dtype=np.float32)


def signs_in(looks: Sequence[bytes]) -> np.ndarray:
    """What `signs_of` gave for the thumbnails of these looks, none of them empty."""
    return np.frombuffer(b"".join(looks), dtype="<u8").reshape(-1, LOOK_BYTES // 8)[:, 1:]


def signs_of(thumbs: np.ndarray) -> np.ndarray:
    """A bit for every tile of each thumbnail: whether it is textured, and its sign for each of _SHAPES.

    (n, THUMB, THUMB) uint8 to (n, 1 + shapes) uint64.
    """
    tiles = _tiles(thumbs)
    return np.stack([_packed(tiles.std(2) >= _TEXTURE), *(_packed(tiles @ shape > 0) for shape in _SHAPES)], axis=1)


def _alike(signs: np.ndarray, others: np.ndarray, limit: float) -> np.ndarray:
    """Which pairs of `signs_of` differ in at most this share of the shapes, in enough textured tiles: (n,) bool.

    A tile counts where it is textured in one of the two.
    """
    counted = signs[:, 0] | others[:, 0]
    differing = np.bitwise_count((signs[:, 1:] ^ others[:, 1:]) & counted[:, None]).sum(1, dtype=np.int64)
    tiles = np.bitwise_count(counted)
    return (differing <= limit * len(_SHAPES) * tiles) & (tiles >= _TEXTURED_TILES)


def _packed(bits: np.ndarray) -> np.ndarray:
    """(n, 64) bool as (n,) uint64."""
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _unpacked(words: np.ndarray) -> np.ndarray:
    """The inverse of `_packed`."""
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


def equal(keys: Iterable[str]) -> list[Pair]:
    """Pairs of the first item with each key and every other one with it; '' equals nothing."""
    first: dict[str, int] = {}
    return [(seen, at) for at, key in enumerate(keys) if key and (seen := first.setdefault(key, at)) != at]


def components(count: int, pairs: Sequence[Pair]) -> np.ndarray:
    """The number of the connected component of each of `count` items, given pairs of them: (count,) int."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def connected_sets(count: int, pairs: Sequence[Pair]) -> list[list[int]]:
    """The connected sets of two or more among `count` items, each ascending, in order of their first."""
    members: dict[int, list[int]] = {}
    for item, component in enumerate(components(count, pairs).tolist()):
        members.setdefault(component, []).append(item)
    return [items for items in members.values() if len(items) > 1]
