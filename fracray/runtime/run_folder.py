"""The run folder: where a search or a training keeps everything that it found, on a path or a URI.

    config.yaml  environment.json  data.json  optuna.journal  trials.parquet  best/
    trials/t0007/  epochs.json  state.safetensors  best/
    refit/         a run folder of its own: trials/t0007-seed1/ ...

A trial's folder holds all of its state: a trial that starts again, here or on another machine, resumes from it. Imports
neither Ray nor Torch.
"""

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fracray import __version__
from fracray.config import PHANTOM, Config, parse_config
from fracray.config.data import SPLIT_VERSION
from fracray.config.training import ARITHMETIC_VERSION, AUGMENTATION_VERSION
from fracray.errors import InputError, RunError
from fracray.runtime.claim import CLAIMS, LOCK, claimed
from fracray.runtime.storage import Folder

if TYPE_CHECKING:  # rich takes a while to import
    from rich.console import Console

CONFIG, ENVIRONMENT, DATA = "config.yaml", "environment.json", "data.json"
SPACE, OVERRIDES = "space.yaml", "overrides.json"  # of a search: its space, and what the command line changed in it
TRIALS = "trials.parquet"  # of a search or a refit: a row per trial and epoch
EPOCHS, STATE, BEST = "epochs.json", "state.safetensors", "best"
FOLDS = "folds.parquet"  # of a cross-validated trial: what each fold's model says of the images that it never saw
REFIT = "refit"  # in the run folder of a search: the run folder of its refit
CHOSEN = ("search.sampler.name", "search.scheduler.name")  # when a search begins, where they are `auto`
SEED_PLACE = 1_000_000  # a refit's number is that of its trial plus this many times its seed
CLUSTER_FILE = "FRACRAY_CLUSTER_FILE"  # the cluster file, as typed, by which `submit` reached the cluster


def trial_name(number: int) -> str:
    """The name of a trial in tables and on disk, from its number in the study: 't0007'; of a refit, 't0007-seed1'."""
    seed, trial = divmod(number, SEED_PLACE)
    return f"t{trial:04d}{f'-seed{seed}' if seed else ''}"


def refit_number(trial: int, seed: int) -> int:
    """The number of the refit of a trial with a training seed from 1."""
    return trial + SEED_PLACE * seed


def trial_folder(run: Folder, number: int) -> Folder:
    return run.sub(f"trials/{trial_name(number)}")


def environment() -> dict[str, Any]:
    """Versions and machine of a run, for environment.json."""
    packages = (
        "ray",
        "torch",
        "torchvision",
        "timm",
        "albumentations",
        "optuna",
        "numpy",
        "opencv-python-headless",
        "imagecodecs",
    )
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {"fracray": __version__, **{name: _version(name) for name in packages}},
        "augmentation": AUGMENTATION_VERSION,
        "arithmetic": ARITHMETIC_VERSION,
        "split": SPLIT_VERSION,
        "command": sys.argv,
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": _commit(),
    }


