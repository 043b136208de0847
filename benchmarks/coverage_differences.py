"""How often do the 95% intervals of differences and of folds' means hold the truth?

As coverage.py, of what two models, or one model on changed pictures, make of the same samples. `gain` is the difference
of a score between two configurations (`equal`: the truth is 0, with errors of their own; `better`: it is not).
`corrupted` is what the corruption suite prints: the mean balanced error over three severities, how much it is above the
clean one, their ratio, and the ratios to a reference model. `folds` is the AUROC that is the mean over five folds, each
scored by a model with a scale of its own; no more folds than a third of the groups. Cells are coverage; the truth is
that of very many groups.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from coverage import POPULATIONS, THRESHOLD, Draw
from scipy.special import expit, logit
from table import write_results

from fracray.evaluation.robustness import SCALES, _column, _statistics
from fracray.metrics import GroupJackknife, Interval, auroc_over_folds, balanced_errors, score
from fracray.metrics.intervals import ABOUT
from fracray.metrics.scores import Ranked
from fracray.runtime.console import new_console, new_table

HERE = Path(__file__).parent
GAINS = ("accuracy", "balanced_accuracy", "auroc", "brier", "ece")
NOISES = {"equal": (0.7, 0.7), "better": (0.4, 1.2)}  # of the two configurations' logits
FADED = (0.8, 0.6, 0.4)  # what is left of a logit at each severity
MOST_FOLDS = 5

Found = dict[str, Interval]
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def gains(sample: Sample, generator: np.random.Generator, noises: tuple[float, float]) -> Found:
    labels, probabilities, group = sample
    ours, theirs = (_noisy(probabilities, group, noise, generator) for noise in noises)
    # As `paired_gain`, of all scores at once, which is several times as fast.
    a, b = (Ranked(labels, each, THRESHOLD, group) for each in (ours, theirs))
    value = {name: getattr(a.as_scores(), name) - getattr(b.as_scores(), name) for name in GAINS}
    jackknife = GroupJackknife(labels, group)
    without = jackknife.values(lambda weights: _minus(a.scores(weights), b.scores(weights)))
    return {name: jackknife.interval(value[name], without[name], ABOUT.get(name, "both"), "number") for name in GAINS}


def _minus(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: one[name] - other[name] for name in GAINS}


def true_gains(sample: Sample, generator: np.random.Generator, noises: tuple[float, float]) -> dict[str, float]:
    if noises[0] == noises[1]:
        return dict.fromkeys(GAINS, 0.0)
    labels, probabilities, group = sample
    ours, theirs = (
        score(labels, _noisy(probabilities, group, noise, generator), THRESHOLD, group).as_dict() for noise in noises
    )
    return {name: ours[name] - theirs[name] for name in GAINS}


def corrupted(sample: Sample, generator: np.random.Generator) -> Found:
    labels, _, group = sample
    jackknife = GroupJackknife(labels, group)
    tables = []
    for noise in (0.5, 0.9):  # the model and the reference
        errors, left_out = balanced_errors(labels, _calls(sample, generator, noise), jackknife)
        tables.append(_statistics(np.concatenate([errors[None], left_out]), len(FADED)))
    return {name: _column(table, jackknife, SCALES[name]) for name, table in _with_ratios(tables).items()}


def true_corrupted(sample: Sample, generator: np.random.Generator) -> dict[str, float]:
    jackknife = GroupJackknife(sample[0], sample[2])
    jackknife.weights = lambda: iter([np.ones((1, len(sample[0])))])  # type: ignore[method-assign]
    tables = [
        _statistics(balanced_errors(sample[0], _calls(sample, generator, noise), jackknife)[1], len(FADED))
        for noise in (0.5, 0.9)
    ]
    return {name: float(table[0, 0]) for name, table in _with_ratios(tables).items()}


def folds(sample: Sample, generator: np.random.Generator) -> Found:
    labels, probabilities, group = sample
    count = max(1, min(MOST_FOLDS, (group.max() + 1) // 3))
    fold = generator.permutation(group.max() + 1)[group] % count
    z = logit(probabilities) * generator.uniform(0.5, 2, count)[fold] + generator.normal(0, 1, count)[fold]
    return {"AUROC over folds": auroc_over_folds(labels, expit(z), group, fold)}


def true_folds(sample: Sample, generator: np.random.Generator) -> dict[str, float]:
    return {"AUROC over folds": score(sample[0], sample[1], THRESHOLD).auroc}


def _noisy(p: np.ndarray, group: np.ndarray, noise: float, generator: np.random.Generator) -> np.ndarray:
    """What another training makes of a probability; images of a group are shifted together as well."""
    shift = generator.normal(0, noise / 2, group.max() + 1)[group]
    return np.asarray(expit(logit(p) + shift + generator.normal(0, noise, len(p))))


def _calls(sample: Sample, generator: np.random.Generator, noise: float) -> np.ndarray:
    """Clean, then at each severity: (1 + severities, n) bool."""
    z = logit(_noisy(sample[1], sample[2], noise, generator))
    faded = [share * z + generator.normal(0, 1 - share, len(z)) for share in FADED]
    return np.array([each >= logit(THRESHOLD) for each in (z, *faded)])


def _with_ratios(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    ours, reference = tables
    with np.errstate(divide="ignore", invalid="ignore"):
        return ours | {
            "normalised": ours["mean"] / reference["mean"],
            "relative": ours["excess"] / reference["excess"],
        }


KINDS: dict[str, tuple[Callable[..., Found], Callable[..., dict[str, float]], tuple[Any, ...]]] = {
    **{f"gain, {name}": (gains, true_gains, (noises,)) for name, noises in NOISES.items()},
    "corrupted": (corrupted, true_corrupted, ()),
    "folds": (folds, true_folds, ()),
}


def simulate(draw: Draw, groups: int, samples: int, kind: str, known: dict[str, float]) -> dict[str, Any]:
    """Coverage, median width and the share without an interval, by what is printed."""
    measure, _, more = KINDS[kind]
    generator = np.random.default_rng((groups, 11))
    found = [measure(draw(generator, groups), generator, *more) for _ in range(samples)]
    figures = {}
    for name, truth in known.items():
        given = [(one[name].low, one[name].high) for one in found if not math.isnan(one[name].low)]
        if given:
            figures[name] = {
                "covered": mean(low <= truth <= high for low, high in given),
                "width": median(high - low for low, high in given),
                "none": 1 - len(given) / samples,
            }
    return figures


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--samples", type=int, default=400, help="of each population and size (default %(default)s)")
    cli.add_argument("--groups", default="5,7,11,20,30,50,100", help="sizes of the samples (default %(default)s)")
    cli.add_argument("--population-groups", type=int, default=20_000, help="of the population (default %(default)s)")
    path = HERE / "results" / "coverage_differences.json"
    cli.add_argument("--json", type=Path, default=path, help="default %(default)s")
    args = cli.parse_args()
    sizes = [int(size) for size in args.groups.split(",")]
    console = new_console()
    table = new_table("population", "interval of")
    for size in sizes:
        table.add_column(f"{size} groups", justify="right")
    truths: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for population, draw in POPULATIONS.items():
        for kind, (_, truth, more) in KINDS.items():
            generator = np.random.default_rng(99)
            known = truth(draw(generator, args.population_groups), generator, *more)
            by_size = {size: simulate(draw, size, args.samples, kind, known) for size in sizes}
            for name in known:
                cells = [f"{cell[name]['covered']:.2f}" if name in cell else "" for cell in by_size.values()]
                table.add_row(population, f"{kind}: {name}", *cells)
            truths[f"{population}, {kind}"] = known
            figures |= {f"{population}, {kind}, {size} groups": cell for size, cell in by_size.items()}
            console.print(f"{population}, {kind}: done")
    settings = {"samples": args.samples, "threshold": THRESHOLD, "cells": "covered, median width"}
    write_results(
        console, "coverage_differences", table, {"settings": settings, "truth": truths, "coverage": figures}, args.json
    )


if __name__ == "__main__":
    main()
