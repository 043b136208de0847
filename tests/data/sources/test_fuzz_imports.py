"""Mutated tables and zips: no traceback, no changed label, and counts that add up.

FRACRAY_FUZZ=2500 makes so many of each; the default is quick. The seed is fixed, so a number names one case for ever.
"""

import hashlib
import io
import os
import random
import re
import shutil
import zipfile
from decimal import Decimal, InvalidOperation
from pathlib import Path

from drawn_fracatlas import jpeg, picture

from fracray.data import __main__ as data
from fracray.data.manifest import MANIFEST, REASONS, Manifest
from fracray.errors import run_verb

COUNT = int(os.environ.get("FRACRAY_FUZZ", "150"))
PICTURES = {f"{name}.jpg": jpeg(picture(seed, 48, 56)) for seed, name in enumerate(("a", "b", "c", "d", "img 1", "ö"))}


def brought(source: Path, to: Path, capsys, *words: str) -> Manifest | None:
    """The manifest of an import; None where it is refused, which takes one error line and leaves nothing behind."""
    shutil.rmtree(to, ignore_errors=True)
    code = run_verb(data.main, ["import", str(source), "--to", str(to), *words])
    said = capsys.readouterr()
    assert code in (0, 2)
    assert ".partial" not in said.out + said.err
    if code:
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert not to.exists()
        return None
    manifest = Manifest.read(to / MANIFEST)
    steps = [int(count.replace(",", "")) for count in re.findall(r"^ +(-?[\d,]+) ", said.out, re.MULTILINE)]
    flow = manifest.flow().as_dict()
    assert steps[0] == flow["found"] == len(manifest.table)
    assert sum(steps[:-1]) == steps[-1] == flow["used"] == len(manifest.used)
    assert flow["found"] == flow["used"] + sum(flow[name] for name in REASONS)
    return manifest


# ---------------------------------------------------------------- tables

VALUES = (
    "-1", "-1.0", "\u22121", "1.0", "1,0", "+1", "01", "1e0", "0.5", "", "NaN", "n/a", "-", "yes", "no", "No fracture",
    "fracture-", "fracture", "2", "0", "1", '"1"', "'1'", "1\u00a0", "TRUE", "None", "?", "0-1", "not-fractured",
)  # fmt: skip
NAMES = ("a.jpg", "A.JPG", "b", "c.jpg", "d.jpg", "img 1.jpg", "ö.jpg", "o\u0308", "h\\a.jpg", "./b.jpg", "q.jpg", "")