def _commit() -> str | None:
    """The commit of fracray's own code, with '-dirty' where files differ from it; None where that is no checkout."""
    code = Path(__file__)
    git = ["git", "-C", str(code.parent)]
    try:  # an environment may lie inside of a checkout of something else
        subprocess.run([*git, "ls-files", "--error-unmatch", code.name], capture_output=True, check=True, timeout=10)
        said = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            check=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def _version(package: str) -> str | None:
    """None: not installed, as where a benchmark runs on a machine that has Torch alone."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_run(storage: str, name: str | None, kind: str, resume: bool) -> Folder:
    """The folder of a new run, or with `resume` of an existing one; nothing is written yet."""
    shelf = Folder(storage)
    if name is None:
        if resume:
            raise InputError(f"--resume: name the run with --name; runs in {storage}: {_runs(shelf)}")
        name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    if "/" in name or name in ("", ".", ".."):
        raise InputError(f"--name {name}: a plain name without '/'; the folder around it is --storage")
    run = shelf.sub(name)
    _require(run, storage, resume)
    return run


def _require(run: Folder, storage: str, resume: bool) -> None:
    """InputError where a run to resume has not begun, or where a new run would write into what is there already."""
    if run.exists(CONFIG):
        if not resume:
            raise InputError(f"{run}: this run exists already; continue it with --resume, or choose another --name")
        return
    inside = {name for name in run.names() if not name.startswith(".")} - {LOCK, CLAIMS}
    if inside and ENVIRONMENT not in inside:
        raise InputError(f"{run}: not a run, but not empty ({', '.join(sorted(inside)[:3])}); choose another --name")
    if resume and inside:
        raise InputError(
            f"--resume: the run {run.name} in {storage} was stopped before it began; give its first command again"
        )
    if resume:
        raise InputError(f"--resume: there is no run {run.name} in {storage}; runs there: {_runs(Folder(storage))}")


@contextmanager
def open_for_work(run: Folder, storage: str | None, resume: bool) -> Iterator[None]:
    """Hold a run that `find_run` found for this command alone, and write the first file of a new one.

    storage: as typed; None for a run that was named by its own place. InputError where another command holds it or has
    begun it in the meantime, and nothing is written then; also where that place cannot be written to.
    """
    with ExitStack() as held:
        try:
            held.enter_context(claimed(run))
            if storage is not None:
                _require(run, storage, resume)
            if not resume:
                run.write_json(ENVIRONMENT, environment())
        except (RunError, OSError) as error:
            if storage is None:
                raise InputError(
                    f"{run}: {error}; the command writes into this run: make it writable, or copy it to where you may "
                    "write"
                ) from None
            raise InputError(f"--storage {storage}: {error}; choose a folder or URI that you may write to") from None
        yield


def refuse_other(run: Folder, stored: Mapping[str, Any], asked: Mapping[str, Any], what: str) -> None:
    """InputError naming the first setting that differs; both have settings, or searched ranges as text, by path."""
    for path in [*stored, *(path for path in asked if path not in stored)]:
        before, now = (f"{tree[path]}" if path in tree else "not there" for tree in (stored, asked))
        if before != now:
            raise InputError(
                f"{run}: {path} was {before} when this run began, and is {now} {what}; leave it as it was, or start a "
                "new run with another --name"
            )


def say_changed(console: "Console", run: Folder) -> None:
    """Print what a resumed run does otherwise than when it began, if anything."""
    began = run.read_json(ENVIRONMENT) if run.exists(ENVIRONMENT) else {}
    changes = (
        (
            *("augmentation", AUGMENTATION_VERSION),
            "brightness and contrast now act inside the picture only, contrast about its mean, and zoom keeps the "
            "shape. Epochs from here on see other pictures",
        ),
        (
            *("arithmetic", ARITHMETIC_VERSION),
            "since 2 validation is in fp32, and with train.precision=auto networks of timm and torchvision train in "
            "bf16 on a CPU that is faster with it; since 3 the workers of one training add up their gradients in that "
            "precision, and batch norm's statistics are of all of them. Epochs from here on differ a little",
        ),
    )
    for name, now, what in changes:
        if (before := began.get(name, 1)) != now:
            console.print(
                f"note: this run began with another version of the {name} ({before}, now {now}): {what}; to compare "
                "like with like, start a new run",
                style="yellow",
                soft_wrap=True,
            )


def how_to_continue(verb: str, storage: str, run: Folder, **options: str | float | None) -> str:
    """What to type after `verb` was interrupted in this run; options: of the command, which the run does not keep."""
    if not run.exists(CONFIG):
        return "give the same command again"
    where = "" if storage == "runs" else f" --storage {shlex.quote(storage)}"
    return f"continue with: {_typed(verb)} --name {shlex.quote(run.name)}{where} --resume{typed_options(**options)}"


def typed_options(**options: str | float | None) -> str:
    """These options of a command as they are typed, each after a space; None was not given."""
    if options.get("address") == "auto" and CLUSTER_FILE in os.environ:
        del options["address"]  # `submit` gives it
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    words = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in given.items()}
    return "".join(f" --{name} {shlex.quote(word)}" for name, word in words.items())


def refit_command(run: Folder) -> str:
    """What to type to refit this search, without options."""
    return f"{_typed('refit')} {shlex.quote(str(run))}"


def _typed(verb: str) -> str:
    """How a command begins: one that a cluster's head runs was typed elsewhere."""
    sent = f"cluster submit {shlex.quote(file)} -- {verb}" if (file := os.environ.get(CLUSTER_FILE)) else verb
    return f"python -m fracray.{sent}"


