"""What the facts of an audit mean, in words: for each section ok, look or stop, why, and what fracray does about it.

Knows the facts only; every threshold that turns a figure into an opinion stands here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fracray.data.audit.facts import Blocks, Breakdown, Findings, Share
from fracray.data.baselines import Leak, Shortcut

Level = Literal["ok", "look", "stop"]
LEVELS: tuple[Level, ...] = ("ok", "look", "stop")

LOST = 0.10  # share of the files that cannot be used, beyond which something is wrong with the set
CONTRADICTED = 0.05  # share of the files in conflict, beyond which the labels as a whole are in doubt
DIFFERENT = 0.10  # difference in prevalence from the whole that is worth a look ...
ENOUGH = 30  # ... among at least so many images, with an interval that excludes the whole
SEEN = 0.60  # AUROC of a shortcut that is worth a look where its interval excludes chance
STRONG = 0.80  # AUROC without a picture that a classifier's own score could rest on


@dataclass(frozen=True)
class Verdict:
    """On one section: the level, one sentence on why, and what fracray does about it ('' where nothing is to do)."""

    section: str
    level: Level
    why: str
    done: str

    @property
    def words(self) -> str:
        return f"{self.why} {self.done}".strip()


def judge(findings: Findings) -> tuple[Verdict, ...]:
    """One verdict each on files, formats, duplicates, conflicts, cut, prevalence and shortcuts, in this order."""
    return (
        _files(findings),
        _formats(findings),
        _duplicates(findings),
        _conflicts(findings),
        _cut(findings),
        _prevalence(findings),
        _shortcuts(findings),
    )


def sum_up(verdicts: Sequence[Verdict]) -> Verdict:
    """The gravest level of all, naming the sections that have it."""
    level = max((verdict.level for verdict in verdicts), key=LEVELS.index)
    named = ", ".join(verdict.section for verdict in verdicts if verdict.level == level)
    why = {
        "ok": "Nothing was found that a training must know of.",
        "look": f"Usable once you have looked at: {named}.",
        "stop": f"Do not trust a score on this set before you have dealt with: {named}.",
    }[level]
    return Verdict("all", level, why, "")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _files(findings: Findings) -> Verdict:
    flow = findings.files.flow
    overall = findings.prevalence.overall
    if not overall.fractured or overall.fractured == overall.images:
        why = f"The {_count(flow.used, 'usable image')} are not of both classes: nothing can be learned."
        return Verdict("files", "stop", why, "")
    lost = {
        "missing": flow.missing,
        "not listed": flow.unlisted,
        "unreadable": flow.unreadable,
        "truncated": flow.truncated,
    }
    words = ", ".join(f"{count:,} {name}" for name, count in lost.items() if count)
    if not words:
        return Verdict("files", "ok", f"All {_count(flow.found, 'file')} are there and can be decoded whole.", "")
    level: Level = "stop" if sum(lost.values()) > LOST * flow.found else "look"
    done = f"fracray leaves them out, names each, and uses {flow.used:,}."
    return Verdict("files", level, f"Of {_count(flow.found, 'image')}, {words}.", done)


def _formats(findings: Findings) -> Verdict:
    formats = findings.formats
    if not formats.sizes:
        return Verdict("formats", "stop", "No file could be decoded.", "")
    varied = formats.largest > 2 * formats.smallest
    said = []
    if varied:
        said.append(f"longer sides run from {formats.smallest:,} to {formats.largest:,} px, which betrays the device")
    if len(formats.modes) > 1:
        said.append(f"{len(formats.modes)} colour modes are mixed")
    if formats.turned:
        said.append(f"{_count(len(formats.turned), 'picture')} must be turned as EXIF says")
    done = "fracray turns by EXIF, decodes to gray and fits all into one square; the aspect ratio stays visible."
    if not said:
        return Verdict("formats", "ok", "One kind of file, upright, and of like sizes.", "")
    why = "; ".join(said)
    return Verdict("formats", "look" if varied else "ok", f"{why[0].upper()}{why[1:]}.", done)


def _duplicates(findings: Findings) -> Verdict:
    near, pixel = findings.duplicates.near, findings.duplicates.pixel
    if not near.images:
        return Verdict("duplicates", "ok", "No picture was found twice.", "")
    why = (
        f"{_count(near.images, 'image')} in {_count(near.sets, 'set')} show the same exposure as another "
        f"({pixel.images:,} pixel by pixel): a split at random tests on pictures it trained on."
    )
    done = "Of identical ones fracray uses the first; near ones share a group, which no split divides."
    return Verdict("duplicates", "look", why, done)


def _conflicts(findings: Findings) -> Verdict:
    count = findings.conflicts.images
    if not count:
        return Verdict("conflicts", "ok", "No picture carries two labels.", "")
    level: Level = "stop" if count > CONTRADICTED * findings.files.flow.found else "look"
    why = f"{_count(count, 'image')} contradict{'s' * (count == 1)} a copy of itself, or the evidence, on the label."
    if count > 1:
        why = f"{count:,} images contradict copies of themselves, or the evidence, on the label."
    done = "Nothing tells which label is wrong, so fracray uses none of them; a radiologist should decide."
    return Verdict("conflicts", level, why, done)


def _cut(findings: Findings) -> Verdict:
    truncated, refilled = findings.cut.truncated, findings.cut.refilled
    if not truncated.images and not refilled.images:
        return Verdict("cut", "ok", "No picture lacks its lower end.", "")
    words = [
        f"{_count(share.images, one, many)}, {_of(share)}"
        for share, one, many in (
            (truncated, "file is truncated", "files are truncated"),
            (refilled, "was saved again with the lost rows filled", "were saved again with the lost rows filled"),
        )
        if share.images
    ]
    if not refilled.images:
        return Verdict("cut", "look", f"{'; '.join(words)}.", "fracray leaves truncated files out.")
    why = f"{'; '.join(words)}: a filled lower end can tell the label."
    done = "fracray leaves truncated files out and keeps filled ones, in one group with their whole copies."
    return Verdict("cut", "look", why, done)


def _of(share: Share) -> str:
    if share.fractured in (0, share.images):
        return "fractured every one" if share.fractured else "none of them fractured"
    return f"{share.fractured:,} of them fractured"


def _prevalence(findings: Findings) -> Verdict:
    overall, blocks = findings.prevalence.overall, findings.prevalence.blocks
    if overall.fractured in (0, overall.images):
        return Verdict("prevalence", "stop", "With one class among the used images there is nothing to compare.", "")
    apart = notable(findings.prevalence.breakdowns, overall)
    uneven = blocks is not None and any(stands_apart(block, overall) for block in blocks.values)
    if not apart and not uneven:
        why = f"The share of fractured, {overall.share:.1%}, does not depend much on anything known of the images."
        return Verdict("prevalence", "ok", why, "")
    said = [f"{overall.share:.1%} are fractured, but {_among(apart)}"] if apart else []
    if uneven and blocks:
        said.append(f"{'' if said else f'{overall.share:.1%} are fractured, but '}{_along(blocks)}")
    done = "Parts are stratified by label only: judge a classifier within these groups, too."
    return Verdict("prevalence", "look", f"{'; '.join(said)}.", done)


def stands_apart(share: Share, overall: Share) -> bool:
    """Whether a share differs from the whole by DIFFERENT or more, among ENOUGH images, beyond its interval."""
    beyond = share.low > overall.share or share.high < overall.share
    return share.images >= ENOUGH and beyond and abs(share.share - overall.share) >= DIFFERENT


def notable(breakdowns: Sequence[Breakdown], overall: Share) -> list[tuple[str, Share]]:
    """The values that stand apart from the whole, with the breakdown's name, the farthest first."""
    found = [(each.name, share) for each in breakdowns for share in each.values if stands_apart(share, overall)]
    return sorted(found, key=lambda item: -abs(item[1].share - overall.share))


