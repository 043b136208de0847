"""Options that several commands share, each written and explained once. Imports only the standard library."""

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """Takes an option by its full name only, also below `add_subparsers`.

    `cluster submit` finds options by their names, and a later version may have another one that begins alike.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)


def command(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of `python -m fracray.NAME`, with examples below its options."""
    return Parser(
        prog=f"python -m fracray.{name}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_checkpoint(cli: argparse.ArgumentParser) -> None:
    cli.add_argument("checkpoint", help="a checkpoint folder, or a run (its best checkpoint), as a path or URI")


def add_coverage(cli: argparse.ArgumentParser) -> None:
    cli.add_argument(
        "--coverage",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="how often the conformal set shall hold the right class, of each class (default %(default)s)",
    )


def add_run_options(cli: argparse.ArgumentParser, kind: str) -> None:
    """The options of commands that start or resume a run folder."""
    cli.add_argument("--data", metavar="PATH", help="FracAtlas (folder, zip) or an imported set; default: phantoms")
    cli.add_argument("--epochs", type=int, metavar="N", help="epochs of a model; short for --set train.epochs=N")
    cli.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="fix one setting; repeatable")
    cli.add_argument("--storage", default="runs", help="folder or URI that holds the runs (default %(default)s)")
    cli.add_argument("--name", help=f"name of the run folder (default: {kind}- and the time)")
    cli.add_argument("--resume", action="store_true", help="continue the run of this --name from where it stopped")
    cli.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="KIND:PLACE",
        help="also write the run to a dashboard, while it goes on: mlflow:URI or tensorboard:FOLDER, as `python -m "
        "fracray.log` does afterwards; repeatable",
    )
    add_address(cli)


def add_prices(cli: argparse.ArgumentParser, what: str) -> None:
    """The options of an estimate in money."""
    cli.add_argument("--cluster", metavar="FILE", help=f"{what}: the cluster file whose nodes --price-per-hour is for")
    cli.add_argument(
        "--price-per-hour",
        metavar="NODE=PRICE,...",
        help="what an hour of a node costs, by its type in --cluster, for example head=0.13,gpu_spot=0.39, in any "
        "currency",
    )


def add_address(cli: argparse._ActionsContainer) -> None:
    cli.add_argument("--address", help="a Ray cluster: auto or HOST:PORT (default: a local one)")
