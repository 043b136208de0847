"""fracray's data, network and training loop inside Ray's own pattern: a Tuner over a driver that runs a TorchTrainer.

Ray Data decodes the radiographs once and augments them for every epoch, Ray Train runs the workers, Ray Tune with
Optuna and ASHA searches. Read it, and change it into what `fracray tune` does not do. To search, use `fracray tune`:
here every trial starts its own trainer, which takes longer than a short trial.
"""

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.05")  # by default a report waits for up to 2 s
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import ray
import ray.train.torch
from ray import tune
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from fracray.config import Config
from fracray.data.loading.plan import make_plan
from fracray.data.loading.streams import RayStream
from fracray.data.prepare import prepare
from fracray.runtime.console import new_console
from fracray.training.checkpoint import CheckpointMetadata, save_checkpoint
from fracray.training.loop import Fit

SPACE = {
    "model.dropout": tune.uniform(0.0, 0.7),
    "model.spatial_dropout": tune.uniform(0.0, 0.4),
    "augment.rotate": tune.uniform(0.0, 30.0),
    "train.lr": tune.loguniform(1e-4, 1e-2),
}


def train_worker(job):
    """What every Ray Train worker of a trial runs: fracray's loop, and one report an epoch."""
    config, context = job["config"], ray.train.get_context()
    plan = make_plan(config, job["table"], job["shards"], context.get_world_rank(), context.get_world_size())
    stream = RayStream(plan, job["shards"], config.train.epochs)  # MemoryStream gives the same batches from memory
    fit = Fit(config, stream, ray.train.torch.get_device(), metric="val_auroc")
    while not fit.done:
        report = fit.run_epoch()
        seen, checkpoint = report.validation, None
        with TemporaryDirectory() as folder:
            if report.is_best and context.get_world_rank() == 0:
                about = CheckpointMetadata(
                    config, seen.threshold, seen.calibration, report.metrics, job["fingerprint"], report.epoch
                )
                save_checkpoint(Path(folder, "best"), fit.best_weights, about)
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({**report.metrics, "best_val_auroc": fit.best["val_auroc"]}, checkpoint=checkpoint)
    stream.close()


def driver(leaves, job, workers):
    """One trial of Tune: its own trainer, whose reports are passed to Tune."""
    TorchTrainer(
        train_worker,
        train_loop_config={**job, "config": job["config"].with_leaves(leaves, "trial")},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}",  # a name used twice resumes and trains nothing
            storage_path=job["storage"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def search(job, trials, epochs, workers, storage):
    """The search: one trial after another, or as many at a time as leave Ray Data a CPU."""
    # Drivers only wait. With a CPU each, two of them on two CPUs would wait for their workers forever.
    trainable = tune.with_resources(
        tune.with_parameters(driver, job=job, workers=workers), {"node:__internal_head__": 0.001}
    )
    cpus = int(ray.cluster_resources()["CPU"])
    results = tune.Tuner(
        trainable,
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            metric="best_val_auroc",
            mode="max",
            search_alg=OptunaSearch(),
            scheduler=ASHAScheduler(max_t=epochs, grace_period=max(1, epochs // 3), reduction_factor=3),
            num_samples=trials,
            max_concurrent_trials=max(1, (cpus - 1) // workers),
        ),
        run_config=tune.RunConfig(name=f"search-{int(time.time())}", storage_path=storage, verbose=1),
    ).fit()
    best = results.get_best_result()
    return len(results), results.num_errors, best.metrics["best_val_auroc"], best.config


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", default="phantom", help="a FracAtlas folder or zip, or an imported set")
    cli.add_argument("--phantoms", type=int, default=2000, help="phantom radiographs to draw")
    cli.add_argument("--trials", type=int, default=8)
    cli.add_argument("--epochs", type=int, default=9)
    cli.add_argument("--workers", type=int, default=1, help="Ray Train workers of a trial")
    cli.add_argument("--storage", default="runs/ray-native")
    cli.add_argument("--address", default="local", help="a Ray cluster: auto or HOST:PORT (default: a new local one)")
    args = cli.parse_args()
    config = Config().with_leaves(
        {"data.source": args.data, "data.phantom.count": args.phantoms, "train.epochs": args.epochs}
    )
    ray.init(address=args.address, log_to_driver=False)
    prepared = prepare(config.data, new_console())
    storage = str(Path(args.storage).absolute())
    job = {"config": config, "table": prepared.table, "shards": prepared.shards, "storage": storage}
    job["fingerprint"] = prepared.fingerprint
    begun = time.time()
    # A trial that ASHA stops leaves its workers' CPUs to Ray's cleaner. The cleaner needs Ray's dashboard, which is on
    # by default, and its cluster's address: with two clusters on a machine it fails, and the next trial waits forever.
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    searching = ray.remote(num_cpus=0, runtime_env={"env_vars": address})(search)
    count, errors, auroc, leaves = ray.get(searching.remote(job, args.trials, args.epochs, args.workers, storage))
    print(f"{count} trials in {time.time() - begun:.0f} s; errors: {errors}")
    print(f"best validation AUROC {auroc:.3f} with {leaves}")


if __name__ == "__main__":
    main()
