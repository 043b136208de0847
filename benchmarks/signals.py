"""Which validation metric tells configurations apart: how it ranks them against test, and its noise between seeds.

`draw` writes a search space's default and random configurations as recipes for `ablation.py run --every-epoch`, which
trains each of them on every fold with several seeds. `show` asks of each metric that a search could go by: the epoch
that it chooses, how far its value there differs between seeds and between configurations, how configurations rank by
one seed's value against their mean test AUROC over the other seeds, and what the configuration that it chooses is
worth on test, compared with the default.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from ablation import CURVE, FOLDS, TABLE, read_runs
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from table import write_results

from fracray.runtime.console import new_console, new_table
from fracray.search.space_file import load_space

HERE = Path(__file__).parent
DEFAULT = "default"
SMALLER_IS_BETTER = ("train_loss", "val_loss")


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python benchmarks/signals.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = cli.add_subparsers(dest="command", required=True)
    draw_ = commands.add_parser("draw", help="write the configurations as recipes")
    draw_.add_argument("--space", type=Path, default=HERE.parent / "search_spaces" / "reg.yaml")
    draw_.add_argument("--configurations", type=int, default=10, help="beside the default (default %(default)s)")
    draw_.add_argument("--seed", type=int, default=0, help="of their drawing (default %(default)s)")
    draw_.add_argument("--to", type=Path, required=True, help="file for the recipes, .yaml")
    show_ = commands.add_parser("show", help="print the table of a run of these recipes")
    show_.add_argument("runs", type=Path, nargs="+", help="files that `ablation.py run --every-epoch` wrote")
    show_.add_argument("--pack", type=Path, required=True, help="folder that `ablation.py pack` wrote")
    show_.add_argument("--json", type=Path, default=HERE / "results" / "signals.json", help="default %(default)s")
    return cli


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    {"draw": draw, "show": show}[args.command](args)


def draw(args: argparse.Namespace) -> None:
    """Random configurations as a random search draws them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = load_space(args.space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(args.seed))
    drawn = {f"random {number}": space.suggest(study.ask()) for number in range(args.configurations)}
    recipes = {"base": space.config.leaves(), "steps": {DEFAULT: {}, **drawn}}
    recipes["base"] = {path: value for path, value in recipes["base"].items() if not path.startswith("search.")}
    args.to.write_text(yaml.safe_dump(recipes, sort_keys=False))


def show(args: argparse.Namespace) -> None:
    """A row for each metric."""
    labels = pd.read_parquet(args.pack / TABLE)["label"].to_numpy()
    found = read_runs(args.runs)
    names = list(dict.fromkeys(name for name, _, _ in found))
    seeds = sorted({seed for _, _, seed in found})
    folds = [fold for fold in range(FOLDS) if all((name, fold, seed) in found for name in names for seed in seeds)]
    curves, tested = [], []
    for name in names:
        for fold in folds:
            for seed in seeds:
                arrays = found[name, fold, seed]
                y = labels[arrays["test_rows"]]
                curves.append(arrays["curve"])
                tested.append([roc_auc_score(y, logits) for logits in arrays["epochs_test"]])
    shape = (len(names), len(folds), len(seeds), -1)
    curve = np.array(curves).reshape(*shape, len(CURVE))
    test = np.array(tested).reshape(shape)
    rows = [_row(metric, curve[..., at], test, names) for at, metric in enumerate(CURVE)]
    table = new_table(
        "metric", "sd of seeds", "sd of configurations", "rank correlation", "chosen epoch", "test AUROC", "to default"
    )
    for row in rows:
        table.add_row(
            row["metric"],
            f"{row['seeds']:.4f}",
            f"{row['configurations']:.4f}",
            f"{row['correlation']:.2f}",
            f"{row['epoch']:.1f}",
            f"{row['test']:.4f}",
            f"{row['gain']:+.4f}",
        )
    figures = {"configurations": names, "seeds": seeds, "folds": folds, "epochs": test.shape[-1], "rows": rows}
    write_results(new_console(), "signals", table, figures, args.json)


def _row(metric: str, curve: np.ndarray, test: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """curve, test: (configurations, folds, seeds, epochs), the metric's values and the test AUROC."""
    signed = -curve if metric in SMALLER_IS_BETTER else curve
    epoch = signed.argmax(-1)[..., None]
    value, worth = (np.take_along_axis(of, epoch, -1)[..., 0] for of in (signed, test))
    correlations, chosen, gains = [], [], []
    for fold in range(value.shape[1]):
        for seed in range(value.shape[2]):
            mine = value[:, fold, seed]
            best = int(mine.argmax())
            chosen.append(worth[best, fold, seed])
            gains.append(worth[best, fold, seed] - worth[names.index(DEFAULT), fold, seed])
            others = np.delete(worth[:, fold], seed, axis=1)
            if others.shape[1]:
                correlations.append(spearmanr(mine, others.mean(1)).statistic)
    return {
        "metric": metric,
        "seeds": float(value.std(2, ddof=1).mean()),
        "configurations": float(value.mean(2).std(0, ddof=1).mean()),
        "correlation": float(np.nanmean(correlations)),
        "epoch": float(epoch.mean() + 1),
        "test": float(np.mean(chosen)),
        "gain": float(np.mean(gains)),
    }


if __name__ == "__main__":
    main()
