"""A search's best configurations, trained anew with several seeds: which ones, and what came of them.

The best of many validation scores is too high, and one training's score is mostly its seed's luck. So the best few are
trained again, the default configuration always among them, and compared by their means. Knows nothing of the console,
or of how the trainings are run: see refit_trials.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from math import fsum, isnan
from statistics import stdev
from typing import Any

from fracray.config import Config, SearchConfig
from fracray.data.splits.set_names import validation_sets
from fracray.errors import InputError, RunError
from fracray.runtime.run_folder import refit_number, trial_name
from fracray.runtime.storage import Folder
from fracray.search.constraints import rank_key
from fracray.search.states import State
from fracray.search.trials_table import TrialRow, best_rows

PLAN = "refit.json"
WINNER, ALL, BEST_OF_BOTH, OF_FOLDS = "winner", "all", "best", "folds"  # what an ensemble may be made of
SEED = "train.seed"
WITHOUT_FOLDS = (
    "refit without folds (fracray.refit --no-folds; "
    "fracray.tune --set search.refit.folds=false --set search.refit.members=best)"
)


@dataclass(frozen=True)
class RefitPlan:
    """What is trained: the settings of each configuration by its trial's number in the search, and the seeds.

    The default configuration is number 0. folds: each is trained on every fold but the test fold, and a score is the
    mean over them. members: what the ensemble may be made of.
    """

    configurations: Mapping[int, Mapping[str, Any]]
    seeds: tuple[int, ...]
    folds: bool = False
    members: str = BEST_OF_BOTH

    def trials(self) -> dict[int, dict[str, Any]]:
        """The settings of every training by its number; those of all configurations with one seed before the next."""
        return {
            refit_number(number, seed): {**leaves, SEED: seed}
            for seed in self.seeds
            for number, leaves in self.configurations.items()
        }

    def write(self, run: Folder) -> None:
        """Keep the plan in the run folder of the refit."""
        rows = [{"trial": number, "leaves": dict(leaves)} for number, leaves in self.configurations.items()]
        tree = {"configurations": rows, "seeds": list(self.seeds), "folds": self.folds, "members": self.members}
        run.write_json(PLAN, tree)

    @classmethod
    def read(cls, run: Folder) -> "RefitPlan":
        tree = run.read_json(PLAN)
        try:
            rows = {int(row["trial"]): dict(row["leaves"]) for row in tree["configurations"]}
            members = str(tree.get("members", BEST_OF_BOTH))  # older plans do not say
            return cls(rows, tuple(map(int, tree["seeds"])), bool(tree["folds"]), members)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{run}/{PLAN}: not as fracray wrote it ({error!r}); restore it") from None

    @classmethod
    def begun(cls, run: Folder) -> "RefitPlan | None":
        """The plan in the run folder of a refit; None where it has not begun."""
        return cls.read(run) if run.exists(PLAN) else None


def make_plan(
    config: Config,
    rows: Mapping[int, TrialRow],
    top: int,
    seeds: int,
    folds: bool,
    before: RefitPlan | None = None,
    members: str | None = None,
) -> RefitPlan:
    """The `top` best trials of a search and its default configuration, each with `seeds` seeds.

    The search's own seed is not among them: it is part of why these trials came out best. With `before`, the plan of a
    refit that is resumed, nothing of that is taken away: its configurations and seeds stay, and whether it has folds.
    members: None for those of the plan before, or BEST_OF_BOTH.
    """
    chosen: dict[int, Mapping[str, Any]] = dict(before.configurations) if before else {}
    for row in best_rows(rows.values(), config.search)[:top]:
        if row.number not in chosen:
            _add(chosen, row.number, row.leaves)
    if 0 not in chosen:
        _add(chosen, 0, rows[0].leaves if 0 in rows else {})
    kept = before.seeds if before else ()
    fresh = (seed for seed in count(1) if seed not in (config.train.seed, *kept))
    every = (*kept, *islice(fresh, max(0, seeds - len(kept))))
    if before is not None:
        return RefitPlan(chosen, every, before.folds, members or before.members)
    return RefitPlan(chosen, every, folds, members or BEST_OF_BOTH)


def _add(chosen: dict[int, Mapping[str, Any]], number: int, leaves: Mapping[str, Any]) -> None:
    """Add a configuration; of two trials with equal settings the default one stays, or else the first."""
    same = next((other for other, known in chosen.items() if leaves and known == leaves), None)
    if same is None:
        chosen[number] = leaves
    elif number == 0:
        del chosen[same]
        chosen[0] = leaves


def refit_config(config: Config, folds: bool) -> Config:
    """The config of a refit: the search's, without early stopping, and with `folds` validated on every fold.

    InputError where the search's split has no folds.
    """
    leaves: dict[str, Any] = {"search.scheduler.name": "none"}
    if folds and not config.data.split.cross_validate:
        split = config.data.split
        if split.protocol != "kfold" or split.file:
            words = "a split from a file" if split.file else f"data.split.protocol {split.protocol}"
            other = "without data.split.file" if split.file else "with --set data.split.protocol=kfold"
            raise InputError(
                f"--folds: this search is on {words}, which has no folds; {WITHOUT_FOLDS}, or search {other}"
            )
        leaves["data.split.cross_validate"] = True
    return config.with_leaves(leaves, "refit")


def refuse_other_folds(before: RefitPlan | None, own: Folder, folds: bool | None, config: Config) -> None:
    """InputError where a refit, in its folder `own`, began with folds and none are asked for, or the other way round.

    folds: None where the command leaves it to the refit. config: the search's, whose trainings have a model for each
    fold in any case where it is cross-validated.
    """
    if before is None or folds in (None, before.folds) or config.data.split.cross_validate:
        return
    if before.folds:
        raise InputError(f"{own}: this refit began with folds; leave --no-folds out, or remove that folder")
    raise InputError(f"{own}: this refit began without folds; {WITHOUT_FOLDS}, or remove that folder")


def refuse_members(members: str | None, config: Config) -> None:
    """InputError where a refit with this config (`refit_config`) cannot have an ensemble of the models of all folds."""
    if members != OF_FOLDS:
        return
    if not config.data.split.cross_validate:
        raise InputError(
            "--members folds: the trainings of this refit have one model each; name other --members, or leave "
            "--no-folds out (where it has begun without folds, remove its folder)"
        )
    if len(others := validation_sets(config.data.split)) > 1:
        raise InputError(
            f"--members folds: this search validates on {', '.join(others)}, and only on val each image is judged by "
            f"models that were not trained on it; {WITHOUT_FOLDS}"
        )


@dataclass(frozen=True)
class Refitted:
    """One configuration and its trainings, one for each seed that all configurations have."""

    number: int
    leaves: Mapping[str, Any]
    rows: tuple[TrialRow, ...]

    @property
    def name(self) -> str:
        return trial_name(self.number)

    def mean(self, metric: str) -> float:
        return fsum(self._values(metric)) / len(self.rows)

    def deviation(self, metric: str) -> float:
        """The standard deviation over the seeds; nan with one."""
        return stdev(self._values(metric)) if len(self.rows) > 1 else float("nan")

    def _values(self, metric: str) -> list[float]:
        return [row.best(metric) for row in self.rows]


@dataclass(frozen=True)
class Outcome:
    """What a refit found: the configurations that count, the best by its mean first, and what does not count.

    seeds: those with which every configuration that counts was trained to the end. lost: the names of the
    configurations of which a training failed or diverged, and how.
    """

    ranked: tuple[Refitted, ...]
    seeds: tuple[int, ...]
    lost: Mapping[str, str]

    @property
    def seeds_in_words(self) -> str:
        return f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"

    @property
    def winner(self) -> Refitted:
        return self.ranked[0]

    @property
    def default(self) -> Refitted | None:
        return next((one for one in self.ranked if one.number == 0), None)


def outcome(plan: RefitPlan, rows: Mapping[int, TrialRow], search: SearchConfig) -> Outcome | None:
    """What the trainings so far say; None before all configurations have ended with one seed.

    Means that satisfy the search's constraints come before those that do not.
    A configuration of which any training failed, diverged or has no value is no winner: another seed would meet it.
    """
    metric, lost = search.metrics[0], dict[str, str]()
    for number in plan.configurations:
        mine = [rows[refit_number(number, seed)] for seed in plan.seeds if refit_number(number, seed) in rows]
        bad = [row for row in mine if row.state in (State.FAILED, State.DIVERGED) or _without_value(row, metric)]
        if bad:
            how = f"has no {metric}" if bad[0].state is State.DONE else bad[0].state
            lost[trial_name(number)] = f"{bad[0].name} {how}"
    alive = [number for number in plan.configurations if trial_name(number) not in lost]
    if not alive:
        raise RunError("no configuration could be refitted with every seed; the reasons are above")
    seeds = tuple(seed for seed in plan.seeds if all(_done(rows.get(refit_number(one, seed))) for one in alive))
    if not seeds:
        return None
    found: Sequence[Refitted] = [
        Refitted(number, plan.configurations[number], tuple(rows[refit_number(number, seed)] for seed in seeds))
        for number in alive
    ]
    ranked = sorted(found, key=lambda one: rank_key(one.mean, search), reverse=True)
    return Outcome(tuple(ranked), seeds, lost)


def _done(row: TrialRow | None) -> bool:
    return row is not None and row.state is State.DONE


def _without_value(row: TrialRow, metric: str) -> bool:
    return row.state is State.DONE and isnan(row.best(metric))