def _among(apart: Sequence[tuple[str, Share]]) -> str:
    return ", ".join(f"{share.share:.0%} where {name} is {share.name}" for name, share in apart[:3])


def _along(blocks: Blocks) -> str:
    shares = [block.share for block in blocks.values if block.images >= ENOUGH]
    return f"{min(shares):.0%} to {max(shares):.0%} by block of {blocks.size} file numbers"


_NAMES = {"together": "all of it together"}


def _shortcuts(findings: Findings) -> Verdict:
    found = findings.shortcuts
    scored = [score for score in found.scores if not math.isnan(score.auroc.value)]
    if not scored:
        why = "No shortcut could be scored: too few groups, one class, or all files alike."
        return Verdict("shortcuts", "look", why, "")
    telling = sorted((s for s in scored if telling_level(s) != "ok"), key=lambda score: -score.auroc.value)
    random = next((leak for leak in found.leaks if leak.block == 1), None)
    said = []
    if telling:
        words = ", ".join(f"{_NAMES.get(score.name, score.name)} (AUROC {score.auroc.value:.2f})" for score in telling)
        said.append(f"without the picture, held-out labels are predicted by {words}")
    if random and random.auroc.value >= STRONG:
        said.append(f"on a split at random the file numbers alone reach {random.auroc.value:.2f}{_less(found.leaks)}")
    level: Level = "stop" if any(telling_level(score) == "stop" for score in telling) else "look"
    if not said:
        best = max(score.auroc.value for score in scored)
        return Verdict("shortcuts", "ok", f"Nothing but the picture predicts the label (AUROC up to {best:.2f}).", "")
    done = (
        "fracray keeps blocks of file numbers in one part and prints what needs no pixel beside each score: only what "
        "exceeds it was learned from pictures."
    )
    why = "; ".join(said)
    return Verdict("shortcuts", level, f"{why[0].upper()}{why[1:]}.", done)


def telling_level(score: Shortcut) -> Level:
    """ok where a shortcut is weak, unscored or within chance; stop where a classifier's score could rest on it."""
    if not (score.auroc.value >= SEEN and score.auroc.low > 0.5):
        return "ok"
    return "stop" if score.auroc.value >= STRONG else "look"


def _less(leaks: Sequence[Leak]) -> str:
    held = [leak for leak in leaks if leak.block > 1]
    return f", with blocks of {held[-1].block} held out {held[-1].auroc.value:.2f}" if held else ""
