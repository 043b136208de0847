"""How exactly and how fast ONNX Runtime runs an exported network, against the network itself in PyTorch.

Each network is exported at the size of its ImageNet weights and compared on phantoms, as `fracray.export` compares it.
Then both run the same batches in turns, on one thread each. The time is that of the CPU, which other programs on the
machine change little; the ratio is the median over the turns of PyTorch's time by ONNX Runtime's.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import torch
from table import write_results

from fracray.config import Config
from fracray.evaluation.inference import looking_network
from fracray.exporting.description import description
from fracray.exporting.formats import INPUT, Onnx
from fracray.exporting.graph import Readout, trace
from fracray.exporting.parity import expected, prove
from fracray.exporting.sample import gather, phantoms
from fracray.metrics import Calibration
from fracray.runtime.console import new_console, new_table
from fracray.training.checkpoint import Checkpoint, CheckpointMetadata, load_checkpoint, save_checkpoint, save_ensemble
from fracray.training.model import build_model

HERE = Path(__file__).parent
# Name, size, weights.
NETWORKS = (
    ("fracture_cnn", 128, None),
    ("tf_efficientnet_lite0", 224, "imagenet"),
    ("tf_efficientnet_lite1", 240, "imagenet"),
    ("tf_efficientnet_lite2", 260, "imagenet"),
    ("torchvision/resnet18", 224, None),
    ("mobilenetv3_large_100", 224, None),
)
ENSEMBLE = "three of tf_efficientnet_lite0"
BATCHES = (1, 32)


def checkpoints(folder: Path) -> dict[str, Path]:
    """Checkpoints of all NETWORKS and of the ENSEMBLE, with a head drawn at random, by name."""
    found = {}
    for name, size, weights in NETWORKS:
        config = Config().with_leaves({"model.name": name, "model.weights": weights, "data.size": size})
        card = CheckpointMetadata(config, 0.5, Calibration(1.2, -0.1), {}, data_fingerprint="", epoch=0)
        members = {}
        for seed in range(3 if name in ENSEMBLE else 1):
            torch.manual_seed(seed)
            members[f"m{seed}"] = folder / f"{len(found)}-{seed}"
            save_checkpoint(members[f"m{seed}"], build_model(config.model).state_dict(), card)
        found[name] = members["m0"]
        if len(members) > 1:
            save_ensemble(folder / "ensemble", members, card, *no_validation())
    return found | {ENSEMBLE: folder / "ensemble"}


def no_validation() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables that an ensemble is saved with, of an image that is none of the phantoms."""
    name = pd.DataFrame({"image_id": ["none"]})
    kept = name.assign(group="", label=0, split="val", logit=0.0)
    return kept, name.assign(split="val", pixel_hash="")


def cpu_seconds(run: Callable[[], Any]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def measure(checkpoint: Checkpoint, folder: Path, turns: int) -> dict[str, Any]:
    """Size of the file, largest difference of a logit, and times."""
    path, readout = folder / "x.onnx", Readout(checkpoint)
    size = checkpoint.metadata.config.data.size
    Onnx().write(trace(readout, size), readout.outputs, description(checkpoint, readout.outputs), path)
    sample = gather(checkpoint, phantoms(checkpoint), "phantoms", lambda done, total: None)
    said = expected(checkpoint, sample)
    form = Onnx()
    apart = prove(form.open(path), readout.outputs, checkpoint, sample, said, form.runtime, lambda done, total: None)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    network = looking_network(checkpoint)
    row: dict[str, Any] = {"size": size, "mib": path.stat().st_size / 2**20, "largest_difference": apart}
    for batch in BATCHES:
        images = np.resize(sample.squares, (batch, size, size))
        runs = max(1, 8 // batch)
        pairs = []
        for _ in range(turns + 1):
            of_torch = cpu_seconds(lambda images=images, runs=runs: [network(images) for _ in range(runs)])
            of_onnx = cpu_seconds(
                lambda images=images, runs=runs: [session.run(None, {INPUT: images[:, None]}) for _ in range(runs)]
            )
            pairs.append((of_torch / runs / batch, of_onnx / runs / batch))
        pairs = pairs[1:]  # the first turn warms up
        row[f"ms_torch_{batch}"] = 1000 * median(a for a, _ in pairs)
        row[f"ms_onnx_{batch}"] = 1000 * median(b for _, b in pairs)
        row[f"ratio_{batch}"] = median(a / b for a, b in pairs)
    return row


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--turns", type=int, default=3)
    cli.add_argument("--json", type=Path, default=HERE / "results" / "export.json")
    args = cli.parse_args()
    torch.set_num_threads(1)
    console = new_console()
    table = new_table("network", "px", "MiB", "largest difference", "ms, batch 1", "ratio", "ms, batch 32", "ratio")
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in checkpoints(Path(scratch)).items():
            row = rows[name] = measure(load_checkpoint(folder), Path(scratch), args.turns)
            cells = [f"{row['mib']:.1f}", f"{row['largest_difference']:.1e}"]
            cells += [f"{row[f'{what}_{batch}']:.2f}" for batch in BATCHES for what in ("ms_onnx", "ratio")]
            console.print(name, *cells)
            table.add_row(name, str(row["size"]), *cells)
    write_results(console, "export", table, {"turns": args.turns, "rows": rows}, args.json)


if __name__ == "__main__":
    main()
