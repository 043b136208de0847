"""How often do 95% intervals over groups hold the truth, and how wide are they?

Samples of few groups are drawn from three populations whose scores are known, and each method says where it takes the
score to be. In `alike` the groups differ by chance and by a common effect on labels and probabilities; in `blocks`
sizes and labels are those of FracAtlas' 73 groups, some of which hold fractures only; in `easy` nearly all is right.

`jackknife` is fracray's interval; `jackknife, groups - 1` takes its uneven groups for equal ones. `percentile` is what
fracray had before: percentiles of 1,000 resamples of groups. `expanded percentile` has Hesterberg's correction for few
groups (2015, doi 10.1080/00031305.2015.1089789), and `BCa` is Efron's (1987, doi 10.1080/01621459.1987.10478410).
A cell is the mean coverage over the scores, the least, and the mean width against that of `percentile`.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri, stdtrit
from table import write_results

from fracray.metrics import CalibrationError, GroupJackknife, score, slope_and_intercept
from fracray.metrics.intervals import ABOUT, Scale, score_intervals
from fracray.metrics.scores import Ranked
from fracray.runtime.console import new_console, new_table

HERE = Path(__file__).parent
THRESHOLD = 0.35
RESAMPLES = 1000
METRICS = (
    "auroc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "brier",
    "ece",
    "calibration_slope",
    "calibration_intercept",
)
METHODS = ("jackknife", "jackknife, groups - 1", "percentile", "expanded percentile", "BCa")
# Images and fractures of the groups of FracAtlas (grouped protocol, all parts).
SIZES = (
    "296 50 25 25 26 23 47 49 50 49 50 25 25 25 40 49 50 50 25 50 46 48 25 49 48 50 48 28 44 50 67 49 49 "
    "50 50 49 47 50 25 41 22 38 48 49 49 50 50 32 31 21 50 48 50 49 25 25 31 95 45 34 41 4 49 34 50 48 25 "
    "156 37 25 43 24 8 "
)
FRACTURES = (
    "30 4 3 2 2 1 12 0 1 1 2 1 3 5 0 0 3 6 1 5 0 5 3 1 4 6 4 6 2 2 52 49 49 50 11 1 3 4 4 8 6 11 2 5 7 7 "
    "5 7 4 8 4 1 5 1 0 1 31 26 3 7 6 4 2 2 2 2 25 27 9 0 9 7 3 "
)
BLOCKS = np.array([SIZES.split(), FRACTURES.split()], dtype=int).T

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]  # labels, probabilities, groups
Draw = Callable[[np.random.Generator, int], Sample]


def alike(generator: np.random.Generator, groups: int, apart: float = 0.7) -> Sample:
    """18% positives, AUROC 0.84; the probabilities are calibrated over all groups, and not within each."""
    group = np.repeat(np.arange(groups), generator.choice(BLOCKS[:, 0], groups))
    z = -2.2 + generator.normal(0, 0.5, groups)[group] + generator.normal(0, 1.6, len(group))
    labels = generator.random(len(group)) < expit(z + apart * generator.normal(0, 1, groups)[group])
    points, weights = np.polynomial.hermite_e.hermegauss(16)
    return labels.astype(float), expit(z[:, None] + apart * points) @ (weights / weights.sum()), group


def blocks(generator: np.random.Generator, groups: int) -> Sample:
    """Groups as FracAtlas has them; the probabilities are calibrated over all of them."""
    drawn = BLOCKS[generator.integers(len(BLOCKS), size=groups)]
    group = np.repeat(np.arange(groups), drawn[:, 0])
    labels = np.concatenate([np.arange(size) < positive for size, positive in drawn]).astype(float)
    z = 1.5 * labels + generator.normal(0, 0.4, groups)[group] + generator.normal(0, 1, len(group))
    prevalence = BLOCKS[:, 1].sum() / BLOCKS[:, 0].sum()
    return labels, expit(logit(prevalence) + (1.5 * z - 1.5**2 / 2) / (1 + 0.4**2)), group


def easy(generator: np.random.Generator, groups: int) -> Sample:
    """AUROC 0.997, sensitivity 0.95, specificity 0.97: scores near their bound; probabilities are too extreme."""
    group = np.repeat(np.arange(groups), generator.choice(BLOCKS[:, 0], groups))
    labels = generator.random(len(group)) < expit(generator.normal(-2.2, 0.8, groups))[group]
    z = -4 + 7 * labels + generator.normal(0, 0.7, groups)[group] + generator.normal(0, 1.5, len(group))
    return labels.astype(float), expit(z), group


POPULATIONS: dict[str, Draw] = {"alike": alike, "blocks": blocks, "easy": easy}


def truth(draw: Draw, groups: int) -> dict[str, float]:
    """The scores of so many groups that chance no longer matters."""
    labels, probabilities, group = draw(np.random.default_rng(99), groups)
    found = score(labels, probabilities, THRESHOLD, group).as_dict()
    slope, intercept = slope_and_intercept(labels, probabilities, np.ones((1, len(labels))))
    found |= {"calibration_slope": float(slope[0]), "calibration_intercept": float(intercept[0])}
    # Calibrated by construction: what a population shows beside that is chance.
    return found if draw is easy else found | {"ece": 0.0, "calibration_slope": 1.0, "calibration_intercept": 0.0}


def resampled(labels: np.ndarray, ranked: Ranked, group: np.ndarray, groups: int, seed: int) -> dict[str, np.ndarray]:
    """Every metric on resamples of groups, as percentile intervals and BCa need them."""
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    parts = [ranked.scores(part[:, group].astype(float)) for part in np.array_split(draws, max(1, len(labels) // 500))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def by_resampling(
    value: float, drawn: np.ndarray, left_out: np.ndarray, groups: int, scale: Scale
) -> dict[str, tuple[float, float]]:
    """The ends of the three intervals that need resamples."""
    drawn = drawn[~np.isnan(drawn)]
    nothing = (math.nan, math.nan)
    if not len(drawn) or math.isnan(value):
        return dict.fromkeys(("percentile", "expanded percentile", "BCa"), nothing)
    if scale == "error":
        drawn = np.maximum(drawn, 0)
    z = math.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, 0.975)
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    bias = ndtri(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn)))
    lean = left_out.mean() - left_out
    acceleration = (lean**3).sum() / (6 * (lean**2).sum() ** 1.5 + 1e-300)
    bca = [
        ndtr(bias + (bias + end) / max(1e-9, 1 - acceleration * (bias + end))) for end in (ndtri(0.025), ndtri(0.975))
    ]

    def ends(low: float, high: float) -> tuple[float, float]:
        return float(np.quantile(drawn, low)), float(np.quantile(drawn, high))

    return {
        "percentile": ends(0.025, 0.975),
        "expanded percentile": ends(ndtr(-z), ndtr(z)),
        "BCa": ends(*bca) if np.isfinite(bca).all() else nothing,
    }


class AsManyAsThereAre(GroupJackknife):
    """The jackknife that takes uneven groups for equal ones."""

    def effective_groups(self, about: Any) -> float:
        return float(self.groups) if not math.isnan(super().effective_groups(about)) else math.nan


def simulate(draw: Draw, groups: int, samples: int, known: dict[str, float], resample: bool) -> dict[str, Any]:
    """How many intervals hold the truth, their median width and how many there are not, by metric and method."""
    generator = np.random.default_rng((groups, 7))
    found: dict[str, dict[str, list[tuple[float, float]]]] = {
        name: {method: [] for method in METHODS} for name in METRICS
    }
    seconds: dict[str, list[float]] = {"jackknife": [], "percentile": []}
    for number in range(samples):
        labels, probabilities, group = draw(generator, groups)
        begun = time.perf_counter()
        intervals = score_intervals(labels, probabilities, group, THRESHOLD)
        seconds["jackknife"].append(time.perf_counter() - begun)
        ranked = Ranked(labels, probabilities, THRESHOLD, group)
        naive = AsManyAsThereAre(labels, group)
        left_out = naive.values(ranked.scores)
        signed = {name: float(values[0]) for name, values in ranked.scores(np.ones((1, ranked.n))).items()}
        drawn: dict[str, np.ndarray] = {}
        if resample:
            begun = time.perf_counter()
            drawn = resampled(labels, ranked, group, groups, number)
            seconds["percentile"].append(time.perf_counter() - begun)
        for name in METRICS:
            found[name]["jackknife"].append((intervals[name].low, intervals[name].high))
            if name not in signed:
                continue
            scale: Scale = "error" if name == "ece" else "share"
            other = naive.interval(signed[name], left_out[name], ABOUT.get(name, "both"), scale)
            found[name]["jackknife, groups - 1"].append((other.low, other.high))
            if resample:
                ends = by_resampling(intervals[name].value, drawn[name], left_out[name], groups, scale)
                for method, pair in ends.items():
                    found[name][method].append(pair)
    figures: dict[str, Any] = {name: {} for name in METRICS}
    for name, methods in found.items():
        for method, pairs in methods.items():
            given = [(low, high) for low, high in pairs if not math.isnan(low)]
            if given:
                figures[name][method] = {
                    "covered": mean(low <= known[name] <= high for low, high in given),
                    "width": median(high - low for low, high in given),
                    "none": 1 - len(given) / len(pairs),
                }
    return {"scores": figures, "milliseconds": {name: 1e3 * median(took) for name, took in seconds.items() if took}}


def floor_of_the_error(groups: int, samples: int) -> dict[str, float | None]:
    """What calibration errors a perfectly calibrated model shows on average, by how they are estimated."""
    generator = np.random.default_rng((groups, 8))
    errors: dict[str, list[float]] = {"usual ECE": [], "fracray": [], "above the band": []}
    for _ in range(samples):
        labels, probabilities, group = alike(generator, groups)
        found = CalibrationError(labels, probabilities, group)
        value = float(found.signed(np.ones((1, len(labels))))[0])
        order = np.argsort(probabilities)
        bins = np.array_split((probabilities - labels)[order], 15)
        errors["usual ECE"].append(sum(abs(part.sum()) for part in bins) / len(labels))
        errors["fracray"].append(max(0.0, value))
        if not math.isnan(band := found.perfect()):
            errors["above the band"].append(float(value > band))
    return {name: mean(values) if values else None for name, values in errors.items()}


def _cell(scores: dict[str, dict[str, dict[str, float]]], method: str) -> str:
    """Of the scores that every method was tried on: mean coverage, the least, and width against the percentiles'."""
    cells = [(cell[method], cell["percentile"]) for cell in scores.values() if method in cell and "percentile" in cell]
    if not cells:
        return ""
    covered = [cell["covered"] for cell, _ in cells]
    widths = [cell["width"] / base["width"] for cell, base in cells if base["width"] > 0]
    return f"{mean(covered):.2f} {min(covered):.2f} x{mean(widths):.2f}"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--samples", type=int, default=400, help="of each population and size (default %(default)s)")
    cli.add_argument("--groups", default="5,7,11,20,30,50,100", help="sizes of the samples (default %(default)s)")
    cli.add_argument("--population-groups", type=int, default=20_000, help="of the population (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "coverage.json", help="default %(default)s")
    args = cli.parse_args()
    sizes = [int(size) for size in args.groups.split(",")]
    console = new_console()
    known = {name: truth(draw, args.population_groups) for name, draw in POPULATIONS.items()}
    figures: dict[str, Any] = {}
    table = new_table("population")
    table.add_column("groups", justify="right")
    for method in METHODS:
        table.add_column(method, justify="right")
    for name, draw in POPULATIONS.items():
        for size in sizes:
            # The methods that were not chosen take most of the time: a quarter of the samples shows their like.
            found = simulate(draw, size, max(1, args.samples // 4), known[name], resample=True)
            many = simulate(draw, size, args.samples, known[name], resample=False)
            for metric in METRICS:
                found["scores"][metric] |= many["scores"][metric]
            table.add_row(name, str(size), *(_cell(found["scores"], method) for method in METHODS))
            figures[f"{name}, {size} groups"] = found
            console.print(f"{name}, {size} groups: done")
    floors = {f"{size} groups": floor_of_the_error(size, args.samples) for size in sizes}
    settings = {
        "samples": args.samples,
        "resamples": RESAMPLES,
        "threshold": THRESHOLD,
        "cells": "covered (median width)",
    }
    everything = {"settings": settings, "truth": known, "coverage": figures, "perfect model": floors}
    write_results(console, "coverage", table, everything, args.json)


if __name__ == "__main__":
    main()
