"""The names of the sets that a split gives, known before any data is read."""

from fracray.config import AXES, SplitConfig

UNSHIFTED = "unshifted"  # of a shifted protocol: the rest of val or test, which is like the training part


def validation_sets(config: SplitConfig) -> tuple[str, ...]:
    """The names of the validation sets, 'val' first; of a split from a file, those that the file holds."""
    if config.file is not None:
        from fracray.data.splits.assign import stored_sets

        return stored_sets(config.file)
    own = (f"val/{UNSHIFTED}",) if config.protocol in AXES else ()
    others = config.held_out[1 if config.protocol in AXES else 0 :]
    return ("val", *own, *(f"val/{axis}" for axis, _ in others))
