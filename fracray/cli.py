"""The `fracray` command: one verb per line, no logic."""

import importlib
import sys

from fracray import __version__
from fracray.errors import run_verb

VERBS = {
    "tune": ("fracray.tune", "search regularisation and augmentation with Ray Tune and Optuna"),
    "refit": ("fracray.refit", "train a search's best configurations with several seeds, as an ensemble"),
    "train": ("fracray.train", "train one config on one or more workers with Ray Train"),
    "fetch": ("fracray.fetch", "copy the best checkpoints out of a run"),
    "evaluate": ("fracray.evaluate", "score a checkpoint on a split or on other radiographs"),
    "predict": ("fracray.predict", "predict on radiographs without labels: a table with a row for each"),
    "export": ("fracray.export", "write a checkpoint as one ONNX or torch.export file, and prove it"),
    "serve": ("fracray.serve", "serve a checkpoint over HTTP, with a page for a radiologist"),
    "report": ("fracray.report", "write what a run or a checkpoint found as one HTML page"),
    "log": ("fracray.log", "write a run to MLflow or TensorBoard"),
    "cluster": ("fracray.cluster.__main__", "check a cluster file, run tune, refit or train there, and follow it"),
    "data": ("fracray.data.__main__", "download, import and check data sets, draw phantoms and contact sheets"),
}


def usage() -> str:
    verbs = "\n".join(f"  {verb:<10}{words}" for verb, (_, words) in VERBS.items())
    more = "`fracray VERB --help` explains each; `python -m fracray.VERB` is the same command."
    return f"usage: fracray VERB ... | --version\n\n{verbs}\n\n{more}"


def version_line() -> str:
    """The version of fracray, and those that a report of a fault should name."""
    from importlib.metadata import version
    from platform import python_version

    others = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "optuna", "albumentations"))
    return f"fracray {__version__} (Python {python_version()}, {others})"


def main() -> int:
    verb, *rest = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        print(usage())
        return 0
    if verb == "--version":
        print(version_line())
        return 0
    if verb not in VERBS:
        print(f"error: '{verb}' is not a verb of fracray\n{usage()}", file=sys.stderr)
        return 2
    return run_verb(lambda argv: importlib.import_module(VERBS[verb][0]).main(argv), rest)
