"""python -m fracray.log: write a search, a refit or a training to MLflow or TensorBoard, at any time.

Reads the run folder and trains nothing. What is written of a run, and how, is in `fracray.tracking`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fracray.errors import InputError, RunError, run_verb
from fracray.runtime.arguments import command
from fracray.runtime.locations import require_local


def parser() -> argparse.ArgumentParser:
    cli = command(
        "log",
        "Write a search, a refit or a training to MLflow or TensorBoard: the trials below their search, settings, the "
        "metrics of every epoch, versions and the fingerprint of the data; in MLflow also the best checkpoint and the "
        "report. What is there already is brought up to date and never written twice, so the command may be repeated, "
        "also while the run goes on. `tune --log` and `train --log` do the same while they run.",
        "  python -m fracray.log runs/atlas --to mlflow:sqlite:///mlflow.db\n"
        "  python -m fracray.log runs/atlas --to mlflow:http://127.0.0.1:5000\n"
        "  python -m fracray.log s3://bucket/runs/atlas --to tensorboard:tb\n\n"
        "to look at it:\n"
        "  mlflow server --backend-store-uri sqlite:///mlflow.db     (of the package mlflow)\n"
        "  tensorboard --logdir tb                                   (of the package tensorboard)\n\n"
        'Needs the extra: pip install "fracray[log]". MLflow\'s experiment is fracray, or MLFLOW_EXPERIMENT_NAME.\n'
        "A name and password for its server are read from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.\n",
    )
    cli.add_argument("run", help="the run folder of a search or a training, finished or not, as a path or URI")
    cli.add_argument(
        "--to",
        action="append",
        required=True,
        metavar="KIND:PLACE",
        help="mlflow:URI of a database or server, or tensorboard:FOLDER; repeatable",
    )
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    require_local(args.run, "no such run folder")

    from fracray.runtime.claim import in_work
    from fracray.runtime.console import new_console
    from fracray.runtime.locations import without_secret
    from fracray.runtime.run_folder import open_run
    from fracray.search.refit import PLAN
    from fracray.search.study import JOURNAL
    from fracray.tracking.entries import Entries, write_run
    from fracray.tracking.targets import parse_address

    addresses = [parse_address(text, "--to") for text in args.to]
    run = open_run(args.run)
    if run.exists(PLAN) and run.around.exists(JOURNAL):  # a refit is shown below its search
        run = run.around
    entries, console = Entries(run, in_work(run)), new_console()
    for address in addresses:
        writer = address.open()
        try:
            write_run(entries, writer)
        except (InputError, RunError):
            raise
        except Exception as error:  # of MLflow, of its database or of the network
            reason = without_secret(" ".join(str(error).split()))
            raise RunError(f"--to {address}: {type(error).__name__}: {reason[:300]}") from None
        finally:
            writer.close()
        console.print(f"written to {address}: {writer.tally.words()}", soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
