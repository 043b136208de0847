"""What the commands print about a data set: where it comes from, its flow, its split, the no-pixel predictors."""

from collections.abc import Sequence
from math import isnan
from shlex import quote

from rich.console import Console

from fracray.config import PHANTOM, Config
from fracray.data.baselines import Baseline
from fracray.data.datasheet import crop_words, cut_words
from fracray.data.loading.kept import cropping
from fracray.data.manifest import Manifest
from fracray.data.patients import say_patients
from fracray.data.prepare import PHANTOM_NOTICE, Prepared
from fracray.data.sources.clutter import CLUTTER
from fracray.data.splits.assign import DIVIDED, leaks
from fracray.runtime.console import counted


def say_phantom(console: Console, config: Config) -> None:
    """Say that the radiographs are phantoms, if no data was named."""
    if config.data.source == PHANTOM:
        console.print(PHANTOM_NOTICE, style="yellow", soft_wrap=True)


def say_flow(console: Console, prepared: Prepared) -> None:
    """Where the radiographs come from, the flow from files found to images used, and what is known of patients."""
    console.print(f"data: {prepared.origin}", soft_wrap=True)
    console.print(f"flow: {prepared.flow.summary()}", soft_wrap=True)
    say_ignored(console, prepared.manifest)
    if crop := cropping(prepared.table):
        console.print(f"cropped to the anatomy: {crop_words(crop)}", soft_wrap=True)
        if crop["cut"]:
            console.print(f"warning: {cut_words(crop)}", style="yellow", soft_wrap=True, markup=False)
    say_patients(console, prepared.patients, prepared.divided)


def say_ignored(console: Console, manifest: Manifest) -> None:
    """How many files beside the radiographs are not looked at, if any."""
    if manifest.ignored:
        console.print(f"ignored: {counted(manifest.ignored, 'file')} of operating systems ({CLUTTER})", soft_wrap=True)


def say_prepared(console: Console, prepared: Prepared, localise: bool = False) -> None:
    """Print the flow, the split and the no-pixel predictors; and whether a network that localises has no boxes."""
    say_flow(console, prepared)
    if prepared.notes:
        command = f"python -m fracray.data check {quote(prepared.config.source)}"
        console.print(f"notes on {counted(len(prepared.notes), 'image')}: see {command}", soft_wrap=True)
    say_split(console, prepared)
    trained = prepared.table.iloc[prepared.rows("train")]
    if localise and not trained.loc[trained["label"] == 1, "boxes"].map(len).any():
        console.print(
            "note: model.localise: no fractured radiograph of train has a box, so the map learns from the labels "
            "alone, and train.box_weight has no effect",
            style="yellow",
            soft_wrap=True,
        )


def say_split(console: Console, prepared: Prepared) -> None:
    """Print the sets, any group that is in two of them, and the no-pixel predictors."""
    sets = []
    for name in prepared.sets:
        rows = prepared.rows(name)
        labels = prepared.table["label"].to_numpy()[rows]
        groups = prepared.table["group"].iloc[rows].nunique()
        sets.append(f"{name} {len(rows)} ({labels.mean():.1%} fractured, {counted(groups, 'group')})")
    protocol = "from a file" if prepared.config.split.file else prepared.config.split.protocol
    console.print(f"split ({protocol}): {', '.join(sets)}", soft_wrap=True)
    for note in prepared.split_notes:
        console.print(f"  {note}", soft_wrap=True)
    divided = leaks(prepared.table)
    if divided:
        console.print(
            f"note: {counted(len(divided), *DIVIDED)} in two parts, so scores are "
            "optimistic; data.split.protocol=grouped keeps each in one part",
            style="yellow",
            soft_wrap=True,
        )
    console.print(
        f"no-pixel predictors on validation: {baseline_words(prepared.baselines, 'val')}",
        soft_wrap=True,
    )


def baseline_words(baselines: Sequence[Baseline], part: str) -> str:
    """'majority: accuracy 0.824; tags: ...' in one line."""
    words = []
    for baseline in baselines:
        if baseline.part == part:
            auroc = "" if isnan(baseline.auroc) else f", AUROC {baseline.auroc:.3f}"
            words.append(f"{baseline.name}: accuracy {baseline.accuracy:.3f}{auroc}")
    return "; ".join(words)
