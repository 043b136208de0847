"""The running numbers in file names, and the folders of files: what tells which pictures were taken together.

Knows names and paths only: nothing of labels, patients, pixels or splits.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

LONG = 20  # files of a series, where there are several, from which on its numbers count as running
SPARSE = 50  # numbers for each file of a series, above which they are no counter, but dates, times or random
FOLDER = 50  # files that a folder of one patient or study holds at most
FOLDERS = 10  # folders at one level from which on each may be of one patient or study

_ACCIDENT = 0.05  # share of equal numbers in other folders that does not make another series
_NEARLY_ALL = 0.95  # share of a level's folders that must be small

_NUMBER = re.compile(r"^(.*?)(\d{1,18})$", re.DOTALL)
_SUFFIX = re.compile(r"(?<=.)\.[A-Za-z]\w{0,5}$")  # not the last number of a UID


def file_number(name: str) -> tuple[str, int] | None:
    """The text before and the running number of a file, by its name, path or id: ('IMG', 123) for 'x/IMG0000123.jpg'.

    None without digits at the end of the name.
    """
    found = _NUMBER.match(_SUFFIX.sub("", name.rpartition("/")[2]))
    return (found[1], int(found[2])) if found else None


def number_files(table: pd.DataFrame) -> pd.DataFrame:
    """The running number of each file, and what it is worth: columns number, series, ordered, counted and repeats.

    table: rows with `image_id`, `path` ('' where there is no file) and `component`; the result has their index.
    number: int64, -1 where the name ends without digits. series: text, equal for files whose numbers are one sequence:
    the folders and the text before the number that tell equal numbers apart, or '' where numbers do not repeat.
    ordered: bool, the series is long enough to have neighbours; that of a study's few pictures, one of many, is not.
    counted: bool, the numbers of an ordered series are running ones, and do not lie so far apart that they are dates,
    times or random. repeats: bool, the number is counted,
    but its series has numbers of other series, so that a picture of the same patient may be there.
    """
    paths = [path or image_id for path, image_id in zip(table["path"], table["image_id"], strict=True)]
    found = [file_number(path) for path in paths]
    files = pd.DataFrame({"number": [one[1] if one else -1 for one in found]}, table.index, dtype=np.int64)
    numbered = files["number"] >= 0
    before = [one[0].casefold() if one else "" for one in found]
    files["series"] = _series(paths, before, files["number"].to_numpy(), table["component"].to_numpy())
    series = files[numbered].groupby("series")["number"].agg(["size", "min", "max", "nunique"])
    dense = (series["max"] - series["min"]).astype(float) <= SPARSE * series["nunique"]
    long = series["size"] >= (LONG if len(series) > 1 else 2)
    files["ordered"] = numbered & files["series"].map(long).eq(True)
    files["counted"] = files["ordered"] & files["series"].map(dense).eq(True)
    series_of = files[numbered].drop_duplicates(["series", "number"])["number"].value_counts()
    elsewhere = files["number"].map(series_of).gt(1) & numbered
    files["repeats"] = files["counted"] & (elsewhere.groupby(files["series"]).transform("mean") > _ACCIDENT)
    return files


def _series(paths: Sequence[str], before: Sequence[str], number: np.ndarray, component: np.ndarray) -> list[str]:
    """The series of each file: folder by folder from the innermost, what is not needed to tell numbers apart is left
    out, and then the text before the number."""
    folders = [path.split("/")[:-1] for path in paths]
    depth = max(map(len, folders), default=0)
    texts = [
        *([one[level].casefold() if level < len(one) else "" for one in folders] for level in range(depth)),
        before,
    ]
    codes = np.array([pd.factorize(np.array(text, dtype=object))[0] for text in texts])  # (levels, files)
    # The same picture in two folders is one file that was copied, and no other picture of the same number.
    picture = pd.factorize(np.array([one or f"\0{at}" for at, one in enumerate(component)], dtype=object))[0]
    known = number >= 0

    def repeated(levels: Sequence[int]) -> float:
        keys = pd.DataFrame({"number": number[known], **{str(level): codes[level][known] for level in levels}})
        pictures = keys.assign(picture=picture[known]).drop_duplicates()
        return float(pictures.duplicated(keys.columns.tolist(), keep=False).mean()) if len(pictures) else 0.0

    kept = list(range(depth + 1))
    least = repeated(kept)  # a1.jpg and a1.png in one folder
    for level in [*reversed(range(depth)), depth]:
        without = [one for one in kept if one != level]
        if repeated(without) <= least + _ACCIDENT:
            kept = without
    return ["/".join(texts[level][at] for level in kept) for at in range(len(paths))]


def small_folders(paths: Sequence[str]) -> list[str]:
    """The name of the folder above each file that may be of one patient or study, '' where there is none.

    It is at the outermost level with at least FOLDERS names, whose folders nearly all hold at most FOLDER files; the
    larger ones are left out. Folders of one name are one, as a patient may be in a folder of each class or part; so are
    names that differ only in case.
    """
    folders = [path.casefold().split("/")[:-1] for path in paths]
    for level in range(1, max(map(len, folders), default=0) + 1):
        inside = pd.Series(["/".join(one[:level]) if len(one) >= level else "" for one in folders], dtype=object)
        names = inside.str.rpartition("/")[2]
        held = inside[inside != ""].value_counts()
        small = held.index[held <= FOLDER]
        if names[inside != ""].nunique() >= FOLDERS and len(small) >= _NEARLY_ALL * len(held):
            return names.where(inside.isin(small), "").tolist()
    return [""] * len(paths)
