"""From uploads to rows: decoders and networks in processes of their own, pictures of many requests in one pass.

Knows no HTTP. The same for the server on one machine and for a replica of Ray Serve.
"""

import asyncio
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fracray.config import Config
from fracray.data.images.dicom_header import Header
from fracray.data.images.full_depth import FullDepth
from fracray.data.images.kinds import DICOM, HEAD, kind_of
from fracray.data.sources.image_folder import RadiographFile, name_images
from fracray.errors import RunError
from fracray.prediction.familiar import Familiar
from fracray.prediction.reading import Batch
from fracray.serving.batching import Batcher
from fracray.serving.counters import Counters
from fracray.serving.decoding import Reader
from fracray.serving.limits import Limits, RefusedError
from fracray.serving.model import Model
from fracray.serving.processes import LostError, Pool
from fracray.training.checkpoint import read_seen

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Upload:
    """One file of a request: its name as the client sent it, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Plan:
    """How the work is spread: model processes with so many threads each, decoder processes, pictures of a pass, the
    seconds that a picture waits for others, and the GPUs that the model processes take in turn, by the names of
    `gpus_seen`; without any they use the CPU."""

    workers: int = 1
    threads: int = 1
    decoders: int = 1
    batch: int = 32
    wait: float = 0.005
    gpus: tuple[str, ...] = ()


def gpus_seen() -> tuple[str, ...]:
    """The GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES has for them."""
    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    return tuple(map(str, range(count))) if named is None else tuple(named.split(",")[:count])


class Service(Protocol):
    """What the HTTP interface asks: an `Engine`, or `fracray.serving.replicas.Replicas`, which has several."""

    counters: Counters
    card: dict[str, Any]

    @property
    def ready(self) -> bool: ...
    async def start(self) -> None: ...
    async def rows(self, uploads: Sequence[Upload], mapped: bool) -> list[dict[str, Any]]: ...
    async def picture(self, upload: Upload) -> FullDepth: ...
    async def report(self, upload: Upload) -> bytes: ...
    def stop(self) -> None: ...


class Engine:
    """Holds the processes; `start` before, `stop` after. folder: the checkpoint's; coverage: of the conformal sets."""

    def __init__(self, folder: Path, config: Config, plan: Plan, limits: Limits, coverage: float) -> None:
        data = config.data
        self._reader = functools.partial(Reader, data.size, data.crop, limits.pixels, Familiar.of(read_seen(folder)))
        self._decoders = Pool(self._reader, plan.decoders, limits.seconds, quiet=True)
        model = functools.partial(Model, folder, plan.threads, coverage)
        # Each process sees the one GPU that it uses, or none.
        seen = [{VISIBLE: name} for name in plan.gpus or ("",)]
        self._models = Pool(model, plan.workers, limits.seconds, environments=seen)
        self._plan, self._decoding = plan, 0
        self._batcher: Batcher | None = None
        self.counters = Counters()
        self._passes = self.counters.sizes("fracray_batch_pictures", "Pictures in a forward pass")
        self.card: dict[str, Any] = {}
        self._count_lost("decoder", self._decoders)
        self._count_lost("model", self._models)

    def _count_lost(self, name: str, pool: Pool) -> None:
        words = f"{name} processes that died or were ended"
        self.counters.gauge(f"fracray_{name}_processes_lost", words, lambda: pool.lost)

    async def start(self) -> None:
        """Start all processes; InputError where the checkpoint cannot be opened."""
        try:
            await asyncio.gather(self._models.start(), self._decoders.start())
            self.card = await self._models.call("card")
        except BaseException:
            self.stop()
            raise
        self._batcher = Batcher(
            self._score,
            self._plan.batch,
            self._plan.wait,
            self._plan.workers,
            lambda: self._decoding > 0,
            self._models.seconds,
        )

    @property
    def ready(self) -> bool:
        """Whether a picture would be predicted on now."""
        return self._batcher is not None and self._models.ready and self._decoders.ready

    async def rows(self, uploads: Sequence[Upload], mapped: bool) -> list[dict[str, Any]]:
        """The row of each upload, as `fracray.predict` writes it for files of these names. RefusedError as `_row`."""
        found = await asyncio.gather(*(self._row(upload, mapped) for upload in uploads))
        rows = [row for row, _ in found]
        files = [
            RadiographFile(upload.name, Header(instance=instance) if _dicom(upload) else None)
            for upload, (_, instance) in zip(uploads, found, strict=True)
        ]
        for row, image_id in zip(rows, name_images(files), strict=True):
            row["image_id"] = image_id
            self.counters.pictures.labels("failed" if row["error"] else "read").inc()
        return rows

    async def picture(self, upload: Upload) -> FullDepth:
        """The picture at its full depth. RefusedError 413 where it is too large, 422 where there is none."""
        try:
            found = await self._decoders.call("picture", upload.data)
        except RunError as error:
            raise RefusedError(422, f"{upload.name}: {_cause(error)}; send a sound picture") from None
        except LostError as lost:
            raise RefusedError(422, f"{upload.name}: its decoder {lost}; convert it to PNG") from None
        if isinstance(found, str):
            raise RefusedError(413, f"{upload.name}: {found}")
        return found

    async def report(self, upload: Upload) -> bytes:
        """The DICOM SR of a DICOM file, as `fracray.predict --dicom-out` writes it. RefusedError 422 where none can be
        made, and as `rows`."""
        if not _dicom(upload):
            raise RefusedError(422, f"{upload.name}: not a DICOM file; send one, or leave out format=dicom-sr")
        (row,) = await self.rows([upload], False)
        if row["error"]:
            raise RefusedError(422, f"{upload.name}: {row['error']}; send a sound DICOM file")
        try:
            found = await self._decoders.call("report", upload.data, row)
        except LostError as lost:
            found = f"its process {lost}"
        if isinstance(found, str):
            raise RefusedError(422, f"{upload.name}: no DICOM SR: {found}; leave out format=dicom-sr")
        return found

    async def _row(self, upload: Upload, mapped: bool) -> tuple[dict[str, Any], str]:
        """One upload's row, and `instance` of `Decoder`.

        RefusedError 413 where it is too large, 503 where the network's process was lost.
        """
        assert self._batcher is not None, "start() first"
        self._decoding += 1
        try:
            batch = await self._decoders.call("batch", upload.name, upload.data)
        except LostError as lost:
            batch = self._reader().failed(upload.name, f"its decoder {lost}")
        finally:
            self._decoding -= 1
        if isinstance(batch, str):
            raise RefusedError(413, f"{upload.name}: {batch}")
        try:
            return await self._batcher((batch, mapped)), batch["instance"][0]
        except LostError as lost:
            words = f"the network's process {lost}; it starts again: send the request once more"
            raise RefusedError(503, words, {"Retry-After": "10"}) from None
        except RunError as error:  # of this picture: the others of the request have their rows
            failed = self._reader().failed(upload.name, f"the network failed on it: {_cause(error)}")
            return await self._batcher((failed, mapped)), failed["instance"][0]

    async def _score(self, items: Sequence[tuple[Batch, bool]]) -> Sequence[dict[str, Any]]:
        self._passes.observe(len(items))
        return await self._models.call("rows", [batch for batch, _ in items], [mapped for _, mapped in items])

    def stop(self) -> None:
        """End all processes."""
        if self._batcher is not None:
            self._batcher.stop()
        self._decoders.stop()
        self._models.stop()


def _dicom(upload: Upload) -> bool:
    return kind_of(upload.data[:HEAD]) == DICOM


def _cause(error: RunError) -> str:
    return str(error).removeprefix("ValueError: ")
