"""python -m fracray.predict: what a checkpoint says of radiographs without labels, a row for each.

A file that cannot be read has a row too, with its error. A command that was stopped goes on when it is given again.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fracray.errors import InputError, RunError, run_verb
from fracray.runtime.arguments import add_address, add_checkpoint, add_coverage, command

if TYPE_CHECKING:  # a command imports Torch and Ray only once its arguments are read and its files are found
    import pyarrow as pa
    from rich.console import Console

    from fracray.metrics import ConformalSets
    from fracray.prediction.inputs import Picture
    from fracray.prediction.parts import Parts, Target
    from fracray.prediction.tally import Tally
    from fracray.training.checkpoint import Checkpoint

# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    cli = command(
        "predict",
        "Predict on radiographs without labels: a table with probability, call, conformal set, flags and the place "
        "that speaks most for a fracture, a row for each file. Give a command that was stopped again, and it goes on.",
        "  python -m fracray.predict runs/atlas other-hospital --to predictions.csv\n"
        "  python -m fracray.predict checkpoints/t0007 a.dcm b.jpg scans.zip --to predictions.parquet --coverage 0.95\n"
        "  find /archive -name '*.dcm' | python -m fracray.predict checkpoints/t0007 - --to found.jsonl --study\n",
    )
    add_checkpoint(cli)
    cli.add_argument(
        "path",
        nargs="+",
        metavar="PATH",
        help="a radiograph (JPEG, PNG, TIFF, DICOM ...), a folder, a zip, an imported set or a URI; - reads a list of "
        "paths from standard input, a line each",
    )
    cli.add_argument(
        "--to",
        required=True,
        metavar="FILE",
        help="the table: FILE.csv, FILE.parquet or FILE.jsonl, on a path or a URI",
    )
    cli.add_argument(
        "--overwrite", action="store_true", help="replace FILE where it exists, and files of the same names in DIR"
    )
    add_coverage(cli)
    cli.add_argument(
        "--study", action="store_true", help="a row for each study: that of its picture with the highest probability"
    )
    cli.add_argument(
        "--heatmaps", metavar="DIR", help="also write each radiograph under the map of where the network looks, as PNG"
    )
    cli.add_argument(
        "--dicom-out",
        metavar="DIR",
        help="also write DICOM results of each DICOM file, as new series of its study: structured report, secondary "
        "capture, presentation state and parametric map",
    )
    add_address(cli)
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    _predict(args, _check(args))


def _check(args: argparse.Namespace) -> Target:
    """Refuse what can be refused without opening a checkpoint; the file to write."""
    from fracray.prediction.parts import Target
    from fracray.runtime.locations import refuse_secret, require_local

    if not 0 < args.coverage < 1:
        raise InputError(f"--coverage {args.coverage:g}: expected a share above 0 and below 1, for example 0.9")
    target = Target.of(args.to)
    if target.folder.is_local and not Path(target.folder.location).is_dir():
        raise InputError(
            f"--to {args.to}: its folder does not exist on this machine; create it, or choose another file"
        )
    _refuse_other(args, target)
    for flag, folder in (("--heatmaps", args.heatmaps), ("--dicom-out", args.dicom_out)):
        if folder and ("://" in folder or Path(folder).expanduser().is_file()):
            raise InputError(
                f"{flag} {folder}: is {'a URI' if '://' in folder else 'a file'}; name a folder on this machine"
            )
    pair = [Path(folder).expanduser().resolve() for folder in (args.heatmaps, args.dicom_out) if folder]
    if len(set(pair)) < len(pair):
        raise InputError(f"--dicom-out {args.dicom_out}: is the folder of --heatmaps too; name another folder")
    if args.dicom_out and importlib.util.find_spec("highdicom") is None:
        raise InputError('--dicom-out: needs highdicom; install it with pip install "fracray[dicom]"')
    require_local(args.checkpoint, "no such checkpoint folder or run")
    for path in args.path:
        refuse_secret(path)
        if path != "-":
            require_local(path, "no such file or folder; name radiographs, a folder, a zip or -")
    return target


def _refuse_other(args: argparse.Namespace, target: Target) -> None:
    """InputError where something is at the name of the table, unless it is a file that may be replaced."""
    if not target.folder.exists(target.name):
        return
    if not target.is_file:
        raise InputError(f"--to {args.to}: is a folder; choose another file")
    if not args.overwrite:
        raise InputError(f"--to {args.to}: exists already; choose another file, or replace it with --overwrite")


# ---------------------------------------------------------------- the steps


def _predict(args: argparse.Namespace, target: Target) -> None:
    from fracray.evaluation.opening import checkpoint_folder
    from fracray.runtime.console import new_console

    console = new_console()
    with checkpoint_folder(args.checkpoint) as folder:
        tally = _rows(args, target, folder, console)
    _say_end(console, args, tally)


def _rows(args: argparse.Namespace, target: Target, folder: Path, console: Console) -> Tally:
    """Predict with the checkpoint in this folder, and write the table."""
    from fracray import __version__
    from fracray.config import DataConfig
    from fracray.data.prepare import cache_folder
    from fracray.evaluation.maps import methods
    from fracray.evaluation.opening import who
    from fracray.prediction import parts
    from fracray.prediction.inputs import find_pictures
    from fracray.prediction.running import predict_pictures
    from fracray.prediction.scoring import Asked, conformal_of, hash_of
    from fracray.runtime.console import counted, progress_bar
    from fracray.runtime.ray_session import connect
    from fracray.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(folder)
    asked = Asked(args.coverage, bool(args.heatmaps), bool(args.dicom_out))
    if asked.heatmaps and not methods(checkpoint.model):
        raise InputError(f"--heatmaps: {args.checkpoint} has no feature maps to look at; leave it out")
    with progress_bar(console, "MiB copied") as step:
        found = find_pictures(args.path, cache_folder(DataConfig()), step)
    skipped = f"; {counted(found.skipped, 'other file')} skipped" if found.skipped else ""
    console.print(
        f"{who([checkpoint])}, on {counted(len(found.pictures), 'radiograph')}{skipped}; decision threshold "
        f"{checkpoint.metadata.threshold:.3f}, fixed on validation",
        soft_wrap=True,
    )
    _say_conformal(console, conformal_of(checkpoint, asked.coverage), asked.coverage, checkpoint.metadata.out_of_fold)
    heatmaps, dicom_out = (
        str(Path(one).expanduser().resolve()) if one else "" for one in (args.heatmaps, args.dicom_out)
    )
    about = parts.About(
        hash_of(folder), found.fingerprint(), len(found.pictures), asked.coverage, heatmaps, dicom_out, __version__
    )
    begun = parts.is_begun(target, about)
    with ExitStack() as held:
        places = _folders(args, found.pictures, begun or args.overwrite, held)
        kept = held.enter_context(parts.open_parts(target, about, args.overwrite))
        _refuse_other(args, target)  # of a command that worked on it until now
        done = kept.done()
        if done.any():
            console.print(f"going on after {done.sum():,} of {len(done):,} that an earlier start has done")
        config = checkpoint.metadata.config.data
        keep = _keeper(kept, places, found.pictures, checkpoint, console)
        with connect(args.address), progress_bar(console, "predicting") as step:
            predict_pictures(found.pictures, done, folder, (config.size, config.crop), asked, keep, step)
        _refuse_other(args, target)  # which came while this one worked; the rows are kept
        kept.require_all()
        tally = _write(args, target, kept.tables())
        kept.remove()
    return tally


def _folders(
    args: argparse.Namespace, pictures: Sequence[Picture], may_hold_files: bool, held: ExitStack
) -> dict[str, Path]:
    """The folders of overlays and of DICOM results, where they are asked for, by option; claimed until `held` ends."""
    from fracray.prediction.folders import result_folder

    named = {"--heatmaps": args.heatmaps, "--dicom-out": args.dicom_out}
    return {
        flag: held.enter_context(result_folder(flag, folder, args.path, pictures, may_hold_files))
        for flag, folder in named.items()
        if folder
    }


def _keeper(
    kept: Parts, places: Mapping[str, Path], pictures: Sequence[Picture], checkpoint: Checkpoint, console: Console
) -> Callable[[pa.Table], None]:
    """What is done with rows as they come: their pictures are written, and they are kept without these."""
    from fracray.evaluation.maps import methods
    from fracray.prediction import overlays
    from fracray.prediction.scoring import slim

    steps: list[Callable[[pa.Table], pa.Table]] = []
    if "--dicom-out" in places:
        from fracray.prediction.dicom_out import Writer

        method = next(iter(methods(checkpoint.model)), None)
        if method is None:
            console.print("note: the network has no map, so there are no parametric maps among the DICOM results")
        size = checkpoint.metadata.config.data.size
        steps.append(Writer(places["--dicom-out"], pictures, size, method, kept.tables()))
    if "--heatmaps" in places:
        steps.append(overlays.writer(places["--heatmaps"], pictures))

    def keep(rows: pa.Table) -> None:
        for step in steps:
            rows = step(rows)
        kept.keep(slim(rows))

    return keep


def _write(args: argparse.Namespace, target: Target, tables: Iterator[pa.Table]) -> Tally:
    """Write the rows, or those of their studies, and count them."""
    from fracray.prediction.parts import write_output
    from fracray.prediction.scoring import COLUMNS, DICOM_OUT, SCORED
    from fracray.prediction.studies import STUDY_COLUMNS, of_studies
    from fracray.prediction.tally import Tally

    if args.dicom_out:
        from fracray.prediction.dicom_out import settled

        tables = settled(tables)
    tally = Tally()
    schema = COLUMNS.append(SCORED.field(DICOM_OUT)) if args.dicom_out else COLUMNS
    counted = (table.select(schema.names) for table in tally.over(tables))
    if args.study:
        write_output(target, of_studies(counted), STUDY_COLUMNS)
    else:
        write_output(target, counted, schema)
    return tally


def _say_conformal(console: Console, sets: ConformalSets | None, coverage: float, out_of_fold: bool) -> None:
    """Say where the conformal sets can promise nothing; out_of_fold: of an ensemble of the models of all folds."""
    import math

    from fracray.runtime.console import counted

    if sets is None:
        console.print("note: the checkpoint keeps no validation logits, so there are no conformal sets")
        return
    if out_of_fold:
        console.print(
            "note: the ensemble's validation is that of its models one by one: the conformal sets promise no coverage",
            soft_wrap=True,
        )
    least = math.ceil(coverage / (1 - coverage) - 1e-9)
    for label, (groups, limit) in enumerate(zip(sets.groups, (sets.highest_of_0, sets.lowest_of_1), strict=True)):
        if math.isinf(limit):
            console.print(
                f"note: class {label} is in every conformal set: its validation images are in "
                f"{counted(groups, 'group')}, and a coverage of {coverage:g} needs {least}",
                soft_wrap=True,
            )


def _say_end(console: Console, args: argparse.Namespace, tally: Tally) -> None:
    from fracray.runtime.console import counted

    if args.heatmaps:
        console.print(f"written: {counted(tally.rows - tally.failed, 'overlay')} in {args.heatmaps}", soft_wrap=True)
    if args.dicom_out:
        console.print(f"written: {tally.dicom_words(args.dicom_out)}", soft_wrap=True)
    console.print(f"written: {args.to}: {tally.words()}", soft_wrap=True)
    if tally.seen:
        console.print(
            f"note: {counted(tally.seen, 'radiograph is', 'radiographs are')} known from the training or its "
            "validation, or copies of those (column seen_in_training): what is said of them is worth less than "
            "it seems",
            style="yellow",
            soft_wrap=True,
        )
    if tally.failed == tally.rows:
        raise RunError(f"none of {counted(tally.rows, 'file')} could be read; {args.to} says why in its column error")


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
