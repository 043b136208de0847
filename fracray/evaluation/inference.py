"""A checkpoint as a function from radiographs to logits, on this machine's device.

Knows prepared radiographs, but no labels, splits or scores.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from fracray.data.loading.ingest import Shards
from fracray.training.backbones import FRACTURE_CNN
from fracray.training.card import AS_TRAINED
from fracray.training.checkpoint import Checkpoint
from fracray.training.loop import pick_device, pick_precision
from fracray.training.model import float32

BATCH = 64


def network(checkpoint: Checkpoint) -> Callable[[np.ndarray], np.ndarray]:
    """The checkpoint on this machine's device: radiographs (n, S, S) uint8 to logits (n,) float32.

    In the arithmetic that its calibration and threshold were fitted in; of an ensemble, each member in its own.
    """
    if checkpoint.members:
        runs = [network(member) for member in checkpoint.members]
        return lambda images: np.mean([run(images) for run in runs], axis=0)
    device = pick_device()
    as_trained = checkpoint.metadata.arithmetic == AS_TRAINED
    half = as_trained and _trained_in_bf16(checkpoint, device)
    model = checkpoint.model.to(device)
    if checkpoint.metadata.config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)

    def logits(images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(images).unsqueeze(1).to(device)
        arithmetic = torch.autocast(device.type, torch.bfloat16, enabled=half) if as_trained else float32()
        with torch.inference_mode(), arithmetic:
            return model(batch).float().cpu().numpy()

    return logits


def _trained_in_bf16(checkpoint: Checkpoint, device: torch.device) -> bool:
    """Whether a version that validated as it trained used bf16 here: of 'auto' on a CPU, for fracture_cnn alone."""
    config = checkpoint.metadata.config
    if config.train.precision == "auto" and device.type == "cpu" and config.model.name != FRACTURE_CNN:
        return False
    return pick_precision(config, device, checkpoint.model) is torch.bfloat16


def predict(checkpoint: Checkpoint, shards: Shards, rows: np.ndarray, console: Console) -> np.ndarray:
    """Logits (n,) float32 of these rows of a shard set, a shard at a time."""
    run = network(checkpoint)
    wanted = np.zeros(shards.count, dtype=bool)
    wanted[rows] = True
    logits = np.full(shards.count, np.nan, dtype=np.float32)
    for file in track(shards.files, "scoring", console=console, transient=True):
        inside = np.flatnonzero(wanted[file.first : file.first + file.count])
        images = shards.read_file(file)[inside] if len(inside) else np.empty((0,))
        for start in range(0, len(inside), BATCH):
            logits[file.first + inside[start : start + BATCH]] = run(images[start : start + BATCH])
    return logits[rows]


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
