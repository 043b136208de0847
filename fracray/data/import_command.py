"""The command `python -m fracray.data import`: its options, and what it prints.

Imports what reads the radiographs once its options are checked.
"""

import argparse
import csv
from collections.abc import Iterable, Sequence
from shlex import quote
from typing import Any

from fracray.data.sources.label_fields import FIELDS
from fracray.errors import InputError
from fracray.runtime.locations import require_path


def add_import(verbs: Any) -> None:
    """Add the command and its options to those of `fracray.data`."""
    cli = verbs.add_parser(
        "import",
        help="make a set for --data from your radiographs (JPEG, PNG, TIFF, BMP, WebP, GIF, DICOM; folder or zip)",
        description="Read labelled radiographs, known by their first bytes, examine each, and write what is known of\n"
        "them into a new folder, which --data of every command accepts. The files of a folder stay where they are.\n"
        "Labels come from FracAtlas' tables, from a CSV, or from a folder per class, whichever is found.",
        epilog="examples:\n"
        "  python -m fracray.data import FracAtlas.zip --to fracatlas-set\n"
        "  python -m fracray.data import hospital --to hospital-set --column label=finding --positive break,fissure\n"
        "  python -m fracray.data import pictures --to pictures-set --classes NOT_FRACTURED=sound FRACTURED=broken\n"
        "  python -m fracray.data import pictures --to pictures-set --patient-from '(P*)_*'\n"
        "  python -m fracray.data import second --to second-set --salt hospital-set/salt\n\n"
        "A row of the CSV names a file by path or name, a DICOM file also by SOP instance UID, and all files of a\n"
        "study by study instance UID or accession number. --patient-from fits a complete folder name, or else a file\n"
        "name: * is any text, ? one character, [ab] one of these, ( ) marks the patient, and with / the pattern fits\n"
        "folders in each other ('site*/patient*'). Device, view, body part, age and sex are kept from DICOM\n"
        "headers; patient and study only as hashes with a secret salt. File names are kept: make sure that they do\n"
        "not name patients.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("path", help="a folder or a zip of radiographs")
    cli.add_argument("--to", required=True, metavar="DIR", help="a new folder")
    cli.add_argument("--labels", metavar="FILE.csv", help="the table of labels (default: the only CSV in the folder)")
    cli.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help=f"the table's column for a field that is not recognised by name; repeatable; fields: {', '.join(FIELDS)}",
    )
    cli.add_argument(
        "--positive", metavar="VALUE[,VALUE]", help="values that mean fractured (default: 1, yes, fractured ...)"
    )
    cli.add_argument("--negative", metavar="VALUE[,VALUE]", help="values that mean not fractured; '' for an empty cell")
    cli.add_argument(
        "--ignore",
        metavar="VALUE[,VALUE]",
        help="values that mean neither: counted as uncertain and never used; with a sign, write --ignore=-1,-2",
    )
    cli.add_argument(
        "--one-class",
        action="store_true",
        help="accept labels of one class only: for sets that are evaluated or predicted, not trained on",
    )
    cli.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS=FOLDER[,FOLDER]",
        help="NOT_FRACTURED=... FRACTURED=...: folders by name, path or pattern (default: the usual names)",
    )
    cli.add_argument(
        "--patient-from",
        default="",
        metavar="PATTERN",
        help="folders or file names that say who the patient is, as a shell pattern: 'patient*', or '(P*)_*' for P0123 "
        "in P0123_hand_1.png",
    )
    cli.add_argument(
        "--some-without-patient", action="store_true", help="accept files that --patient-from does not fit"
    )
    cli.add_argument("--licence", default="", metavar="TEXT", help="terms of use, kept for the datasheet")
    cli.add_argument("--salt", metavar="FILE", help="the salt of another import: equal patients then have equal hashes")


def import_radiographs(args: argparse.Namespace) -> None:
    """Import, and print what became of each file and what is known of the patients."""
    columns = dict(_pair(word, "--column", FIELDS) for word in args.column)
    positive = () if args.positive is None else _values("--positive", args.positive)
    negative = () if args.negative is None else _values("--negative", args.negative)
    ignore = () if args.ignore is None else _values("--ignore", args.ignore)
    classes = _classes(args.classes, args.one_class) if args.classes else None
    if args.some_without_patient and not args.patient_from:
        raise InputError("--some-without-patient: only with --patient-from")
    try:
        args.licence.encode()
    except UnicodeEncodeError:
        raise InputError(f"--licence {args.licence!r}: not UTF-8; write it in UTF-8") from None
    require_path(args.path, "a folder or a zip of radiographs")

    from fracray.data.patients import known_patients, say_patients
    from fracray.data.report import say_ignored
    from fracray.data.sources.import_rows import ImportOptions
    from fracray.data.sources.import_set import import_set, user_path
    from fracray.runtime.console import counted, new_console, progress_bar

    console = new_console()
    options = ImportOptions(
        labels=user_path("--labels", args.labels) if args.labels else None,
        columns=columns,
        positive=positive,
        negative=negative,
        ignore=ignore,
        one_class=args.one_class,
        classes=classes,
        patient_from=args.patient_from,
        some_without_patient=args.some_without_patient,
        salt=user_path("--salt", args.salt) if args.salt else None,
        licence=args.licence,
    )
    said: list[str] = []
    with progress_bar(console, "examining radiographs") as step:
        manifest = import_set(args.path, args.to, options, step, said.append)
    used = manifest.used
    for remark in manifest.remarks:
        console.print(remark, markup=False, soft_wrap=True)
    console.print("\n".join(manifest.flow().lines()))
    for line in manifest.causes("unreadable"):
        console.print(line, markup=False, soft_wrap=True)
    say_ignored(console, manifest)
    console.print(f"fractured: {used['label'].mean():.1%}")
    for text in said:
        console.print(f"note: {text}", style="yellow", markup=False, soft_wrap=True)
    say_patients(console, known_patients(used))
    if manifest.notes():
        console.print(f"notes on {counted(len(manifest.notes()), 'image')}: see the next command")
    console.print(f"written: {args.to}", markup=False, soft_wrap=True)
    console.print(f"next:\n  python -m fracray.data check {quote(args.to)}", markup=False, soft_wrap=True)


def _pair(word: str, flag: str, names: Iterable[str]) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not value or name not in names:
        raise InputError(f"{flag} {word}: expected NAME=VALUE, where NAME is one of {', '.join(names)}")
    return name, value


def _values(flag: str, text: str) -> tuple[str, ...]:
    """Values with commas between them; one that holds a comma is in quotes, as in a CSV."""
    values = tuple(value.strip() for value in next(csv.reader([text], skipinitialspace=True), []) or [""])
    if "" in values and len(values) > 1:
        raise InputError(
            f"{flag} '{text}': an empty value next to a comma; remove the comma ('' alone means an empty cell)"
        )
    return values


def _classes(words: Sequence[str], one: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = ("NOT_FRACTURED", "FRACTURED")
    folders = dict(_pair(word, "--classes", names) for word in words)
    if len(folders) < len(words) or (len(folders) < 2 and not one):
        raise InputError(
            "--classes: name each class once: NOT_FRACTURED=FOLDER FRACTURED=FOLDER (or one class, with --one-class)"
        )
    first, second = (_values(f"--classes {name}", folders[name]) if name in folders else () for name in names)
    return first, second
