"""The one config tree: `data`, `augment`, `model`, `train`, `search`, typed, with every default in one place.

A resolved config is immutable, is saved in every run and every checkpoint, and its leaves are named by dotted
path (`model.dropout`) in search spaces and `--set`. Imports neither Torch nor Ray.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fracray.errors import InputError

PHANTOM = "phantom"  # the data source that is drawn, not read

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen part of the tree that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


AXES = ("device", "view", "region", "hardware", "severity", "exposure")
BLOCK = {"blocks": 200}  # file numbers that share a group where data.split.block is not set; 50 in every other protocol


class SplitConfig(Section):
    """How images are divided into train, val and test, and which shifted sets stand beside val and test."""

    protocol: Literal[
        "grouped",
        "random",
        "blocks",
        "kfold",
        "budget",
        "device",
        "view",
        "region",
        "hardware",
        "severity",
        "exposure",
        "official",
    ] = Field(
        "grouped",
        description="grouped keeps duplicates, patients and id blocks together; random exists for comparison; blocks: "
        "contiguous stretches of file numbers; kfold: see folds; budget: few training images; device, view, region, "
        "hardware, severity, exposure: train on the one kind, validate and test on the other",
    )
    train: Annotated[float, Field(gt=0, lt=1)] = Field(0.70, description="share of the images used for training")
    val: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="share for validation; the rest is test")
    block: int | None = Field(
        None, ge=1, description="neighbouring file numbers that share a group; default 50, and 200 for blocks"
    )
    hold_out: str | None = Field(
        None, description="what a shifted protocol keeps from training, such as 'lateral'; several joined by '+'"
    )
    shifts: tuple[str, ...] = Field(
        (), description="shifted sets beside val and test, such as [device, view=lateral]; no training image is of them"
    )
    folds: int = Field(5, ge=3, description="of protocol kfold")
    fold: int = Field(0, ge=0, description="the fold that is test in protocol kfold; the next one is val")
    cross_validate: bool = Field(
        False,
        description="with kfold, a trial or training trains a model for every fold but test, each validated on that "
        "fold, reports their mean, and keeps the first; it takes folds - 1 times as long",
    )
    budget: int | None = Field(
        None, ge=2, description="training images kept, stratified by label; default all, and 483 for protocol budget"
    )
    file: str | None = Field(
        None, description="a manifest (Parquet) whose split is taken as it stands; the other settings then do not count"
    )
    seed: int = Field(0, ge=0)

    @field_validator("hold_out", mode="before")
    @classmethod
    def _as_words(cls, value: Any) -> Any:
        """YAML reads 1 and 2.5 as numbers, which as tags are words."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("shifts", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """One shift alone, and YAML's {view: lateral}, mean what they say."""
        items = [value] if isinstance(value, str | Mapping) else value
        if not isinstance(items, list | tuple):
            return value
        pairs = [item if isinstance(item, Mapping) else {item: None} for item in items]
        return [axis if tag is None else f"{axis}={tag}" for pair in pairs for axis, tag in pair.items()]

    @field_validator("file")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        """A run is resumed and evaluated from other folders."""
        return value and str(Path(value).expanduser().absolute())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.train + self.val >= 1:
            raise ValueError(
                f"train + val = {self.train + self.val:g} leaves nothing for test; lower one of the two below 1 in sum"
            )
        if self.protocol == "official":
            raise ValueError(
                "the published lists (Utilities/Fracture Split) are for detection: they hold fractured images only, "
                "run on by file number, and 15 sets of duplicates straddle them; a classifier needs protocol grouped"
            )
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds} folds; they are counted from 0 to {self.folds - 1}")
        if self.cross_validate and (self.protocol != "kfold" or self.file is not None):
            raise ValueError("cross_validate needs protocol kfold, and no file")
        if self.hold_out is not None and self.protocol not in AXES:
            raise ValueError(f"hold_out belongs to the protocols {', '.join(AXES)}; for a set beside val use shifts")
        named = [axis for axis, _ in self.held_out]
        for axis in named:
            if axis not in AXES:
                raise ValueError(f"shifts: '{axis}' is no kind of shift{nearest(axis, AXES)}; use {', '.join(AXES)}")
            if named.count(axis) > 1:
                raise ValueError(f"shifts: {axis} is held out twice; join its values: {axis}=a+b")
        return self

    @property
    def held_out(self) -> tuple[tuple[str, str | None], ...]:
        """Each kind of shift with its values (None: to be chosen), the protocol's own first."""
        own = [(self.protocol, self.hold_out)] if self.protocol in AXES else []
        beside = [(axis, value or None) for axis, _, value in (shift.partition("=") for shift in self.shifts)]
        return (*own, *beside)

    @property
    def block_size(self) -> int:
        return self.block or BLOCK.get(self.protocol, 50)

    @property
    def rotations(self) -> int:
        """Divisions that a trial trains on, one model each."""
        return self.folds - 1 if self.cross_validate else 1

    @property
    def training_budget(self) -> int | None:
        return self.budget or (483 if self.protocol == "budget" else None)


