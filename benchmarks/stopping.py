"""What a search's sampler is told of trials that diverge or are stopped early: what each way of telling it costs.

On synthetic curves with known truth, without a network, so hundreds of searches take minutes. The cliff: learning rates
above 0.01 diverge, and the best lie just below. The curves: four settings regularise, which makes a trial slower and
its end better, one is the learning rate and one has no effect. A search has a fixed number of epochs, and one trial at
a time. There is no default configuration here, which fracray tries first and never stops.
"""

import argparse
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from table import write_results

from fracray.config import Config
from fracray.runtime.console import new_console, new_table
from fracray.search.importance import _shares
from fracray.search.samplers import _Repeatable
from fracray.search.samplers import sampler as fracray_sampler
from fracray.search.schedulers import StoppingRule
from fracray.search.space import Dimension, Range, SearchSpace

HERE = Path(__file__).parent
STARTUP, EPOCHS, GRACE, FACTOR = 8, 12, 3, 3
CLIFF_TRIALS = 40
SETTINGS = ("dropout", "spatial", "rotate", "scale", "brightness", "lr")
SPACE = tuple(Dimension(name, Range(0.0, 1.0)) for name in SETTINGS)
CLIFF = (Dimension("lr", Range(1e-4, 1.0, log=True)), Dimension("dropout", Range(0.0, 0.7)))
Point = dict[str, float]


def sampler(name: str, dimensions: tuple[Dimension, ...], seed: int, stopped: bool = True) -> BaseSampler:
    """Fracray's own; `stopped`: whether CMA-ES learns from trials that were stopped, as there."""
    settings = {"name": name, "startup_trials": STARTUP, "seed": seed}
    config = Config.model_validate({"search": {"sampler": settings}})
    found = fracray_sampler(SearchSpace(config, dimensions, "stopping.py"))
    if not stopped:
        assert isinstance(found, _Repeatable)
        found._make = lambda each: CmaEsSampler(n_startup_trials=STARTUP, seed=each)
    return found


def cliff(name: str, told: str, seed: int) -> int:
    """How many of the trials after the random ones diverge."""
    study = optuna.create_study(direction="maximize", sampler=sampler(name, CLIFF, seed))
    diverged = 0
    for index in range(CLIFF_TRIALS):
        trial = study.ask()
        rate, dropout = (dimension.values.ask(trial, dimension.path) for dimension in CLIFF)
        height = math.log10(rate)
        if height <= -2:
            study.tell(trial, 0.9 - 0.05 * (height + 2) ** 2 - 0.1 * (dropout - 0.3) ** 2)
            continue
        diverged += index >= STARTUP
        if told == "infeasible":
            trial.set_constraint("diverged", 1.0)
            study.tell(trial, state=TrialState.PRUNED)
        elif told == "failed":
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, 0.0)
    return diverged


def curve(point: Point, generator: np.random.Generator | None = None) -> np.ndarray:
    """The best value so far after each epoch, (EPOCHS,); without a generator free of noise."""
    slow = 1 + 5 * np.mean([point[name] for name in SETTINGS[:4]])
    aims = {"dropout": (0.25, 0.6), "spatial": (0.12, 0.5), "rotate": (0.08, 0.7), "lr": (0.2, 0.5)}
    final = 0.85 - sum(weight * (point[name] - best) ** 2 for name, (weight, best) in aims.items())
    values = final - 0.35 * np.exp(-np.arange(1, EPOCHS + 1) / slow)
    return np.maximum.accumulate(values + (generator.normal(0, 0.01, EPOCHS) if generator else 0.0))


