"""Which of the refitted networks together make the best ensemble on validation, and its checkpoint.

Every choice is by the search's constraints, where it has some, then by the cross-fitted loss of the members' mean logit
on 'val'; the test part is never looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from fracray.config import Config, SearchConfig
from fracray.data.manifest import in_set
from fracray.data.prepare import Prepared
from fracray.data.splits.set_names import is_validation
from fracray.evaluation.inference import predict
from fracray.metrics import Calibration
from fracray.runtime.console import counted
from fracray.search.constraints import missed
from fracray.search.refit import ALL, BEST_OF_BOTH, WINNER
from fracray.training.checkpoint import (
    PREDICTION_COLUMNS,
    CheckpointMetadata,
    load_checkpoint,
    read_metadata,
    read_predictions,
    read_seen,
    save_checkpoint,
    save_ensemble,
)
from fracray.training.ensemble import mean_weights
from fracray.training.validation import score_validation

SOUP = "soup"


@dataclass(frozen=True)
class Logits:
    """The logits (n,) of one network or of several on the validation images, and what they are worth."""

    values: np.ndarray
    calibration: Calibration
    threshold: float
    metrics: Mapping[str, float]

    def value(self, metric: str) -> float:
        """A reported metric; nan where it has no value."""
        return self.metrics.get(metric, nan)

    @property
    def loss(self) -> float:
        return self.metrics["val_loss"]

    def card(
        self, config: Config, fingerprint: str, epoch: int, trial: str, out_of_fold: bool = False
    ) -> CheckpointMetadata:
        """The card of a checkpoint that gives these logits; fingerprint: of the training's data."""
        return CheckpointMetadata(
            config=config,
            threshold=self.threshold,
            calibration=self.calibration,
            metrics=dict(self.metrics),
            data_fingerprint=fingerprint,
            epoch=epoch,
            trial=trial,
            out_of_fold=out_of_fold,
        )


@dataclass(frozen=True)
class Choice:
    """A set of members that could be the ensemble, in words, with its logits; or, out of fold, with theirs."""

    words: str
    members: tuple[str, ...]
    scored: Logits
    out_of_fold: bool = False


class Judge:
    """Scores logits on the validation images of a split, in the order of one table of predictions."""

    def __init__(self, table: pd.DataFrame, sets: Sequence[str], config: Config) -> None:
        self.table = table
        self._labels = table["label"].to_numpy(np.float32)
        self._groups = table["group"].to_numpy()
        self._inside = {name: np.flatnonzero(in_set(table["split"], name)) for name in sets}
        self._point = config.train.operating_point

    def score(self, logits: Sequence[np.ndarray]) -> Logits:
        """The mean of the logits of several networks, (n,) each."""
        mean = np.mean(np.stack(logits).astype(np.float64), axis=0).astype(np.float32)
        return Logits(mean, *score_validation(self._labels, mean, self._groups, self._inside, self._point))


def build_ensemble(
    target: Path,
    members: Mapping[str, Path],
    winners: Sequence[str],
    config: Config,
    winner: str,
    prepared: Prepared,
    wanted: str,
    console: Console,
) -> tuple[Choice, list[Choice], str]:
    """Write the best ensemble to `target`; returns it, all that were compared, and what became of a soup.

    members: the checkpoint folders of all trainings that count, by name; winners: those of the winning configuration,
    whose name and config the ensemble has. wanted: WINNER, ALL or BEST_OF_BOTH, with which a soup is tried too.
    """
    tables = {name: _predictions(folder) for name, folder in members.items()}
    table = tables[winners[0]]
    for name, other in tables.items():
        assert (other["image_id"] == table["image_id"]).all(), f"{name} was validated on other images"
    judge = Judge(table, [name for name in prepared.sets if is_validation(name)], config)
    logits = {name: other["logit"].to_numpy() for name, other in tables.items()}

    def choice(words: str, names: Sequence[str]) -> Choice:
        return Choice(words, tuple(names), judge.score([logits[name] for name in names]))

    choices = []
    others = len(members) > len(winners)
    if wanted != ALL or not others:
        choices.append(choice(f"{counted(len(winners), 'training')} of {winner}", winners))
    if wanted != WINNER and others:
        choices.append(choice(f"all {counted(len(members), 'training')}", list(members)))
    folders = dict(members)
    said = ""
    # From scratch, they have little in common but their kind.
    if wanted == BEST_OF_BOTH and len(winners) > 1 and config.model.weights is not None:
        best = min(winners, key=lambda name: judge.score([logits[name]]).loss)
        folders[SOUP] = target.with_name(SOUP)
        logits[SOUP] = _soup(folders[SOUP], [members[name] for name in winners], judge, prepared, console)
        soup, alone = choice(f"the mean of the weights of {winner}'s trainings", [SOUP]), judge.score([logits[best]])
        if beats := soup.scored.loss < alone.loss:
            choices.append(soup)
        said = (
            f"the mean of the weights of {winner}'s trainings has a val_loss of {soup.scored.loss:.4f}, "
            f"{'less' if beats else 'not less'} than the {alone.loss:.4f} of its best one"
        )
    chosen = choose(choices, config.search)
    _write(target, {name: folders[name] for name in chosen.members}, chosen.scored, judge, config, winner)
    return chosen, choices, said


def choose(choices: Sequence[Choice], search: SearchConfig) -> Choice:
    """The best of them: by how little it misses the constraints, then by loss; of equal ones, the first."""
    return min(choices, key=lambda one: (missed(one.scored.value, search), one.scored.loss))


def _predictions(folder: Path) -> pd.DataFrame:
    found = read_predictions(folder)
    assert found is not None, "a trial's checkpoint always carries its validation predictions"
    return found


def _soup(target: Path, members: Sequence[Path], judge: Judge, prepared: Prepared, console: Console) -> np.ndarray:
    """Write the checkpoint whose weights are the mean of those of others; its logits on the validation images."""
    opened = [load_checkpoint(member) for member in members]
    weights = mean_weights([one.model.state_dict() for one in opened])
    soup = opened[0]
    soup.model.load_state_dict(weights)
    rows = pd.Index(prepared.table["image_id"]).get_indexer(pd.Index(judge.table["image_id"]))
    order = np.argsort(rows)
    logits = np.empty(len(rows), dtype=np.float32)
    logits[order] = predict(soup, prepared.shards, rows[order], console)
    card = soup.metadata
    about = judge.score([logits]).card(card.config, card.data_fingerprint, card.epoch, SOUP)
    save_checkpoint(target, weights, about, judge.table.assign(logit=logits)[[*PREDICTION_COLUMNS]], soup.seen)
    return logits


def _write(
    target: Path, members: Mapping[str, Path], scored: Logits, judge: Judge, config: Config, winner: str
) -> None:
    cards = {name: read_metadata(folder) for name, folder in members.items()}
    first, epoch = next(iter(cards.values())), max(each.epoch for each in cards.values())
    metadata = scored.card(config, first.data_fingerprint, epoch, winner)
    seen = [table for folder in members.values() if (table := read_seen(folder)) is not None]
    save_ensemble(
        target,
        members,
        metadata,
        judge.table.assign(logit=scored.values)[[*PREDICTION_COLUMNS]],
        pd.concat(seen).drop_duplicates(ignore_index=True),
    )
