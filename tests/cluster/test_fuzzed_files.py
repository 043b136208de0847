"""Cluster files with every kind of slip: `check` names it and ends with exit code 0 or 2, never in a traceback."""

import copy
import random
import re

import pytest
import yaml
from checking import FILES

from fracray.cluster.__main__ import main
from fracray.errors import run_verb

YAML = sorted(file.name for file in FILES.glob("*.yaml"))
OTHER_TYPES = ("words", 3, 2.5, True, ["a", 1], {"a": 1}, None, [], {}, "", -1, [None], {"a": None}, "2026-01-01")


def paths(tree, prefix=()):
    """The path of every key and every list entry, at every depth."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*prefix, key)
        yield from paths(value, (*prefix, key))


def changed(tree, path, change):
    """A copy of the tree in which `change(parent, key)` has been done at a path."""
    tree = copy.deepcopy(tree)
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return tree


def swapped(word):
    """The word with its second and third letters swapped; where they are equal, without the second."""
    if len(word) < 3:
        return word + word
    return word[:1] + word[2:3] + word[1:2] * (word[1] != word[2]) + word[3:]


def misspell(parent, key):
    if isinstance(parent, dict):
        items = [(swapped(str(name)) if name == key else name, value) for name, value in parent.items()]
        parent.clear()
        parent.update(items)
    else:
        parent[key] = swapped(str(parent[key]))


def remove(parent, key):
    del parent[key]


def replaced_by(value):
    def change(parent, key):
        parent[key] = value

    return change


def dumped(tree):
    return yaml.safe_dump(tree, sort_keys=False, width=1000)


def doubled(text, number):
    """The text with one line, and what is indented below it, given twice."""
    lines = text.splitlines()
    depth = len(lines[number]) - len(lines[number].lstrip())
    end = number + 1
    while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > depth):
        end += 1
    return "\n".join([*lines[:end], *lines[number:end], *lines[end:]]) + "\n"


def variants(text):
    """(what is done, a function that gives the file's new text) for every key of a file."""
    tree = yaml.safe_load(text)
    for path in paths(tree):
        changes = {"misspelt": misspell, "removed": remove}
        changes |= {f"= {value!r}": replaced_by(value) for value in OTHER_TYPES}
        for what, change in changes.items():
            yield f"{path} {what}", lambda path=path, change=change: dumped(changed(tree, path, change))
    for number, line in enumerate(text.splitlines()):
        if re.match(r"\s*(- )?[\w./-]+:", line):
            yield f"line {number + 1} twice", lambda number=number: doubled(text, number)


def end_of(file, capsys):
    """The exit code of `check` and what it said; a traceback, or a message without the file, fails the test."""
    code = run_verb(main, ["check", str(file)])
    said = capsys.readouterr()
    assert code in (0, 2)
    assert "Traceback" not in said.out + said.err
    assert (code == 0) == (said.err == "")
    assert code == 0 or said.err.startswith(f"error: {file}")
    return code, said.out + said.err


SAMPLE = 60  # of the slips in each file; all of them, 9,000, take many minutes


@pytest.mark.parametrize("name", YAML)
def test_no_slip_in_a_shipped_file_ends_in_a_traceback(tmp_path, capsys, name):
    file = tmp_path / name
    failed = []
    slips = list(variants((FILES / name).read_text()))
    for what, text in random.Random(0).sample(slips, SAMPLE):
        file.write_text(text())
        try:
            end_of(file, capsys)
        except Exception as error:  # each is reported, not only the first
            capsys.readouterr()
            failed.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("name", YAML)
def test_every_misspelt_key_at_the_top_is_named_with_its_line(tmp_path, capsys, name):
    text = (FILES / name).read_text()
    file = tmp_path / name
    for key in yaml.safe_load(text):
        wrong = swapped(key)
        file.write_text(re.sub(rf"^{key}:", f"{wrong}:", text, flags=re.M))
        code, said = end_of(file, capsys)
        assert code == 2
        if name.startswith("ray"):  # Kubernetes checks the schema of its files
            continue
        line = next(at for at, line in enumerate(file.read_text().splitlines(), start=1) if line.startswith(wrong))
        if key not in ("provider", "head_node_type", "applications"):
            who = "Ray Serve" if name == "serve.yaml" else "Ray"
            assert f"{file}:{line}: {who} has no setting '{wrong}' (did you mean '{key}'?)" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\0\x01\xff\xfe", "it is not text"),
        (b"a: \x01\n", "not valid YAML"),
        (b"provider: {\n", ":2: not valid YAML"),
        (b"provider:\n\ttype: local\n", ":2: not valid YAML"),
        (b"provider: {type: local}\nprovider: {type: aws}\n", ":2: 'provider' is given twice (first on line 1)"),
        (b"provider: &p\n  type: local\n  again: *p\n", "an alias (*name) refers to a value that contains it"),
        (b"provider: *nothing\n", ":1: not valid YAML"),
        (b"- provider\n", "expected a mapping"),
        (b"words\n", "expected a mapping"),
        (b"--- {}\n--- {}\n", "not valid YAML"),
        (b"provider: !!python/object:os.system x\n", ":1: not valid YAML"),
        (b"provider:\n", "problem(s), see above"),
        (b"1: 2\nprovider: {type: local, 3: 4}\n", "Ray has no setting '1'"),
        (b"? [a, b]\n: c\n", "not valid YAML"),
        (b"provider: {type: 2026-01-01}\n", "provider.type = datetime.date(2026, 1, 1): expected text"),
        (b"kind: RayCluster\n", "authentication is off"),
        (b"kind: [RayCluster]\n", "not a cluster file"),
        (b"kind: RayService\n", "serveConfigV2 is missing"),
        (b"kind: RayService\nspec:\n  serveConfigV2: |\n    a: {\n", ":5: not valid YAML"),
        (
            b"kind: RayService\nspec:\n  serveConfigV2: |\n    a: 1\n    a: 2\n",
            ":5: 'a' is given twice (first on line 4)",
        ),
        (b"kind: RayService\nspec: {serveConfigV2: words}\n", "expected a mapping"),
        (b"kind: RayService\nspec: {serveConfigV2: {applications: []}}\n", "expected text"),
        (b"applications: []\n", "nothing is served"),
        (b"applications: words\n", "applications = 'words': expected a list"),
        (b"#!/bin/bash\n\xff", "it is not text"),
        (b"#!/bin/bash\n#SBATCH --nodes=two\n", ":2: --nodes=two: expected a number of nodes"),
    ],
)
def test_what_is_no_cluster_file_is_refused_in_one_line(tmp_path, capsys, content, words):
    file = tmp_path / "cluster.yaml"
    file.write_bytes(content)
    code, said = end_of(file, capsys)
    assert code == 2
    assert words in said


