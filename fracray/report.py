"""python -m fracray.report: a search, a training, a refit or a checkpoint as one self-contained HTML page.

Reads what is stored, also while a search runs, and trains nothing. What the page shows is in `fracray.reporting`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fracray.errors import InputError, run_verb
from fracray.runtime.arguments import add_prices, command
from fracray.runtime.locations import data_source, require_local

if TYPE_CHECKING:  # a command imports Torch and Ray only once its arguments are read and its files are found
    from rich.console import Console

    from fracray.reporting.evaluated import Evaluated
    from fracray.reporting.subject import Subject


def parser() -> argparse.ArgumentParser:
    cli = command(
        "report",
        "Write what a search, a training, a refit or a checkpoint found as one HTML page, which loads nothing from "
        "elsewhere. It can be written while the search runs, with what is there so far.",
        "  python -m fracray.report runs/atlas\n"
        "  python -m fracray.report s3://bucket/runs/atlas --to atlas.html\n"
        "  python -m fracray.report checkpoints/t0007 --data FracAtlas.zip --to t0007.html\n",
    )
    cli.add_argument("run", help="a run folder of tune or train, or a checkpoint folder, as a path or URI")
    cli.add_argument(
        "--data",
        metavar="PATH",
        help="the data that it was trained on, for the pictures of the errors (default: of a run, where it was)",
    )
    cli.add_argument(
        "--to",
        metavar="FILE",
        help="the page (default: report.html in the run folder; of a checkpoint, NAME.html here)",
    )
    cli.add_argument("--model-card", metavar="FILE.md", help="also write a model card, in Markdown for Hugging Face")
    cli.add_argument(
        "--claim",
        metavar="FILE.json",
        help="also write the items of CLAIM 2024 and TRIPOD+AI, those a run knows filled in",
    )
    cli.add_argument(
        "--evaluated",
        metavar="FILE.json",
        help="what `evaluate --json` wrote of the same checkpoint: its scores and corruptions, in the section on "
        "robustness",
    )
    add_prices(cli, "for the cost in money")
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    require_local(args.run, "no such run folder or checkpoint")
    if args.data:
        data_source(args.data)
    for flag, file in (("--to", args.to), ("--model-card", args.model_card), ("--claim", args.claim)):
        if file and not Path(file).expanduser().absolute().parent.is_dir():
            raise InputError(f"{flag} {file}: its folder does not exist; create it, or choose another file")

    from fracray.cluster.prices import read_prices
    from fracray.reporting.documents import claim_json, model_card
    from fracray.reporting.page import REPORT, AtHand, as_html
    from fracray.reporting.pictures import images_at_hand
    from fracray.reporting.subject import opened
    from fracray.runtime.console import new_console

    console, prices = new_console(), read_prices(args.cluster, args.price_per_hour)
    with opened(args.run) as found:
        evaluated = _evaluated(args.evaluated, found) if args.evaluated else None
        subject = replace(found, evaluated=evaluated, prices=prices)
        images = images_at_hand(subject, args.data, console)
        in_run = args.to is None and subject.run is not None
        page = as_html(subject, AtHand(images, console, in_run))
        if args.to is None and subject.run is not None:
            subject.run.write(REPORT, page)
            console.print(f"written: {subject.run}/{REPORT}", soft_wrap=True)
        else:
            _write("--to", args.to or f"{subject.name}.html", page, console)
        if args.model_card:
            _write("--model-card", args.model_card, model_card(subject, images is not None), console)
        if args.claim:
            _write("--claim", args.claim, claim_json(subject, images is not None), console)


def _evaluated(file: str, subject: Subject) -> Evaluated:
    from fracray.reporting.evaluated import read_evaluated

    if subject.judged is None:
        raise InputError(f"--evaluated {file}: {subject.location} has no checkpoint yet; leave it out")
    return read_evaluated(file, subject.judged.card)


def _write(flag: str, file: str, text: str, console: Console) -> None:
    from fracray.runtime.storage import write_named

    try:
        write_named(Path(file).expanduser(), text.encode())
    except OSError as error:
        raise InputError(f"{flag} {file}: cannot be written: {error}; choose another file") from None
    console.print(f"written: {file}", soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
