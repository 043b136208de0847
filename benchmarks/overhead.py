"""What fracray's search costs in addition to training: an empty trial, an empty epoch, a report, a checkpoint.

Empty means a handful of tiny phantoms and a tiny network, through the complete `python -m fracray.tune`. A trial costs
what each further one adds to a search; whether it grows with their number is read from the times at which Optuna's
journal holds them finished. Reports are timed in the trial's process, from the end of an epoch to the beginning of the
next. Checkpoints are of the default network, in CPU time of all threads.
"""

import argparse
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
import yaml
from epoch import make_plan
from processes import timed
from table import write_results

from fracray.config import Config
from fracray.data.duplicates import LOOK_BYTES
from fracray.data.loading.streams import MemoryStream
from fracray.runtime.console import new_console, new_table
from fracray.search.space import SearchSpace
from fracray.search.space_file import load_space
from fracray.search.study import JOURNAL, open_study
from fracray.search.trials_table import TRIALS
from fracray.training.checkpoint import CheckpointMetadata, save_checkpoint, save_state
from fracray.training.loop import Fit

HERE = Path(__file__).parent
TINY = {"data": {"size": 32, "phantom": {"count": 60}, "split": {"block": 2}}, "model": {"width": 4}}
EARLY = 50  # trials at the beginning and at the end of a search that are compared


