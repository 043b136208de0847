"""The one config tree: `data`, `augment`, `model`, `train`, `search`, typed; each section holds its defaults.

A resolved config is immutable and is saved in every run and every checkpoint. Search spaces and `--set` name its
settings by dotted path (`model.dropout`). Imports no Torch, Ray, numpy or albumentations.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ValidationError, model_validator

from fracray.config.data import AXES, PHANTOM, DataConfig, PhantomConfig, SplitConfig
from fracray.config.extra_transforms import SettingError, default_argument, thaw
from fracray.config.search import SamplerConfig, SchedulerConfig, SearchConfig
from fracray.config.section import Section
from fracray.config.training import KNOWN_EXTRA, AugmentConfig, ModelConfig, TrainConfig
from fracray.errors import InputError, nearest

__all__ = [
    "AXES",
    "CONSTRAINTS",
    "EXTRA",
    "PHANTOM",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "PhantomConfig",
    "SamplerConfig",
    "SchedulerConfig",
    "SearchConfig",
    "SplitConfig",
    "TrainConfig",
    "check_path",
    "load_config",
    "parse_assignments",
    "parse_config",
    "read_scalar",
    "resolve",
]

EXTRA, CONSTRAINTS = "augment.extra", "search.constraints"  # the settings that have leaves of the user's choice below


class Config(Section):
    """The complete tree."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()

    @model_validator(mode="after")
    def _extra_on_cpu(self) -> Self:
        if self.augment.extra and self.data.augment_on == "gpu":
            raise SettingError(
                tuple(EXTRA.split(".")),
                f"{', '.join(self.augment.extra)} can only run on the CPU, but data.augment_on = gpu; set "
                "data.augment_on=cpu, or remove augment.extra",
            )
        return self

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.train.first_size is not None and self.train.first_size > self.data.size:
            raise SettingError(
                ("train", "first_size"),
                f"{self.train.first_size} is more than data.size = {self.data.size}, to which images grow; set "
                "train.first_size lower, or null",
            )
        return self

    @model_validator(mode="after")
    def _begins_with_the_head(self) -> Self:
        train, why = self.train, ""
        if train.head_epochs and self.model.weights is None:
            why = "trains a head on random weights; set model.weights"
        elif train.head_epochs >= train.epochs:
            why = f"leaves none of the {train.epochs} epochs to the network; set it lower, or train.epochs higher"
        if why:
            raise SettingError(("train", "head_epochs"), f"{why}, or train.head_epochs=0", train.head_epochs)
        return self

    @model_validator(mode="after")
    def _mixes_two(self) -> Self:
        for name in ("mixup", "cutmix"):
            if getattr(self.train, name) and self.train.batch_size < 2 * self.search.workers_per_trial:
                raise SettingError(
                    ("train", name),
                    f"mixes the images that a worker has of a batch, and train.batch_size = {self.train.batch_size} "
                    f"gives it one; set train.batch_size higher, or train.{name}=0",
                    getattr(self.train, name),
                )
        return self

    def leaves(self) -> dict[str, Any]:
        """Every setting by dotted path; lists below `augment.extra` by position, as in `....clip_limit.1`."""
        return _flatten(self.model_dump(mode="json"))

    def with_leaves(self, values: Mapping[str, Any], where: str = "setting") -> "Config":
        """A copy in which the settings named by dotted path have new values; InputError for an unknown or bad one.

        Below `augment.extra` a path may also name a complete transform or list. What is not there is added; a list of
        which one place is set has the defaults of albumentations in the others.
        """
        tree = self.model_dump()
        for path, value in values.items():
            check_path(path, where)
            if path.startswith(f"{EXTRA}."):
                _set_extra(tree["augment"]["extra"], path, value, where)
                continue
            *parents, leaf = path.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = copy.deepcopy(value)  # the paths that follow may change it
        return resolve(tree, where, known_extra=not any(path.startswith(EXTRA) for path in values))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _set_extra(extra: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set what a path below `augment.extra` names."""
    name, *keys = path.removeprefix(f"{EXTRA}.").split(".")
    node: Any = extra
    for depth, key in enumerate((name, *keys)):
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise InputError(f"{where}: '{path}' is not a setting; the list has the places 0 to {len(node) - 1}")
            inner: Any = int(key)
        elif isinstance(node, dict):
            inner = key
            if key not in node and depth < len(keys):
                node[key] = {} if depth == 0 else _default(name, key, where)
        else:
            raise InputError(f"{where}: '{path}' is not a setting; {path.rsplit('.', 1)[0]} is {node!r}")
        if depth == len(keys):
            node[inner] = copy.deepcopy(value)
        node = node[inner]


def _default(name: str, argument: str, where: str) -> Any:
    try:
        return thaw(default_argument(name, argument))
    except SettingError as error:
        raise InputError(_below(EXTRA, error, where)) from None


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves |= _flatten(value, f"{path}.")
        elif isinstance(value, list) and value and path.startswith(f"{EXTRA}."):
            leaves |= _flatten({str(place): inner for place, inner in enumerate(value)}, f"{path}.")
        else:
            leaves[path] = value
    return leaves


LEAVES: tuple[str, ...] = tuple(Config().leaves())  # those of every config; augment.extra adds its own


def check_path(path: str, where: str) -> None:
    """InputError unless `path` can name a setting; paths below `augment.extra` are checked when the config is."""
    known = (*LEAVES, EXTRA, CONSTRAINTS)
    if path not in known and not (path.startswith((f"{EXTRA}.", f"{CONSTRAINTS}.")) and all(path.split("."))):
        inside = [leaf for leaf in known if leaf.startswith(f"{path}.")]
        remedy = f"; name one of its settings: {', '.join(inside)}" if inside else nearest(path, known)
        raise InputError(f"{where}: '{path}' is not a setting{remedy}")


def resolve(tree: Mapping[str, Any], where: str | Callable[[str], str], known_extra: bool = False) -> Config:
    """Validate a nested mapping into a Config.

    Raises InputError with the dotted path and the place of every fault; the place is `where`, or `where(path)`.
    """
    try:
        return Config.model_validate(tree, context={KNOWN_EXTRA: known_extra})
    except ValidationError as error:
        raise InputError("; ".join(_fault_text(fault, where) for fault in error.errors())) from None


def _fault_text(fault: Any, where: str | Callable[[str], str]) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return _below(path, cause, where)
    where = where if isinstance(where, str) else where(path)
    if fault["type"] == "extra_forbidden":
        depth = path.count(".") + 1
        siblings = {".".join(leaf.split(".")[:depth]) for leaf in (*LEAVES, EXTRA, CONSTRAINTS)}  # sections too
        return f"{where}: '{path}' is not a setting{nearest(path, siblings)}"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], Mapping):  # of a complete section, whose values would hide the message
        return f"{where}: {path}: {message}"
    return f"{where}: {path} = {fault['input']!r}: {message[:1].lower()}{message[1:]}"


def _below(path: str, fault: SettingError, where: str | Callable[[str], str]) -> str:
    """The text of a fault that lies below the setting of this path."""
    full = ".".join(part for part in (path, *fault.path) if part)
    place = where if isinstance(where, str) else where(full)
    given = "" if fault.value is None else f" = {fault.value!r}"
    return f"{place}: {full}{given}: {fault}"


def parse_assignments(assignments: Iterable[str], flag: str = "--set") -> dict[str, Any]:
    """`path=value` words as typed leaves; the value is read as YAML: 1e-3, true, null, [a, b], {a: 1}."""
    leaves: dict[str, Any] = {}
    for word in assignments:
        path, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"{flag} {word}: expected path=value, for example {flag} train.lr=0.001")
        check_path(path, flag)
        leaves[path] = read_scalar(text, f"{flag} {word}")
    return leaves


def read_scalar(text: str, where: str) -> Any:
    """A YAML value; unlike in YAML 1.1, '1e-3' is a number."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not readable as a value: {error}") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def load_config(path: str | Path) -> Config:
    """Read a config tree from YAML; the keys that are absent keep their defaults."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
    except OSError as error:
        raise InputError(f"{path}: not readable: {error}") from None
    return parse_config(data, str(path))


def parse_config(data: bytes, where: str) -> Config:
    """A config tree from the bytes of a YAML file; `where` names the file in messages."""
    try:
        tree = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise InputError(f"{where}: expected a mapping with the keys {', '.join(Config.model_fields)}")
    return resolve(tree, where)