def search(name: str, told: str, scheduler: str, seed: int, budget: int) -> list[tuple[Point, np.ndarray]]:
    """The trials of one search: their settings, and their curves as far as they ran."""
    settings = {"name": scheduler, "grace_epochs": GRACE, "reduction_factor": FACTOR}
    rule = StoppingRule(Config.model_validate({"train": {"epochs": EPOCHS}, "search": {"scheduler": settings}}))
    study = optuna.create_study(direction="maximize", sampler=sampler(name, SPACE, seed, told != "left out"))
    generator, curves, found = np.random.default_rng(seed + 1000), dict[int, dict[int, float]](), []
    while sum(map(len, curves.values())) < budget:
        trial = study.ask()
        point = {dimension.path: dimension.values.ask(trial, dimension.path) for dimension in SPACE}
        values, own = curve(point, generator), curves.setdefault(trial.number, {})
        for epoch in range(1, EPOCHS + 1):
            own[epoch] = float(values[epoch - 1])
            trial.report(own[epoch], epoch)
            stops = epoch < EPOCHS and rule.stops(trial.number, epoch, own[epoch])
            rule.told(trial.number, epoch, own[epoch])
            if stops:
                break
        if len(own) == EPOCHS or told == "best value until then":
            study.tell(trial, own[len(own)])
        else:
            study.tell(trial, state=TrialState.PRUNED)
        found.append((point, values[: len(own)]))
    return found


def winner(found: list[tuple[Point, np.ndarray]]) -> float:
    """The true last value of the best trial that ran all epochs."""
    full = [(values[-1], point) for point, values in found if len(values) == EPOCHS]
    return float(curve(max(full, key=lambda one: one[0])[1])[-1])


def importances(values: list[tuple[Point, float]]) -> dict[str, float]:
    """Fracray's own, of however few trials."""
    space = {dimension.path: dimension.distribution for dimension in SPACE}
    trials = [create_trial(params=point, distributions=space, value=value) for point, value in values]
    return _shares(trials, StudyDirection.MAXIMIZE)


def importance_error(found: list[tuple[Point, np.ndarray]], over: str, truth: dict[str, float]) -> float:
    """The sum of the absolute errors over the settings: 0 is right, 2 all wrong."""
    values = {
        "done": [(point, values[-1]) for point, values in found if len(values) == EPOCHS],
        "all, best value until then": [(point, values[-1]) for point, values in found],
        "all, at the first rung": [(point, values[GRACE - 1]) for point, values in found],
    }[over]
    measured = importances([(point, float(value)) for point, value in values])
    return sum(abs(measured[name] - truth[name]) for name in SETTINGS)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--seeds", type=int, default=30, help="searches of each kind (default %(default)s)")
    cli.add_argument("--budget", type=int, default=192, help="epochs of a search (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "stopping.json", help="default %(default)s")
    args = cli.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, of what it marks as experimental
    table, rows = new_table("question", "sampler", "told, or over", "mean", "standard error"), list[dict[str, Any]]()

    def add(question: str, name: str, way: str, values: list[float]) -> None:
        mean, error = float(np.mean(values)), float(np.std(values) / math.sqrt(len(values)))
        table.add_row(question, name, way, f"{mean:.4g}", f"{error:.2g}")
        rows.append({"question": question, "sampler": name, "way": way, "mean": mean, "standard_error": error})

    seeds = range(args.seeds)
    for name in ("tpe", "cmaes"):
        for told in ("infeasible", "worst value", "failed"):
            add(f"diverged of {CLIFF_TRIALS - STARTUP}", name, told, [cliff(name, told, seed) for seed in seeds])
    for name in ("tpe", "cmaes"):
        for told in ("stopped", "best value until then", *(["left out"] if name == "cmaes" else [])):
            for scheduler in ("asha", "hyperband", "median"):
                found = [search(name, told, scheduler, seed, args.budget) for seed in seeds]
                add(f"the winner's true value, {scheduler}", name, told, [winner(one) for one in found])
    generator = np.random.default_rng(0)
    points = [{name: float(generator.uniform()) for name in SETTINGS} for _ in range(600)]
    truth = importances([(point, float(curve(point)[-1])) for point in points])
    found = [search("tpe", "stopped", "asha", seed, args.budget) for seed in seeds]
    for over in ("done", "all, best value until then", "all, at the first rung"):
        add("error of the importances", "tpe", over, [importance_error(one, over, truth) for one in found])
    write_results(
        new_console(), "stopping", table, {"seeds": args.seeds, "budget": args.budget, "rows": rows}, args.json
    )


if __name__ == "__main__":
    main()