def _runs(shelf: Folder) -> str:
    return ", ".join(name for name in shelf.names() if shelf.exists(f"{name}/config.yaml")) or "none"


def stored_config(run: Folder) -> Config:
    """The config with which a run was started."""
    return parse_config(run.read(CONFIG), f"{run}/config.yaml")


def as_begun(run: Folder, config: Config) -> Config:
    """The config that a command asks for, with what was decided when the run began where the command leaves it open.

    These are the sampler and the scheduler that `auto` became, and the default of the guard band in that version.
    """
    asked = config.leaves()
    if left := [path for path in CHOSEN if asked[path] == "auto"]:
        before = stored_config(run).leaves()
        config = config.with_leaves({path: before[path] for path in left})
    began = run.read_json(ENVIRONMENT).get("split", 1) if run.exists(ENVIRONMENT) else 1
    if began == 1 and config.data.split.guard is None:
        return config.with_leaves({"data.split.guard": 0})
    return config


def open_run(location: str) -> Folder:
    """An existing run folder; InputError where there is none."""
    run = Folder(location)
    if not run.exists(CONFIG):
        raise InputError(
            f"{location}: not a run folder (no config.yaml in it); give the folder that tune or train named"
        )
    return run


def ensemble_card(run: Folder) -> dict[str, Any] | None:
    """The card of the ensemble that a refit has made the best checkpoint of a search; None where there is none."""
    card = run.read_json(f"{BEST}/config.json") if run.exists(f"{BEST}/config.json") else None
    return card if isinstance(card, dict) and "members" in card else None


def is_in_run(location: str) -> bool:
    """Whether a location is a run folder or, on a disk, lies in one: `RUN/best`, `RUN/trials/t0007/best`."""
    folders = [location] if "://" in location else [str(path) for path in _with_parents(location)]
    return any(Folder(folder).exists(CONFIG) and Folder(folder).exists(ENVIRONMENT) for folder in folders)


def _with_parents(location: str) -> list[Path]:
    path = Path(location).expanduser().absolute()
    return [path, *path.parents][:4]


def data_words(source: str) -> str:
    """The option that names the data in a printed command, with a space before it; empty for phantoms."""
    return "" if source == PHANTOM else f" --data {shlex.quote(source)}"


def next_steps(run: Folder, checkpoint: str, source: str) -> str:
    """Where the checkpoint is, and the commands that fetch and evaluate it; `source` is the data's."""
    fetch, target = f"  python -m fracray.fetch {shlex.quote(str(run))}", shlex.quote(f"checkpoints/{run.name}")
    lines = [f"\ncheckpoint: {run.sub(checkpoint)}", "next:"]
    if run.is_local and (file := os.environ.get(CLUSTER_FILE)):  # read on a machine that does not have this path
        lines.append(f"{fetch} --cluster {shlex.quote(file)} --to {target}")
    else:
        evaluate = f"  python -m fracray.evaluate {shlex.quote(str(run.sub(checkpoint)))}{data_words(source)}"
        lines += [f"{fetch} --to {target}", f"{evaluate} --split test"]
    return "\n".join(lines)
