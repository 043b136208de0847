"""A folder of radiographs: its files, the ids of its pictures, and the classes that folder names mean.

Opens DICOM headers and the first bytes of other files, but no picture. Must not know of tables, manifests or salts.
"""

import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from fracray.data.images import kinds
from fracray.data.images.decode import MAX_BYTES
from fracray.data.images.dicom_header import Header, read_header
from fracray.data.sources.clutter import is_clutter
from fracray.data.sources.label_words import label_word
from fracray.errors import InputError

CLASSES = (
    ("non fractured", "not fractured", "nonfractured", "unfractured", "no fracture", "normal", "negative", "healthy"),
    ("fractured", "fracture", "fractures", "abnormal", "positive"),
)


@dataclass(frozen=True)
class RadiographFile:
    """A file: its path below the folder, with '/', its header where it is DICOM, and what it is, as 'PNG' or 'PDF'."""

    path: str
    header: Header | None
    kind: str = ""

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem


def list_images(root: Path) -> tuple[list[RadiographFile], list[RadiographFile]]:
    """The pictures below `root`, by path, and all other files; both are told by their first bytes.

    Pictures of kinds that are not read are among the pictures, and so is a file that is none but is named like one: the
    audit says what is wrong with it. Links are followed. What `is_clutter` names is skipped. InputError for links to a
    folder that contains them, folders that cannot be listed, and pictures whose names are not UTF-8.
    """
    pictures: list[RadiographFile] = []
    others: list[RadiographFile] = []
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [
        (root, frozenset())
    ]  # the next one last, each with the folders that contain it
    while waiting:
        path, above = waiting.pop()
        if path == root or path.is_dir():
            try:
                about = path.stat()
                here = (about.st_dev, about.st_ino)
                if here in above:
                    raise InputError(
                        f"{path}: a link to a folder that contains it; remove it, or name a folder without it"
                    )
                names = sorted(os.listdir(path), reverse=True)
            except OSError as error:
                raise InputError(f"{path}: cannot be listed: {error.strerror}; repair it, or leave it out") from None
            within = above | {here}
            waiting += ((path / name, within) for name in names if not is_clutter(name))
            continue
        kind, is_picture = what_is(path)
        if is_picture:
            require_utf8(path)
        below = os.fsencode(path.relative_to(root).as_posix()).decode(errors="replace")
        header = read_header(path, MAX_BYTES) if kind == kinds.DICOM.name else None
        (pictures if is_picture else others).append(RadiographFile(below, header, kind))
    return pictures, others


def what_is(path: Path) -> tuple[str, bool]:
    """What a file is, as 'PNG' or 'PDF', and whether it is a picture, or at least named like one."""
    named = kinds.promises_picture(path.name)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a file", named
        with open(path, "rb") as file:
            head = file.read(kinds.HEAD)
    except OSError:
        return "not readable", named
    kind = kinds.kind_of(head, path.name)
    return (kind.name, kind.picture or named) if kind else (kinds.other_name(path.name, head), named)


def contents(pictures: Sequence[RadiographFile], others: Sequence[RadiographFile]) -> str:
    """What a folder holds, so that the counts add up: '5 files: 3 pictures (2 JPEG, 1 HEIC), 2 CSV (labels.csv)'.

    Each kind of what is no picture comes with an example.
    """
    of_pictures = Counter(file.kind for file in pictures).most_common()
    examples = {file.kind: file.path for file in reversed(others)}
    of_others = Counter(file.kind for file in others).most_common()
    some, many = "" if len(pictures) == 1 else "s", "" if len(pictures) + len(others) == 1 else "s"
    parts = [f"{len(pictures):,} picture{some} ({', '.join(f'{count:,} {kind}' for kind, count in of_pictures)})"]
    parts += [f"{count:,} {kind} ({examples[kind]})" for kind, count in of_others]
    parts = parts if pictures else parts[1:]
    return f"{len(pictures) + len(others):,} file{many}{': ' if parts else ''}{', '.join(parts)}"


