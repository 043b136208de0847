"""Which of the refitted networks together make the best ensemble on validation, and its checkpoint.

Every choice is by the search's constraints, where it has some, then by the cross-fitted loss of the members' mean logit
on 'val'; the test part is never looked at. Of trainings over folds, a model counts only on the images that it was
validated on: the models of the other folds were trained on these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from fracray.config import Config, SearchConfig
from fracray.data.manifest import in_set, part_of
from fracray.data.prepare import Prepared
from fracray.data.splits.set_names import is_validation
from fracray.evaluation.inference import predict
from fracray.metrics import Calibration
from fracray.runtime.console import counted
from fracray.search.constraints import missed
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
WINNER, ALL = "winner", "all"  # what --members may ask for, besides BEST
BEST_OF_BOTH = "best"


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


@dataclass(frozen=True)
class Choice:
    """A set of trainings whose models could be the ensemble, in words, with its logits."""

    words: str
    trainings: tuple[str, ...]
    scored: Logits


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
    trainings: Mapping[str, Sequence[Path]],
    winners: Sequence[str],
    config: Config,
    winner: str,
    prepared: Prepared,
    wanted: str,
    console: Console,
) -> tuple[Choice, list[Choice], str]:
    """Write the best ensemble to `target`; returns it, all that were compared, and what became of a soup.

    trainings: the checkpoint folders of all that count, by name, one of each or one of each fold; winners: those of the
    winning configuration, whose name and config the ensemble has. prepared: of folds, `over_folds`. wanted: WINNER, ALL
    or BEST_OF_BOTH, with which a soup is tried too.
    """
    tables = {name: _predictions(folders) for name, folders in trainings.items()}
    table = tables[winners[0]]
    for name, other in tables.items():
        assert (other["image_id"] == table["image_id"]).all(), f"{name} was validated on other images"
    judge = Judge(table, [name for name in prepared.sets if is_validation(name)], config)
    logits = {name: other["logit"].to_numpy() for name, other in tables.items()}

    def choice(words: str, names: Sequence[str]) -> Choice:
        return Choice(words, tuple(names), judge.score([logits[name] for name in names]))

    choices = []
    others, each = len(trainings) > len(winners), len(trainings[winners[0]])
    models = f" of {each} folds each" if each > 1 else ""
    if wanted != ALL or not others:
        choices.append(choice(f"{counted(len(winners), 'training')} of {winner}{models}", winners))
    if wanted != WINNER and others:
        choices.append(choice(f"all {counted(len(trainings), 'training')}{models}", list(trainings)))
    folders = dict(trainings)
    said = ""
    # From scratch, they have little in common but their kind; and a mean over folds would have seen every image.
    if wanted == BEST_OF_BOTH and len(winners) > 1 and config.model.weights is not None and each == 1:
        best = min(winners, key=lambda name: judge.score([logits[name]]).loss)
        folders[SOUP] = [target.with_name(SOUP)]
        logits[SOUP] = _soup(folders[SOUP][0], [trainings[name][0] for name in winners], judge, prepared, console)
        soup, alone = choice(f"the mean of the weights of {winner}'s trainings", [SOUP]), judge.score([logits[best]])
        if beats := soup.scored.loss < alone.loss:
            choices.append(soup)
        said = (
            f"the mean of the weights of {winner}'s trainings has a val_loss of {soup.scored.loss:.4f}, "
            f"{'less' if beats else 'not less'} than the {alone.loss:.4f} of its best one"
        )
    chosen = choose(choices, config.search)
    members = [folder for name in chosen.trainings for folder in folders[name]]
    _write(target, members, chosen.scored, judge, config, winner, each > 1)
    return chosen, choices, said


def choose(choices: Sequence[Choice], search: SearchConfig) -> Choice:
    """The best of them: by how little it misses the constraints, then by loss; of equal ones, the first."""
    return min(choices, key=lambda one: (missed(one.scored.value, search), one.scored.loss))


def _predictions(folders: Sequence[Path]) -> pd.DataFrame:
    """What a training says of its validation images; over folds, each model of those that it was not trained on.

    The mean of several folds' models is less noisy than the one model that these logits are of, so a calibration that
    is fitted to them is, if anything, a little too cautious for the ensemble. Fitting it to the mean logit of all would
    be far worse: on any of these images most models give what they learnt by heart.
    """
    found = [read_predictions(folder) for folder in folders]
    assert all(table is not None for table in found), "a trial's checkpoint always carries its validation predictions"
    table = pd.concat(found, ignore_index=True)
    assert not table["image_id"].duplicated().any(), "two folds validate on one image"
    return table


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
    scored = judge.score([logits])
    about = CheckpointMetadata(
        config=soup.metadata.config,
        threshold=scored.threshold,
        calibration=scored.calibration,
        metrics=dict(scored.metrics),
        data_fingerprint=soup.metadata.data_fingerprint,
        epoch=soup.metadata.epoch,
        trial=SOUP,
    )
    save_checkpoint(target, weights, about, judge.table.assign(logit=logits)[[*PREDICTION_COLUMNS]], soup.seen)
    return logits


def _write(
    target: Path,
    folders: Sequence[Path],
    scored: Logits,
    judge: Judge,
    config: Config,
    winner: str,
    out_of_fold: bool,
) -> None:
    cards = [read_metadata(folder) for folder in folders]
    metadata = CheckpointMetadata(
        config=config,
        threshold=scored.threshold,
        calibration=scored.calibration,
        metrics=dict(scored.metrics),
        data_fingerprint=cards[0].data_fingerprint,
        epoch=max(card.epoch for card in cards),
        trial=winner,
    )
    seen = pd.concat([table for folder in folders if (table := read_seen(folder)) is not None])
    if out_of_fold:  # what any member was trained on is of train, though others were validated on it
        seen = seen.iloc[np.argsort(part_of(seen["split"]) != "train", kind="stable")].drop_duplicates("image_id")
    save_ensemble(
        target,
        {card.trial: folder for card, folder in zip(cards, folders, strict=True)},
        metadata,
        judge.table.assign(logit=scored.values)[[*PREDICTION_COLUMNS]],
        seen.drop_duplicates(ignore_index=True),
        out_of_fold,
    )
