"""Search-space files: YAML to a SearchSpace.

A file names leaves of the config tree by dotted path and nothing else. Every fault is found here, with its
line, before anything is launched. Knows nothing of Ray.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fracray.config import EXTRA, Config, SearchConfig, check_path, read_scalar, resolve
from fracray.config.extra_transforms import SettingError, default_argument, thaw
from fracray.data.splits.set_names import validation_sets
from fracray.errors import InputError, nearest
from fracray.metric_names import mode_of, reported_metrics
from fracray.runtime.run_folder import OVERRIDES, SPACE, stored_config
from fracray.runtime.storage import Folder
from fracray.runtime.yaml_lines import ParsedFile, read_yaml
from fracray.search.space import Choices, Dimension, Range, SearchSpace, check_metric

COMBINED = 6  # searched arguments of one extra transform whose ends are tried together in all combinations
KINDS = ("float", "log_float", "int", "log_int", "categorical")
SEARCH_KEYS = tuple(name for name in SearchConfig.model_fields)
TOP_KEYS = (*SEARCH_KEYS, "epochs", "base", "space")


def load_space(path: str | Path, overrides: Mapping[str, Any] | None = None) -> SearchSpace:
    """Read a search-space file; `overrides` are leaves set on the command line, which win over the file.

    A searched transform of `augment.extra` that `base` does not name is added with p = 0, so that the default trial is
    that of `base`; then its p must be searched too. Raises InputError naming file, line and key for an unknown key or
    path, a range whose low end is not below its high end, and values that the setting does not accept.
    """
    file = read_yaml(path, "search-space file", f" with the keys {', '.join(TOP_KEYS)}")
    return _Reader(file).read(file.tree, overrides or {})


def stored_space(run: Folder) -> SearchSpace:
    """The space of a run's search, with the config that it began with. InputError for a run that is no search."""
    if not run.exists(SPACE):
        raise InputError(f"{run}: not a search (no {SPACE} in it); name a run folder of tune")
    with run.local_copy(SPACE) as path:
        return replace(load_space(path, run.read_json(OVERRIDES)), config=stored_config(run))


