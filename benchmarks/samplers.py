"""Which sampler and which scheduler find the better configuration in 16 and 64 trials: what `sampler: auto` rests on.

On synthetic curves with known truth (those of stopping.py), without a network, with fracray's own samplers and stopping
rules. Two spaces: six ranges; and the same with two choices, one of which has a setting of its own. Several trials run
at a time. The figure is the true value, after all epochs, of the trial that the search calls best: what a refit of it
would have. Two metrics (the second one falls with dropout) are compared by the area below their front.
"""

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from stopping import SETTINGS, Point, curve
from table import write_results

from fracray.runtime.console import new_console, new_table
from fracray.search.pasha import first_budget, raised_budget
from fracray.search.samplers import sampler
from fracray.search.schedulers import StoppingRule
from fracray.search.space import Choices, SearchSpace
from fracray.search.space_file import load_space

HERE = Path(__file__).parent
EPOCHS = 12
RANGES: dict[str, Any] = {
    "model.dropout": {"float": [0.0, 0.7]},
    "model.spatial_dropout": {"float": [0.0, 0.4]},
    "augment.rotate": {"float": [0, 30]},
    "augment.scale": {"float": [0.0, 0.3]},
    "augment.brightness": {"float": [0.0, 0.4]},
    "train.lr": {"log_float": [1.0e-4, 1.0e-2]},
}
NAMES = dict(zip(RANGES, SETTINGS, strict=True))  # those of the curves
CHOICES: dict[str, Any] = {
    "train.loss": {"categorical": ["weighted", "focal"]},
    "train.batch_size": {"categorical": [16, 32, 64]},
    "model.width": {"int": [8, 64], "when": {"train.loss": ["focal"]}},
}
SPACES = {"ranges": RANGES, "choices": RANGES | CHOICES}
SEARCHES = (  # sampler, scheduler
    *(("random", "none"), ("tpe", "none"), ("gp", "none"), ("cmaes", "none"), ("nsga2", "none")),
    *(("random", "asha"), ("tpe", "asha"), ("cmaes", "asha"), ("tpe", "pasha")),
    *(("tpe", "median"), ("tpe", "hyperband")),
)
FRONTS = ("random", "tpe", "nsga2")


def space_of(name: str, sampled: str, scheduler: str, seed: int, metrics: list[str], folder: Path) -> SearchSpace:
    tree = {
        "metric": metrics if len(metrics) > 1 else metrics[0],
        "epochs": EPOCHS,
        "sampler": {"name": sampled, "seed": seed},
        "scheduler": {"name": scheduler, "grace_epochs": 2, "reduction_factor": 3},
        "space": SPACES[name],
    }
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(tree))
    return load_space(file)


def true_curve(space: SearchSpace, leaves: dict[str, Any], generator: np.random.Generator | None = None) -> np.ndarray:
    """The curve of a trial's settings, (EPOCHS,); choices move all of it."""
    point: Point = {}
    for dimension in space.dimensions:
        if dimension.path in NAMES:
            assert not isinstance(dimension.values, Choices)
            ends = [dimension.values.low, dimension.values.high, leaves[dimension.path]]
            low, high, value = np.log(ends) if dimension.values.log else ends
            point[NAMES[dimension.path]] = float((value - low) / (high - low))
    moved = 0.0
    if "train.loss" in leaves:
        moved += {16: -0.02, 32: 0.0, 64: -0.01}[leaves["train.batch_size"]]
        moved += 0.01 - 0.06 * ((leaves["model.width"] - 40) / 56) ** 2 if leaves["train.loss"] == "focal" else 0.0
    return curve(point, generator) + moved


