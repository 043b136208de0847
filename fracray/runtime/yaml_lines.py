"""YAML files with the line of every key, so that an error message can name the line.

Knows nothing of what the files mean.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fracray.errors import InputError


@dataclass(frozen=True)
class ParsedFile:
    """One YAML document: its tree, and the line of each key and list entry by its path (entries as '0', '1')."""

    origin: str
    tree: dict[str, Any]
    lines: Mapping[tuple[str, ...], int]

    def where(self, *keys: str) -> str:
        """FILE:LINE of a key, or of the nearest enclosing key that the file has."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.origin}:{self.lines[keys]}" if keys else self.origin

    def values(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Every scalar of the file as text, with its path; empty values are left out."""

        def walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
            if isinstance(value, dict):
                for key, inner in value.items():
                    yield from walk(inner, (*path, str(key)))
            elif isinstance(value, list):
                for at, inner in enumerate(value):
                    yield from walk(inner, (*path, str(at)))
            elif value is not None:
                yield path, str(value)

        return walk(self.tree, ())


def read_yaml(path: str | Path, kind: str, expected: str = "") -> ParsedFile:
    """Read a YAML file with one mapping. `kind` of file and what is `expected` in it are for error messages.

    Raises InputError, with the line where there is one, for a missing file, invalid YAML, something other than a
    mapping, or a key that is given twice.
    """
    origin = str(path)
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise InputError(f"{origin}: no such {kind}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(origin, error) from None
    return parse_yaml(text, origin, expected)


def parse_yaml(text: str, origin: str, expected: str = "", before: int = 0) -> ParsedFile:
    """As `read_yaml`, of text with so many lines of its file before it."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1 + before}" if error.problem_mark else ""
        raise InputError(f"{origin}{line}: not valid YAML: {error.problem}{_remedy(str(error.problem))}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{origin}: {'the file is empty; ' if tree is None else ''}expected a mapping{expected}")
    try:
        return ParsedFile(origin, tree, _lines(node, origin, before))
    except RecursionError:
        raise InputError(
            f"{origin}: an alias (*name) refers to a value that contains it; write the values out"
        ) from None


def unreadable(origin: str, error: OSError | UnicodeDecodeError) -> InputError:
    """The error for a file that cannot be read as text."""
    why = error.strerror if isinstance(error, OSError) else "it is not text"
    return InputError(f"{origin}: not readable: {why}")


def _remedy(problem: str) -> str:
    if "\\t" in problem:
        return "; indent with spaces, not with tabs"
    return "; look at the indentation of this line and the ones above" if "block" in problem else ""


def _lines(node: Any, origin: str, before: int, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    lines: dict[tuple[str, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path, line = (*prefix, str(key.value)), key.start_mark.line + 1 + before
            if path in lines:
                raise InputError(
                    f"{origin}:{line}: '{key.value}' is given twice (first on line {lines[path]}); remove one of them"
                )
            lines[path] = line
            lines |= _lines(value, origin, before, path)
    elif isinstance(node, yaml.SequenceNode):
        for at, value in enumerate(node.value):
            path = (*prefix, str(at))
            lines[path] = value.start_mark.line + 1 + before
            lines |= _lines(value, origin, before, path)
    return lines
