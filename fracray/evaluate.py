"""python -m fracray.evaluate: a checkpoint on a split, or on radiographs that its training never saw.

The decision threshold and the calibration are those fixed on validation. Intervals are over groups, as
images of a group are not independent. The scores of no-pixel predictors are shown next to them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fracray.config import PHANTOM
from fracray.errors import InputError, run_verb
from fracray.runtime.arguments import add_address, command

if TYPE_CHECKING:  # a command imports Torch and Ray only once its arguments are read and its files are found
    from rich.console import Console

    from fracray.config import Config
    from fracray.data.loading.shards import Shards
    from fracray.data.manifest import Manifest
    from fracray.data.prepare import Prepared
    from fracray.evaluation.localisation import Localisation
    from fracray.evaluation.robustness import CorruptionScores, ModelUnderTest
    from fracray.evaluation.scoring import Scored
    from fracray.metrics import Interval
    from fracray.training.checkpoint import Checkpoint, CheckpointMetadata

SEVERITIES = (1, 2, 3, 4, 5)  # those of data.images.corruptions, which takes long to import; a test compares them

# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    cli = command(
        "evaluate",
        "Score a checkpoint: accuracy, AUROC, sensitivity and more, each with a 95% interval over groups, "
        "at the threshold fixed on validation, next to no-pixel predictors.",
        "  python -m fracray.evaluate checkpoints/t0007 --data FracAtlas --split test\n"
        "  python -m fracray.evaluate runs/first --json scores.json\n"
        "  python -m fracray.evaluate checkpoints/t0007 --data other-hospital --split all\n"
        "  python -m fracray.evaluate checkpoints/t0007 --corruptions --reference checkpoints/t0000 --json bad.json\n"
        "  python -m fracray.evaluate runs/fold0 runs/fold1 runs/fold2 runs/fold3 runs/fold4\n",
    )
    cli.add_argument(
        "checkpoint",
        nargs="+",
        help="a checkpoint folder, or a run (its best checkpoint), as a path or URI; several, of the folds of one "
        "kfold division, are scored each on its own test fold and pooled",
    )
    cli.add_argument(
        "--data",
        metavar="PATH",
        help="FracAtlas-layout folder or zip, or an imported set (default: what its run was trained on; a "
        "checkpoint outside of its run needs it)",
    )
    cli.add_argument(
        "--split",
        metavar="SET",
        help="default: test, and its held-out sets; val, test/device, ...; all, for data that the training never saw",
    )
    cli.add_argument("--json", metavar="FILE", help="also write the scores and every image's probability as JSON")
    cli.add_argument(
        "--corruptions",
        action="store_true",
        help="also score under 21 corruptions (exposure, noise, blur, positioning, ...) at severities 1 to 5",
    )
    cli.add_argument(
        "--reference",
        metavar="CHECKPOINT",
        help="with --corruptions: a model on the same data to compare with, for MedMNIST-C's relative balanced error",
    )
    cli.add_argument("--severities", metavar="LIST", help="with --corruptions: some of 1,2,3,4,5 (default: all)")
    cli.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the corruptions, and of the draws of a perfectly calibrated model (default %(default)s)",
    )
    add_address(cli)
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    severities = _check(args)
    _evaluate(args, severities)


def _check(args: argparse.Namespace) -> tuple[int, ...]:
    """Refuse what can be refused without opening a checkpoint; returns the severities of the corruptions."""
    from fracray.runtime.locations import data_source, require_local

    if not args.corruptions and (args.reference or args.severities):
        raise InputError(f"{'--reference' if args.reference else '--severities'}: only with --corruptions")
    if len(args.checkpoint) > 1:
        if args.corruptions:
            raise InputError("--corruptions: scores one checkpoint at a time; name a single one")
        if args.data or args.split not in (None, "test"):
            raise InputError("several checkpoints are scored on the test fold of each; leave out --data and --split")
    for location in (*args.checkpoint, *([args.reference] if args.reference else [])):
        require_local(location, "no such checkpoint folder or run")
    if args.data:
        data_source(args.data)
    return read_severities(args.severities) if args.severities else SEVERITIES


def read_severities(text: str) -> tuple[int, ...]:
    """'1,3,5' to (1, 3, 5); InputError for anything else."""
    known = {str(severity): severity for severity in SEVERITIES}
    words = [word.strip() for word in text.split(",")]
    if not all(word in known for word in words):
        raise InputError(f"--severities {text}: expected some of 1 to 5 with commas between, for example 1,3,5")
    return tuple(sorted({known[word] for word in words}))


# ---------------------------------------------------------------- the steps


def _evaluate(args: argparse.Namespace, severities: tuple[int, ...]) -> None:
    from fracray.data.prepare import examined, prepare, shards_as
    from fracray.data.report import say_flow, say_phantom
    from fracray.evaluation.inference import half_the_cpus
    from fracray.evaluation.localisation import score_localisation
    from fracray.evaluation.report import (
        say_beaten,
        say_calibration,
        say_corruptions,
        say_few_groups,
        say_gap,
        say_localisation,
        say_one_class,
        scores_table,
        sets_table,
    )
    from fracray.evaluation.robustness import score_corruptions
    from fracray.evaluation.scoring import check_folds, pool_folds, refuse_seen, score_part
    from fracray.runtime.console import counted, new_console, progress_bar
    from fracray.runtime.ray_session import connect

    checkpoints = [open_checkpoint(location) for location in args.checkpoint]
    metadata = checkpoints[0].metadata
    if len(checkpoints) > 1:
        check_folds(args.checkpoint, [checkpoint.metadata for checkpoint in checkpoints])
    reference = open_checkpoint(args.reference) if args.reference else None
    config = metadata.config.with_leaves(_paths(args.data, args.checkpoint[0], metadata), "--data")
    console = new_console()
    if not args.data:
        say_phantom(console, config)
    with connect(args.address):
        manifest = examined(config.data, console)
        prepared, part = _prepare(config, manifest, metadata.data_fingerprint, args.split, console)
        say_flow(console, prepared)
        if reference is not None and (part != "all" or prepared.fingerprint != metadata.data_fingerprint):
            complaint = f"--reference {args.reference}: name a model of the same split"
            refuse_seen(reference, prepared, prepared.rows(part), complaint)
        if len(checkpoints) > 1 and part != "test":
            raise InputError(f"{config.data.source}: has changed since the folds were trained; restore it")
        folds = [prepared, *(prepare(one.metadata.config.data, console, manifest=manifest) for one in checkpoints[1:])]
        scored = [score_part(*pair, part, console) for pair in zip(checkpoints, folds, strict=True)]
        other = shards_as(prepared, reference.metadata.config.data, console) if reference else None
    pooled = pool_folds([one for one, _ in scored])
    intervals, perfect = pooled.intervals(), pooled.perfect_ece(args.seed)
    threshold = f"decision threshold {metadata.threshold:.3f}" if len(scored) == 1 else "each fold's decision threshold"
    console.print(
        f"\n{_who(checkpoints)}, on {_what(part, prepared, metadata.data_fingerprint)}: "
        f"{counted(len(pooled.rows), 'radiograph')} in {counted(len(set(pooled.groups)), 'group')}, "
        f"{pooled.labels.mean():.1%} fractured; "
        f"{threshold}, fixed on validation",
        soft_wrap=True,
    )
    console.print(scores_table(intervals, pooled.prepared.baselines, part))
    sets = scored[0][1] if len(scored) == 1 else {}
    all_sets = {part: intervals} | {name: found.intervals() for name, found in sets.items()}
    if sets:
        console.print(sets_table(all_sets, prepared))
    say_beaten(console, intervals, pooled.prepared.baselines, part, config.train.operating_point)
    say_one_class(console, pooled.labels)
    say_calibration(console, intervals, perfect)
    say_few_groups(console, pooled.groups, pooled.labels)
    if part == "test" and len(checkpoints) == 1:
        say_gap(console, metadata.metrics, intervals)
    where = score_localisation(checkpoints[0], prepared, pooled.rows, console) if len(checkpoints) == 1 else None
    say_localisation(console, where)
    if part == "all" and prepared.fingerprint == metadata.data_fingerprint:
        console.print(
            "note: 'all' includes the images that this checkpoint was trained on, so its scores are optimistic",
            style="yellow",
        )
    corruptions = None
    if args.corruptions:
        with half_the_cpus(), progress_bar(console, "scoring corrupted radiographs") as step:
            corruptions = score_corruptions(
                _under_test(checkpoints[0], prepared.shards),
                pooled.rows,
                prepared.table["image_id"].iloc[pooled.rows].tolist(),
                pooled.labels,
                pooled.groups,
                severities,
                _under_test(reference, other) if reference and other else None,
                args.seed,
                step,
            )
        say_corruptions(console, corruptions)
    if args.json:
        _write_json(Path(args.json), args.checkpoint, checkpoints, part, pooled, all_sets, perfect, where, corruptions)
        console.print(f"written: {args.json}")


def _paths(data: str | None, location: str, metadata: CheckpointMetadata) -> dict[str, str | None]:
    """Where the data and the cache are. A checkpoint from elsewhere does not choose which paths are opened."""
    from fracray.runtime.locations import data_source
    from fracray.runtime.run_folder import is_in_run

    trained_on = metadata.config.data.source
    if is_in_run(location):
        return {"data.source": data_source(data) if data else trained_on}
    if not data and trained_on != PHANTOM:
        raise InputError(
            f"{location}: was trained on {trained_on!r}; name the data with --data: only a run, or a checkpoint inside "
            "of its run, chooses what is opened"
        )
    return {"data.source": data_source(data) if data else PHANTOM, "data.cache": None}


def _who(checkpoints: Sequence[Checkpoint]) -> str:
    if len(checkpoints) > 1:
        folds = sorted(checkpoint.metadata.config.data.split.fold for checkpoint in checkpoints)
        of = checkpoints[0].metadata.config.data.split.folds
        return f"{len(folds)} of {of} folds ({', '.join(map(str, folds))}), each by the checkpoint that never saw it"
    only = checkpoints[0]
    if only.members:
        names = ", ".join(member.metadata.trial for member in only.members)
        return f"the ensemble of {len(only.members)} ({names})" if len(only.members) > 1 else names
    return f"{only.metadata.trial or only.folder.name}, epoch {only.metadata.epoch}"


def open_checkpoint(location: str) -> Checkpoint:
    """Load a checkpoint folder, or a run's best one, from a path or URI."""
    from fracray.runtime.run_folder import BEST
    from fracray.runtime.storage import Folder
    from fracray.training.checkpoint import load_checkpoint

    folder = Folder(location)
    if folder.exists("config.yaml") and folder.exists(BEST):
        folder = folder.sub(BEST)
    elif folder.exists("trials") and not folder.exists("config.json"):
        raise InputError(
            f"{location}: a run without a best checkpoint yet; name one of {', '.join(folder.names('trials'))}"
        )
    if not folder.is_local and not folder.exists("config.json"):  # before anything is copied
        raise InputError(f"{folder}: not a checkpoint folder: no config.json in it; name a run, or its best/")
    with folder.local_folder() as local:
        return load_checkpoint(local)


