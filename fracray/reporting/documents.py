"""The model card and the reporting checklists of a run, as text."""

import json
import time
from math import isnan

from huggingface_hub import EvalResult, ModelCardData

from fracray import __version__
from fracray.config import PHANTOM
from fracray.evaluation.report import HEADINGS
from fracray.reporting.checklists import CLAIM, SOURCES, TRIPOD_AI, filled
from fracray.reporting.parts import with_interval
from fracray.reporting.run_facts import run_facts
from fracray.reporting.subject import Subject

TYPES = {
    "auroc": "roc_auc",
    "accuracy": "accuracy",
    "f1": "f1",
    "brier": "brier_score",
    "average_precision": "average_precision",
}


def claim_json(subject: Subject, pictures: bool) -> str:
    """The items of CLAIM 2024 and TRIPOD+AI as JSON: for each its number, subject, status and answer.

    pictures: whether the radiographs are at hand, here and in `model_card`.
    """
    facts = run_facts(subject, pictures)
    tree = {
        "run": subject.location,
        "written": time.strftime("%Y-%m-%d"),
        "fracray": __version__,
        "sources": SOURCES,
        "CLAIM 2024": filled(CLAIM, facts),
        "TRIPOD+AI": filled(TRIPOD_AI, facts),
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def model_card(subject: Subject, pictures: bool) -> str:
    """A model card (Mitchell et al. 2019, doi 10.1145/3287560.3287596) in Markdown with Hugging Face's front matter."""
    facts = {name: _plain(words) for name, words in run_facts(subject, pictures).items()}

    def told(*names: str) -> str:
        return "\n\n".join(facts[name] for name in names if name in facts) or "Not known to this run."

    sections = [
        ("Model details", told("model", "initialisation", "ensemble", "output", "software")),
        (
            "Intended use",
            "TODO: who uses it, on which patients, for which decision, and what it must not be used for.\n\nMade with "
            "fracray, which is for research. It is not a medical device.",
        ),
        ("Factors", f"{told('characteristics')}\n\nTODO: groups of patients that matter and are not recorded."),
        ("Metrics", told("metrics", "uncertainty")),
        ("Training data", told("sources", "included", "partition", "level", "preprocessing")),
        ("Training", told("training", "augmentation", "imbalance", "selection")),
        (
            "Evaluation on validation",
            f"{_scores(subject)}\n\n{told('rivals', 'gain', 'failures', 'robustness', 'explanation')}",
        ),
        ("Evaluation on the test part and elsewhere", "TODO: the scores of `python -m fracray.evaluate --split test`."),
        ("Ethical considerations", "TODO: consent, approval, de-identification, and harm by missed and false calls."),
        ("Caveats and recommendations", told("limitations")),
        ("How to use", _usage(subject)),
    ]
    text = "\n\n".join(f"## {heading}\n\n{body}" for heading, body in sections)
    return f"---\n{_front(subject)}\n---\n\n# {_plain(subject.name)}\n\n{text}\n"


def _front(subject: Subject) -> str:
    """The front matter: what the Hugging Face Hub reads. The licence of the weights is for people to choose."""
    phantom = subject.config.data.source == PHANTOM
    origin = subject.data["origin"] if subject.data else "not known"
    found = subject.judged.validation if subject.judged else None
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="phantom" if phantom else "bone-radiographs",
            dataset_name=origin if phantom else origin.rstrip("/").rpartition("/")[2],
            dataset_split="validation",
            metric_type=kind,
            metric_value=round(found.scores[name].value, 4),
            metric_name=f"{HEADINGS[name]} on validation{found.card.of_fold}",
        )
        for name, kind in TYPES.items()
        if found is not None and not isnan(found.scores[name].value)
    ]
    data = ModelCardData(
        library_name="fracray",
        pipeline_tag="image-classification",
        tags=["radiography", "bone-fracture", "medical-imaging", "research-only"],
        model_name=subject.name if results else None,
        eval_results=results or None,
    )
    return f"# TODO: license, of the weights\n{data.to_yaml()}".strip()


def _scores(subject: Subject) -> str:
    found = subject.judged.validation if subject.judged else None
    if found is None:
        return "No predictions are stored with this checkpoint."
    rows = [f"| {HEADINGS[name]} | {with_interval(found.scores[name])} |" for name in HEADINGS if name in found.scores]
    head = f"| score on validation{found.card.of_fold} | value [95% interval over groups] |"
    return "\n".join((head, "|---|---|", *rows))


def _usage(subject: Subject) -> str:
    folder = "best" if subject.run else subject.name
    config = subject.judged.card.config if subject.judged else subject.config
    crop = ", cut by fracray.data.images.square.decode_part" * config.data.crop
    return (
        "```python\nimport fracray\n\n"
        f'checkpoint = fracray.load_checkpoint("{folder}")\n'
        f"logits = checkpoint.model(radiographs)  # (n, 1, S, S) uint8, letterboxed squares, gray{crop}\n"
        "probabilities = checkpoint.metadata.calibration.apply(logits.detach())\n```"
    )


def _plain(words: str) -> str:
    """Without what Markdown would read as HTML: names of files and tags may hold anything."""
    return words.replace("&", "&amp;").replace("<", "&lt;")
