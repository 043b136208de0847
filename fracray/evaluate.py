"""python -m fracray.evaluate: a checkpoint on a split, or on radiographs that its training never saw.

The decision threshold and the calibration are those fixed on validation; intervals are bootstrapped over groups, for
images of one group are not independent. Beside every score stands that of predictors which see no pixel.
"""

import argparse
import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from fracray.checkpoint import Card, Checkpoint, load_checkpoint
from fracray.cluster import connect
from fracray.config import Config
from fracray.data.ingest import Shards
from fracray.data.prepare import Prepared, prepare
from fracray.errors import InputError, run_verb
from fracray.fit import pick_device, pick_precision
from fracray.metrics import Interval, bootstrap
from fracray.run import BEST, Folder, data_source
from fracray.show import new_console, say_few_groups, say_flow, say_phantom, scores_table

BATCH = 64


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m fracray.evaluate",
        description="Score a checkpoint: accuracy, AUROC, sensitivity and more, each with a 95% interval bootstrapped "
        "over groups, at the threshold fixed on validation, beside predictors that see no pixel.",
        epilog="examples:\n"
        "  python -m fracray.evaluate checkpoints/t0007 --data FracAtlas --split test\n"
        "  python -m fracray.evaluate runs/first --json scores.json\n"
        "  python -m fracray.evaluate checkpoints/t0007 --data other-hospital --split all\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("checkpoint", help="a checkpoint folder, or a run (its best checkpoint), as a path or URI")
    cli.add_argument(
        "--data",
        metavar="PATH",
        help="FracAtlas-layout folder or zip, or an imported set (default: what it was trained on)",
    )
    cli.add_argument(
        "--split", choices=("test", "val", "all"), help="default: test; all, for data that the training never saw"
    )
    cli.add_argument("--json", metavar="FILE", help="also write the scores and every image's probability as JSON")
    cli.add_argument("--seed", type=int, default=0, help="of the bootstrap (default %(default)s)")
    cli.add_argument("--address", help="a Ray cluster for the preparation (default: a local one)")
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    console = new_console()
    checkpoint = open_checkpoint(args.checkpoint)
    card = checkpoint.card
    source = data_source(args.data) if args.data else card.config.data.source
    config = card.config.with_leaves({"data.source": source}, "--data")
    if not args.data:
        say_phantom(console, config)
    with connect(args.address):
        prepared, part = _prepare(config, card.data_fingerprint, args.split, console)
    say_flow(console, prepared)
    rows = prepared.rows(part)
    if prepared.fingerprint != card.data_fingerprint:
        rows = _unseen(checkpoint, prepared, rows, console)
    labels = prepared.table["label"].to_numpy()[rows]
    groups = prepared.table["group"].to_numpy()[rows]
    logits = predict(checkpoint, prepared.shards, rows, console)
    probabilities = card.calibration.apply(logits)
    intervals = bootstrap(labels, probabilities, groups, card.threshold, seed=args.seed)
    count = len(set(groups))
    console.print(
        f"\n{card.trial or checkpoint.folder.name}, epoch {card.epoch}, "
        f"on {_words(part, prepared, card.data_fingerprint)}: {len(rows)} radiographs in {count} groups, "
        f"{labels.mean():.1%} fractured; decision threshold {card.threshold:.3f}, fixed on validation",
        soft_wrap=True,
    )
    console.print(scores_table(intervals, prepared.baselines, part))
    say_few_groups(console, prepared, part)
    if part == "all" and prepared.fingerprint == card.data_fingerprint:
        console.print(
            "note: 'all' holds the images that this checkpoint was trained on; its scores flatter", style="yellow"
        )
    if args.json:
        _write_json(Path(args.json), args.checkpoint, card, prepared, part, rows, probabilities, intervals)
        console.print(f"written: {args.json}")


def open_checkpoint(location: str) -> Checkpoint:
    """Load a checkpoint folder, or a run's best one, from a path or URI."""
    folder = Folder(location)
    if folder.exists("config.yaml") and folder.exists(BEST):
        folder = folder.sub(BEST)
    elif folder.exists("trials") and not folder.exists("config.json"):
        raise InputError(
            f"{location}: a run without a best checkpoint yet; name one of {', '.join(folder.names('trials'))}"
        )
    with folder.local_folder() as local:
        return load_checkpoint(local)