def _prepare(
    config: Config, manifest: Manifest, trained_on: str, split: str | None, console: Console
) -> tuple[Prepared, str]:
    """The data set and the part of it to score; data that was never seen has no parts and is scored in full."""
    from fracray.data.prepare import prepare
    from fracray.errors import nearest

    known = manifest.fingerprint() == trained_on
    if split == "all" or (not known and split is None):
        return prepare(config.data, console, split=False, manifest=manifest), "all"
    if not known:
        raise InputError(
            f"--split {split}: {config.data.source} is not the data this checkpoint was trained on, so it has no "
            f"{split} part; score all of it with --split all"
        )
    prepared = prepare(config.data, console, manifest=manifest)
    if split is not None and split not in prepared.sets:
        raise InputError(
            f"--split {split}: there is no such set{nearest(split, prepared.sets)}; there are "
            f"{', '.join(prepared.sets)} and all"
        )
    return prepared, split or "test"


def _under_test(checkpoint: Checkpoint, shards: Shards) -> ModelUnderTest:
    from fracray.evaluation.inference import network
    from fracray.evaluation.robustness import ModelUnderTest

    run, metadata = network(checkpoint), checkpoint.metadata
    return ModelUnderTest(shards, lambda images: metadata.calibration.apply(run(images)), metadata.threshold)