class PhantomConfig(Section):
    """The embedded synthetic radiographs, used when no data is named."""

    count: int = Field(2000, ge=50, le=1_000_000, description="radiographs to draw")
    seed: int = Field(0, ge=0)


class DataConfig(Section):
    """Which radiographs, at which geometry, divided how."""

    source: str = Field(
        PHANTOM, description="'phantom', or the path of a FracAtlas folder or zip, or of an imported set"
    )
    size: int = Field(128, ge=32, le=2048, description="side of the square, letterboxed image, in pixels")
    split: SplitConfig = SplitConfig()
    phantom: PhantomConfig = PhantomConfig()
    stream: Literal["auto", "memory", "ray"] = Field(
        "auto",
        description="who augments: the worker from memory, or Ray Data's tasks; auto takes memory where the set fits",
    )
    augment_on: Literal["cpu", "gpu"] = Field(
        "cpu",
        description="gpu: each worker keeps the whole set on its GPU and augments it there, by the same draws as the "
        "CPU; needs a GPU for every worker, and a set that fits its memory",
    )
    cache: str | None = Field(None, description="for prepared shards; default $FRACRAY_CACHE or ~/.cache/fracray")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.augment_on == "gpu" and self.stream == "ray":
            raise ValueError(
                "augment_on = gpu takes the images from memory to the GPU; it cannot go with stream = ray, "
                "which has Ray Data's tasks augment: set one of the two to its default"
            )
        return self


class AugmentConfig(Section):
    """Strengths of the training augmentation; 0 turns a transform off. Validation and test are never augmented."""

    rotate: Annotated[float, Field(ge=0, le=180)] = Field(10.0, description="largest rotation, degrees either way")
    flip: Probability = Field(0.5, description="probability of a left-right flip")
    vertical_flip: Probability = Field(0.0, description="probability of an upside-down flip")
    scale: Rate = Field(0.1, description="largest relative zoom, in or out, of width and height apart")
    brightness: Rate = Field(0.1, description="largest shift of brightness, as a share of full scale")
    contrast: Rate = Field(0.1, description="largest relative change of contrast")

    @property
    def flips(self) -> bool:
        return bool(self.flip or self.vertical_flip)

    @property
    def warps(self) -> bool:
        """Whether pixels are interpolated; flips are part of the warp then."""
        return bool(self.rotate or self.scale)

    @property
    def regrays(self) -> bool:
        return bool(self.brightness or self.contrast)


class ModelConfig(Section):
    """The network and its two dropout rates."""

    name: str = Field(
        "fracture_cnn", description="'fracture_cnn', any network of timm, or torchvision/NAME for one of torchvision"
    )
    weights: str | None = Field(None, description="None (from scratch), 'imagenet', or a .safetensors file")
    dropout: Rate = Field(0.2, description="dropout before the head")
    spatial_dropout: Rate = Field(0.1, description="probability of dropping a whole feature map between stages")
    width: int = Field(32, ge=4, le=512, description="channels of FractureCNN's first stage")
    freeze_norm: bool = Field(False, description="keep batch norm in evaluation mode while training")


