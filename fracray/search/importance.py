"""Which settings mattered in a search, beside what chance alone would show."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

FEWEST_TRIALS = 10
TREES = 16
PERMUTATIONS = 20
LEVEL = 0.95


@dataclass(frozen=True)
class Share:
    """What a setting explains of the differences between trials, 0..1, and what it stays below by chance in 95%."""

    path: str
    share: float
    chance: float


@dataclass(frozen=True)
class Importances:
    """The settings of a search, the largest share first; all shares together are 1.

    strongest: what the largest share stays below, in 95%, where no setting matters. `told_apart` is False where no
    setting exceeds it: then the shares say nothing.
    """

    shares: tuple[Share, ...]
    strongest: float

    @property
    def told_apart(self) -> bool:
        return self.shares[0].share > self.strongest


def importances(study: optuna.Study) -> Importances | None:
    """The importance of each setting that every finished trial has; None with too few trials or several objectives.

    A random forest's mean decrease in impurity, beside that of the same forest when the trials' values change places at
    random (Altmann et al. 2010, doi 10.1093/bioinformatics/btq134). Shares add up to 1 for pure noise too: of 16 trials
    of noise over seven settings, one setting gets 0.3. fANOVA would take 20 times as long.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(study.directions) > 1 or len(done) < FEWEST_TRIALS or len({trial.value for trial in done}) < 2:
        return None
    found = _shares(done, study.direction)
    if not found:
        return None
    by_chance = list(_permuted(done, study.direction))
    limits = {path: float(np.quantile([shares[path] for shares in by_chance], LEVEL)) for path in found}
    return Importances(
        tuple(Share(path, share, limits[path]) for path, share in found.items()),
        float(np.quantile([max(shares.values()) for shares in by_chance], LEVEL)),
    )


def _permuted(done: list[FrozenTrial], direction: optuna.study.StudyDirection) -> Iterator[dict[str, float]]:
    generator = np.random.default_rng(0)
    values = np.array([trial.value for trial in done], dtype=float)
    for _ in range(PERMUTATIONS):
        yield _shares(
            [
                optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=float(value))
                for trial, value in zip(done, generator.permutation(values), strict=True)
            ],
            direction,
        )


def _shares(trials: list[FrozenTrial], direction: optuna.study.StudyDirection) -> dict[str, float]:
    study = optuna.create_study(direction=direction)
    study.add_trials(trials)
    evaluator = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(n_trees=TREES, seed=0)
    return {
        path: float(share)
        for path, share in optuna.importance.get_param_importances(study, evaluator=evaluator).items()
    }