def test_a_folder_is_no_cluster_file(tmp_path, capsys):
    code, said = end_of(tmp_path, capsys)
    assert code == 2
    assert "Is a directory" in said


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("docker.run_options", "--gpus all", "docker.run_options = '--gpus all': expected a list"),
        ("metadata.storage", 3, "metadata.storage = 3: expected text"),
        ("auth", ["key"], "auth = ['key']: expected a mapping"),
        ("available_node_types.gpu.resources.CPU", "eight", "resources.CPU = 'eight': expected a number"),
        ("available_node_types.gpu.resources.CPU", float("nan"), "resources.CPU = nan: expected a number"),
    ],
)
def test_a_value_of_another_form_is_named_with_its_line(tmp_path, capsys, path, value, words):
    tree = yaml.safe_load((FILES / "gpu.yaml").read_text())
    keys = path.split(".")
    file = tmp_path / "gpu.yaml"
    file.write_text(dumped(changed(tree, keys, replaced_by(value))))
    _, said = end_of(file, capsys)
    line = int(re.search(rf"{file}:(\d+): ", said)[1])
    assert words in said
    assert file.read_text().splitlines()[line - 1].strip().startswith(f"{keys[-1]}:")


SERVICE_SLIPS = [
    ("applications.0.args", "bach", 3, "the service has no setting 'bach' (did you mean 'batch'?)"),
    ("applications.0.args", "token", "x" * 32, "the service has no setting 'token'"),
    ("applications.0.deployments.1", "autoscaling_confg", {}, "(did you mean 'autoscaling_config'?)"),
    ("applications.0.deployments.1.autoscaling_config", "max_replica", 3, "(did you mean 'max_replicas'?)"),
    ("applications.0.deployments.1.ray_actor_options", "num_gpu", 1, "(did you mean 'num_gpus'?)"),
    ("http_options", "prot", 8000, "(did you mean 'port'?)"),
]


@pytest.mark.parametrize("name", ["serve.yaml", "rayservice.yaml"])
@pytest.mark.parametrize(("path", "key", "value", "words"), SERVICE_SLIPS, ids=[slip[1] for slip in SERVICE_SLIPS])
def test_a_misspelt_key_of_a_service_is_named_with_its_line(tmp_path, capsys, name, path, key, value, words):
    """Ray Serve itself takes it without a word, also in the text inside a RayService."""
    tree = yaml.safe_load((FILES / name).read_text())
    config = tree if name == "serve.yaml" else yaml.safe_load(tree["spec"]["serveConfigV2"])
    inner = config
    for step in path.split("."):
        inner = inner[int(step) if step.isdigit() else step]
    inner[key] = value
    file = tmp_path / name
    text = dumped(config)
    if name == "rayservice.yaml":
        tree["spec"].pop("serveConfigV2")
        block = "".join(f"    {line}\n" for line in text.splitlines())
        text = dumped(tree) + f"  serveConfigV2: |\n{block}"  # `spec` is the last key
    file.write_text(text)
    code, said = end_of(file, capsys)
    assert code == 2
    line = int(re.search(rf"{file}:(\d+): (?:Ray Serve|the service) has no setting '{key}'", said)[1])
    assert words in said
    assert file.read_text().splitlines()[line - 1].strip().startswith(f"{key}:")
