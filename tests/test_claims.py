"""Two commands with one name, and a run that is resumed with something else: refused, and nothing is written."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from fracray import train, tune
from fracray.errors import InputError
from fracray.runtime.run_folder import how_to_continue
from fracray.runtime.storage import Folder

SPACE = """
trials: 4
epochs: 2
scheduler: {name: none}
base: {model: {width: 8}}
space:
  model.dropout: {float: [0.0, 0.4]}
"""


@pytest.fixture
def space(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    return str(tmp_path / "space.yaml")


@pytest.fixture(params=["disk", "store"])
def storage(request, tmp_path):
    return str(tmp_path / "runs") if request.param == "disk" else request.getfixturevalue("s3")(tmp_path.name)


def words(storage, *more):
    return ["--storage", storage, "--name", "atlas", *more]


def prepared(verb, argv, held):
    """What a command does before it connects to Ray; the run is held until `held` ends."""
    args = verb.parser().parse_args(argv)
    return (verb._resume if args.resume else verb._begin)(args, held)


def begin(verb, argv):
    """A run that was begun and ended, as `make_job` leaves it before the first epoch."""
    with ExitStack() as held:
        first, run, *_ = prepared(verb, argv, held)
        run.write("config.yaml", (first.config if verb is tune else first).to_yaml())
    return run


def content(run):
    return {name: run.read(name) for name in run.names() if name != "claims"}


def test_of_two_searches_with_one_name_the_first_keeps_its_files(storage, space, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(SPACE.replace("0.4", "0.6").replace("width: 8", "width: 16"))
    start, ended, won = threading.Barrier(2), threading.Event(), []

    def command(file):
        with ExitStack() as held:
            start.wait()
            try:
                prepared(tune, words(storage, "--space", str(file)), held)
            except InputError as error:
                ended.set()
                return str(error)
            won.append(file)
            ended.wait(60)
            return ""

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(command, (space, other)))
    assert said[0] == ""
    assert "another command works in this run" in said[1]
    with open(*won, "rb") as file:
        assert Folder(storage).sub("atlas").read("space.yaml") == file.read()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "model.width=16"], "model.width was 8 when this run began, and is 16 in this command"),
        (["--epochs", "3"], "train.epochs was 2 when this run began, and is 3 in this command"),
        (["--set", "search.sampler.seed=5"], "search.sampler.seed was 0 when this run began, and is 5"),
        (["--data", "."], "data.source was phantom when this run began, and is /"),
        (["--set", "model.dropout=0.1"], "nothing is left to search"),
    ],
)
def test_a_search_is_not_resumed_with_other_settings(storage, space, more, message):
    run = begin(tune, words(storage, "--space", space))
    before = content(run)
    with ExitStack() as held, pytest.raises(InputError, match=message):
        prepared(tune, words(storage, "--resume", *more), held)
    assert content(run) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.4", "0.6", r"space.model.dropout was float \[0.0, 0.4\] when this run began, and is float \[0.0, 0.6\]"),
        ("width: 8", "width: 16", "model.width was 8 when this run began, and is 16"),
        ("{name: none}", "{name: asha}", "search.scheduler.name was none when this run began, and is asha"),
        (
            "float: [0.0, 0.4]",
            "log_float: [0.1, 0.4]",
            r"space.model.dropout was float \[0.0, 0.4\] when this run began, and is log_float \[0.1, 0.4\]",
        ),
        (
            "space:\n",
            "space:\n  model.spatial_dropout: {float: [0, 0.1]}\n",
            "space.model.spatial_dropout was not there when this run began",
        ),
    ],
)
def test_a_search_is_not_resumed_with_another_space(tmp_path, space, old, new, message):
    storage = str(tmp_path / "runs")
    run = begin(tune, words(storage, "--space", space))
    other = tmp_path / "other.yaml"
    other.write_text(SPACE.replace(old, new))
    before = content(run)
    with ExitStack() as held, pytest.raises(InputError, match=message):
        prepared(tune, words(storage, "--resume", "--space", str(other)), held)
    assert content(run) == before


def test_a_search_is_resumed_with_the_same_space_and_with_what_may_change(storage, space):
    run = begin(tune, words(storage, "--space", space, "--set", "model.width=16"))
    same = [
        "--resume",
        "--space",
        space,
        "--set",
        "model.width=16",
        "--epochs",
        "2",
        "--trials",
        "9",
        "--concurrent",
        "1",
    ]
    with ExitStack() as held:
        found, *_ = prepared(tune, words(storage, *same), held)
    assert (found.config.search.trials, found.config.model.width) == (9, 16)
    assert "search.trials" not in run.read_json("overrides.json")  # kept once the places for trials are found


def test_a_space_file_that_was_changed_in_the_run_is_refused(tmp_path, space):
    storage = str(tmp_path / "runs")
    run = begin(tune, words(storage, "--space", space))
    run.write("space.yaml", SPACE.replace("width: 8", "width: 16"))
    with ExitStack() as held, pytest.raises(InputError, match=r"is 16 in the run's space\.yaml and overrides\.json"):
        prepared(tune, words(storage, "--resume"), held)


def test_a_training_is_not_resumed_with_another_config(storage):
    run = begin(train, words(storage, "--epochs", "3"))
    before = content(run)
    for more in (["--epochs", "4"], ["--set", "model.width=16"], ["--data", "."]):
        with ExitStack() as held, pytest.raises(InputError, match=r"when this run began, and is .* in this command"):
            prepared(train, words(storage, "--resume", *more), held)
    assert content(run) == before
    with ExitStack() as held:
        config, _ = prepared(train, words(storage, "--resume", "--epochs", "3"), held)
        assert config.train.epochs == 3
        with ExitStack() as second, pytest.raises(InputError, match="another command works in this run"):
            prepared(train, words(storage, "--resume"), second)


def test_a_run_that_was_stopped_before_it_began_begins_again_and_says_so(storage, space):
    with ExitStack() as held:
        _, run, *_ = prepared(tune, words(storage, "--space", space), held)
    assert how_to_continue("tune", storage, run) == "give the same command again"
    with ExitStack() as held, pytest.raises(InputError, match="was stopped before it began; give its first command"):
        prepared(tune, words(storage, "--resume"), held)
    with ExitStack() as held:
        prepared(tune, words(storage, "--space", space), held)


def test_a_folder_of_something_else_is_not_written_into(tmp_path, space):
    """`--storage . --name hospital-set`: its manifest.parquet would be replaced."""
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas/manifest.parquet").write_bytes(b"of an imported set")
    for verb, more in ((tune, ["--space", space]), (train, [])):
        with (
            ExitStack() as held,
            pytest.raises(InputError, match=r"atlas: not a run, but not empty \(manifest.parquet\)"),
        ):
            prepared(verb, words(str(tmp_path), *more), held)
    assert [file.name for file in (tmp_path / "atlas").iterdir()] == ["manifest.parquet"]
