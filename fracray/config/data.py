"""The settings `data`: which radiographs, at which size, divided how."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fracray.config.section import Section
from fracray.errors import nearest

PHANTOM = "phantom"  # the data source that is drawn, not read
AXES = ("device", "view", "region", "hardware", "severity", "exposure")
BLOCK = {"blocks": 200}  # file numbers that share a group where data.split.block is not set; 50 in every other protocol
SPLIT_VERSION = 2  # raise it when equal settings give another split; 1 had no guard
GUARD = 5  # file numbers at the border of two parts that go unused where data.split.guard is not set ...
# What every stored config names of data.split, and hardly anybody by hand, from before there was a guard.
STORED = {"protocol", "train", "val", "block", "hold_out", "shifts", "folds", "fold", "budget", "file", "seed"}
STORED_DATA = {"source", "size", "split", "phantom", "stream", "cache"}  # likewise of data, from before data.crop
GUARDED = 10  # ... and no more than a block of file numbers divided by this


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
        "view, region, hardware, severity, exposure: train without one kind of radiograph, validate and test on it",
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
    guard: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="where blocks of file numbers stand for patients, an image of train that is at most this many "
        "numbers away from one of val or test goes unused, as does one of val near test, 0 to 1,000,000; 0: none; "
        "null: 5, or a tenth of data.split.block where that is less, and none in protocol random",
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
    repeats: int = Field(
        1,
        ge=1,
        le=20,
        description="with cross_validate, how often the images outside the test fold are dealt into folds, differently "
        "each time, 1 to 20; a trial is judged by the mean over all of them, and takes so many times as long",
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

    @model_validator(mode="before")
    @classmethod
    def _begun_without_guard(cls, value: Any) -> Any:
        """A stored config without `guard` is of a version that had none: its split had no guard and keeps none."""
        if isinstance(value, Mapping) and "guard" not in value and value.keys() >= STORED:
            return {**value, "guard": 0}
        return value

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
        if self.guard and self.protocol == "random":
            raise ValueError(
                "guard keeps neighbouring file numbers out of other parts, and protocol random mixes them; leave it out"
            )
        if self.fold >= self.folds:
            raise ValueError(f"there is no fold {self.fold}; with folds = {self.folds} it is 0 to {self.folds - 1}")
        if self.cross_validate and (self.protocol != "kfold" or self.file is not None):
            raise ValueError("cross_validate needs protocol kfold and no file")
        if self.repeats > 1 and not self.cross_validate:
            raise ValueError("repeats needs cross_validate: true")
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
    def guard_size(self) -> int:
        if self.guard is not None:
            return self.guard
        return 0 if self.protocol == "random" else min(GUARD, self.block_size // GUARDED)

    @property
    def rotations(self) -> int:
        """Number of divisions that a trial trains on, one model for each."""
        return self.repeats * (self.folds - 1) if self.cross_validate else 1

    @property
    def rotations_in_words(self) -> str:
        """What the metrics of a cross-validated trial are the mean over."""
        return f"{self.folds - 1} folds" + (f", dealt {self.repeats} times" if self.repeats > 1 else "")

    @property
    def for_each_fold(self) -> str:
        """' for each of 4 folds', after what a training takes; empty where a training has one model."""
        return f" for each of {self.rotations_in_words}" if self.cross_validate else ""

    def fold_of(self, rotation: int) -> int:
        """The number of the fold that is val in a rotation; folds that are dealt anew have numbers of their own."""
        repeat, turn = divmod(rotation, self.folds - 1)
        return repeat * self.folds + (self.fold + 1 + turn) % self.folds

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
    crop: bool = Field(
        False,
        description="true: letterbox only the part of each radiograph that holds its anatomy, where that enlarges it "
        "by a tenth at least; what is cut is counted in data.json and the datasheet",
    )
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

    @model_validator(mode="before")
    @classmethod
    def _begun_without_crop(cls, value: Any) -> Any:
        """A stored config without `crop` is of a version that cropped nothing, whatever the default is now."""
        if isinstance(value, Mapping) and "crop" not in value and value.keys() >= STORED_DATA:
            return {**value, "crop": False}
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.augment_on == "gpu" and self.stream == "ray":
            raise ValueError(
                "augment_on = gpu augments on the GPU: it cannot go with stream = ray, which augments in tasks of Ray "
                "Data; set one of the two to its default"
            )
        return self
