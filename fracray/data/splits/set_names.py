"""The names of the sets that a split gives, known before any data is read."""

from functools import lru_cache

from fracray.config import AXES, SplitConfig
from fracray.errors import InputError

UNSHIFTED = "unshifted"  # of a shifted protocol: the rest of val or test, which is like the training part


def validation_sets(config: SplitConfig) -> tuple[str, ...]:
    """The names of the validation sets, 'val' first; of a split from a file, those that the file holds."""
    if config.file is not None:
        return _stored_sets(config.file)
    own = (f"val/{UNSHIFTED}",) if config.protocol in AXES else ()
    others = config.held_out[1 if config.protocol in AXES else 0 :]
    return ("val", *own, *(f"val/{axis}" for axis, _ in others))


@lru_cache(maxsize=8)
def _stored_sets(path: str) -> tuple[str, ...]:
    from fracray.data.manifest import Manifest, sets_named  # slow to import, and rarely needed

    found = sets_named(Manifest.read(path).table["split"])
    if not {"train", "val", "test"} <= set(found):
        raise InputError(
            f"{path}: no train, val and test in it; write a split with "
            f"`python -m fracray.data check DATA --manifest {path}`"
        )
    return tuple(name for name in found if is_validation(name))


def is_validation(name: str) -> bool:
    """Whether a set is for choosing: 'val', or 'val/...', which is held out."""
    return name.partition("/")[0] == "val"
