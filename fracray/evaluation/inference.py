"""A checkpoint as a function from radiographs to logits or maps, on this machine's device.

Knows prepared radiographs, but no labels, splits or scores.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from fracray.data.loading.shards import Shards
from fracray.runtime.memory import keep_freed_memory
from fracray.training.backbones import FRACTURE_CNN
from fracray.training.card import AS_TRAINED
from fracray.training.checkpoint import Checkpoint
from fracray.training.ensemble import Ensemble
from fracray.training.folding import folded, twin
from fracray.training.loop import pick_device
from fracray.training.model import Classifier, float32
from fracray.training.precision import pick_precision

BATCH = 64


def network(checkpoint: Checkpoint) -> Callable[[np.ndarray], np.ndarray]:
    """The checkpoint on this machine's device: radiographs (n, S, S) uint8 to logits (n,) float32.

    In the arithmetic that its calibration and threshold were fitted in; of an ensemble, each member in its own.
    """
    if checkpoint.members:
        runs = [network(member) for member in checkpoint.members]
        return lambda images: np.mean([run(images) for run in runs], axis=0)
    model, device = _on_device(checkpoint)
    as_trained = checkpoint.metadata.arithmetic == AS_TRAINED
    half = in_bf16(checkpoint, device)

    def logits(images: np.ndarray) -> np.ndarray:
        arithmetic = torch.autocast(device.type, torch.bfloat16, enabled=half) if as_trained else float32()
        with torch.inference_mode(), arithmetic:
            return _of(images, model(_batch(images, device)))

    return logits


def map_network(checkpoint: Checkpoint) -> Callable[[np.ndarray], np.ndarray]:
    """As `network`, to the maps of fracture logits (n, h, w) float32 of a checkpoint that gives one; in plain float32.

    Of an ensemble, the mean map.
    """
    model, device = _on_device(checkpoint)

    def maps(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), float32():
            return _of(images, model(_batch(images, device), True)[1])

    return maps


def looking_network(checkpoint: Checkpoint) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    """As `network`, with the maps of `map_network`, (n, h, w) float32, where the checkpoint gives one; else None."""
    if not checkpoint.model.localises:
        plain = network(checkpoint)
        return lambda images: (plain(images), None)
    if _as_trained(checkpoint):
        plain, maps = network(checkpoint), map_network(checkpoint)
        return lambda images: (plain(images), maps(images))
    model, device = _on_device(checkpoint)

    def both(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:  # in one pass
        with torch.inference_mode(), float32():
            logits, where = model(_batch(images, device), True)
        return _of(images, logits), _of(images, where)

    return both


def _on_device(checkpoint: Checkpoint) -> tuple[Classifier | Ensemble, torch.device]:
    keep_freed_memory()
    device = pick_device()
    model = checkpoint.model.to(device)
    if checkpoint.metadata.config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return twin(model) if _as_trained(checkpoint) else folded(model, checkpoint.metadata.config.data.size), device


def _as_trained(checkpoint: Checkpoint) -> bool:
    """Whether a version that validated as it trained has made it, or one of its members."""
    return AS_TRAINED in {one.metadata.arithmetic for one in (checkpoint, *checkpoint.members)}


def _batch(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """(n, S, S) uint8 to (m, 1, S, S) on the device, m of `_in_batch`; those that are added are black."""
    batch = torch.from_numpy(images).unsqueeze(1).to(device)
    more = _in_batch(len(images), device) - len(images)
    return torch.cat([batch, batch.new_zeros(more, *batch.shape[1:])]) if more else batch


def _in_batch(count: int, device: torch.device) -> int:
    """How many images are passed for so many: on a GPU the next power of 2.

    cuDNN plans every layer anew for each number of images that it meets, which takes as long as many batches.
    """
    return 1 << max(0, count - 1).bit_length() if device.type == "cuda" else count


def _of(images: np.ndarray, found: torch.Tensor) -> np.ndarray:
    """What was found of these images (n, ...), without what `_batch` put behind them."""
    return found[: len(images)].float().cpu().numpy()


def in_bf16(checkpoint: Checkpoint, device: torch.device) -> bool:
    """Whether its validation was in bf16 on such a device: by a version that validated as it trained.

    Of the precision 'auto' on a CPU, that is so for fracture_cnn alone. Of an ensemble, ask its members.
    """
    config = checkpoint.metadata.config
    if checkpoint.metadata.arithmetic != AS_TRAINED:
        return False
    if config.train.precision == "auto" and device.type == "cpu" and config.model.name != FRACTURE_CNN:
        return False
    return pick_precision(config, device, checkpoint.model) is torch.bfloat16


def predict(checkpoint: Checkpoint, shards: Shards, rows: np.ndarray, console: Console) -> np.ndarray:
    """Logits (n,) float32 of these rows of a shard set, in their order."""
    return over_rows(network(checkpoint), shards, rows, "scoring", console)


def predict_maps(checkpoint: Checkpoint, shards: Shards, rows: np.ndarray, console: Console) -> np.ndarray:
    """The maps (n, h, w) float32 of these rows of a shard set, in their order; of a checkpoint that gives maps."""
    return over_rows(map_network(checkpoint), shards, rows, "looking where", console)


def over_rows(
    run: Callable[[np.ndarray], np.ndarray], shards: Shards, rows: np.ndarray, words: str, console: Console
) -> np.ndarray:
    """What `run` makes of the images (B, S, S) uint8 of these rows, in their order; a shard at a time."""
    ascending, places = np.unique(rows, return_inverse=True)
    found = []
    for file in track(shards.files, words, console=console, transient=True, disable=not console.is_terminal):
        inside = ascending[(ascending >= file.first) & (ascending < file.first + file.count)] - file.first
        images = shards.read_file(file)[inside] if len(inside) else np.empty((0,))
        found += [run(images[start : start + BATCH]) for start in range(0, len(inside), BATCH)]
    return np.concatenate(found)[places] if found else np.empty(0, dtype=np.float32)


@contextmanager
def half_the_cpus() -> Iterator[None]:
    """Within the block, the network uses half of the CPUs and leaves the others to the threads that feed it.

    Torch's threads spin while they wait for each other: with more threads than CPUs, a batch took ten times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)