def require_utf8(path: Path, flag: str = "") -> None:
    """InputError for a path that is not UTF-8: no table can hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{flag}{os.fsencode(path)!r}: its name is not UTF-8; rename it") from None


def name_images(files: Sequence[RadiographFile]) -> list[str]:
    """An image id for each file: its name without the extension where that is unique, else its path.

    DICOM files are often named after a patient, so their ids are letters derived from the SOP instance UID (the path,
    where that is absent or used twice): no names, no numbers that look like acquisition order, equal in every import.
    """
    stems = Counter(file.stem for file in files if file.header is None)
    instances = Counter(file.header.instance for file in files if file.header)
    ids = []
    for file in files:
        if file.header is None:
            ids.append(file.stem if stems[file.stem] == 1 else file.path)
        else:
            instance = file.header.instance
            ids.append(_letters(instance if instances[instance] == 1 and instance else f"{instance}\0{file.path}"))
    if len(set(ids)) < len(ids):  # 'a.jpg' is a path, and the stem of 'a.jpg.png'
        return [_letters(file.path) if file.header else file.path for file in files]
    return ids


def _letters(text: str) -> str:
    digits = hashlib.sha256(text.encode()).hexdigest()[:16]
    return digits.translate(str.maketrans("0123456789", "ghijklmnop"))


class FileIndex:
    """The indices of files by what may identify them.

    named: by path, name, stem, or path without the extension; the most specific wins. instances: by SOP instance UID.
    studies: by study instance UID and accession number, which the files of a study share.
    """

    def __init__(self, files: Sequence[RadiographFile]) -> None:
        self.files = files
        self.named: dict[str, tuple[int, ...]] = {}
        ways: tuple[Callable[[RadiographFile], str], ...] = (
            lambda file: file.path,
            lambda file: file.path.rpartition("/")[2],
            lambda file: file.stem,
            lambda file: file.path.rpartition(".")[0],
        )
        for way in ways:
            self.named = _numbers([way(file)] for file in files) | self.named
        self._folded: dict[str, set[int]] = {}
        for name, numbers in self.named.items():
            self._folded.setdefault(name.casefold(), set()).update(numbers)
        headers = [file.header or Header() for file in files]
        self.instances = _numbers([header.instance] for header in headers)
        self.studies = _numbers({header.study, header.accession} for header in headers)

    def under_another_suffix(self, key: str) -> int | None:
        """The one file that has this name but for the suffix, as x.png for 'x.jpg'; None where there are 0 or more."""
        at = self.named.get(key.rpartition(".")[0], ()) if kinds.promises_picture(key) else ()
        return at[0] if len(at) == 1 else None

    def in_another_case(self, key: str) -> tuple[int, ...]:
        """The files with a name that differs from `key` in upper and lower case only."""
        return tuple(sorted(self._folded.get(plain_path(key).casefold(), ())))


def _numbers(keys: Iterable[Iterable[str]]) -> dict[str, tuple[int, ...]]:
    lists: dict[str, list[int]] = {}
    for at, those in enumerate(keys):
        for key in those:
            if key:
                lists.setdefault(plain_path(key), []).append(at)
    return {key: tuple(numbers) for key, numbers in lists.items()}


def plain_path(text: str) -> str:
    """A path for comparison: macOS stores decomposed names, tables hold composed ones."""
    return unicodedata.normalize("NFC", text)


def classes_of(path: str, patterns: tuple[Sequence[str], Sequence[str]] | None) -> set[int]:
    """The labels of the folders above a file: 1 fractured, 0 not; none, or both if they disagree.

    patterns: for each label shell patterns (`study*_positive`) of folder names, or of paths from the root, such as
    `2021/normal`; None for the usual names, CLASSES, in upper or lower case.
    """
    folders = [str(parent) for parent in PurePosixPath(path).parents if str(parent) != "."]
    if patterns is None:
        words = [label_word(PurePosixPath(folder).name) for folder in folders]
        return {label for word in words for label in (0, 1) if word in CLASSES[label]}
    return {
        label
        for folder in folders
        for label in (0, 1)
        for pattern in patterns[label]
        if fnmatchcase(folder, pattern) or fnmatchcase(PurePosixPath(folder).name, pattern)
    }
