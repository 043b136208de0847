"""The last sections: the data that everything rests on, and how to do it again."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from fracray.data.audit.find import find
from fracray.data.audit.verdicts import judge, sum_up
from fracray.data.datasheet import MEANING, datasheet
from fracray.reporting import parts
from fracray.reporting.parts import Section, paragraph, score
from fracray.reporting.subject import Subject
from fracray.runtime.console import counted
from fracray.runtime.page import macros

SEEDS = ("train.seed", "search.sampler.seed", "data.split.seed", "data.phantom.seed")


def data_section(subject: Subject, thorough: bool) -> Section | None:
    """The flow, the sets, the audit's verdicts and the datasheet; None where nothing is stored of the data.

    thorough: with the verdicts, which take seconds.
    """
    summary = subject.data
    if summary is None:
        return None
    body = _flow(summary) + _sets(summary) + _baselines(summary)
    if thorough and subject.manifest is not None:
        body += _verdicts(subject)
    else:
        body += parts.heading("The audit's verdicts") + paragraph(
            "Not judged here, as it takes a while: python -m fracray.report on this run adds them, and so does "
            "python -m fracray.data audit.",
            "soft",
        )
    body += parts.folded(
        "Datasheet, as in DATASHEET.md", Markup('<pre tabindex="0">{}</pre>').format(datasheet(summary))
    )
    return Section(
        "data",
        "The data",
        f"{summary['origin']}: from the files found to the images used, and the sets that they are in. Groups "
        "(duplicates, "
        "patients, neighbouring file numbers) are in one set each, so that no set knows another.",
        body,
    )


def _flow(summary: Mapping[str, Any]) -> Markup:
    """The flow as a list of steps, from the files found to the parts."""
    steps = []
    for name, count in summary["flow"].items():
        if not count and name not in ("found", "used"):
            continue
        kept = name in ("found", "used", "in_parts")
        steps.append(
            Markup('<li class="{}"><b>{}{:,}</b> {}</li>').format(
                "kept" if kept else "lost", "" if kept else "− ", count, MEANING[name]
            )
        )
    ends = [
        Markup("<li><b>{:,}</b> {}<br><small>{:.1%} fractured, {}</small></li>").format(
            part["images"], name, part["fractured"] / max(1, part["images"]), counted(part["groups"], "group")
        )
        for name, part in summary["parts"].items()
    ]
    last = (
        Markup('<li class="split"><ul class="ends">{}</ul></li>').format(Markup("").join(ends)) if ends else Markup("")
    )
    return parts.heading("From files to sets") + Markup('<ol class="steps">{}{}</ol>\n').format(
        Markup("").join(steps), last
    )


def _sets(summary: Mapping[str, Any]) -> Markup:
    tables = []
    for name, cells in summary["prevalence"].items():
        rows = [
            (
                value or "unknown",
                f"{cell['images']:,}",
                f"{cell['fractured'] / cell['images']:.1%}",
                parts.share_picture(
                    cell["fractured"] / cell["images"], summary["fractured"] / max(1, summary["flow"]["used"])
                ),
            )
            for value, cell in cells.items()
        ]
        tables.append(
            parts.table(
                (name, "images", "fractured", "0 to 100%"), rows, (1, 2), kind="narrow", caption=f"Fractured by {name}"
            )
        )
    if not tables:
        return Markup("")
    note = paragraph(
        "The line in each bar is the share of fractured in all. A value far from it can be learned without "
        "looking at bones.",
        "soft",
    )
    return parts.heading("Fractured by what is known of the images") + parts.charts(tables) + note


def _baselines(summary: Mapping[str, Any]) -> Markup:
    rows = [
        (one["name"], one["part"], *(score(one[each]) for each in ("accuracy", "balanced_accuracy", "auroc")))
        for one in summary["baselines"]
    ]
    if not rows:
        return Markup("")
    headings = ("predictor without pixels", "set", "accuracy", "balanced accuracy", "AUROC")
    words = "What is reached without looking"
    return parts.heading(words) + parts.table(headings, rows, (2, 3, 4), caption=words)


def _verdicts(subject: Subject) -> Markup:
    assert subject.manifest is not None
    assert subject.data is not None
    split = subject.config.data.split
    verdicts = judge(find(subject.manifest, subject.data["origin"], split.block_size, split.guard_size))
    overall = sum_up(verdicts)
    rows = [(one.section, macros().pill(one.level), one.words) for one in verdicts]
    return (
        parts.heading("The audit's verdicts")
        + Markup('<p class="verdict {}">{} {}</p>\n').format(overall.level, macros().pill(overall.level), overall.why)
        + parts.table(
            ("section", "verdict", "why, and what fracray does about it"),
            rows,
            kind="verdicts",
            caption="The audit's verdicts",
        )
    )


def reproduce(subject: Subject) -> Section:
    """The command, versions, fingerprints, seeds and settings."""
    body, about = Markup(""), subject.environment
    if about:
        refitted = [list(subject.refit.command)] if subject.refit and subject.refit.command else []
        commands = list(dict.fromkeys(map(spoken, [about["command"], *refitted])))  # tune --refit is one command
        body += parts.heading("The command" + "s" * (len(commands) > 1))
        body += Markup('<pre tabindex="0">{}</pre>\n').format("\n".join(commands))
        versions = {
            "Python": about["python"],
            **about["packages"],
            "system": about["platform"],
            "CPUs": str(about["cpus"]),
        }
        body += parts.heading("Versions") + parts.table(
            ("", "version"), [*versions.items()], kind="narrow", caption="Versions"
        )
    elif subject.judged:
        body += parts.heading("Versions") + parts.table(
            ("", "version"), [*subject.judged.card.versions.items()], kind="narrow", caption="Versions"
        )
    marks = []
    if subject.data:
        marks += [
            ("data (sha256 of ids, files and labels)", subject.data["fingerprint"]),
            ("split (sha256 of ids and sets)", subject.data["split_fingerprint"]),
        ]
    elif subject.judged:
        marks.append(("data (sha256 of ids, files and labels)", subject.judged.card.data_fingerprint))
    leaves = subject.config.leaves()
    marks += [(path, str(leaves[path])) for path in SEEDS if path in leaves]
    body += parts.heading("Fingerprints and seeds") + parts.table(
        ("", "value"), marks, kind="marks", caption="Fingerprints and seeds"
    )
    tree = yaml.safe_dump(subject.config.model_dump(mode="json"), sort_keys=False)
    body += parts.folded("All settings, as in config.yaml", Markup('<pre tabindex="0">{}</pre>').format(tree))
    return Section(
        "reproduce",
        "How to do it again",
        "The same command with the same versions, data and seeds gives the same metrics on CPU, on as many workers.",
        body,
    )


def spoken(command: list[str]) -> str:
    """A command as it is typed: without the path of the file that Python ran."""
    program, *rest = command
    stem = Path(program).stem
    verb = Path(program).parent.name if stem == "__main__" else stem
    words = "fracray" if verb in ("fracray", "__main__") else f"python -m fracray.{verb}"
    return shlex.join([*words.split(), *rest])