def search(space: SearchSpace, trials: int, places: int, seed: int) -> tuple[float, int]:
    """The true last value of the trial that is called best, and the epochs that all trials took."""
    config, generator = space.config, np.random.default_rng(seed + 1000)
    rule, budget = StoppingRule(config), first_budget(config)
    study = optuna.create_study(direction="maximize", sampler=sampler(space))
    curves, running = dict[int, dict[int, float]](), list[tuple[optuna.Trial, np.ndarray]]()
    settings = dict[int, dict[str, Any]]()
    while len(curves) < trials or running:
        while len(running) < places and len(curves) < trials:
            trial = study.ask()
            settings[trial.number] = space.suggest(trial)
            curves[trial.number] = {}
            running.append((trial, true_curve(space, settings[trial.number], generator)))
        for trial, values in list(running):
            own = curves[trial.number]
            epoch = len(own) + 1
            own[epoch] = float(values[epoch - 1])
            trial.report(own[epoch], epoch)
            budget = raised_budget(config, epoch, curves, budget)
            stops = epoch >= budget or rule.stops(trial.number, epoch, own[epoch])
            rule.told(trial.number, epoch, own[epoch])
            if epoch == EPOCHS:
                study.tell(trial, own[epoch])
            elif stops:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                continue
            running.remove((trial, values))
    best = max(curves, key=lambda number: max(curves[number].values()))
    return float(true_curve(space, settings[best])[-1]), sum(map(len, curves.values()))


def front(space: SearchSpace, trials: int, places: int, seed: int) -> float:
    """The true area below the front of two metrics, above 0.5 in both."""
    generator = np.random.default_rng(seed + 1000)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler(space))
    running, points = list[optuna.Trial](), list[tuple[float, float]]()

    def second(leaves: dict[str, Any]) -> float:
        return 0.8 - 0.3 * leaves["model.dropout"] - 0.2 * (leaves["augment.rotate"] / 30 - 0.2) ** 2

    for _ in range(trials):
        if len(running) == places:
            trial = running.pop(0)
            leaves = trial.params
            told = (float(true_curve(space, leaves, generator)[-1]), second(leaves) + float(generator.normal(0, 0.01)))
            study.tell(trial, told)
        trial = study.ask()
        leaves = space.suggest(trial)
        points.append((float(true_curve(space, leaves)[-1]), second(leaves)))
        running.append(trial)
    area, reached = 0.0, 0.5
    for first, other in sorted(points, reverse=True):
        if other > reached:
            area += (first - 0.5) * (other - reached)
            reached = other
    return area


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--seeds", type=int, default=20, help="searches of each kind (default %(default)s)")
    cli.add_argument("--trials", type=int, nargs="+", default=[16, 64], help="(default %(default)s)")
    cli.add_argument("--places", type=int, default=2, help="trials at a time (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "samplers.json", help="default %(default)s")
    args = cli.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table = new_table("space", "sampler", "scheduler", "trials", "true value of the winner", "epochs")
    figures: dict[str, Any] = {"settings": {key: value for key, value in vars(args).items() if key != "json"}}
    with tempfile.TemporaryDirectory() as scratch:
        for name in SPACES:
            for trials in args.trials:
                for sampled, scheduler in SEARCHES:
                    found = [
                        search(
                            space_of(name, sampled, scheduler, seed, ["val_accuracy"], Path(scratch)),
                            *(trials, args.places, seed),
                        )
                        for seed in range(args.seeds)
                    ]
                    values, epochs = (np.array(column) for column in zip(*found, strict=True))
                    cells = f"{values.mean():.4f} ± {values.std(ddof=1) / len(values) ** 0.5:.4f}"
                    table.add_row(name, sampled, scheduler, str(trials), cells, f"{epochs.mean():.0f}")
                    print(name, sampled, scheduler, trials, cells, f"{epochs.mean():.0f}", flush=True)
                    figures[f"{name} {sampled} {scheduler} {trials}"] = {
                        "values": values.tolist(),
                        "epochs": epochs.tolist(),
                    }
                for sampled in FRONTS:
                    pair = ["val_accuracy", "val_auroc"]
                    areas = np.array(
                        [
                            front(space_of(name, sampled, "none", seed, pair, Path(scratch)), trials, args.places, seed)
                            for seed in range(args.seeds)
                        ]
                    )
                    cells = f"{areas.mean():.4f} ± {areas.std(ddof=1) / len(areas) ** 0.5:.4f}"
                    table.add_row(name, sampled, "two metrics: area", str(trials), cells, "")
                    print(name, sampled, "two metrics", trials, cells, flush=True)
                    figures[f"{name} {sampled} two metrics {trials}"] = {"areas": areas.tolist()}
    write_results(new_console(), "samplers", table, figures, args.json)


if __name__ == "__main__":
    main()
