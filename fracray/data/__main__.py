"""python -m fracray.data: download, import, check and audit data sets, draw phantoms, show prepared radiographs.

Each command imports what it needs once its arguments are checked and its files are found.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from fracray.config import PHANTOM, Config, PhantomConfig, parse_assignments
from fracray.data.import_command import add_import, import_radiographs
from fracray.errors import InputError, run_verb
from fracray.runtime.arguments import Parser
from fracray.runtime.locations import data_source, require_path

if TYPE_CHECKING:
    from rich.console import Console

    from fracray.data.prepare import Prepared


def parser() -> argparse.ArgumentParser:
    from fracray.data.sources.releases import API, RELEASES

    cli = Parser(
        prog="python -m fracray.data",
        description="Download, import, check and audit data sets, draw phantoms, show prepared radiographs.",
        epilog="examples:\n"
        "  python -m fracray.data download --to FracAtlas.zip\n"
        "  python -m fracray.data import hospital --labels hospital/labels.csv --to hospital-set\n"
        "  python -m fracray.data check FracAtlas\n"
        "  python -m fracray.data audit FracAtlas --json audit.json --html audit.html\n"
        "  python -m fracray.data sheet FracAtlas --augmented --set augment.rotate=30 --to sheet.png\n"
        "  python -m fracray.data sheet FracAtlas --corrupted --to faults.png\n"
        "  python -m fracray.data sheet FracAtlas --crops --to crops.png\n"
        "  python -m fracray.data phantom --count 500 --to phantoms\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = cli.add_subparsers(dest="verb", required=True)
    fetched = verbs.add_parser("download", help="FracAtlas from figshare; resumes a broken download, and verifies it")
    fetched.add_argument("--to", required=True, metavar="FILE_OR_DIR", help="the zip, or a folder for FracAtlas.zip")
    fetched.add_argument("--version", type=int, choices=RELEASES, default=7, help="figshare's (default %(default)s)")
    fetched.add_argument("--api", default=API, metavar="URL", help="the article in figshare's API or a mirror of it")
    add_import(verbs)
    check = verbs.add_parser("check", help="from files found to images used, the split, and the no-pixel predictors")
    check.add_argument("path", help="a FracAtlas folder or zip, an imported set, or 'phantom'")
    check.add_argument(
        "--manifest", metavar="FILE", help="also write the table of all files, with their split, as Parquet"
    )
    check.add_argument(
        "--datasheet", metavar="FILE.md", help="also write the datasheet: origin, licence, hashes, flow, sets, defects"
    )
    audited = verbs.add_parser(
        "audit",
        help="defects of a data set and shortcuts to its labels, with a verdict for each",
        description="Decode every file once; report truncation, formats, duplicates, contradicting labels, prevalence, "
        "and how well the label is predicted without the picture. Each section gets a verdict: ok, look or stop.",
    )
    audited.add_argument("path", help="a FracAtlas folder or zip, an imported set, or 'phantom'")
    audited.add_argument("--json", metavar="FILE", help="also write all findings and verdicts as JSON")
    audited.add_argument("--html", metavar="FILE", help="also write one self-contained page, with pictures")
    sheet = verbs.add_parser("sheet", help="a contact sheet of prepared radiographs as a PNG")
    sheet.add_argument("path", help="a FracAtlas folder or zip, an imported set, or 'phantom'")
    sheet.add_argument("--to", required=True, metavar="FILE.png")
    sheet.add_argument(
        "--count", type=int, help="radiographs shown (default 48; 12 with --augmented, 2 with --corrupted)"
    )
    drawn = sheet.add_mutually_exclusive_group()
    drawn.add_argument(
        "--augmented",
        action="store_true",
        help="each with three draws of the training augmentation, augment.extra included",
    )
    drawn.add_argument(
        "--corrupted",
        action="store_true",
        help="a row for each corruption of `evaluate --corruptions`: each radiograph clean and at severities 1 to 5",
    )
    drawn.add_argument(
        "--crops",
        action="store_true",
        help="those that data.crop=true cuts, whole, each with a frame around what is kept",
    )
    for verb in (check, audited, sheet):
        verb.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", help="set one setting; repeatable"
        )
    for verb in (check, sheet):
        verb.add_argument("--address", help="a Ray cluster (default: a local one)")
    phantom = verbs.add_parser("phantom", help="synthetic radiographs in FracAtlas' layout")
    phantom.add_argument("--to", required=True, metavar="DIR", help="a new folder")
    phantom.add_argument("--count", type=int, default=PhantomConfig().count, help="(default %(default)s)")
    phantom.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    verbs = {
        "download": _download,
        "import": import_radiographs,
        "check": _check,
        "audit": _audit,
        "sheet": _sheet,
        "phantom": _phantom,
    }
    verbs[args.verb](args)


def _config(args: argparse.Namespace) -> Config:
    """The settings for the data set at PATH; InputError for a path that does not exist, before slow imports."""
    config = Config().with_leaves(parse_assignments(args.set), "--set")
    if args.path != PHANTOM and "://" not in args.path:
        require_path(args.path, "a FracAtlas folder, its zip, or an imported set")
    return config.with_leaves({"data.source": data_source(args.path)}, "PATH")


def _download(args: argparse.Namespace) -> None:
    from fracray.data.sources.download import download
    from fracray.data.sources.releases import RELEASES
    from fracray.runtime.console import new_console

    console = new_console()
    target = download(args.to, RELEASES[args.version], console, args.api)
    console.print(f"complete and verified: FracAtlas version {args.version} in {target}", soft_wrap=True)
    console.print(f"next:\n  python -m fracray.data check {quote(str(target))}", soft_wrap=True)


def _prepared(config: Config, console: "Console") -> "Prepared":
    """The prepared set, without a split where its images are all of one class."""
    from fracray.data.prepare import examined, prepare

    manifest = examined(config.data, console)
    return prepare(config.data, console, split=manifest.used["label"].nunique() != 1, manifest=manifest)


def _check(args: argparse.Namespace) -> None:
    config = _config(args)

    from fracray.data.datasheet import datasheet
    from fracray.data.report import say_flow, say_phantom, say_split
    from fracray.runtime.console import new_console
    from fracray.runtime.ray_session import connect

    console = new_console()
    say_phantom(console, config)
    with connect(args.address):
        prepared = _prepared(config, console)
    say_flow(console, prepared)
    for remark in prepared.manifest.remarks:
        console.print(remark, markup=False, soft_wrap=True)
    table = prepared.manifest.table
    for status in ("truncated", "blank", "missing", "unreadable", "unlisted", "uncertain"):
        names = table["image_id"][table["status"] == status]
        if len(names):
            console.print(f"{status}: {', '.join(names)}", soft_wrap=True)
    for copy in table[(table["status"] == "ok") & (table["duplicate_of"] != "")].itertuples():
        console.print(f"duplicate: {copy.image_id} of {copy.duplicate_of}")
    for note in prepared.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if prepared.sets:
        say_split(console, prepared)
    else:
        word = "fractured" if prepared.table["label"].all() else "not fractured"
        console.print(f"split: none, because all used images are {word}; such a set can be evaluated, not trained on")
    if args.manifest:
        try:
            prepared.manifest.write(args.manifest)
        except OSError as error:
            raise InputError(f"--manifest {args.manifest}: cannot be written: {error.strerror}") from None
        console.print(f"written: {args.manifest}")
    if args.datasheet:
        _write("--datasheet", args.datasheet, datasheet(prepared.summary()))
        console.print(f"written: {args.datasheet}")


def _audit(args: argparse.Namespace) -> None:
    config = _config(args)

    from fracray.data.audit.find import find
    from fracray.data.audit.page import as_html, as_json
    from fracray.data.audit.report import say_audit
    from fracray.data.audit.verdicts import judge
    from fracray.data.prepare import examined, origin_of
    from fracray.data.report import say_phantom
    from fracray.runtime.console import new_console

    console = new_console()
    say_phantom(console, config)
    manifest = examined(config.data, console)
    split = config.data.split
    findings = find(manifest, origin_of(config.data), split.block_size, split.guard_size)
    verdicts = judge(findings)
    say_audit(console, findings, verdicts)
    if args.json:
        _write("--json", args.json, as_json(findings, verdicts))
        console.print(f"written: {args.json}", soft_wrap=True)
    if args.html:
        _write("--html", args.html, as_html(findings, verdicts, manifest))
        console.print(f"written: {args.html}", soft_wrap=True)


def _write(flag: str, path: str, text: str) -> None:
    from fracray.runtime.storage import write_named

    try:
        write_named(path, text.encode(errors="replace"))
    except OSError as error:
        raise InputError(
            f"{flag} {path}: cannot be written: {error.strerror}; name a file in a folder that you can write to"
        ) from None


def _sheet(args: argparse.Namespace) -> None:
    config = _config(args)
    if args.crops:
        config = config.with_leaves({"data.crop": True}, "--crops")

    import cv2

    from fracray.data.contact_sheet import draw_augmented, draw_corrupted, draw_crops, draw_plain
    from fracray.data.report import say_flow
    from fracray.runtime.console import new_console
    from fracray.runtime.ray_session import connect
    from fracray.runtime.storage import write_named

    console = new_console()
    with connect(args.address):
        prepared = _prepared(config, console)
    count = (12 if args.augmented else 2 if args.corrupted else 48) if args.count is None else max(1, args.count)
    if args.crops:
        draw = draw_crops
        say_flow(console, prepared)
    else:
        draw = draw_corrupted if args.corrupted else draw_augmented if args.augmented else draw_plain
    sheet = draw(prepared, config, count)
    try:
        _, picture = cv2.imencode(Path(args.to).suffix, sheet)
        write_named(args.to, picture.tobytes())
    except (cv2.error, OSError):  # the former where the file name's ending is not that of a picture
        raise InputError(
            f"--to {args.to}: cannot be written as a picture; name a .png in a folder that exists"
        ) from None
    console.print(f"written: {args.to}")


def _phantom(args: argparse.Namespace) -> None:
    target = Path(args.to)
    if target.exists():
        raise InputError(f"--to {target}: exists already; name a new folder")
    config = Config().with_leaves({"data.phantom.count": args.count, "data.phantom.seed": args.seed}, "--count, --seed")

    from fracray.data.phantom.draw import write_phantoms
    from fracray.runtime.console import new_console, progress_bar

    console = new_console()
    with progress_bar(console, "drawing phantoms") as step:
        write_phantoms(target, config.data.phantom, step)
    console.print(f"written: {target}")


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
