"""Every fracray command in cluster/README.md and in the comments of the cluster files can be parsed."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

FILES = Path(__file__).parent.parent.parent / "cluster"


def commands(file):
    """The commands of a page or a comment, each joined over its continued lines."""
    text = re.sub(r"^#", "", file.read_text(), flags=re.M)
    text = re.sub(r"\\\n\s*", "", text)
    text = text.replace("sbatch cluster/slurm.sh", "python -m fracray.tune").replace('"$@"', "")
    return re.findall(r"python -m fracray\.([^;\n`]+)", text)


CASES = [(file.name, command) for file in sorted(FILES.glob("*.*")) for command in commands(file)]


def parse(words):
    verb, *rest = words
    module = "fracray.cluster.__main__" if verb == "cluster" else f"fracray.{verb}"
    return importlib.import_module(module).parser().parse_args(rest)


@pytest.mark.parametrize(("file", "command"), CASES, ids=[f"{file}-{at}" for at, (file, _) in enumerate(CASES)])
def test_a_documented_command_can_be_parsed(file, command):
    words = shlex.split(command, comments=True)
    at = words.index("--") if "--" in words else len(words)
    parse(words[:at])
    if words[at:]:
        parse(words[at + 1 :])


def test_all_commands_are_documented():
    assert {shlex.split(command)[0] for _, command in CASES} == {"cluster", "tune", "fetch"}
    assert {name for name, _ in CASES} >= {"README.md", "gpu.yaml", "rayjob.yaml", "slurm.sh"}
