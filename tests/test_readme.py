"""The README's commands are ones that the commands take, and its search space is one that loads."""

import re
import shlex
from pathlib import Path

import pytest

import fracray.cluster.__main__
import fracray.data.__main__
import fracray.evaluate
import fracray.fetch
import fracray.train
import fracray.tune
from fracray.config import Config, parse_assignments
from fracray.search.space_file import load_space

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PARSERS = {
    "cluster": fracray.cluster.__main__.parser,
    "tune": fracray.tune.parser,
    "train": fracray.train.parser,
    "fetch": fracray.fetch.parser,
    "evaluate": fracray.evaluate.parser,
    "data": fracray.data.__main__.parser,
}
COMMANDS = sorted(set(re.findall(r"^python -m fracray\.(.*)$", README, flags=re.MULTILINE)))


def test_the_readme_shows_every_verb():
    assert {command.split()[0] for command in COMMANDS} == set(PARSERS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_understood(command):
    verb, *words = shlex.split(command)
    if "--" in words:  # what is submitted to a cluster is a command itself
        test_a_command_of_the_readme_is_understood(shlex.join(words[words.index("--") + 1 :]))
        words = words[: words.index("--")]
    args = PARSERS[verb]().parse_args(words)
    Config().with_leaves(parse_assignments(getattr(args, "set", [])))
    if getattr(args, "space", None):
        assert (ROOT / args.space).is_file()


def test_the_search_space_of_the_readme_loads(tmp_path):
    (shown,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "shown.yaml").write_text(shown)
    assert len(load_space(tmp_path / "shown.yaml").dimensions) == 4


def test_the_settings_of_the_readme_exist_with_the_defaults_it_names():
    leaves = Config().leaves()
    rows = re.findall(r"^\| `((?:data|model|augment|train)\.[^|]*)` \| ([^|]*) \|", README, flags=re.MULTILINE)
    assert len(rows) > 8
    for names, default in rows:
        first = names.split("`")[0]
        assert first in leaves, first
        shown = default.split(",")[0].strip()
        assert shown == (
            "none"
            if leaves[first] in (None, [])
            else f"{leaves[first]:g}"
            if isinstance(leaves[first], float)
            else str(leaves[first])
        )