def _what(part: str, prepared: Prepared, trained_on: str) -> str:
    if prepared.fingerprint != trained_on:
        return f"{prepared.origin}, without what its training is known to have seen"
    return "all radiographs" if part == "all" else f"the set {part}"


def _write_json(
    path: Path,
    locations: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    part: str,
    scored: Scored,
    sets: dict[str, dict[str, Interval]],
    perfect: float,
    where: Localisation | None,
    corruptions: CorruptionScores | None,
) -> None:
    table = scored.prepared.table.iloc[scored.rows]
    tree: dict[str, Any] = {
        "checkpoints": [
            {
                "location": location,
                "trial": checkpoint.metadata.trial,
                "epoch": checkpoint.metadata.epoch,
                "threshold": checkpoint.metadata.threshold,
                "members": [member.metadata.trial for member in checkpoint.members],
            }
            for location, checkpoint in zip(locations, checkpoints, strict=True)
        ],
        "data": (data := scored.prepared.summary()),
        "warnings": data["warnings"],
        "split": part,
        "images": len(table),
        "groups": int(table["group"].nunique()),
        "scores": _as_dicts(sets[part]),
        "ece_of_a_perfect_model": None if isnan(perfect) else perfect,
        "sets": {name: _as_dicts(intervals) for name, intervals in sets.items() if name != part},
        "predictions": [
            {"image_id": image_id, "group": group, "label": int(label), "probability": float(f"{probability:.9g}")}
            for image_id, group, label, probability in zip(
                table["image_id"], table["group"], table["label"], scored.probabilities, strict=True
            )
        ],
    }
    if where is not None:
        tree["localisation"] = where.as_dict()
    if corruptions is not None:
        tree["corruptions"] = corruptions.as_dict()
    from fracray.runtime.storage import write_named

    try:
        write_named(path, (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise InputError(f"--json {path}: cannot be written: {error}") from None


def _as_dicts(intervals: dict[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {name: interval.as_dict() for name, interval in intervals.items()}


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