class _Reader:
    """Turns one parsed file into a SearchSpace; every message has the line of the fault."""

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
                f"{self.where('base', 'search')}: write the settings of the search at the top of the file, not in base"
            )
        base = {**base, "search": {key: tree[key] for key in SEARCH_KEYS if key in tree}}
        train = base.get("train", {})
        if "epochs" in tree and isinstance(train, dict):  # anything else is refused with the rest of the tree
            base["train"] = {**train, "epochs": tree["epochs"]}
        config = resolve(base, self._place).with_leaves(overrides, "command line")
        space = self._mapping(tree, "space")
        if not space:
            raise InputError(f"{self.where('space')}: nothing to search; name at least one setting under space:")
        searched = {str(path): spec for path, spec in space.items() if not _fixed(str(path), overrides)}
        config = self._with_searched_extra(config, searched)
        dimensions = tuple(self._dimension(path, spec, config) for path, spec in searched.items())
        if not dimensions:
            raise InputError(
                f"{self._origin}: --set fixes every dimension of the space, and nothing is left to search; use "
                "fracray.train"
            )
        self._check_extra_together(dimensions, config)
        self._check_mixed(dimensions, config)
        self._check_conditions(dimensions, config, overrides)
        self._check_search(config, dimensions)
        return SearchSpace(config, self._ordered(dimensions), self._origin)

    def _mapping(self, tree: Mapping[str, Any], key: str) -> dict[str, Any]:
        value = tree.get(key) or {}
        if not isinstance(value, dict):
            raise InputError(f"{self.where(key)}: {key} must be a mapping")
        return value

    def _with_searched_extra(self, config: Config, paths: Iterable[str]) -> Config:
        """The config, with what the space names of `augment.extra` and base does not: its defaults, or p = 0."""
        named = {path: path.removeprefix(f"{EXTRA}.").split(".") for path in paths if path.startswith(f"{EXTRA}.")}
        for path, (name, *keys) in named.items():
            where = self.where("space", path)
            if not keys:
                raise InputError(f"{where}: '{path}' is a transform; name one of its arguments, such as {path}.p")
            known = config.augment.extra
            try:
                default = thaw(default_argument(name, keys[0]))
            except SettingError as error:
                raise InputError(f"{where}: {path}: {error}") from None
            if name not in known:
                if f"{EXTRA}.{name}.p" not in named:
                    raise InputError(
                        f"{where}: {name} is not in base, so no trial would apply it; search {EXTRA}.{name}.p too, or "
                        f"write in base: augment: {{extra: {{{name}: {{p: 0.5}}}}}}"
                    )
                config = config.with_leaves({f"{EXTRA}.{name}.p": 0.0}, where)
            if keys[0] not in config.augment.extra[name]:
                config = config.with_leaves({f"{EXTRA}.{name}.{keys[0]}": default}, where)
        return config

    def _check_extra_together(self, dimensions: Iterable[Dimension], config: Config) -> None:
        """InputError where the ends of several searched arguments of one extra transform do not go together."""
        groups: dict[str, list[Dimension]] = {}
        for dimension in dimensions:
            if dimension.path.startswith(f"{EXTRA}."):
                groups.setdefault(dimension.path.split(".")[2], []).append(dimension)
        for group in groups.values():
            paths = [dimension.path for dimension in group]
            ends = [[dimension.choices[0], dimension.choices[-1]] for dimension in group]
            if 1 < len(group) <= COMBINED:
                for values in itertools.product(*ends):
                    config.with_leaves(dict(zip(paths, values, strict=True)), group[-1].where)

    def _check_mixed(self, dimensions: Iterable[Dimension], config: Config) -> None:
        """InputError where a searched batch size is too small for the mixing of images that is searched too."""
        searched = {dimension.path: dimension for dimension in dimensions}
        if (batch := searched.get("train.batch_size")) is None:
            return
        for path in ("train.mixup", "train.cutmix"):
            if (mixed := searched.get(path)) is not None:
                sizes = dict(mixed.when).get(batch.path, batch.choices)
                config.with_leaves({batch.path: min(sizes), path: max(mixed.choices)}, mixed.where)

    def _dimension(self, path: str, spec: Any, config: Config) -> Dimension:
        where = self.where("space", path)
        check_path(path, where)
        if path.startswith(("search.", "data.")) or path in ("train.epochs", "train.seed", "train.operating_point"):
            raise InputError(f"{where}: {path} cannot be searched: the trials would not be comparable")
        if path not in config.leaves():
            inside = [leaf for leaf in config.leaves() if leaf.startswith(f"{path}.")]
            remedy = f": it is a list or mapping; name one of {', '.join(inside)}" if inside else ""
            raise InputError(f"{where}: '{path}' is not a setting{remedy}")
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
            # As the config holds them: 1e-3, a string in YAML, is 0.001 as the value of a float setting.
            values = [config.with_leaves({path: value}, where).leaves().get(path, value) for value in values]
            if any(isinstance(value, list | dict) for value in values) and path.startswith(f"{EXTRA}."):
                raise InputError(f"{where}: {path}: a value cannot be a list here; search the places of the list")
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
            raise InputError(f"{where}: {path}: low must be below high in the range [{low}, {high}]")
        log = kind.startswith("log_")
        if log and low <= 0:
            raise InputError(f"{where}: {path}: a logarithmic range must start above 0; got {low}")
        step = read_scalar(step, where) if isinstance(step, str) else step
        number = isinstance(step, int | float) and not isinstance(step, bool)
        if step is not None and (log or not number or not 0 < step <= high - low):
            raise InputError(
                f"{where}: {path}: step must be a number above 0, at most high - low, and the range not logarithmic; "
                f"got {step}"
            )
        integer = kind in ("int", "log_int")
        if integer and not all(isinstance(value, int) for value in (low, high, step or 1)):
            raise InputError(f"{where}: {path}: {kind} takes integers; got {[*values, *([step] if step else [])]}")
        if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-9:
            raise InputError(f"{where}: {path}: the range [{low}, {high}] is not a multiple of the step {step}")
        if integer:
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
        """InputError for a condition that no trial can meet, except where --set is the reason."""
        searched = {dimension.path: dimension.values for dimension in dimensions}
        leaves = config.leaves()
        for dimension in dimensions:
            for other, allowed in dimension.when:
                where = self.where("space", dimension.path, "when", other)
                if other not in leaves:
                    raise InputError(f"{where}: {dimension.path}: '{other}' is not a setting of this search")
                if other in searched:
                    never = [value for value in allowed if not searched[other].contains(value)]
                    if never:
                        raise InputError(
                            f"{where}: {dimension.path}: {other} is never {never[0]!r}; it is searched over "
                            f"{searched[other]}"
                        )
                elif not _fixed(other, overrides) and leaves[other] not in allowed:
                    raise InputError(
                        f"{where}: {dimension.path}: {other} is {leaves[other]!r} in every trial; search it too, or "
                        f"remove {dimension.path}"
                    )

    def _ordered(self, dimensions: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
        """The dimensions in an order in which each comes after those it depends on."""
        placed: list[Dimension] = []
        waiting = list(dimensions)
        paths = {dimension.path for dimension in dimensions}
        while waiting:
            known = {dimension.path for dimension in placed}
            ready = [d for d in waiting if all(other in known or other not in paths for other, _ in d.when)]
            if not ready:
                raise InputError(
                    f"{waiting[0].where}: the conditions of {', '.join(d.path for d in waiting)} depend on each "
                    "other; remove one of them"
                )
            placed += ready
            waiting = [dimension for dimension in waiting if dimension not in ready]
        return tuple(placed)

    def _check_search(self, config: Config, dimensions: tuple[Dimension, ...]) -> None:
        search = config.search
        metrics = search.metrics
        reported = reported_metrics(validation_sets(config.data.split))
        for metric in metrics:
            check_metric(metric, reported, self.where("metric"))
        for metric in search.constraints:
            check_metric(metric, reported, f"{self.where('constraints', metric)}: constraints")
        if len(set(metrics)) < max(1, len(metrics)):
            raise InputError(f"{self.where('metric')}: metric takes one reported metric or a list of different ones")
        wanted = {mode_of(metric) for metric in metrics}
        if len(wanted) > 1:
            raise InputError(
                f"{self.where('metric')}: some of {', '.join(metrics)} are better when higher, others when lower; a "
                "search has one mode, so list metrics of one kind"
            )
        if search.mode not in wanted:
            better = "higher" if search.mode == "min" else "lower"
            raise InputError(
                f"{self._first('mode', 'metric')}: {metrics[0]} is better when {better}; set mode: {wanted.pop()}"
            )
        if len(metrics) > 1 and search.scheduler.name not in ("auto", "none"):
            raise InputError(
                f"{self._first('scheduler', 'metric')}: early stopping ranks trials by one metric; with {len(metrics)} "
                "metrics set scheduler: {name: none}"
            )
        if len(metrics) > 1 and search.sampler.name == "cmaes":
            raise InputError(
                f"{self._first('sampler')}: cmaes searches one metric; use tpe, nsga2 or random for a Pareto front"
            )
        if search.scheduler.name == "pasha" and search.sampler.name in ("gp", "nsga2"):
            raise InputError(
                f"{self._first('sampler', 'scheduler')}: {search.sampler.name} learns only from trials that ran all "
                "epochs, and with pasha there may be none; use tpe, or scheduler: {name: asha}"
            )
        space = SearchSpace(config, dimensions, self._origin)
        if search.sampler.name == "grid":
            space.grid()
            if search.warm_start is not None:
                raise InputError(f"{self._first('warm_start')}: warm_start: a grid runs each of its points; remove it")
        if len(space.unmodelled) == len(dimensions):
            raise InputError(
                f"{self._first('sampler')}: cmaes searches ranges without a condition, and the space has none; use tpe"
            )


def _fixed(path: str, overrides: Mapping[str, Any]) -> bool:
    """Whether --set gives this setting, or a transform or list that it belongs to, its value."""
    return any(path == given or path.startswith(f"{given}.") for given in overrides)