def search(
    scratch: Path, name: str, trials: int, epochs: int, sampler: str = "tpe", *options: str
) -> tuple[Path, float]:
    """Run a search of empty trials; its folder and the seconds that the complete command took."""
    tree = yaml.safe_load((HERE.parent / "search_spaces" / "reg.yaml").read_text())
    tree |= {"trials": trials, "epochs": epochs, "scheduler": {"name": "none"}, "base": TINY}
    tree["sampler"]["name"] = sampler
    (scratch / "space.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "fracray.tune", "--space", str(scratch / "space.yaml")]
    command += ["--storage", str(scratch), "--name", name, *options]
    return scratch / name, timed(command)


def finished(run: Path, space: SearchSpace) -> np.ndarray:
    """Seconds at which the trials of a run were finished, ascending."""
    trials = open_study(run / JOURNAL, space).get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return np.sort([trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete])


def growth(run: Path, space: SearchSpace) -> dict[str, float]:
    """Seconds a trial at the beginning and at the end of a search, past the first few, which wait for Python."""
    gaps = np.diff(finished(run, space))[4:]
    early, late = gaps[:EARLY], gaps[-EARLY:]
    return {"early": float(early.mean()), "late": float(late.mean()), "ratio": float(late.mean() / early.mean())}


def report(run: Path) -> dict[str, float]:
    """Seconds from the end of an epoch to the beginning of the next of its trial."""
    rows = pd.read_parquet(run / TRIALS)
    spent = rows.loc[rows["epoch"] > 1, "seconds_reporting"]
    return {"median": float(spent.median()), "mean": float(spent.mean())}


def checkpoint(scratch: Path) -> dict[str, float]:
    """CPU seconds, all threads, of the default network's state, copied and written, and of its best checkpoint."""
    torch.set_num_threads(1)
    config = Config()
    images = np.zeros((66, 128, 128), dtype=np.uint8)
    plan = make_plan(config, images)
    fit = Fit(config, MemoryStream(plan, images, 1), torch.device("cpu"))
    epoch = fit.run_epoch()
    results = epoch.validation
    seen = pd.DataFrame({"image_id": [str(row) for row in range(66)], "split": "train", "pixel_hash": "0" * 64})
    seen["look"] = bytes(LOOK_BYTES)
    predictions = pd.DataFrame(
        {"image_id": seen["image_id"].iloc[results.rows], "group": "g", "label": results.labels, "split": "val"}
    ).assign(logit=results.logits)
    metadata = CheckpointMetadata(
        config, results.threshold, results.calibration, epoch.metrics, data_fingerprint="", epoch=1, trial="t0000"
    )
    spent: dict[str, list[float]] = {"copied": [], "written": [], "best": []}
    for turn in range(20):
        clocks = [time.process_time()]
        state = fit.state()
        clocks.append(time.process_time())
        save_state(scratch / "state.safetensors", *state)
        clocks.append(time.process_time())
        save_checkpoint(scratch / f"best{turn}", fit.averaged.state_dict(), metadata, predictions, seen)
        clocks.append(time.process_time())
        for name, (begun, ended) in zip(spent, pairwise(clocks), strict=True):
            spent[name].append(ended - begun)
    return {name: median(values) for name, values in spent.items()}


def groups(scratch: Path, epochs: int) -> dict[str, float]:
    """Seconds that a search on groups of two workers takes compared with one without: to start, a trial, an epoch."""
    two = ("--workers-per-trial", "2", "--concurrent", "1")
    _, alone = search(scratch, "alone", 2, 1, "tpe", "--concurrent", "1")
    _, few = search(scratch, "few", 2, 1, "tpe", *two)
    _, many = search(scratch, "many", 12, 1, "tpe", *two)
    _, long = search(scratch, "long", 2, epochs, "tpe", *two)
    return {"start": few - alone, "trial": (many - few) / 10, "epoch": (long - few) / (2 * (epochs - 1))}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--trials", type=int, default=1000, help="of the long search (default %(default)s)")
    cli.add_argument("--epochs", type=int, default=200, help="of the long trials (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "overhead.json", help="default %(default)s")
    args = cli.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        _, ten = search(scratch, "ten", 10, 1)
        tpe, long = search(scratch, "tpe", args.trials, 1)
        space = load_space(scratch / "space.yaml", {})
        random, _ = search(scratch, "random", args.trials, 1, sampler="random")
        grown = {"tpe": growth(tpe, space), "random": growth(random, space)}
        _, short = search(scratch, "short", 2, 10)
        epochs, many = search(scratch, "epochs", 2, args.epochs)
        quiet, _ = search(scratch, "quiet", 1, args.epochs, "tpe", "--concurrent", "1")
        reports = {"report_s": report(quiet), "report_of_two_s": report(epochs)}
        on_two = groups(scratch, args.epochs // 2)
        states = checkpoint(scratch)
    figures: dict[str, Any] = {
        "settings": {"trials": args.trials, "epochs": args.epochs},
        "search_of_ten_s": ten,
        "trial_s": (long - ten) / (args.trials - 10),
        "growth": grown,
        # Two trials run side by side.
        "epoch_s": (many - short) / (args.epochs - 10),
        **reports,
        "group_of_two_s": on_two,
        "checkpoint_s": states,
    }
    table = new_table("what", "seconds", "")
    table.add_row("a search of ten empty trials", f"{ten:.1f}", "the complete command: start-up")
    table.add_row(
        "an empty trial", f"{figures['trial_s']:.4f}", f"of {args.trials}, as many at a time as there are cores"
    )
    for name, results in grown.items():
        words = f"from {results['early']:.4f} in the first {EARLY} to {results['late']:.4f} in the last"
        table.add_row(f"  growth, {name}", f"x {results['ratio']:.2f}", words)
    table.add_row("an empty epoch", f"{figures['epoch_s']:.4f}", "reporting and an epoch of 42 tiny images")
    for name, words in (("report_s", "one trial at a time"), ("report_of_two_s", "two, which keep the driver busy")):
        table.add_row("a report", f"{figures[name]['median']:.4f}", f"mean {figures[name]['mean']:.4f}; {words}")
    for name, words in (
        ("start", "of a search on two workers a trial, compared with one worker"),
        ("trial", "an empty one, the group kept"),
        ("epoch", "an empty one, on both"),
    ):
        table.add_row(f"a group's {name}", f"{on_two[name]:.4f}", words)
    for name, words in (
        ("copied", "a state of FractureCNN, by the training thread"),
        ("written", "a state, by another thread"),
        ("best", "the best checkpoint, by another thread"),
    ):
        table.add_row(f"a checkpoint, {name}", f"{states[name]:.4f}", words)
    write_results(new_console(), "overhead", table, figures, args.json)


if __name__ == "__main__":
    main()
