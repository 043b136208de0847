"""The config tree: leaves by dotted path, and errors that name path and remedy."""

import pydantic
import pytest
import yaml

from fracray.config import LEAVES, Config, check_path, load_config, parse_assignments, read_scalar, resolve
from fracray.errors import InputError

# ---- leaves


def test_leaves_are_the_settings_by_dotted_path():
    leaves = Config().leaves()
    assert tuple(leaves) == LEAVES
    assert leaves["model.dropout"] == Config().model.dropout
    assert leaves["data.split.protocol"] == "grouped"
    assert leaves["search.sampler.name"] == "auto"
    assert not any(isinstance(value, dict) for value in leaves.values())


def test_every_leaf_set_to_its_own_value_gives_the_same_config():
    config = Config()
    assert config.with_leaves(config.leaves()) == config


def test_with_leaves_changes_a_copy_and_nothing_else():
    config = Config()
    changed = config.with_leaves({"model.dropout": 0.4, "data.split.seed": 7, "search.metric": ["val_auroc", "val_f1"]})
    assert (changed.model.dropout, changed.data.split.seed) == (0.4, 7)
    assert changed.search.metric == ("val_auroc", "val_f1")
    differ = {path for path, value in changed.leaves().items() if value != config.leaves()[path]}
    assert differ == {"model.dropout", "data.split.seed", "search.metric"}
    assert config == Config()


@pytest.mark.parametrize("change", [("model", None), ("model.dropout", 0.5), ("data.split.block", 1)])
def test_a_config_cannot_be_changed(change):
    path, value = change
    *parents, leaf = path.split(".")
    node = Config()
    for parent in parents:
        node = getattr(node, parent)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(node, leaf, value)


def test_yaml_brings_a_config_back(tmp_path):
    config = Config().with_leaves(
        {"model.weights": "imagenet", "train.lr": 3e-5, "search.metric": ["val_f1"], "train.threads": 2}
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config


# ---- values that are refused, each by its dotted path


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.dropout", 1.0, "less than 1"),
        ("model.dropout", -0.1, "greater than or equal to 0"),
        ("model.dropout", "high", "valid number"),
        ("model.dropout", float("nan"), "finite"),
        ("augment.rotate", 181, "less than or equal to 180"),
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.batch_size", 23.7, "integer"),
        ("train.lr", 0, "greater than 0"),
        ("train.loss", "hinge", "'weighted', 'focal' or 'plain'"),
        ("search.mode", "up", "'max' or 'min'"),
        ("data.split.protocol", "patient", "'grouped', 'random', 'blocks'"),
        ("search.gpus_per_trial", -1, "greater than or equal to 0"),
    ],
)
def test_a_bad_value_is_named_with_its_path_and_what_is_admitted(path, value, words):
    with pytest.raises(InputError) as error:
        Config().with_leaves({path: value}, "--set")
    message = str(error.value)
    assert message.startswith(f"--set: {path} = {value!r}: ")
    assert words in message


def test_parts_that_leave_no_test_set_are_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"train \+ val = 1.05 leaves nothing for test; lower one"):
        Config().with_leaves({"data.split.train": 0.9})


def test_all_faults_are_reported_together():
    with pytest.raises(InputError) as error:
        resolve({"model": {"dropout": 2}, "train": {"epochs": 0}}, "file.yaml")
    assert "model.dropout" in str(error.value)
    assert "train.epochs" in str(error.value)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("model.dropuot", "did you mean 'model.dropout'?"),
        ("modell.dropout", "did you mean 'model.dropout'?"),
        ("augment", "augment.rotate, augment.flip"),
        ("data.split", "data.split.protocol"),
        ("model.dropout.rate", "did you mean 'model.dropout'?"),
    ],
)
def test_a_path_that_is_no_leaf_is_refused_with_a_remedy(path, remedy):
    with pytest.raises(InputError) as error:
        check_path(path, "--set")
    assert f"--set: '{path}' is not a setting" in str(error.value)
    assert remedy in str(error.value)


def test_a_path_like_no_other_gets_no_guess():
    with pytest.raises(InputError, match=r"^--set: 'qqqq' is not a setting$"):
        check_path("qqqq", "--set")


# ---- path=value words


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("12", 12),
        ("true", True),
        ("null", None),
        ("[val_auroc, val_f1]", ["val_auroc", "val_f1"]),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0"),
        ("'12'", 12.0),  # a quoted number is a number still: no setting is a string of digits
        ("/data/a=b", "/data/a=b"),
        ("", None),
    ],
)
def test_a_value_is_read_as_yaml(text, value):
    read = read_scalar(text, "--set")
    assert read == value
    assert type(read) is type(value)


def test_assignments_become_typed_leaves():
    leaves = parse_assignments(["train.lr=1e-3", "model.freeze_norm=true", "model.weights=null", "data.cache=/a=b"])
    assert leaves == {"train.lr": 1e-3, "model.freeze_norm": True, "model.weights": None, "data.cache": "/a=b"}
    assert Config().with_leaves(leaves).train.lr == 1e-3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.dropout", "--set model.dropout: expected path=value"),
        ("model.drop=1", "--set: 'model.drop' is not a setting (did you mean 'model.dropout'?)"),
        ("=1", "--set: '' is not a setting"),
        ("model.dropout=[1,", "--set model.dropout=[1,: not readable as a value"),
    ],
)
def test_words_that_assign_nothing_are_refused(word, message):
    with pytest.raises(InputError) as error:
        parse_assignments([word])
    assert message in str(error.value)


# ---- config files


def test_keys_that_are_absent_keep_their_defaults(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("model: {dropout: 0.33}\n")
    assert load_config(file) == Config().with_leaves({"model.dropout": 0.33})
    file.write_text("")
    assert load_config(file) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {dropuot: 0.1}", "'model.dropuot' is not a setting (did you mean 'model.dropout'?)"),
        ("modle: {dropout: 0.1}", "'modle' is not a setting (did you mean 'model'?)"),
        ("data: {splti: {seed: 1}}", "'data.splti' is not a setting (did you mean 'data.split'?)"),
        ("model: {dropout: 1.5}", "model.dropout = 1.5: input should be less than 1"),
        ("model: 5", "model = 5"),
        ("- model", "expected a mapping with the keys data, augment, model, train, search"),
        ("model: {dropout: [", "not readable as YAML"),
        ("model: !!python/object/apply:os.getcwd []", "not readable as YAML"),
        ("\x00", "not readable as YAML"),
    ],
)
def test_faults_of_a_file_name_the_file(tmp_path, text, words):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(file)
    assert str(error.value).startswith(f"{file}: ")
    assert words in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such config file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="not readable"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"data: {source: K\xf6ln}")
    with pytest.raises(InputError, match=r"latin\.yaml: not readable"):
        load_config(tmp_path / "latin.yaml")


def test_what_is_saved_is_plain_yaml():
    assert yaml.safe_load(Config().to_yaml()) == Config().model_dump(mode="json")


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_a_switch_is_set_by_the_words_that_the_docs_name(word, tmp_path):
    """YAML reads a plain on and off as true and false."""
    leaves = parse_assignments([f"train.graphs={word}"], "command line")
    assert Config().with_leaves(leaves).train.graphs == word
    (tmp_path / "config.yaml").write_text(f"train: {{graphs: {word}}}\n")
    assert load_config(tmp_path / "config.yaml").train.graphs == word
    assert yaml.safe_load(load_config(tmp_path / "config.yaml").to_yaml())["train"]["graphs"] == word