def a_table(rng: random.Random) -> bytes:
    """A table of the pictures with some mutations, of cells first, then of lines, then of bytes."""
    delimiter = rng.choice(",,;\t|")
    rows = [["image", "label", "patient"]] + [
        [name, str(rng.randrange(2)), f"p{rng.randrange(4)}"] for name in PICTURES
    ]
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        row = rng.choice(rows[1:])
        row[1 if rng.random() < 0.6 else 0] = rng.choice(VALUES) if rng.random() < 0.7 else rng.choice(NAMES)
    if rng.random() < 0.2:
        rows.append([rng.choice(NAMES), rng.choice(VALUES), ""])
    lines = [
        delimiter.join(f'"{cell}"' if delimiter in cell or rng.random() < 0.1 else cell for cell in row) for row in rows
    ]
    for _ in range(rng.choice((0, 0, 1, 2))):
        at = rng.randrange(len(lines))
        change = rng.randrange(6)
        if change == 0:
            lines.insert(at, lines[at])
        elif change == 1:
            lines.insert(at, rng.choice(("", delimiter * 2, " ", "\u00a0")))
        elif change == 2:
            lines[at] += delimiter * rng.randrange(1, 4)
        elif change == 3:
            del lines[at]
        elif change == 4:
            lines[at] = lines[at].swapcase()
        else:
            lines[at] = lines[at].replace(delimiter, f" {delimiter} ")
    if rng.random() < 0.2:
        lines.insert(0, rng.choice((f"sep={delimiter}", f'"sep={delimiter}"', f"SEP={delimiter}{delimiter}", "sep=;")))
    text = rng.choice(("\n", "\n", "\r\n", "\r")).join(lines) + rng.choice(("", "\n"))
    raw = bytearray(text.encode(rng.choice(("utf-8",) * 5 + ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"))))
    for _ in range(rng.choice((0, 0, 0, 1, 2, 8))):
        at = rng.randrange(len(raw) + 1)
        change = rng.randrange(3)
        if change == 0:
            raw[at:at] = rng.choice((b'"', b"\n", b",", b";", b"-", b"1", b"0", b"\0", b"\xff", b"\xc2\xa0", b"\r"))
        elif change == 1:
            del raw[at : at + rng.choice((1, 1, 2, 9))]
        elif at < len(raw):
            raw[at] = rng.randrange(256)
    return bytes(raw)


def cells_of(text: str, delimiter: str) -> list[list[str]]:
    """RFC 4180 by hand, independent of Python's reader."""
    rows: list[list[str]] = [[""]]
    inside = False
    at = 0
    while at < len(text):
        letter = text[at]
        if inside:
            if letter == '"' and text[at + 1 : at + 2] == '"':
                rows[-1][-1] += '"'
                at += 1
            elif letter == '"':
                inside = False
            else:
                rows[-1][-1] += letter
        elif letter == '"' and rows[-1][-1] == "":
            inside = True
        elif letter == delimiter:
            rows[-1].append("")
        elif letter in "\r\n":
            rows.append([""])
        else:
            rows[-1][-1] += letter
        at += 1
    return [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]


def meaning_of(cell: str, delimiter: str) -> str:
    """What a cell of labels says, by a short list and plain arithmetic."""
    word = cell.lower().replace("\u2212", "-").strip()
    if word in ("", "nan", "n/a", "none", "na", "null"):
        return "empty"
    if word in ("yes", "true", "y", "fracture", "fractured", "positive", "pos", "abnormal"):
        return "1"
    if word.replace("-", " ").replace("_", " ") in (
        "no",
        "false",
        "n",
        "no fracture",
        "not fractured",
        "normal",
        "neg",
    ):
        return "0"
    try:
        number = Decimal(word.replace(",", ".") if delimiter != "," else word)
    except InvalidOperation:
        return "unknown"
    return {1: "1", 0: "0", -1: "uncertain"}.get(number, "unknown") if number.is_finite() else "unknown"


def said_by(raw: bytes) -> dict[str, set[str]] | None:
    """By file, all that the rows say about it; None where no header is found."""
    text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    for delimiter in (",", ";", "\t", "|"):
        rows = cells_of(text, delimiter)
        if rows and re.match(r"sep ?=", "".join(rows[0]), re.IGNORECASE):
            rows = rows[1:]
        header = [re.sub(r"[\W_]", "", cell.lower()) for cell in rows[0]] if rows else []
        if not {"image", "label"} <= set(header):
            continue
        said: dict[str, set[str]] = {name: set() for name in PICTURES}
        for row in rows[1:]:
            name = row[header.index("image")].replace("\\", "/").replace("o\u0308", "ö").removeprefix("./")
            for file in PICTURES:
                if name.removeprefix("h/").lower() in (file, file.removesuffix(".jpg")):
                    said[file].add(meaning_of(row[header.index("label")], delimiter))
        return said
    return None


def test_no_mutated_table_changes_a_label(tmp_path, capsys):
    root = tmp_path / "h"
    root.mkdir()
    for name, content in PICTURES.items():
        (root / name).write_bytes(content)
    accepted = 0
    for number in range(COUNT):
        raw = a_table(random.Random(number))
        (root / "labels.csv").write_bytes(raw)
        ignoring = ("--ignore=-1",) if number % 2 else ()
        manifest = brought(root, tmp_path / "set", capsys, "--one-class", *ignoring)
        if manifest is None:
            continue
        accepted += 1
        said = said_by(raw)
        assert said is not None, f"case {number}"
        used = dict(zip(manifest.used["path"], manifest.used["label"], strict=True))
        for file, words in said.items():
            assert "unknown" not in words, f"case {number}: {file}"
            assert ignoring or "uncertain" not in words, f"case {number}: {file}"
            expected = words - {"empty"}
            assert ({str(used[file])} if file in used else set()) == (
                expected if expected in ({"0"}, {"1"}) else set()
            ), f"case {number}: {file}"
    assert accepted > COUNT / 10


# ---------------------------------------------------------------- zips

CLUTTER = ("__MACOSX/._a.jpg", "normal/._a.jpg", "Thumbs.db", "fractured/.DS_Store", "desktop.ini")


def a_zip(rng: random.Random) -> bytes:
    """A zip of the pictures in class folders, with members of other programs, mutated in names, then in bytes."""
    stream = io.BytesIO()
    above = rng.choice(("", "set/", "a/b/", "sät/", "./"))
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        members = [(f"{('normal', 'fractured')[at % 2]}/{name}", PICTURES[name]) for at, name in enumerate(PICTURES)]
        members += [(name, b"x") for name in CLUTTER if rng.random() < 0.3]
        if rng.random() < 0.2:
            name, content = rng.choice(members)
            change = rng.choice((str.upper, str.swapcase, "../{}".format, "C:/{}".format, "/{}".format, "{}/x".format))
            members.append((change(name), content))
        if rng.random() < 0.1:
            members.append(("normal/inner.zip", b"PK\x05\x06" + bytes(18)))
        rng.shuffle(members)
        for name, content in members:
            entry = zipfile.ZipInfo("x")
            entry.filename = "".join("\\" if one == "/" and rng.random() < 0.3 else one for one in above + name)
            entry.compress_type = archive.compression
            archive.writestr(entry, content)
    raw = bytearray(stream.getvalue())
    for _ in range(rng.choice((0, 0, 1, 1, 2, 8))):
        at = rng.randrange(len(raw))
        change = rng.randrange(4)
        if change == 0:
            at = raw.find(rng.choice((b"PK\1\2", b"PK\3\4")), at) + rng.randrange(46)  # a header
        if change == 3:
            raw[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        elif at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.05 else raw)


def test_no_mutated_zip_changes_a_label(tmp_path, capsys):
    label_of = {hashlib.sha256(content).hexdigest(): at % 2 for at, content in enumerate(PICTURES.values())}
    accepted = 0
    for number in range(COUNT):
        (tmp_path / "w.zip").write_bytes(a_zip(random.Random(number)))
        manifest = brought(tmp_path / "w.zip", tmp_path / "set", capsys, "--one-class")
        if manifest is None:
            continue
        accepted += 1
        for digest, label in zip(manifest.used["sha256"], manifest.used["label"], strict=True):
            assert label_of[digest] == label, f"case {number}"
        files = [
            file.relative_to(tmp_path / "set/files") for file in (tmp_path / "set/files").rglob("*") if file.is_file()
        ]
        left_out = [file for file in files if any(part[0] == "." or part in ("__MACOSX",) for part in file.parts)]
        left_out += [
            file for file in files if file.name.lower() in ("thumbs.db", "desktop.ini") and file not in left_out
        ]
        assert manifest.ignored == len(left_out), f"case {number}"
        shown = [file for file in files if file not in left_out and file.suffix.lower() == ".jpg"]
        assert len(manifest.table) == len(shown), f"case {number}"
    assert accepted > COUNT / 10