def _prepare(config: Config, trained_on: str, split: str | None, console: Console) -> tuple[Prepared, str]:
    """The data set and the part of it to score; data that was never seen has no parts and is scored whole."""
    if split != "all":
        try:
            prepared = prepare(config.data, console)
        except InputError:
            if split is not None:
                raise
            return prepare(config.data, console, split=False), "all"
        if prepared.fingerprint == trained_on:
            return prepared, split or "test"
        if split is not None:
            raise InputError(
                f"--split {split}: {config.data.source} is not the data this checkpoint was trained on, so it has no "
                f"{split} part; score all of it with --split all"
            )
    return prepare(config.data, console, split=False), "all"


def predict(checkpoint: Checkpoint, shards: Shards, rows: np.ndarray, console: Console) -> np.ndarray:
    """Logits (n,) float32 of these rows of a shard set, a shard at a time."""
    device = pick_device()
    precision = pick_precision(checkpoint.card.config, device)
    model = checkpoint.model.to(device)
    if checkpoint.card.config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    wanted = np.zeros(shards.count, dtype=bool)
    wanted[rows] = True
    logits = np.full(shards.count, np.nan, dtype=np.float32)
    for file in track(shards.files, "scoring", console=console, transient=True):
        inside = np.flatnonzero(wanted[file.first : file.first + file.count])
        images = shards.read_file(file)[inside] if len(inside) else np.empty((0,))
        for start in range(0, len(inside), BATCH):
            batch = torch.from_numpy(images[start : start + BATCH]).unsqueeze(1).to(device)
            with (
                torch.inference_mode(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16),
            ):
                logits[file.first + inside[start : start + BATCH]] = model(batch).float().cpu().numpy()
    return logits[rows]


def _unseen(checkpoint: Checkpoint, prepared: Prepared, rows: np.ndarray, console: Console) -> np.ndarray:
    """The rows whose pictures were neither trained nor validated on; how many were is said."""
    if checkpoint.seen is None:
        console.print("note: the checkpoint does not say which images it has seen; make sure that none is among these")
        return rows
    known = set(checkpoint.seen["pixel_hash"]) - {""}
    seen = prepared.table["pixel_hash"].iloc[rows].isin(known).to_numpy()
    if seen.all():
        raise InputError(
            f"{prepared.config.source}: each of its {len(rows)} radiographs was trained or validated on; "
            "name data that the checkpoint has not seen"
        )
    if seen.any():
        console.print(
            f"note: {seen.sum()} of {len(rows)} radiographs were trained or validated on; they are left out",
            style="yellow",
        )
    return rows[~seen]


def _words(part: str, prepared: Prepared, trained_on: str) -> str:
    if prepared.fingerprint != trained_on:
        return f"{prepared.origin}, which its training never saw"
    return {"test": "the test split", "val": "the validation split", "all": "all radiographs"}[part]


def _write_json(
    path: Path,
    location: str,
    card: Card,
    prepared: Prepared,
    part: str,
    rows: np.ndarray,
    probabilities: np.ndarray,
    intervals: dict[str, Interval],
) -> None:
    table = prepared.table.iloc[rows]
    tree: dict[str, Any] = {
        "checkpoint": location,
        "trial": card.trial,
        "epoch": card.epoch,
        "data": prepared.summary(),
        "split": part,
        "images": len(rows),
        "groups": int(table["group"].nunique()),
        "threshold": card.threshold,
        "scores": {
            name: {"value": _finite(value.value), "low": _finite(value.low), "high": _finite(value.high)}
            for name, value in intervals.items()
        },
        "predictions": [
            {"image_id": image_id, "group": group, "label": int(label), "probability": round(float(probability), 6)}
            for image_id, group, label, probability in zip(
                table["image_id"], table["group"], table["label"], probabilities, strict=True
            )
        ],
    }
    try:
        path.write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"--json {path}: cannot be written: {error}") from None


def _finite(value: float) -> float | None:
    return None if isnan(value) else value


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
