"""What a model's process does: batches of decoded pictures to rows. Knows no HTTP and opens no radiograph."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fracray.prediction.reading import Batch
from fracray.prediction.scoring import COLUMNS, HEATMAP, Asked, Scorer, strength
from fracray.serving.card import model_card
from fracray.training.checkpoint import load_checkpoint


class Model:
    """Lives in a process of its own. threads: of Torch; coverage: of the conformal sets."""

    def __init__(self, folder: Path, threads: int, coverage: float) -> None:
        import torch

        torch.set_num_threads(threads)
        checkpoint = load_checkpoint(folder)
        self._card = model_card(checkpoint, coverage)
        self._plain = Scorer(checkpoint, Asked(coverage))
        self._mapped = Scorer(checkpoint, Asked(coverage, heatmaps=True), strength)

    def card(self) -> dict[str, Any]:
        """As `model_card`."""
        return self._card

    def rows(self, batches: Sequence[Batch], mapped: Sequence[bool]) -> list[dict[str, Any]]:
        """The row of each batch of one, as `fracray.predict` writes it; with `heatmap` (base64 of a PNG, or None) where
        `mapped`."""
        found: list[dict[str, Any]] = [{} for _ in batches]
        for wanted, scorer in ((False, self._plain), (True, self._mapped)):
            places = [at for at, one in enumerate(mapped) if one == wanted]
            if not places:
                continue
            joined = {name: np.concatenate([batches[at][name] for at in places]) for name in batches[places[0]]}
            for at, row in zip(places, scorer(joined).to_pylist(), strict=True):
                found[at] = {name: row[name] for name in COLUMNS.names}
                if wanted:
                    found[at][HEATMAP] = row[HEATMAP] and base64.b64encode(row[HEATMAP]).decode()
        return found
