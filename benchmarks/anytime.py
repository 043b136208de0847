"""Best validation accuracy against compute: TPE with ASHA against random search without early stopping.

Both search the same space on the phantoms with `python -m fracray.tune`, several seeds each, beginning with the default
configuration. Compute is counted in epochs trained over all trials, in the order in which they were reported, so that
the machine's load does not matter. The result is the share of the random search's compute after which TPE with
ASHA has reached the accuracy that the random search ends with; it gets at most the same compute. The curve is drawn.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from processes import timed
from table import write_results

from fracray.runtime.console import new_console, new_table
from fracray.search.study import JOURNAL

HERE = Path(__file__).parent
INTERMEDIATE = "intermediate_value"
SCHEDULE = {"name": "asha", "reduction_factor": 3}
METHODS = {"tpe with asha": "tpe", "random": "random"}


def space(method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The example space of the design: the seven settings of reg.yaml and the learning rate."""
    tree = yaml.safe_load((HERE.parent / "search_spaces" / "reg.yaml").read_text())
    tree["space"]["train.lr"] = {"log_float": [1.0e-4, 1.0e-2]}
    tree |= {"epochs": args.epochs, "sampler": {"name": method, "seed": seed, "startup_trials": args.startup}}
    if method == "random":
        tree |= {"trials": args.trials, "scheduler": {"name": "none"}}
    else:
        # A third continues from each rung: that many use about the same compute.
        tree |= {
            "trials": 4 * args.trials,
            "scheduler": {**SCHEDULE, "grace_epochs": args.grace},
        }
    tree["base"] = {"data": {"size": args.size, "phantom": {"count": args.count}}, "train": {"seed": seed}}
    return tree


def curve(run: Path, epochs: int) -> np.ndarray:
    """Best value so far after each epoch that any trial reported, at most `epochs` of them.

    The journal holds them in order.
    """
    best, values = -np.inf, []
    for line in (run / JOURNAL).read_text().splitlines():
        entry = json.loads(line)
        if INTERMEDIATE in entry:
            best = max(best, entry[INTERMEDIATE])
            values.append(best)
    return np.array(values[:epochs])


def search(method: str, seed: int, args: argparse.Namespace, scratch: Path) -> np.ndarray:
    file, name = scratch / "space.yaml", f"{method}-{seed}"
    file.write_text(yaml.safe_dump(space(method, seed, args)))
    command = [sys.executable, "-m", "fracray.tune", "--space", str(file), "--storage", str(scratch), "--name", name]
    timed(command)
    return curve(scratch / name, args.trials * args.epochs)


def share_needed(ours: np.ndarray, target: float, budget: int) -> float:
    """After which share of the budget the curve reaches the target; infinite where it does not."""
    reached = np.flatnonzero(ours >= target)
    return (int(reached[0]) + 1) / budget if len(reached) else float("inf")


def draw(curves: dict[str, list[np.ndarray]], budget: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    steps = np.arange(1, budget + 1)
    for (name, runs), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        filled = np.array([np.append(run, np.full(budget - len(run), run[-1])) for run in runs])
        for run in filled:
            axes.plot(steps, run, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, np.median(filled, axis=0), color=colour, linewidth=2, label=f"{name}, median of {len(runs)}")
    axes.set(xscale="log", xlabel="epochs trained, all trials together", ylabel="best validation accuracy")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--seeds", type=int, default=5, help="searches of each kind (default %(default)s)")
    cli.add_argument("--trials", type=int, default=27, help="of the random search (default %(default)s)")
    cli.add_argument("--epochs", type=int, default=9, help="of a trial that is not stopped (default %(default)s)")
    cli.add_argument("--grace", type=int, default=1, help="epochs before ASHA may stop a trial (default %(default)s)")
    cli.add_argument("--startup", type=int, default=8, help="random trials before TPE models (default %(default)s)")
    cli.add_argument("--count", type=int, default=1200, help="phantoms (default %(default)s)")
    cli.add_argument("--size", type=int, default=96, help="side in pixels (default %(default)s)")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "anytime.json", help="default %(default)s")
    args = cli.parse_args()
    budget = args.trials * args.epochs
    curves: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for name, method in METHODS.items():
                curves[name].append(search(method, seed, args, Path(folder)))
                print(
                    f"seed {seed}, {name}: {curves[name][-1][-1]:.4f} after {len(curves[name][-1])} epochs", flush=True
                )
    pairs = list(zip(*curves.values(), strict=True))
    shares = [share_needed(ours, theirs[-1], budget) for ours, theirs in pairs]
    table = new_table("seed", "random: final", "tpe with asha: final", "at a tenth of the compute", "share of compute")
    for seed, ((ours, theirs), share) in enumerate(zip(pairs, shares, strict=True)):
        early = ours[min(budget // 10, len(ours)) - 1]
        needed = f"{share:.3f}" if np.isfinite(share) else "not reached"
        table.add_row(str(seed), f"{theirs[-1]:.4f}", f"{ours[-1]:.4f}", f"{early:.4f}", needed)
    table.add_row(
        "median",
        *(f"{median(run[-1] for run in curves[name]):.4f}" for name in reversed(METHODS)),
        "",
        f"{median(shares):.3f}",
    )
    draw(curves, budget, args.json.with_suffix(".png"))
    figures = {
        "settings": {key: value for key, value in vars(args).items() if key != "json"},
        "share_of_compute": [share if np.isfinite(share) else None for share in shares],
        "curves": {name: [run.tolist() for run in runs] for name, runs in curves.items()},
    }
    write_results(new_console(), "anytime", table, figures, args.json)


if __name__ == "__main__":
    main()
