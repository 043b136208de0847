"""python -m fracray.evaluate: a checkpoint on a split, or on radiographs that its training never saw.

The decision threshold and the calibration are those fixed on validation. Intervals are over groups, as
images of a group are not independent. The scores of no-pixel predictors are shown next to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fracray.errors import InputError, run_verb
from fracray.evaluation.asked import (
    SEVERITIES,
    SUBGROUPS,
    Asked,
    read_axes,
    read_costs,
    read_prevalence,
    read_severities,
)
from fracray.runtime.arguments import add_address, command

if TYPE_CHECKING:  # a command imports Torch and Ray only once its arguments are read and its files are found
    from rich.console import Console

    from fracray.data.loading.shards import Shards
    from fracray.evaluation.robustness import CorruptionScores, ModelUnderTest
    from fracray.evaluation.scoring import Scored
    from fracray.evaluation.written import Findings
    from fracray.training.checkpoint import Checkpoint

NEEDS = {
    "reference": "corruptions",
    "severities": "corruptions",
    "cost_ratio": "operating_points",
    "prevalence": "operating_points",
}

# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    cli = command(
        "evaluate",
        "Score a checkpoint: accuracy, AUROC, sensitivity and more, each with a 95% interval over groups, "
        "at the threshold fixed on validation, next to no-pixel predictors.",
        "  python -m fracray.evaluate checkpoints/t0007 --data FracAtlas --split test\n"
        "  python -m fracray.evaluate runs/first --json scores.json\n"
        "  python -m fracray.evaluate checkpoints/t0007 --data other-hospital --split all\n"
        "  python -m fracray.evaluate runs/first --by region,view,box --operating-points --prevalence 0.05 --saliency\n"
        "  python -m fracray.evaluate runs/first --against runs/second\n"
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
    cli.add_argument(
        "--json",
        metavar="FILE",
        help="also write all of it as JSON, with every image's probability and the points of the curves",
    )
    cli.add_argument("--csv", metavar="FOLDER", help="also write each table as a CSV file into this folder")
    cli.add_argument(
        "--by",
        metavar="LIST",
        help=f"also score subgroups by some of {','.join(SUBGROUPS)}; box is the size of the fracture",
    )
    cli.add_argument(
        "--operating-points",
        action="store_true",
        help="also score thresholds that are fixed on validation for a sensitivity or specificity of 0.90 and 0.95, "
        "Youden's index and --cost-ratio, and the decision curve",
    )
    cli.add_argument(
        "--cost-ratio",
        metavar="FN:FP",
        help="with --operating-points: what a missed fracture costs and what a false alarm, for example 10:1",
    )
    cli.add_argument(
        "--prevalence",
        metavar="SHARE",
        help="with --operating-points: the share of fractured radiographs where the model is to be used, for example "
        "0.05, for PPV, NPV, cost and net benefit (default: the set's own)",
    )
    cli.add_argument(
        "--saliency",
        action="store_true",
        help="also score where it looks: the localiser's map and Grad-CAM beside the boxes, and their sanity check",
    )
    cli.add_argument(
        "--against",
        metavar="CHECKPOINT",
        help="also score another checkpoint or run on the same radiographs: differences with intervals, DeLong's test",
    )
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
        help="of what is drawn: corruptions, a perfectly calibrated model, random weights, bands (default %(default)s)",
    )
    add_address(cli)
    return cli


@dataclass(frozen=True)
class Other:
    """Another checkpoint, and the same radiographs at the size it takes."""

    checkpoint: Checkpoint
    shards: Shards


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    _evaluate(args, _check(args))


def _check(args: argparse.Namespace) -> Asked:
    """Refuse what can be refused without opening a checkpoint."""
    from fracray.runtime.locations import data_source, require_local

    for flag, needed in NEEDS.items():
        if getattr(args, flag) is not None and not getattr(args, needed):
            raise InputError(f"{_flag(flag)}: only with {_flag(needed)}")
    if len(args.checkpoint) > 1:
        for flag in ("corruptions", "saliency", "against"):
            if getattr(args, flag):
                raise InputError(f"{_flag(flag)}: takes one checkpoint at a time; name a single one")
        if args.data or args.split not in (None, "test"):
            raise InputError("several checkpoints are scored on the test fold of each; leave out --data and --split")
    for location in (*args.checkpoint, *filter(None, (args.reference, args.against))):
        require_local(location, "no such checkpoint folder or run")
    if args.data:
        data_source(args.data)
    if args.csv and Path(args.csv).exists() and not Path(args.csv).is_dir():
        raise InputError(f"--csv {args.csv}: is a file; name a folder for the tables")
    return Asked(
        severities=read_severities(args.severities) if args.severities is not None else SEVERITIES,
        axes=read_axes(args.by) if args.by is not None else (),
        costs=read_costs(args.cost_ratio) if args.cost_ratio is not None else None,
        prevalence=read_prevalence(args.prevalence) if args.prevalence is not None else None,
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# ---------------------------------------------------------------- the steps


def _evaluate(args: argparse.Namespace, asked: Asked) -> None:
    from fracray.data.prepare import examined, prepare, shards_as
    from fracray.data.report import say_flow, say_phantom
    from fracray.evaluation.opening import on_what, open_checkpoint, paths_to_open, prepare_part, who
    from fracray.evaluation.scoring import check_folds, judged_out_of_fold, pool_folds, refuse_seen, score_part
    from fracray.evaluation.subgroups import check_axes
    from fracray.evaluation.written import Findings, as_tree, curves_of, refuse_other_tables, write_csv, write_json
    from fracray.runtime.console import new_console
    from fracray.runtime.ray_session import connect

    if args.csv:
        refuse_other_tables(args.csv)
    checkpoints = [open_checkpoint(location) for location in args.checkpoint]
    metadata = checkpoints[0].metadata
    if len(checkpoints) > 1:
        check_folds(args.checkpoint, [checkpoint.metadata for checkpoint in checkpoints])
    reference = open_checkpoint(args.reference) if args.reference else None
    against = open_checkpoint(args.against) if args.against else None
    config = metadata.config.with_leaves(paths_to_open(args.data, args.checkpoint[0], metadata), "--data")
    console = new_console()
    if not args.data:
        say_phantom(console, config)
    with connect(args.address):
        manifest = examined(config.data, console)
        prepared, part = prepare_part(config, manifest, metadata.data_fingerprint, args.split, console)
        say_flow(console, prepared)
        stored = judged_out_of_fold(metadata, part, prepared)
        for flag in ("corruptions", "saliency", "against"):
            if stored and getattr(args, flag):
                raise InputError(
                    f"{_flag(flag)}: each radiograph of val was trained on by some members of {args.checkpoint[0]}, so "
                    "its scores on val are those that were stored with it; use --split test"
                )
        check_axes(prepared.table, asked.axes, config.data.source)
        if reference is not None and (part != "all" or prepared.fingerprint != metadata.data_fingerprint):
            complaint = f"--reference {args.reference}: name a model of the same split"
            refuse_seen(reference, prepared, prepared.rows(part), complaint)
        if len(checkpoints) > 1 and part != "test":
            raise InputError(f"{config.data.source}: has changed since the folds were trained; restore it")
        folds = [prepared, *(prepare(one.metadata.config.data, console, manifest=manifest) for one in checkpoints[1:])]
        scored = [score_part(*pair, part, console) for pair in zip(checkpoints, folds, strict=True)]
        others = [
            Other(one, shards_as(prepared, one.metadata.config.data, console)) if one else None
            for one in (reference, against)
        ]
    pooled = pool_folds([one for one, _ in scored])
    sets = {part: pooled.intervals()}
    if len(scored) == 1:
        sets |= {name: found.intervals() for name, found in scored[0][1].items()}
    found = Findings(part, pooled, sets, pooled.perfect_ece(args.seed), curves_of(pooled, args.seed))
    _say_scores(
        console,
        found,
        checkpoints,
        f"{who(checkpoints)}, on {on_what(part, prepared, metadata.data_fingerprint)}"
        f"{metadata.of_fold if stored else ''}",
    )
    _more(args, asked, found, checkpoints, others, console)
    tree = as_tree(found, args.checkpoint, checkpoints)
    if args.json:
        write_json(args.json, tree)
        console.print(f"written: {args.json}")
    if args.csv:
        console.print(f"written: {', '.join(write_csv(args.csv, tree))} in {args.csv}", soft_wrap=True)


def _say_scores(console: Console, found: Findings, checkpoints: Sequence[Checkpoint], what: str) -> None:
    """Print the scores of the part and of its held-out sets, and what they are worth."""
    from fracray.evaluation.report import (
        say_beaten,
        say_calibration,
        say_few_groups,
        say_gap,
        say_one_class,
        scores_table,
        sets_table,
    )
    from fracray.runtime.console import counted

    part, pooled, intervals = found.part, found.scored, found.sets[found.part]
    metadata, prepared, single = checkpoints[0].metadata, pooled.prepared, len(checkpoints) == 1
    threshold = f"decision threshold {metadata.threshold:.3f}" if single else "each fold's decision threshold"
    console.print(
        f"\n{what}: {counted(len(pooled.rows), 'radiograph')} in {counted(len(set(pooled.groups)), 'group')}, "
        f"{pooled.labels.mean():.1%} fractured; {threshold}, fixed on validation",
        soft_wrap=True,
    )
    console.print(scores_table(intervals, prepared.baselines, part))
    if len(found.sets) > 1:
        console.print(sets_table(found.sets, prepared))
    say_beaten(console, intervals, prepared.baselines, part, metadata.config.train.operating_point)
    say_one_class(console, pooled.labels)
    say_calibration(console, intervals, found.perfect_ece)
    say_few_groups(console, pooled.groups, pooled.labels)
    if part == "test" and single:
        say_gap(console, metadata.metrics, intervals, metadata.out_of_fold)
    if part == "all" and prepared.fingerprint == metadata.data_fingerprint:
        console.print(
            "note: 'all' includes the images that this checkpoint was trained on, so its scores are optimistic",
            style="yellow",
        )


def _more(
    args: argparse.Namespace,
    asked: Asked,
    found: Findings,
    checkpoints: Sequence[Checkpoint],
    others: Sequence[Other | None],
    console: Console,
) -> None:
    """Add to what was found what the flags ask for, and print it."""
    from fracray.evaluation import flag_tables
    from fracray.evaluation.comparison import compare
    from fracray.evaluation.localisation import score_localisation
    from fracray.evaluation.operating import score_operating_points
    from fracray.evaluation.report import say_corruptions, say_localisation
    from fracray.evaluation.saliency import Check, score_saliency
    from fracray.evaluation.scoring import judged_out_of_fold
    from fracray.evaluation.subgroups import score_subgroups

    pooled, only = found.scored, checkpoints[0]
    reference, against = others
    if len(checkpoints) == 1 and not judged_out_of_fold(only.metadata, found.part, pooled.prepared):
        found.localisation = score_localisation(only, pooled.prepared, pooled.rows, console)
        if not args.saliency:
            say_localisation(console, found.localisation)
    if asked.axes:
        found.subgroups = score_subgroups(pooled, asked.axes)
        flag_tables.say_subgroups(console, found.subgroups, found.sets[found.part])
    if args.operating_points:
        found.operating = score_operating_points(checkpoints, pooled, asked.cost_ratio(), asked.prevalence)
        flag_tables.say_operating_points(console, found.operating, found.part == "val")
        if only.metadata.out_of_fold and found.part != "val":
            console.print(
                "note: these thresholds are fixed on what the ensemble's models say one by one; their mean is nearer "
                "to the prevalence, so fewer may be called here",
                soft_wrap=True,
            )
        flag_tables.say_decision_curve(console, found.operating)
    if args.saliency:
        found.saliency = score_saliency(only, pooled, Check(seed=args.seed), console)
        flag_tables.say_saliency(console, found.saliency)
    if against is not None:
        trained_on = only.metadata.data_fingerprint
        found.against = compare(
            args.against, against.checkpoint, against.shards, pooled, trained_on, found.part, console
        )
        flag_tables.say_comparison(console, found.against)
    if args.corruptions:
        found.corruptions = _corruptions(asked.severities, args.seed, only, pooled, reference, console)
        say_corruptions(console, found.corruptions)


def _corruptions(
    severities: tuple[int, ...],
    seed: int,
    checkpoint: Checkpoint,
    scored: Scored,
    reference: Other | None,
    console: Console,
) -> CorruptionScores:
    from fracray.evaluation.inference import half_the_cpus
    from fracray.evaluation.robustness import score_corruptions
    from fracray.runtime.console import progress_bar

    prepared = scored.prepared
    with half_the_cpus(), progress_bar(console, "scoring corrupted radiographs") as step:
        return score_corruptions(
            _under_test(checkpoint, prepared.shards),
            scored.rows,
            prepared.table["image_id"].iloc[scored.rows].tolist(),
            scored.labels,
            scored.groups,
            severities,
            _under_test(reference.checkpoint, reference.shards) if reference else None,
            seed,
            step,
        )


def _under_test(checkpoint: Checkpoint, shards: Shards) -> ModelUnderTest:
    from fracray.evaluation.inference import network
    from fracray.evaluation.robustness import ModelUnderTest

    run, metadata = network(checkpoint), checkpoint.metadata
    return ModelUnderTest(shards, lambda images: metadata.calibration.apply(run(images)), metadata.threshold)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
