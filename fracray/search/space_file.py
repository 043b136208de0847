"""Search-space files: YAML to a SearchSpace.

A file names leaves of the config tree by dotted path and nothing else. Everything that can be wrong with it is found
here, with its line, before anything is launched. Knows nothing of Ray.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fracray.config import Config, SearchConfig, check_path, nearest, read_scalar, resolve
from fracray.data.splits.set_names import validation_sets
from fracray.errors import InputError
from fracray.metric_names import lower_is_better, reported_metrics
from fracray.runtime.yaml_lines import ParsedFile, read_yaml
from fracray.search.space import Choices, Dimension, Range, SearchSpace, check_metric

KINDS = ("float", "log_float", "int", "log_int", "categorical")
SEARCH_KEYS = tuple(name for name in SearchConfig.model_fields)
TOP_KEYS = (*SEARCH_KEYS, "epochs", "base", "space")


def load_space(path: str | Path, overrides: Mapping[str, Any] | None = None) -> SearchSpace:
    """Read a search-space file; `overrides` are leaves set on the command line, which win over the file.

    Raises InputError naming file, line and key for an unknown key, an unknown path, a range upside down, or values
    that the setting itself does not admit.
    """
    file = read_yaml(path, "search-space file", f" with the keys {', '.join(TOP_KEYS)}")
    return _Reader(file).read(file.tree, overrides or {})


class _Reader:
    """Turns one parsed file into a SearchSpace, with the line of a fault in every message."""

    def __init__(self, file: ParsedFile) -> None:
        self._origin, self._lines, self.where = file.origin, file.lines, file.where

    def _first(self, *names: str) -> str:
        """File and line of the first of these top-level keys that the file has."""
        return self.where(next((name for name in names if (name,) in self._lines), ""))

    def _place(self, path: str) -> str:
        """File and line of a setting by its path in the config tree."""
        section, *rest = path.split(".")
        if section == "search":
            return self.where(*rest)
        if path == "train.epochs" and ("epochs",) in self._lines:
            return self.where("epochs")
        return self.where("base", section, *rest)

    def read(self, tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> SearchSpace:
        for key in tree:
            if key not in TOP_KEYS:
                raise InputError(
                    f"{self.where(str(key))}: unknown key '{key}'{nearest(str(key), TOP_KEYS)}; known are "
                    f"{', '.join(TOP_KEYS)}"
                )
        base = self._mapping(tree, "base")
        if "search" in base:
            raise InputError(
                f"{self.where('base', 'search')}: settings of the search stand at the top of the file, not in base"
            )
        base = {**base, "search": {key: tree[key] for key in SEARCH_KEYS if key in tree}}
        train = base.get("train", {})
        if "epochs" in tree and isinstance(train, dict):  # anything else is refused with the rest of the tree
            base["train"] = {**train, "epochs": tree["epochs"]}
        config = resolve(base, self._place).with_leaves(overrides, "command line")
        space = self._mapping(tree, "space")
        if not space:
            raise InputError(f"{self.where('space')}: no dimension to search; name at least one setting under space:")
        dimensions = tuple(
            self._dimension(str(path), spec, config) for path, spec in space.items() if str(path) not in overrides
        )
        if not dimensions:
            raise InputError(
                f"{self._origin}: --set fixes every dimension of the space, so that nothing is left to search; "
                "use fracray.train"
            )
        self._check_conditions(dimensions, config, overrides)
        self._check_search(config, dimensions)
        return SearchSpace(config, self._ordered(dimensions), self._origin)

    def _mapping(self, tree: Mapping[str, Any], key: str) -> dict[str, Any]:
        value = tree.get(key) or {}
        if not isinstance(value, dict):
            raise InputError(f"{self.where(key)}: {key} must be a mapping")
        return value

    def _dimension(self, path: str, spec: Any, config: Config) -> Dimension:
        where = self.where("space", path)
        check_path(path, where)
        if path.startswith(("search.", "data.")) or path in ("train.epochs", "train.seed", "train.operating_point"):
            raise InputError(
                f"{where}: {path} cannot be searched: trials would no longer be compared on the same terms"
            )
        if not isinstance(spec, dict):
            raise InputError(f"{where}: {path}: expected {{kind: [...]}} with a kind of {', '.join(KINDS)}")
        kinds = [key for key in spec if key in KINDS]
        for key in spec:
            if key not in (*KINDS, "step", "when"):
                raise InputError(
                    f"{self.where('space', path, str(key))}: {path}: unknown key '{key}'"
                    f"{nearest(str(key), (*KINDS, 'step', 'when'))}"
                )
        if len(kinds) != 1:
            raise InputError(f"{where}: {path}: expected exactly one kind of {', '.join(KINDS)}")
        values = spec[kinds[0]]
        if kinds[0] == "categorical" and isinstance(values, list):
            # As the config itself holds them: 1e-3, which YAML takes for a string, is 0.001 to a float setting.
            values = [config.with_leaves({path: value}, where).leaves()[path] for value in values]
        admitted = self._values(path, kinds[0], values, spec.get("step"), where)
        if isinstance(admitted, Range):
            low, high = admitted.low, admitted.high
            # Both ends of a float range may be whole numbers, which an int setting accepts: try one between them too.
            between = low + (admitted.step or (1 if admitted.whole else (high - low) / math.pi))
            for value in (low, high, between):
                config.with_leaves({path: value}, where)
        return Dimension(path, admitted, self._when(path, spec.get("when"), where), where)

    def _values(self, path: str, kind: str, values: Any, step: Any, where: str) -> Choices | Range:
        if not isinstance(values, list) or not values:
            raise InputError(
                f"{where}: {path}: {kind} takes a list, for example {{float: [0.0, 0.5]}} or {{categorical: [a, b]}}"
            )
        values = [
            read_scalar(value, where) if isinstance(value, str) and kind != "categorical" else value for value in values
        ]
        if kind == "categorical":
            if step is not None or len(set(map(repr, values))) < len(values):
                raise InputError(f"{where}: {path}: categorical takes distinct values and no step; got {values}")
            return Choices(tuple(values))
        if len(values) != 2 or not all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values
        ):
            raise InputError(f"{where}: {path}: {kind} takes two numbers, [low, high]; got {values}")
        low, high = values
        if not -sys.float_info.max <= low < high <= sys.float_info.max:
            raise InputError(
                f"{where}: {path}: the range [{low}, {high}] is upside down or empty; write [low, high] with low < high"
            )
        log = kind.startswith("log_")
        if log and low <= 0:
            raise InputError(f"{where}: {path}: a logarithmic range starts above 0; got {low}")
        step = read_scalar(step, where) if isinstance(step, str) else step
        number = isinstance(step, int | float) and not isinstance(step, bool)
        if step is not None and (log or not number or not 0 < step <= high - low):
            raise InputError(
                f"{where}: {path}: step must be a number between 0 and high - low, on a range that is not "
                f"logarithmic; got {step}"
            )
        whole = kind in ("int", "log_int")
        if whole and not all(isinstance(value, int) for value in (low, high, step or 1)):
            raise InputError(f"{where}: {path}: {kind} takes whole numbers; got {[*values, *([step] if step else [])]}")
        if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-9:
            raise InputError(f"{where}: {path}: the range [{low}, {high}] is not a whole number of steps of {step}")
        if whole:
            return Range(low, high, step, log, whole=True)
        return Range(float(low), float(high), step, log)

    def _when(self, path: str, when: Any, where: str) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        if when is None:
            return ()
        if not isinstance(when, dict) or not when or [] in when.values():
            raise InputError(
                f"{where}: {path}: when takes a mapping from a setting to its values, for example "
                "{model.name: [fracture_cnn]}"
            )
        conditions = []
        for other, allowed in when.items():
            check_path(str(other), self.where("space", path, "when", str(other)))
            if other == path:
                raise InputError(f"{where}: {path}: a dimension cannot be its own condition")
            conditions.append((str(other), tuple(allowed) if isinstance(allowed, list) else (allowed,)))
        return tuple(conditions)

    def _check_conditions(self, dimensions: Iterable[Dimension], config: Config, overrides: Mapping[str, Any]) -> None:
        """InputError for a condition that no trial can meet, unless a setting on the command line made it so."""
        searched = {dimension.path: dimension.values for dimension in dimensions}
        leaves = config.leaves()
        for dimension in dimensions:
            for other, allowed in dimension.when:
                where = self.where("space", dimension.path, "when", other)
                if other in searched:
                    never = [value for value in allowed if not searched[other].contains(value)]
                    if never:
                        raise InputError(
                            f"{where}: {dimension.path}: {other} never is {never[0]!r}; it is searched over "
                            f"{searched[other]}"
                        )
                elif other not in overrides and leaves[other] not in allowed:
                    raise InputError(
                        f"{where}: {dimension.path}: {other} is {leaves[other]!r} in every trial; search it too, or "
                        f"remove {dimension.path}"
                    )

    def _ordered(self, dimensions: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
        """Conditions before what depends on them."""
        placed: list[Dimension] = []
        waiting = list(dimensions)
        paths = {dimension.path for dimension in dimensions}
        while waiting:
            known = {dimension.path for dimension in placed}
            ready = [d for d in waiting if all(other in known or other not in paths for other, _ in d.when)]
            if not ready:
                raise InputError(
                    f"{waiting[0].where}: the conditions of {', '.join(d.path for d in waiting)} go in a circle; "
                    "remove one of them"
                )
            placed += ready
            waiting = [dimension for dimension in waiting if dimension not in ready]
        return tuple(placed)

    def _check_search(self, config: Config, dimensions: tuple[Dimension, ...]) -> None:
        search = config.search
        metrics = search.metrics
        for metric in metrics:
            check_metric(metric, reported_metrics(validation_sets(config.data.split)), self.where("metric"))
        if len(set(metrics)) < max(1, len(metrics)):
            raise InputError(f"{self.where('metric')}: metric takes one reported metric or a list of different ones")
        wanted = {"min" if lower_is_better(metric) else "max" for metric in metrics}
        if len(wanted) > 1:
            raise InputError(
                f"{self.where('metric')}: of {', '.join(metrics)} some are better when higher, others when lower; a "
                "search has one mode, so list metrics of one kind"
            )
        if search.mode not in wanted:
            better = "higher" if search.mode == "min" else "lower"
            raise InputError(
                f"{self._first('mode', 'metric')}: {metrics[0]} is better when {better}; set mode: {wanted.pop()}"
            )
        if len(metrics) > 1 and search.scheduler.name != "none":
            raise InputError(
                f"{self._first('scheduler', 'metric')}: early stopping ranks trials by one metric; with {len(metrics)} "
                "metrics set scheduler: {name: none}"
            )
        if len(metrics) > 1 and search.sampler.name == "cmaes":
            raise InputError(
                f"{self._first('sampler')}: cmaes searches one metric; use tpe or random for a Pareto front"
            )
        if search.sampler.name == "grid":
            SearchSpace(config, dimensions, self._origin).grid()
