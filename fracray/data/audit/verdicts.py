"""The verdicts of an audit: for each section ok, look or stop, why, and what fracray does about it.

Knows the findings only; has every threshold that turns a figure into a verdict.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fracray.data.audit.facts import Blocks, Breakdown, Findings
from fracray.data.audit.shares import FractureShare
from fracray.data.baselines import IdLeak, Shortcut
from fracray.runtime.console import counted

Level = Literal["ok", "look", "stop"]
LEVELS: tuple[Level, ...] = ("ok", "look", "stop")

LOST = 0.10  # share of unusable files above which the set is not to be trusted
CONTRADICTED = 0.05  # share of files in conflict above which all labels are in doubt
DIFFERENT = 0.10  # difference from the overall prevalence that is worth a look ...
ENOUGH = 30  # ... in at least this many images, with an interval that excludes the overall prevalence
SEEN = 0.60  # AUROC of a shortcut that is worth a look if its interval excludes chance
MOST_NAMED = 10  # files named in one verdict
STRONG = 0.80  # AUROC of a shortcut that could explain a classifier's own score


@dataclass(frozen=True)
class Verdict:
    """On one section: the level, one sentence on why, and what fracray does about it ('' for nothing)."""

    section: str
    level: Level
    why: str
    done: str

    @property
    def words(self) -> str:
        return f"{self.why} {self.done}".strip()


def judge(findings: Findings) -> tuple[Verdict, ...]:
    """One for files, formats, duplicates, conflicts, cut, grays, patients, prevalence, shortcuts, in this order."""
    return (
        _files(findings),
        _formats(findings),
        _duplicates(findings),
        _conflicts(findings),
        _cut(findings),
        _grays(findings),
        _patients(findings),
        _prevalence(findings),
        _shortcuts(findings),
    )


def sum_up(verdicts: Sequence[Verdict]) -> Verdict:
    """The most serious level, with the sections that have it."""
    level = max((verdict.level for verdict in verdicts), key=LEVELS.index)
    named = ", ".join(verdict.section for verdict in verdicts if verdict.level == level)
    why = {
        "ok": "Nothing was found that affects training.",
        "look": f"Usable, but look at these sections first: {named}.",
        "stop": f"Do not trust a score on this set until these problems are solved: {named}.",
    }[level]
    return Verdict("all", level, why, "")


def _files(findings: Findings) -> Verdict:
    flow = findings.files.flow
    overall = findings.prevalence.overall
    if not overall.fractured or overall.fractured == overall.images:
        why = f"The {counted(flow.used, 'usable image')} are all of one class: nothing can be learned."
        return Verdict("files", "stop", why, "")
    lost = {
        "missing": flow.missing,
        "not listed": flow.unlisted,
        "unreadable": flow.unreadable,
        "truncated": flow.truncated,
        "blank": flow.blank,
    }
    words = ", ".join(f"{count:,} {name}" for name, count in lost.items() if count)
    if not words:
        return Verdict("files", "ok", f"All {counted(flow.found, 'file')} exist and can be decoded completely.", "")
    level: Level = "stop" if sum(lost.values()) > LOST * flow.found else "look"
    done = f"fracray leaves them out, names each, and uses {flow.used:,}."
    return Verdict("files", level, f"Of {counted(flow.found, 'image')}, {words}.", done)


def _formats(findings: Findings) -> Verdict:
    formats = findings.formats
    if not formats.sizes:
        return Verdict("formats", "stop", "No file could be decoded.", "")
    varied = formats.largest > 2 * formats.smallest
    said = []
    if varied:
        said.append(
            f"longer sides run from {formats.smallest:,} to {formats.largest:,} px, which identifies the device"
        )
    if len(formats.modes) > 1:
        said.append(f"{len(formats.modes)} colour modes are mixed")
    if formats.turned:
        said.append(f"{counted(len(formats.turned), 'picture')} must be rotated as EXIF says")
    done = "fracray rotates by EXIF, decodes to gray and fits all into one square; the aspect ratio stays visible."
    if not said:
        return Verdict("formats", "ok", "All files have one mode, are upright and of similar size.", "")
    why = "; ".join(said)
    return Verdict("formats", "look" if varied else "ok", f"{why[0].upper()}{why[1:]}.", done)


def _duplicates(findings: Findings) -> Verdict:
    near, pixel = findings.duplicates.near, findings.duplicates.pixel
    if not near.images:
        return Verdict("duplicates", "ok", "No picture occurs twice.", "")
    why = (
        f"{counted(near.images, 'image')} in {counted(near.sets, 'set')} show the same exposure as another "
        f"({pixel.images:,} pixel by pixel): a random split tests on pictures that it trained on."
    )
    done = "fracray uses the first of identical pictures; near duplicates are a group, which is in one part only."
    return Verdict("duplicates", "look", why, done)


def _conflicts(findings: Findings) -> Verdict:
    count = findings.conflicts.images
    if not count:
        return Verdict("conflicts", "ok", "No picture has two labels.", "")
    level: Level = "stop" if count > CONTRADICTED * findings.files.flow.found else "look"
    why = f"{counted(count, 'image')} contradict{'s' * (count == 1)} a copy of itself, or the evidence, on the label."
    if count > 1:
        why = f"{count:,} images contradict copies of themselves, or the evidence, on the label."
    done = "It is unknown which label is wrong, so fracray uses none of them; a radiologist should decide."
    return Verdict("conflicts", level, why, done)


def _cut(findings: Findings) -> Verdict:
    truncated, refilled = findings.cut.truncated, findings.cut.refilled
    if not truncated.images and not refilled.images:
        return Verdict("cut", "ok", "No picture lacks its lower end.", "")
    words = [
        f"{counted(share.images, one, many)}, {_of(share)}"
        for share, one, many in (
            (truncated, "file is truncated", "files are truncated"),
            (refilled, "was saved again with the lost rows filled", "were saved again with the lost rows filled"),
        )
        if share.images
    ]
    if not refilled.images:
        return Verdict("cut", "look", f"{'; '.join(words)}.", "fracray leaves truncated files out.")
    why = f"{'; '.join(words)}: a filled lower end can reveal the label."
    done = "fracray leaves truncated files out and keeps filled ones, in one group with their complete copies."
    return Verdict("cut", "look", why, done)


def _grays(findings: Findings) -> Verdict:
    blank, opposed = findings.grays.blank, findings.grays.opposed
    if not blank.images and not opposed.images:
        return Verdict("grays", "ok", "Every picture shows something, and none looks inverted.", "")
    said, done = [], []
    if blank.images:
        said.append(f"{counted(blank.images, 'picture shows', 'pictures show')} nothing, {_of(blank)}")
        done.append("fracray leaves blank pictures out.")
    if opposed.images:
        ids = findings.grays.opposed_ids
        more = f" and {len(ids) - MOST_NAMED:,} more" if len(ids) > MOST_NAMED else ""
        looks = counted(opposed.images, "picture looks", "pictures look")
        named = f"{', '.join(ids[:MOST_NAMED])}{more}"
        said.append(f"{looks} inverted against the rest of the set, {_of(opposed)}: {named}")
        done.append("fracray uses what looks inverted as it is: look at it, and correct the file or leave it out.")
    return Verdict("grays", "look", f"{'; '.join(said)}.", " ".join(done))


def _of(share: FractureShare) -> str:
    if share.fractured in (0, share.images):
        return "all of them fractured" if share.fractured else "none of them fractured"
    return f"{share.fractured:,} of them fractured"


def _patients(findings: Findings) -> Verdict:
    known = findings.patients
    if not known.images:
        return Verdict("patients", "look", "There is no usable image.", "")
    if known.named == known.images:
        return Verdict("patients", "ok", f"All {counted(known.images, 'image')} have a patient.", "")
    level: Level = "stop" if known.nothing > LOST * known.images else "look"
    block, guard = findings.shortcuts.block, findings.shortcuts.guard
    by_number = bool(known.numbered + known.restarted)
    edge = f", with pictures more than {guard} apart," if guard else ""
    why = known.warning() or (
        f"no patient is known: one at the edge of a block of file numbers{edge} or examined again later, may lie in "
        "training and test at once"
    )
    kept = ["patients"] * bool(known.named) + ["studies"] * bool(known.study)
    kept += [f"blocks of {block} file numbers"] * by_number
    done = f"fracray keeps {' and '.join(kept)} in one part" if kept else ""
    done += f", and leaves out images within {guard} numbers of another part" if by_number and guard else ""
    done += "." if done else ""
    return Verdict("patients", level, f"{why[0].upper()}{why[1:]}.", done)


def _prevalence(findings: Findings) -> Verdict:
    overall, blocks = findings.prevalence.overall, findings.prevalence.blocks
    if overall.fractured in (0, overall.images):
        return Verdict("prevalence", "stop", "The used images are all of one class: there is nothing to compare.", "")
    apart = notable(findings.prevalence.breakdowns, overall)
    uneven = blocks is not None and any(differs(block, overall) for block in blocks.values)
    if not apart and not uneven:
        why = f"The share of fractured, {overall.share:.1%}, depends little on any known property of the images."
        return Verdict("prevalence", "ok", why, "")
    said = [f"{overall.share:.1%} are fractured, but {_among(apart)}"] if apart else []
    if uneven and blocks:
        said.append(f"{'' if said else f'{overall.share:.1%} are fractured, but '}{_along(blocks)}")
    done = "Parts are stratified by label only: evaluate a classifier within these groups too."
    return Verdict("prevalence", "look", f"{'; '.join(said)}.", done)


def differs(share: FractureShare, overall: FractureShare) -> bool:
    """Whether a share differs from the overall one by at least DIFFERENT, in ENOUGH images, beyond its interval."""
    beyond = share.low > overall.share or share.high < overall.share
    return share.images >= ENOUGH and beyond and abs(share.share - overall.share) >= DIFFERENT


def notable(breakdowns: Sequence[Breakdown], overall: FractureShare) -> list[tuple[str, FractureShare]]:
    """The values that differ from the overall share, with the breakdown's name, the largest difference first."""
    found = [(each.name, share) for each in breakdowns for share in each.values if differs(share, overall)]
    return sorted(found, key=lambda item: -abs(item[1].share - overall.share))


