"""The plain recipe of Ray's guides, in full: what `search.py` measures fracray against.

A Tune function trial that fits a TorchTrainer, as in "Hyperparameter Tuning with Ray Tune" of Ray Train's guides;
Ray Data reads, decodes and augments the JPEGs in every epoch of every trial, as in "Data Loading and Preprocessing".
The network, the batch size, the learning rate and the precision are fracray's defaults, the strengths and rates are
searched in the ranges of `search_spaces/reg.yaml`, and images and parts are those of fracray's search. It has no
schedule of the learning rate, no clipping and no averaged weights, which cost fracray time. Nothing of fracray is used
but the definition of the network.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.optuna import OptunaSearch

SIZE, BATCH, LR = 128, 64, 2e-3
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or every worker asks the network for a newer version at import


def augment(batch: dict[str, Any], strengths: dict[str, Any]) -> dict[str, Any]:
    """A block of decoded images through albumentations."""
    import albumentations as A
    import numpy as np

    begun = time.thread_time()
    pipeline = A.Compose(
        [
            A.HorizontalFlip(p=strengths["flip"]),
            A.Affine(
                rotate=(-strengths["rotate"], strengths["rotate"]),
                scale=(1 - strengths["scale"], 1 + strengths["scale"]),
                p=1.0,
            ),
            A.RandomBrightnessContrast(strengths["brightness"], strengths["contrast"], p=1.0),
        ]
    )
    batch["image"] = np.stack([pipeline(image=image)["image"] for image in batch["image"]])
    batch["transform"] = np.full(len(batch["image"]), (time.thread_time() - begun) / len(batch["image"]))
    return batch


def load(paths: Sequence[str], labels: Sequence[int]) -> Any:
    """The radiographs of one part, with their labels, as a lazy dataset."""
    by_path = dict(zip(paths, labels, strict=True))

    def add_label(row: dict[str, Any]) -> dict[str, Any]:
        row["label"] = by_path[row.pop("path")]
        return row

    images = ray.data.read_images(list(paths), mode="L", size=(SIZE, SIZE), include_paths=True)
    return images.map(add_label)


def train_func(config: dict[str, Any]) -> None:
    """What the one worker of a trial runs."""
    from sklearn.metrics import roc_auc_score

    from fracray.config import ModelConfig
    from fracray.training.model import build_model

    spent = {"training": 0.0, "transform": 0.0}
    settings = ModelConfig(dropout=config["dropout"], spatial_dropout=config["spatial_dropout"])
    model = build_model(settings).to(memory_format=torch.channels_last)
    model = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    weight = torch.tensor(config["positive_weight"])
    train, val = ray.train.get_dataset_shard("train"), ray.train.get_dataset_shard("val")
    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    for epoch in range(config["epochs"]):
        model.train()
        for batch in train.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=4 * BATCH):
            spent["transform"] += float(batch["transform"].sum())
            begun = time.thread_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(batch["image"].unsqueeze(1))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits.float(), batch["label"].float(), pos_weight=weight
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent["training"] += time.thread_time() - begun
        model.eval()
        right = seen = 0
        scores: list[float] = []
        truth: list[float] = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for batch in val.iter_torch_batches(batch_size=BATCH):
                logits = model(batch["image"].unsqueeze(1))
                right += int(((logits > 0) == (batch["label"] > 0)).sum())
                seen += len(logits)
                scores += logits.float().tolist()
                truth += batch["label"].tolist()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), os.path.join(folder, "model.pt"))
            metrics = {"val_accuracy": right / seen, "val_auroc": float(roc_auc_score(truth, scores)), **spent}
            metrics |= {"epoch": epoch + 1, "trained": seen}
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def driver(config: dict[str, Any]) -> None:
    """One trial: build the datasets and a trainer, and fit it."""
    train = load(config["train"]["path"], config["train"]["label"]).map_batches(
        augment, fn_kwargs={"strengths": config}, batch_size=BATCH
    )
    val = load(config["val"]["path"], config["val"]["label"])
    trainer = TorchTrainer(
        train_func,
        train_loop_config={key: value for key, value in config.items() if key not in ("train", "val")},
        scaling_config=ScalingConfig(num_workers=1),
        datasets={"train": train, "val": val},
        run_config=RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}",
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


class Printed(tune.Callback):
    """A line of JSON after each epoch."""

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        print(json.dumps({name: result[name] for name in ("epoch", "val_auroc", "val_accuracy")}), flush=True)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--parts", required=True, help="JSON: {train: {path: [...], label: [...]}, val: {...}}")
    cli.add_argument("--trials", type=int, required=True)
    cli.add_argument("--epochs", type=int, required=True)
    cli.add_argument("--storage", required=True)
    cli.add_argument("--to", required=True, help="JSON that gets the seconds")
    args = cli.parse_args()
    parts = json.loads(Path(args.parts).read_text())
    labels = parts["train"]["label"]
    ray.init()
    begun = time.time()
    space = {
        "dropout": tune.uniform(0.0, 0.7),
        "spatial_dropout": tune.uniform(0.0, 0.4),
        "rotate": tune.uniform(0.0, 30.0),
        "flip": tune.uniform(0.0, 0.5),
        "scale": tune.uniform(0.0, 0.3),
        "brightness": tune.uniform(0.0, 0.4),
        "contrast": tune.uniform(0.0, 0.4),
        "epochs": args.epochs,
        "positive_weight": labels.count(0) / labels.count(1),
        "storage": args.storage,
        **parts,
    }
    tuner = tune.Tuner(
        # A CPU for the driver, one for the worker and none left for Ray Data would wait forever on two cores.
        tune.with_resources(driver, {"node:__internal_head__": 0.001}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            search_alg=OptunaSearch(),
            num_samples=args.trials,
            # A CPU for the worker and one for Ray Data.
            max_concurrent_trials=max(1, (os.cpu_count() or 1) // 2),
        ),
        run_config=tune.RunConfig(name="plain", storage_path=args.storage, callbacks=[Printed()], verbose=0),
    )
    results = tuner.fit()
    seconds = time.time() - begun
    assert not results.errors, results.errors
    rows = [result.metrics for result in results]
    Path(args.to).write_text(
        json.dumps(
            {
                "trials": len(rows),
                "seconds": seconds,
                "training": sum(row["training"] for row in rows),
                "transform": sum(row["transform"] for row in rows),
                "accuracy": max(row["val_accuracy"] for row in rows),
            }
        )
    )


if __name__ == "__main__":
    main()
