"""The commands as a user types them: their flags, their exit codes, and what bad input ends in."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from drawn_fracatlas import Atlas, jpeg, picture

from fracray import cli, evaluate, export, fetch, log, predict, refit, report, serve, train, tune
from fracray.cluster import __main__ as cluster
from fracray.config import Config
from fracray.data import __main__ as data
from fracray.errors import InputError, RunError, run_verb
from fracray.metrics import Calibration
from fracray.runtime.console import new_console
from fracray.runtime.storage import Folder
from fracray.training.checkpoint import CheckpointMetadata, save_checkpoint
from fracray.training.model import build_model

# ---- exit codes


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (None, 0, ""),
        (RunError("trial t0003 died"), 1, "failed: trial t0003 died\n"),
        (InputError("--top 0: at least one"), 2, "error: --top 0: at least one\n"),
        (KeyboardInterrupt(), 130, "interrupted; give the same command again\n"),
        (KeyboardInterrupt("continue with: that"), 130, "interrupted; continue with: that\n"),
    ],
    ids=["done", "failed run", "bad input", "Ctrl-C", "Ctrl-C in a run"],
)
def test_every_end_has_its_exit_code_and_one_line(capsys, raised, code, words):
    def verb(argv):
        assert list(argv) == ["a", "--b"]
        if raised is not None:
            raise raised

    assert run_verb(verb, ["a", "--b"]) == code
    assert capsys.readouterr().err == words


@pytest.mark.parametrize(
    ("verb", "words", "again"),
    [
        (train, "--epochs 8", ""),
        (train, "--workers 2-4 --cpus-per-worker 2.5 --address head:6379", None),
        (tune, "--trials 9 --gpus-per-trial 0.25 --address head:6379", " --address head:6379"),  # it keeps the others
        (refit, "RUN", ""),
        (refit, "RUN --gpus-per-trial 0.25 --address head:6379", " --gpus-per-trial 0.25 --address head:6379"),
    ],
)
def test_a_run_continues_with_the_workers_and_on_the_cluster_that_it_had(verb, words, again, tmp_path):
    run = Folder(tmp_path)
    run.write("config.yaml", b"{}")
    run.write("refit/refit.json", b"{}")
    said = verb._how_to_continue(verb.parser().parse_args(words.split()), run)
    assert said.endswith(" --resume" + (f" {words}" if again is None else again))


def test_a_mistake_of_ours_keeps_its_traceback():
    def verb(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_verb(verb, [])


def test_a_reader_that_goes_away_is_no_error():
    """`fracray ... | head -1`"""
    script = "from fracray.errors import run_verb; exit(run_verb(lambda a: [print(i) for i in range(10**6)], []))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


# ---- the command and its verbs


def fracray(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fracray", *map(str, words)])
    return cli.main()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_bare_command_lists_its_verbs(monkeypatch, capsys, words):
    assert fracray(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in ("tune", "train", "fetch", "evaluate", "data"))


def test_the_version_names_what_a_report_of_a_fault_should_name(monkeypatch, capsys):
    assert fracray(monkeypatch, "--version") == 0
    out = capsys.readouterr().out
    assert re.fullmatch(r"fracray \d\S+ \(Python 3\.\S+, torch \d\S+, ray \d\S+, .*\)\n", out)


def test_what_is_no_verb_is_refused_with_the_list(monkeypatch, capsys):
    assert fracray(monkeypatch, "nonsense") == 2
    error = capsys.readouterr().err
    assert "'nonsense' is not a verb of fracray" in error
    assert "\n  tune " in error


def test_a_verb_of_the_command_is_the_module_of_that_name(monkeypatch, capsys, tmp_path):
    assert fracray(monkeypatch, "fetch", tmp_path, "--to", tmp_path / "out") == 2
    assert "not a run folder" in capsys.readouterr().err


def test_the_command_is_installed():
    installed = Path(sys.executable).with_name("fracray")
    done = subprocess.run([installed, "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'nonsense' is not a verb of fracray" in done.stderr
    assert done.stdout == ""


# Frozen, so that an option is added on purpose: its line stays in --help forever.
FLAGS = {
    "tune": "--space --trials --concurrent --workers-per-trial --cpus-per-trial --gpus-per-trial --warm-start "
    "--time-budget --refit --callback --dry-run --cluster --price-per-hour --data --epochs --set --storage --name "
    "--resume --log --address",
    "refit": "run --top --seeds --folds --no-folds --members --concurrent --workers-per-trial --cpus-per-trial "
    "--gpus-per-trial --time-budget --resume --address",
    "train": "--config --workers --cpus-per-worker --gpus-per-worker --data --epochs --set --storage --name --resume "
    "--log --address",
    "fetch": "run --top --metric --cluster --to",
    "evaluate": "checkpoint --data --split --json --csv --by --operating-points --cost-ratio --prevalence --saliency "
    "--against --corruptions --reference --severities --seed --address",
    "predict": "checkpoint path --to --overwrite --coverage --study --heatmaps --dicom-out --address",
    "export": "checkpoint --to --format --data --overwrite",
    "serve": "checkpoint --host --port --token-file --workers --decoders --batch --wait --coverage --ray --address "
    "--replicas --gpus-per-replica --max-megabytes --max-megapixels --max-files --timeout --queue",
    "report": "run --data --to --model-card --claim --evaluated --cluster --price-per-hour",
    "log": "run --to",
    "cluster check": "file --space --workers-per-trial --cpus-per-trial --gpus-per-trial --nodes --storage",
    "cluster submit": "file --address",
    "cluster attach": "file --address job",
    "data download": "--to --version --api",
    "data import": "path --to --labels --column --positive --negative --ignore --one-class --classes --patient-from "
    "--some-without-patient --licence --salt",
    "data check": "path --manifest --datasheet --set --address",
    "data audit": "path --json --html --set",
    "data sheet": "path --to --count --augmented --corrupted --crops --set --address",
    "data phantom": "--to --count --seed",
}
MODULES = {
    "tune": tune,
    "refit": refit,
    "train": train,
    "fetch": fetch,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "serve": serve,
    "report": report,
    "log": log,
    "cluster": cluster,
    "data": data,
}


def arguments(parser):
    found = []
    for action in parser._actions:
        found += [word for word in action.option_strings if word not in ("-h", "--help")] or (
            [] if action.option_strings else [action.dest]
        )
    return found


@pytest.mark.parametrize("words", FLAGS)
def test_the_flags_of_a_verb_are_these_and_its_help_explains_each(capsys, words):
    verb, *rest = words.split()
    parser = MODULES[verb].parser()
    for name in rest:
        parser = next(action for action in parser._actions if action.choices and name in action.choices).choices[name]
    assert arguments(parser) == FLAGS[words].split()
    with pytest.raises(SystemExit) as end:
        run_verb(MODULES[verb].main, [*rest, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in arguments(parser))
    assert f"python -m fracray.{verb}" in shown


def test_every_verb_is_frozen_here():
    assert {words.split()[0] for words in FLAGS} == set(cli.VERBS)


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        run_verb(fetch.main, ["run", "--too", "x"])
    assert end.value.code == 2
    assert "usage: python -m fracray.fetch" in capsys.readouterr().err


# ---- bad input: exit code 2, one message that names the faulty input, no traceback


@pytest.fixture
def refuse(capsys, tmp_path, monkeypatch):
    """Runs a verb in an empty folder, checks that it refuses, and returns the message."""
    monkeypatch.chdir(tmp_path)

    def run(module, *words):
        code = run_verb(module.main, [str(word) for word in words])
        seen = capsys.readouterr()
        assert code == 2, seen.err
        assert seen.err.startswith("error: ")
        assert seen.err.count("\n") == 1
        assert "Traceback" not in seen.out + seen.err
        return seen.err

    return run


def space_file(tmp_path, text="space:\n  model.dropout: {float: [0, 0.5]}\n"):
    (tmp_path / "space.yaml").write_text(text)
    return tmp_path / "space.yaml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trails: 3\nspace:\n  model.dropout: {float: [0, 0.5]}\n", "space.yaml:1: unknown key 'trails'"),
        ("space:\n  model.dropout: {float: [0.5, 0]}\n", "space.yaml:2: model.dropout: low must be below high"),
        ("space:\n  model.drop: {float: [0, 0.5]}\n", "space.yaml:2: 'model.drop' is not a setting (did you mean"),
        (
            "space:\n  augment.extra.CLAHE.q: {float: [0, 1]}\n",
            "space.yaml:2: augment.extra.CLAHE.q: CLAHE has no argument",
        ),
    ],
    ids=["unknown key", "range from high to low", "unknown path", "unknown argument of an extra transform"],
)
def test_a_faulty_space_is_refused_before_anything_starts(refuse, tmp_path, text, words):
    assert words in refuse(tune, "--space", space_file(tmp_path, text))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--space: name a search-space file"),
        (["--space", "nowhere.yaml"], "nowhere.yaml: no such search-space file"),
        (["--space", "space.yaml", "--trials", "0"], "search.trials = 0"),
        (["--space", "space.yaml", "--gpus-per-trial", "-1"], "search.gpus_per_trial = -1.0"),
        (["--space", "space.yaml", "--set", "model.dropout"], "--set model.dropout: expected path=value"),
        (["--space", "space.yaml", "--set", "model.drop=1"], "--set: 'model.drop' is not a setting"),
        (["--space", "space.yaml", "--name", "a/b"], "--name a/b: a plain name"),
        (["--space", "space.yaml", "--storage", "nosuch://x"], "nosuch://x: not a folder or URI"),
        (["--resume"], "--resume: name the run with --name"),
        (["--resume", "--name", "atlas"], "--resume: there is no run atlas"),
        (["--resume", "--space", "space.yaml"], "--resume: name the run with --name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_of_tune_that_cannot_be_are_refused(refuse, tmp_path, flags, words):
    space_file(tmp_path)
    assert words in refuse(tune, *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workers", "0"], "--workers 0"),
        (["--epochs", "0"], "train.epochs = 0"),
        (["--set", "train.lr=-1"], "train.lr = -1"),
        (["--set", "augment.extra.CLAHE.p=2"], "augment.extra.CLAHE.p = 2: input should be less than or equal to 1"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["--resume"], "--resume: name the run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_of_train_that_cannot_be_are_refused(refuse, flags, words):
    assert words in refuse(train, *flags)


# More than the cluster has: said before data are prepared, and nothing waits for what never comes


@pytest.mark.parametrize(
    ("module", "flags", "words"),
    [
        (train, ["--workers", "99"], "99 worker(s) with 1 CPU(s) each need 99 CPU(s), and the cluster has 2"),
        (train, ["--gpus-per-worker", "1"], "need 1 GPU(s), and the cluster has 0"),
        (train, ["--cpus-per-worker", "64"], "need 64 CPU(s), and the cluster has 2"),
        (tune, ["--gpus-per-trial", "1"], "need 1 GPU(s), and the cluster has 0"),
        (tune, ["--gpus-per-trial", "0.25"], "need 0.25 GPU(s), and the cluster has 0"),
        (tune, ["--cpus-per-trial", "3"], "need 3 CPU(s), and the cluster has 2"),
        (tune, ["--workers-per-trial", "3"], "3 worker(s) with 1 CPU(s) each need 3 CPU(s)"),
        (tune, ["--concurrent", "50"], "--concurrent 50: only 2 trial(s) fit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_more_than_the_cluster_has_is_refused(ray_local, refuse, tmp_path, cache, module, flags, words):
    space = ["--space", space_file(tmp_path)] if module is tune else []
    assert words in refuse(module, *space, *flags, "--set", "data.phantom.count=54321")
    assert not list(cache.glob("phantom-54321-*"))  # nothing long was begun


def test_from_a_shell_a_search_that_asks_for_too_much_ends_at_once(tmp_path):
    """The complete command, with its own Ray: exit code, one line on stderr, no process that waits."""
    done = subprocess.run(
        [sys.executable, "-m", "fracray.tune", "--space", space_file(tmp_path), "--concurrent", "5000"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --concurrent 5000: only ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout


# Data


@pytest.fixture
def atlas(tmp_path):
    return Atlas(tmp_path / "FracAtlas")


def filled(atlas, count=24):
    for number in range(1, count + 1):
        atlas.add(number, int(number % 3 == 0))
    return atlas


def replace_text(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def announce(data, width=40_000, height=30_000):
    """A JPEG whose header claims more than a billion pixels."""
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def test_a_missing_folder_is_named_by_every_verb_that_takes_data(ray_local, refuse, tmp_path):
    nowhere = tmp_path / "nowhere"
    for module, words in (
        (data, ["check", nowhere]),
        (train, ["--data", nowhere]),
        (tune, ["--space", space_file(tmp_path), "--data", nowhere]),
        (evaluate, [checkpoint(tmp_path / "best"), "--data", nowhere]),
    ):
        assert f"{nowhere}: no such file or folder" in refuse(module, *words)


def test_an_empty_folder_is_refused(ray_local, refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: no dataset.csv in it" in refuse(data, "check", tmp_path / "empty")


def test_a_folder_without_images_is_refused(ray_local, refuse, atlas):
    atlas.add(1, data=None)
    assert "images: no image in Non_fractured or Fractured" in refuse(data, "check", atlas.write())


def test_a_csv_without_a_column_is_refused(ray_local, refuse, atlas):
    csv = filled(atlas).write() / "dataset.csv"
    replace_text(csv, "fractured", "broken")
    assert f"{csv}: column fractured is missing" in refuse(data, "check", atlas.root)


def test_a_label_outside_0_and_1_is_refused_with_its_line(ray_local, refuse, atlas):
    filled(atlas).lines[4]["fractured"] = 2
    root = atlas.write()
    assert f"{root / 'dataset.csv'}, line 6: fractured is '2'; it must be 0 or 1" in refuse(data, "check", root)


@pytest.mark.parametrize("name", ["../../evil.jpg", "/tmp/evil.jpg"])
def test_a_zip_that_climbs_out_is_refused_and_nothing_is_unpacked(ray_local, refuse, tmp_path, cache, name):
    with zipfile.ZipFile(tmp_path / "FracAtlas.zip", "w") as archive:
        archive.writestr("FracAtlas/dataset.csv", "image_id\n")
        archive.writestr(name, b"evil")
    message = refuse(data, "check", tmp_path / "FracAtlas.zip")
    assert f"member '{name}' leads out of the folder" in message
    assert not list(cache.rglob("evil.jpg"))


def test_a_file_that_is_neither_folder_nor_zip_is_refused(ray_local, refuse, tmp_path):
    (tmp_path / "atlas.rar").write_bytes(b"Rar!")
    assert "atlas.rar: neither a folder nor a complete zip" in refuse(data, "check", tmp_path / "atlas.rar")


def test_an_image_of_a_billion_pixels_is_left_out_and_the_rest_is_used(ray_local, capsys, atlas):
    filled(atlas)
    atlas.add(25, data=announce(jpeg(picture(25))))
    assert (
        run_verb(data.main, ["check", str(atlas.write()), "--set", "data.size=32", "--set", "data.split.block=1"]) == 0
    )
    out = capsys.readouterr().out
    assert "unreadable 1" in out
    assert "IMG0000025: header announces more than 80,000,000 pixels" in out
    assert "used 24" in out


def test_images_of_a_billion_pixels_alone_leave_nothing_to_use(ray_local, refuse, atlas):
    for number in (1, 2, 3):
        atlas.add(number, number % 2, data=announce(jpeg(picture(number))))
    assert str(atlas.root) in refuse(data, "check", atlas.write())


def test_too_few_images_for_three_parts_are_refused(ray_local, refuse, atlas):
    for number in (1, 2):
        atlas.add(number, number % 2)
    assert "data.split" in refuse(data, "check", atlas.write())


# Checkpoints


def checkpoint(folder):
    config = Config().with_leaves({"model.width": 4, "data.size": 32})
    metadata = CheckpointMetadata(
        config, 0.5, Calibration(1.0, 0.0), {"val_accuracy": 0.5}, data_fingerprint="f", epoch=1
    )
    save_checkpoint(folder, build_model(config.model).state_dict(), metadata)
    return folder


def edit_card(folder, change):
    metadata = json.loads((folder / "config.json").read_text())
    change(metadata)
    (folder / "config.json").write_text(json.dumps(metadata))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_pickle_is_refused_unopened(refuse, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pth")
    assert "model.pth" in refuse(evaluate, tmp_path / "model.pth")
    folder = checkpoint(tmp_path / "best")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    message = refuse(evaluate, folder)
    assert f"{folder / 'model.safetensors'}" in message
    assert "pickle" in message
    assert not (tmp_path / "pwned").exists()


def test_a_checkpoint_that_does_not_match_its_config_is_refused(refuse, tmp_path):
    folder = checkpoint(tmp_path / "best")
    edit_card(folder, lambda metadata: metadata["config"]["model"].update(width=8))
    assert f"{folder / 'model.safetensors'}: does not match the model section of config.json" in refuse(
        evaluate, folder
    )


def test_a_checkpoint_whose_config_is_no_config_is_refused(refuse, tmp_path):
    folder = checkpoint(tmp_path / "best")
    edit_card(folder, lambda metadata: metadata["config"]["model"].update(dropout=3))
    assert "config.json: model.dropout = 3" in refuse(evaluate, folder)


def test_a_folder_that_is_no_checkpoint_is_refused(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "not a checkpoint folder" in refuse(evaluate, tmp_path / "empty")
    assert "no such checkpoint folder" in refuse(evaluate, tmp_path / "nowhere")


def test_a_checkpoint_in_a_store_that_is_not_there_is_named(refuse, s3):
    assert "radiographs/nowhere/best" in refuse(evaluate, s3("nowhere/best"))


# Targets


def test_targets_that_cannot_be_written_are_named(refuse, tmp_path):
    (tmp_path / "there").mkdir()
    assert f"--to {tmp_path / 'there'}: exists already" in refuse(data, "phantom", "--to", tmp_path / "there")
    assert "data.phantom.count = 3" in refuse(data, "phantom", "--to", tmp_path / "new", "--count", 3)


def test_names_with_brackets_are_printed_as_they_are(capsys):
    new_console().print("images/a[/b2].png [bold red]x[/]")
    assert capsys.readouterr().out == "images/a[/b2].png [bold red]x[/]\n"
