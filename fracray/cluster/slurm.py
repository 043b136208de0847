"""Slurm's batch scripts, with the line of every #SBATCH option and every command.

Knows nothing of their meaning and runs nothing.
"""

import re
import shlex
from pathlib import Path
from typing import Any

from fracray.errors import InputError
from fracray.runtime.yaml_lines import ParsedFile, unreadable

OPTIONS, LATE, COMMANDS = "#SBATCH", "late", "commands"
SHORT = {"N": "nodes", "n": "ntasks", "c": "cpus-per-task", "t": "time", "G": "gpus", "p": "partition", "A": "account"}


def is_batch(path: str | Path) -> bool:
    """Whether a file is a script, by its first two bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def read_batch(path: str | Path) -> ParsedFile:
    """Read a script into `{"#SBATCH": {option: value}, "late": [...], "commands": [...]}`.

    Options have their long names; the value of an option without one is ''. `late` has the option lines below the first
    command, which Slurm ignores. A command may span lines that end in a backslash; its line is the first of them.
    Raises InputError, with the line, where the file is not text or an option cannot be parsed.
    """
    origin = str(path)
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(origin, error) from None
    tree: dict[str, Any] = {OPTIONS: {}, LATE: [], COMMANDS: []}
    lines: dict[tuple[str, ...], int] = {}
    continued = False
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip()
        if continued:
            tree[COMMANDS][-1] += " " + words.removesuffix("\\").rstrip()
        elif words.startswith(OPTIONS) and tree[COMMANDS]:
            lines[LATE, str(len(tree[LATE]))] = number
            tree[LATE].append(words)
            continue
        elif words.startswith(OPTIONS):
            for option, value in _options(words.removeprefix(OPTIONS), f"{origin}:{number}"):
                lines.setdefault((OPTIONS,), number)
                lines[OPTIONS, option] = number
                tree[OPTIONS][option] = value
            continue
        elif not words or words.startswith("#"):
            continue
        else:
            lines[COMMANDS, str(len(tree[COMMANDS]))] = number
            tree[COMMANDS].append(words.removesuffix("\\").rstrip())
        continued = words.endswith("\\")
    return ParsedFile(origin, tree, lines)


def _options(text: str, where: str) -> list[tuple[str, str]]:
    """`--nodes=2 --time 08:00:00 -c4 --exclusive` as pairs of long name and value."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise InputError(f"{where}: cannot be read as options: {error}") from None
    options: list[tuple[str, str]] = []
    for word in words:
        if found := re.fullmatch(r"--(?P<name>[\w-]+)(=(?P<value>.*))?", word):
            options.append((found["name"], found["value"] or ""))
        elif found := re.fullmatch(r"-(?P<name>[A-Za-z])(?P<value>.*)", word):
            options.append((SHORT.get(found["name"], found["name"]), found["value"]))
        elif options and not options[-1][1]:
            options[-1] = (options[-1][0], word)
        else:
            raise InputError(f"{where}: {word} belongs to no option; values have no spaces, a time is 08:00:00")
    return options
