"""The one config tree: `data`, `augment`, `model`, `train`, `search`, typed, with every default in one place.

A resolved config is immutable and is saved in every run and every checkpoint. Search spaces and `--set` name its
settings by dotted path (`model.dropout`). Imports no Torch, Ray, numpy or albumentations.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from fracray.errors import InputError, nearest
from fracray.extra_transforms import FrozenMap, SettingError, default_argument, read_extra, thaw

PHANTOM = "phantom"  # the data source that is drawn, not read
EXTRA = "augment.extra"  # the one setting that has leaves of the user's choice below it

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Extra = Annotated[FrozenMap, PlainValidator(read_extra), PlainSerializer(thaw)]


class Section(BaseModel):
    """A frozen part of the tree that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


AXES = ("device", "view", "region", "hardware", "severity", "exposure")
BLOCK = {"blocks": 200}  # file numbers that share a group where data.split.block is not set; 50 in every other protocol


class SplitConfig(Section):
    """How the images are divided into train, val and test, and which held-out sets are added to val and test."""

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
        description="grouped keeps duplicates, patients and blocks of file numbers together; random is for comparison "
        "only; blocks: contiguous stretches of file numbers; kfold: see folds; budget: few training images; device, "
        "view, region, hardware, severity, exposure: train on one kind of radiograph, validate and test on the others",
    )
    train: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.70, description="share of the images used for training, above 0 and below 1"
    )
    val: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="share of the images used for validation, above 0 and below 1; the rest is test"
    )
    block: int | None = Field(
        None,
        ge=1,
        description="neighbouring file numbers that stay together, 1 or more; null: 50, and 200 for protocol blocks",
    )
    hold_out: str | None = Field(
        None,
        description="values that protocol device, view, ... keeps out of training, such as 'lateral', several joined "
        "by '+'; null: chosen from the data",
    )
    shifts: tuple[str, ...] = Field(
        (),
        description="held-out sets in addition to val and test, such as [device, view=lateral]; no training image "
        "belongs to them; []: none",
    )
    folds: int = Field(5, ge=3, description="number of folds of protocol kfold, 3 or more")
    fold: int = Field(
        0, ge=0, description="fold that is test in protocol kfold, from 0 to folds - 1; the next one is val"
    )
    cross_validate: bool = Field(
        False,
        description="with protocol kfold, train one model for each fold except test, validate each on its fold, report "
        "their mean and keep the first model; takes folds - 1 times as long",
    )
    budget: int | None = Field(
        None,
        ge=2,
        description="training images kept, stratified by label, 2 or more; null: all, and 483 for protocol budget",
    )
    file: str | None = Field(
        None,
        description="path of a manifest (Parquet) whose split is used unchanged; the other settings of data.split have "
        "no effect then; null: divide by protocol",
    )
    seed: int = Field(0, ge=0, description="seed of the division into train, val and test, 0 or more")

    @field_validator("hold_out", mode="before")
    @classmethod
    def _as_words(cls, value: Any) -> Any:
        """YAML reads 1 and 2.5 as numbers; as values of an axis they are words."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("shifts", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """Accepts a single held-out set, and {view: lateral} for view=lateral."""
        items = [value] if isinstance(value, str | Mapping) else value
        if not isinstance(items, list | tuple):
            return value
        pairs = [item if isinstance(item, Mapping) else {item: None} for item in items]
        return [axis if tag is None else f"{axis}={tag}" for pair in pairs for axis, tag in pair.items()]

    @field_validator("file")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        """An absolute path: a run is resumed and evaluated from other folders."""
        return value and str(Path(value).expanduser().absolute())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.train + self.val >= 1:
            raise ValueError(
                f"train + val = {self.train + self.val:g} leaves nothing for test; lower one of them, to a sum below 1"
            )
        if self.protocol == "official":
            raise ValueError(
                "the published lists (Utilities/Fracture Split) are for detection: they hold fractured images only, "
                "are cut by file number, and 15 sets of duplicates are in more than one list; use protocol grouped"
            )
        if self.fold >= self.folds:
            raise ValueError(f"there is no fold {self.fold}; with folds = {self.folds} it is 0 to {self.folds - 1}")
        if self.cross_validate and (self.protocol != "kfold" or self.file is not None):
            raise ValueError("cross_validate needs protocol kfold and no file")
        if self.hold_out is not None and self.protocol not in AXES:
            raise ValueError(f"hold_out is for the protocols {', '.join(AXES)}; to add a held-out set use shifts")
        named = [axis for axis, _ in self.held_out]
        for axis in named:
            if axis not in AXES:
                raise ValueError(
                    f"shifts: '{axis}' is not a kind of held-out set{nearest(axis, AXES)}; use {', '.join(AXES)}"
                )
            if named.count(axis) > 1:
                raise ValueError(f"shifts: {axis} is held out twice; join its values: {axis}=a+b")
        return self

    @property
    def held_out(self) -> tuple[tuple[str, str | None], ...]:
        """Each kind of held-out set with its values (None: chosen from the data), that of the protocol first."""
        first = [(self.protocol, self.hold_out)] if self.protocol in AXES else []
        added = [(axis, value or None) for axis, _, value in (shift.partition("=") for shift in self.shifts)]
        return (*first, *added)

    @property
    def block_size(self) -> int:
        return self.block or BLOCK.get(self.protocol, 50)

    @property
    def rotations(self) -> int:
        """Number of divisions that a trial trains on, one model for each."""
        return self.folds - 1 if self.cross_validate else 1

    @property
    def training_budget(self) -> int | None:
        return self.budget or (483 if self.protocol == "budget" else None)


class PhantomConfig(Section):
    """The synthetic radiographs that are used when no data is named."""

    count: int = Field(2000, ge=50, le=1_000_000, description="radiographs to draw, 50 to 1,000,000")
    seed: int = Field(0, ge=0, description="seed of the drawing, 0 or more")


class DataConfig(Section):
    """Which radiographs, at which size, divided how."""

    source: str = Field(
        PHANTOM, description="'phantom', or the path of a FracAtlas folder or zip, or of an imported set"
    )
    size: int = Field(128, ge=32, le=2048, description="side of the square, letterboxed image in pixels, 32 to 2048")
    split: SplitConfig = SplitConfig()
    phantom: PhantomConfig = PhantomConfig()
    stream: Literal["auto", "memory", "ray"] = Field(
        "auto",
        description="where images are augmented: memory: in the worker, from an array of all images; ray: in tasks of "
        "Ray Data, from shards; auto: memory where the set fills at most a quarter of it, else ray",
    )
    augment_on: Literal["cpu", "gpu"] = Field(
        "cpu",
        description="gpu: each worker keeps all images on its GPU and augments them there, with the same draws as on "
        "the CPU; needs a GPU for every worker, a set that fits its memory, and no augment.extra",
    )
    cache: str | None = Field(
        None, description="folder for prepared shards; null: $FRACRAY_CACHE, or ~/.cache/fracray where that is not set"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.augment_on == "gpu" and self.stream == "ray":
            raise ValueError(
                "augment_on = gpu augments on the GPU: it cannot go with stream = ray, which augments in tasks of Ray "
                "Data; set one of the two to its default"
            )
        return self


class AugmentConfig(Section):
    """Strengths of the training augmentation; 0 turns a transform off. Validation and test are never augmented."""

    rotate: Annotated[float, Field(ge=0, le=180)] = Field(
        10.0, description="largest rotation in degrees, in both directions, 0 to 180; 0: off"
    )
    flip: Probability = Field(0.5, description="probability of a left-right flip, 0 to 1; 0: off")
    vertical_flip: Probability = Field(0.0, description="probability of an up-down flip, 0 to 1; 0: off")
    scale: Rate = Field(
        0.1,
        description="largest relative zoom, in and out, drawn for width and height separately, 0 to below 1; 0: off",
    )
    brightness: Rate = Field(
        0.1, description="largest change of brightness as a share of full scale, 0 to below 1; 0: off"
    )
    contrast: Rate = Field(0.1, description="largest relative change of contrast, 0 to below 1; 0: off")
    extra: Extra = Field(
        FrozenMap(),
        description="albumentations transforms that follow, in this order, by name with their arguments, such as "
        "{CLAHE: {clip_limit: [1, 4], p: 0.3}}; each argument is a setting (augment.extra.CLAHE.p, "
        "augment.extra.CLAHE.clip_limit.1), and arguments not given have the default of albumentations; {}: none",
    )

    @property
    def flips(self) -> bool:
        return bool(self.flip or self.vertical_flip)

    @property
    def warps(self) -> bool:
        """Whether pixels are interpolated; flips are then part of the warp."""
        return bool(self.rotate or self.scale)

    @property
    def regrays(self) -> bool:
        return bool(self.brightness or self.contrast)


class ModelConfig(Section):
    """The network and its two dropout rates."""

    name: str = Field(
        "fracture_cnn", description="'fracture_cnn', any network of timm, or torchvision/NAME for one of torchvision"
    )
    weights: str | None = Field(
        None, description="start from 'imagenet' or from the path of a .safetensors file; null: from scratch"
    )
    dropout: Rate = Field(0.2, description="dropout rate before the head, 0 to below 1; 0: off")
    spatial_dropout: Rate = Field(
        0.1, description="probability of dropping a complete feature map between stages, 0 to below 1; 0: off"
    )
    width: int = Field(32, ge=4, le=512, description="channels of the first stage of fracture_cnn, 4 to 512")
    freeze_norm: bool = Field(False, description="keep batch norm in evaluation mode during training")


class TrainConfig(Section):
    """The optimisation of one model."""

    epochs: int = Field(12, ge=1, description="passes over the training images, 1 or more")
    batch_size: int = Field(64, ge=1, description="images per step, over all workers together, 1 or more")
    lr: Annotated[float, Field(gt=0)] = Field(2e-3, description="peak learning rate of AdamW, above 0")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.02, description="decoupled weight decay of AdamW, 0 or more; none on biases and norms; 0: off"
    )
    warmup: Rate = Field(
        0.1,
        description="share of all steps with linear warm-up of the learning rate, 0 to below 1, before its cosine "
        "decay; 0: no warm-up",
    )
    loss: Literal["weighted", "focal", "plain"] = Field(
        "weighted",
        description="weighted: cross-entropy, both classes with the same total weight; focal: focal loss with these "
        "weights; plain: cross-entropy",
    )
    focal_gamma: Annotated[float, Field(ge=0)] = Field(
        2.0, description="exponent of the focal loss, 0 or more; 0: the weighted loss; used by loss focal only"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="distance of the targets from 0 and 1, 0 to below 0.5; 0: off"
    )
    clip_norm: Annotated[float, Field(ge=0)] = Field(
        1.0, description="largest norm of the gradient, 0 or more; 0: no clipping"
    )
    ema: Rate = Field(
        0.98,
        description="decay per step of the moving average of the weights, which is validated and saved, 0 to below 1; "
        "0: off",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="number format of the network's arithmetic; auto: bf16 where it is faster, else fp32"
    )
    channels_last: bool = Field(True, description="keep images in memory with the channels last, which is faster")
    compile: bool = Field(False, description="compile the network with torch.compile")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of a worker, 1 or more; null: the CPUs that the worker is given"
    )
    keep_seconds: Annotated[float, Field(ge=0)] = Field(
        10.0,
        description="shortest time in seconds between two writes of what a resumed run needs, at the end of an epoch; "
        "also written where a trial may end. A killed process loses this time and the current epoch; 0: every epoch",
    )
    operating_point: Literal["accuracy", "balanced"] = Field(
        "accuracy",
        description="what the decision threshold, fixed on validation, maximises: accuracy or balanced accuracy",
    )
    seed: int = Field(
        0, ge=0, description="seed of the initial weights, the order of the images, augmentation and dropout, 0 or more"
    )


class SamplerConfig(Section):
    """How the next configuration is chosen."""

    name: Literal["tpe", "random", "grid", "cmaes"] = Field(
        "tpe", description="sampler of Optuna; grid needs a finite number of values in every dimension"
    )
    seed: int = Field(0, ge=0, description="seed of the sampler, 0 or more")
    startup_trials: int = Field(
        8, ge=1, description="random trials before tpe and cmaes start to model the results, 1 or more"
    )


class SchedulerConfig(Section):
    """How poor trials are stopped early."""

    name: Literal["asha", "median", "hyperband", "none"] = Field(
        "asha", description="scheduler of Ray Tune; none: every trial runs all epochs"
    )
    grace_epochs: int = Field(
        2, ge=1, description="epochs that every trial runs before asha or median may stop it, 1 or more"
    )
    reduction_factor: Annotated[float, Field(gt=1)] = Field(
        3.0, description="of asha and hyperband: one of this many trials continues after each rung, above 1"
    )


class SearchConfig(Section):
    """The search: what is optimised, with how many trials, on which share of the machines."""

    metric: str | tuple[str, ...] = Field(
        "val_accuracy", description="a reported metric, or a list of metrics for a Pareto front"
    )
    mode: Literal["max", "min"] = Field("max", description="max where a higher metric is better, min where a lower is")
    trials: int = Field(16, ge=1, description="number of trials, that of the default configuration included, 1 or more")
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    concurrent: int | None = Field(
        None, ge=1, description="largest number of trials at the same time, 1 or more; null: as many as fit"
    )
    workers_per_trial: int = Field(1, ge=1, description="workers that train one trial together, 1 or more")
    cpus_per_trial: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs of each worker of a trial, above 0")
    gpus_per_trial: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs of each worker of a trial, 0 or more; 0.25: four share a GPU; 0: trains on CPUs"
    )
    time_budget: Annotated[float, Field(gt=0)] | None = Field(
        None, description="seconds after which no epoch starts, above 0; null: no limit"
    )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The searched metrics; the first one decides which trial and which epoch is best."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric


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
                node = node[parent]
            node[leaf] = copy.deepcopy(value)  # the paths that follow may change it
        return resolve(tree, where)

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
    known = (*LEAVES, EXTRA)
    if path not in known and not (path.startswith(f"{EXTRA}.") and all(path.split("."))):
        inside = [leaf for leaf in known if leaf.startswith(f"{path}.")]
        remedy = f"; name one of its settings: {', '.join(inside)}" if inside else nearest(path, known)
        raise InputError(f"{where}: '{path}' is not a setting{remedy}")


def resolve(tree: Mapping[str, Any], where: str | Callable[[str], str]) -> Config:
    """Validate a nested mapping into a Config.

    Raises InputError with the dotted path and the place of every fault; the place is `where`, or `where(path)`.
    """
    try:
        return Config.model_validate(tree)
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
        siblings = {".".join(leaf.split(".")[:depth]) for leaf in (*LEAVES, EXTRA)}  # sections too
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
