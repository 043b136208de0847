"""What a search's constraints make of its trials: which satisfy them, which comes first, and what is said of it.

A constraint holds where the metric at a trial's best epoch is inside its bound. Imports neither Optuna nor Ray.
"""

from collections.abc import Callable, Sequence
from math import fsum, isnan

from fracray.config import SearchConfig
from fracray.metric_names import preference

USED_BY = ("tpe", "gp", "nsga2")  # the samplers that look for trials that satisfy constraints
NAMED = 8  # trials that are named in a sentence


# A reported metric of one result, by its name; nan where it has no value.
Value = Callable[[str], float]


def missed(value: Value, search: SearchConfig) -> float:
    """By how much a result breaks the constraints in all; 0 where it satisfies them."""
    return fsum(search.broken(value).values())


def rank_key(value: Value, search: SearchConfig) -> tuple[float, float, float]:
    """Sort key of a result: the larger, the better; `value` gives a reported metric.

    First what satisfies the constraints, else what misses them by less in all (Deb 2000, "An efficient constraint
    handling method for genetic algorithms"); then as `metric_names.preference`.
    """
    return (-missed(value, search), *preference(value(search.metrics[0]), value("val_loss"), search.mode))


def in_words(search: SearchConfig) -> str:
    """'val_sensitivity at least 0.8 and val_ece at most 0.05'; empty without constraints."""
    return " and ".join(f"{metric} {bound}" for metric, bound in search.constraints.items())


def values_in_words(value: Value, search: SearchConfig) -> str:
    """'val_sensitivity 0.7312': the metrics that the constraints are on."""
    return ", ".join(
        f"{metric} {'without a value' if isnan(value(metric)) else f'{value(metric):.4f}'}"
        for metric in search.constraints
    )


def standing(value: Value, search: SearchConfig) -> str:
    """'breaks the constraints (val_sensitivity 0.7312)', or 'satisfies ...'."""
    verb = "breaks" if search.broken(value) else "satisfies"
    return f"{verb} the constraints ({values_in_words(value, search)})"


def verdict(ranked: Sequence[tuple[str, Value]], search: SearchConfig) -> tuple[str, bool]:
    """Which of these, by name and the best first, satisfy the constraints, in a sentence; and whether any does."""
    good = [name for name, value in ranked if not search.broken(value)]
    name, value = ranked[0]
    told = f"{name} has {values_in_words(value, search)}"
    if not good:
        return f"none of {len(ranked)} satisfies {in_words(search)}; {told}, which comes closest", False
    more = f" and {len(good) - NAMED} more" if len(good) > NAMED else ""
    words = f"{len(good)} of {len(ranked)} satisfy {in_words(search)} ({', '.join(good[:NAMED])}{more})"
    return f"{words}; {told}", True
