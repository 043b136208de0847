"""What all trials of a run share: config, images, splits and the run folder; checked and written down at the start."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fracray.config import Config
from fracray.data.images.kept import KEPT as PART
from fracray.data.loading.shards import Shards
from fracray.data.loading.streams import fits_in_memory
from fracray.data.manifest import MANIFEST
from fracray.errors import InputError
from fracray.runtime.run_folder import CONFIG, DATA
from fracray.runtime.storage import Folder

if TYPE_CHECKING:  # a trial's process gets a job as it is, and needs no reader of image files for it
    from fracray.data.prepare import Prepared

KEPT = (
    *("image_id", "group", "label", "split", "pixel_hash", "look", "width", "height", "brightness"),
    *("boxes", "boxes_width", "boxes_height"),
)


@dataclass(frozen=True)
class Job:
    """What all trials of a run share.

    images: (N, S, S) uint8, shared read-only; None: Ray Data streams the shards instead. table: the columns
    KEPT of every shard row, and those of PART where the shards are cropped. rotations: the split column of each
    division that a trial trains on.
    """

    config: Config
    run: Folder
    shards: Shards
    table: pd.DataFrame
    fingerprint: str
    rotations: tuple[np.ndarray, ...]
    metrics: tuple[str, ...]
    images: np.ndarray | None

    @property
    def metric(self) -> str:
        return self.metrics[0]


def make_job(config: Config, run: Folder, prepared: "Prepared", images: np.ndarray | None = None) -> Job:
    """The job of a run on prepared data, as `gather_job`; also writes the run's files.

    Raises InputError where a resumed run was started on other data.
    """
    from fracray.data.datasheet import datasheet

    summary = prepared.summary()
    refuse_change(run, summary)
    job = gather_job(config, run, prepared, images)
    run.write_json(DATA, summary)
    run.write("DATASHEET.md", datasheet(summary))
    with TemporaryDirectory() as scratch:
        prepared.manifest.write(Path(scratch) / MANIFEST)
        run.upload(Path(scratch) / MANIFEST, MANIFEST)
    run.write(CONFIG, config.to_yaml())  # from here on the run can be resumed
    return job


def gather_job(config: Config, run: Folder, prepared: "Prepared", images: np.ndarray | None = None) -> Job:
    """The job of a run on prepared data, with all images in memory or left to Ray Data; writes nothing.

    images: those of another job on the same data, which are in memory already. Raises InputError where the images do
    not fit the memory through which a GPU would get them.
    """
    chosen = config.data.stream
    if chosen == "auto":
        chosen = "memory" if fits_in_memory(prepared.shards) else "ray"
        if chosen == "ray" and config.data.augment_on == "gpu":
            raise InputError(
                f"data.augment_on = gpu: the {prepared.shards.nbytes / 2**30:.1f} GiB of images do not fit this "
                "machine's memory, through which they reach the GPU; set data.augment_on=cpu, or a smaller data.size"
            )
    if images is None and chosen == "memory":
        images = prepared.shards.load()
    return Job(
        config=config,
        run=run,
        shards=prepared.shards,
        table=prepared.table[[name for name in (*KEPT, *PART) if name in prepared.table]],
        fingerprint=prepared.fingerprint,
        rotations=prepared.rotations,
        metrics=config.search.metrics,
        images=images if chosen == "memory" else None,
    )


def refuse_change(run: Folder, summary: Mapping[str, Any]) -> None:
    """InputError where a resumed run was started on other data, or on another split of them."""
    if not run.exists(CONFIG):
        return
    started = run.read_json(DATA)
    for key, words in (("fingerprint", "other files or labels"), ("split_fingerprint", "another split")):
        if started.get(key) != summary[key]:
            raise InputError(
                f"{run}: this run was started on {words} of {started['origin']}; restore them, or start a new run"
            )