class TrainConfig(Section):
    """The optimisation of one model."""

    epochs: int = Field(12, ge=1)
    batch_size: int = Field(64, ge=1, description="images per step, over all workers together")
    lr: Annotated[float, Field(gt=0)] = Field(2e-3, description="peak learning rate of AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    warmup: Rate = Field(0.1, description="share of all steps spent on linear warm-up; cosine decay follows")
    loss: Literal["weighted", "focal", "plain"] = Field(
        "weighted", description="cross-entropy weighted against the imbalance, focal loss, or plain cross-entropy"
    )
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0 turns clipping off")
    ema: Rate = Field(0.98, description="decay of the averaged weights that are validated and saved; 0 turns it off")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where it is faster")
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile the network")
    threads: int | None = Field(None, ge=1, description="CPU threads of a worker; default its share of the machine")
    keep_seconds: Annotated[float, Field(ge=0)] = Field(
        10.0,
        description="what resumption needs is written after an epoch that ends this long after it last was, and "
        "wherever a trial may end: a killed process loses the epoch under way and so much before it; 0 is every epoch",
    )
    operating_point: Literal["accuracy", "balanced"] = Field(
        "accuracy", description="what the decision threshold fixed on validation maximises"
    )
    seed: int = Field(0, ge=0)


class SamplerConfig(Section):
    """Who proposes the next configuration."""

    name: Literal["tpe", "random", "grid", "cmaes"] = "tpe"
    seed: int = Field(0, ge=0)
    startup_trials: int = Field(8, ge=1, description="random trials before tpe and cmaes begin to model")


class SchedulerConfig(Section):
    """Who stops trials early."""

    name: Literal["asha", "median", "hyperband", "none"] = "asha"
    grace_epochs: int = Field(2, ge=1, description="epochs that every trial is given")
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0


class SearchConfig(Section):
    """The search: what is maximised, with how many trials, on which share of the machines."""

    metric: str | tuple[str, ...] = Field("val_accuracy", description="a reported metric, or a list for a Pareto front")
    mode: Literal["max", "min"] = "max"
    trials: int = Field(16, ge=1)
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    concurrent: int | None = Field(None, ge=1, description="trials at a time; default as many as fit")
    workers_per_trial: int = Field(1, ge=1)
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0.0
    time_budget: Annotated[float, Field(gt=0)] | None = Field(None, description="seconds after which no epoch is begun")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The searched metrics; the first one decides which trial and which epoch is best."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric


class Config(Section):
    """The whole tree."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()

    def leaves(self) -> dict[str, Any]:
        """Every setting by dotted path."""
        return _flatten(self.model_dump(mode="json"))

    def with_leaves(self, values: Mapping[str, Any], where: str = "setting") -> "Config":
        """A copy in which the leaves named by dotted path have new values; InputError for an unknown or bad one."""
        tree = self.model_dump()
        for path, value in values.items():
            check_path(path, where)
            *parents, leaf = path.split(".")
            node = tree
            for parent in parents:
                node = node[parent]
            node[leaf] = value
        return resolve(tree, where)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves |= _flatten(value, f"{path}.")
        else:
            leaves[path] = value
    return leaves


LEAVES: tuple[str, ...] = tuple(Config().leaves())


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint in words, ' (did you mean ...?)' or '', for a name that is not among `words`."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def check_path(path: str, where: str) -> None:
    """InputError unless `path` names a leaf of the tree."""
    if path not in LEAVES:
        inside = [leaf for leaf in LEAVES if leaf.startswith(f"{path}.")]
        remedy = f"; name one of its settings: {', '.join(inside)}" if inside else nearest(path, LEAVES)
        raise InputError(f"{where}: '{path}' is not a setting{remedy}")


def resolve(tree: Mapping[str, Any], where: str | Callable[[str], str]) -> Config:
    """Validate a nested mapping into a Config; InputError names the dotted path of each fault and `where` it stands."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError("; ".join(_in_words(fault, where) for fault in error.errors())) from None


def _in_words(fault: Any, where: str | Callable[[str], str]) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    where = where if isinstance(where, str) else where(path)
    if fault["type"] == "extra_forbidden":
        depth = path.count(".") + 1
        siblings = {".".join(leaf.split(".")[:depth]) for leaf in LEAVES}  # sections too
        return f"{where}: '{path}' is not a setting{nearest(path, siblings)}"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], Mapping):  # of a section as a whole, whose values would bury the words
        return f"{where}: {path}: {message}"
    return f"{where}: {path} = {fault['input']!r}: {message[:1].lower()}{message[1:]}"


def parse_assignments(assignments: Iterable[str], flag: str = "--set") -> dict[str, Any]:
    """`path=value` words into typed leaves; the value is YAML: 1e-3, true, null and [a, b] mean what they say."""
    leaves: dict[str, Any] = {}
    for word in assignments:
        path, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"{flag} {word}: expected path=value, for example {flag} train.lr=0.001")
        check_path(path, flag)
        leaves[path] = read_scalar(text, f"{flag} {word}")
    return leaves


def read_scalar(text: str, where: str) -> Any:
    """A YAML scalar or list; unlike YAML 1.1, '1e-3' is a number."""
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