def _among(apart: Sequence[tuple[str, FractureShare]]) -> str:
    return ", ".join(f"{share.share:.0%} where {name} is {share.name}" for name, share in apart[:3])


def _along(blocks: Blocks) -> str:
    shares = [block.share for block in blocks.values if block.images >= ENOUGH]
    return f"{min(shares):.0%} to {max(shares):.0%} by block of {blocks.size} file numbers"


_NAMES = {"together": "all of these together"}


def _shortcuts(findings: Findings) -> Verdict:
    found = findings.shortcuts
    scored = [score for score in found.scores if not math.isnan(score.auroc.value)]
    if not scored:
        why = "No shortcut could be scored: too few groups, one class, or all files the same."
        return Verdict("shortcuts", "look", why, "")
    predictive = sorted((s for s in scored if shortcut_level(s) != "ok"), key=lambda score: -score.auroc.value)
    random = next((leak for leak in found.leaks if leak.block == 1), None)
    said = []
    if predictive:
        words = ", ".join(
            f"{_NAMES.get(score.name, score.name)} (AUROC {score.auroc.value:.2f})" for score in predictive
        )
        said.append(f"without the picture, held-out labels are predicted by {words}")
    if random and random.auroc.value >= STRONG:
        said.append(f"on a random split the file numbers alone reach {random.auroc.value:.2f}{_less(found.leaks)}")
    level: Level = "stop" if any(shortcut_level(score) == "stop" for score in predictive) else "look"
    if not said:
        best = max(score.auroc.value for score in scored)
        return Verdict("shortcuts", "ok", f"No shortcut predicts the label (AUROC up to {best:.2f}).", "")
    done = (
        "fracray prints the no-pixel predictors next to each score: only what exceeds them was learned from pictures."
    )
    if findings.patients.numbered + findings.patients.restarted:
        done = f"fracray keeps blocks of file numbers in one part and{done.removeprefix('fracray')}"
    why = "; ".join(said)
    return Verdict("shortcuts", level, f"{why[0].upper()}{why[1:]}.", done)


def shortcut_level(score: Shortcut) -> Level:
    """ok where a shortcut is weak, unscored or within chance; stop where it could explain a classifier's score.

    Groups too few for an interval say nothing on chance: then a strong shortcut is worth a look, and no more.
    """
    if not score.auroc.value >= SEEN or score.auroc.low <= 0.5:
        return "ok"
    return "stop" if score.auroc.value >= STRONG and not math.isnan(score.auroc.low) else "look"


def _less(leaks: Sequence[IdLeak]) -> str:
    held = [leak for leak in leaks if leak.block > 1]
    return f", with blocks of {held[-1].block} held out {held[-1].auroc.value:.2f}" if held else ""
