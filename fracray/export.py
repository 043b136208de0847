"""python -m fracray.export: a checkpoint as one file that runs without fracray, in ONNX Runtime or in PyTorch.

The file is only written where it says what the checkpoint says.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fracray.errors import InputError, RunError, run_verb
from fracray.exporting.formats import FORMATS, Format
from fracray.runtime.arguments import add_checkpoint, command

if TYPE_CHECKING:  # a command imports Torch and Ray only once its arguments are read and its files are found
    from rich.console import Console

    from fracray.exporting.sample import Sample
    from fracray.training.checkpoint import Checkpoint

# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    cli = command(
        "export",
        "Export a checkpoint, or an ensemble, as one file from (B, 1, S, S) uint8 images to calibrated probability, "
        "logit, call and, with a localiser, heatmap. Normalisation, calibration and threshold are inside. Beside FILE "
        "are written FILE.preprocess.json, which says how a radiograph becomes such an image, and FILE.reader.py, a "
        "script that does it and needs no fracray. Nothing is written unless the file gives the checkpoint's own "
        "logits to 1e-4, at batches of 1, 3 and 32.",
        "  python -m fracray.export runs/atlas --to atlas.onnx\n"
        "  python -m fracray.export checkpoints/t0007 --to t0007.onnx --data FracAtlas.zip\n"
        "  python -m fracray.export runs/atlas --to atlas.pt2 --format torch-export\n",
    )
    add_checkpoint(cli)
    cli.add_argument("--to", required=True, metavar="FILE", help="the file: FILE.onnx, or FILE.pt2 for torch-export")
    cli.add_argument(
        "--format",
        choices=list(FORMATS),
        default="onnx",
        help='onnx (needs pip install "fracray[export]") or torch-export, which torch.export.load opens (default '
        "%(default)s)",
    )
    cli.add_argument(
        "--data",
        metavar="PATH",
        help="the radiographs to compare on: a folder, a zip or an imported set, best those of the validation, whose "
        "logits the checkpoint keeps (default: of a checkpoint in its run, the data it was trained on, if that is at "
        "hand; else phantoms)",
    )
    cli.add_argument("--overwrite", action="store_true", help="replace FILE, and what is written beside it")
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    _export(args, *_check(args))


def beside(target: Path) -> tuple[Path, Path]:
    """The description and the reader of an export."""
    return target.with_name(f"{target.name}.preprocess.json"), target.with_name(f"{target.name}.reader.py")


def _check(args: argparse.Namespace) -> tuple[Path, Format]:
    """Refuse what can be refused without opening a checkpoint; the file to write, and its format."""
    from fracray.runtime.locations import refuse_secret, require_local

    form, target = FORMATS[args.format], Path(args.to).expanduser().absolute()
    if target.suffix != form.suffix:
        raise InputError(f"--to {args.to}: a file of --format {args.format} ends in {form.suffix}")
    if "://" in args.to or not target.parent.is_dir():
        raise InputError(
            f"--to {args.to}: its folder does not exist on this machine; create it, or choose another file"
        )
    for path in (target, *beside(target)):
        if path.exists() and not (args.overwrite and path.is_file()):
            raise InputError(f"--to {args.to}: {path} exists already; choose another, or replace it with --overwrite")
    require_local(args.checkpoint, "no such checkpoint folder or run")
    if args.data:
        refuse_secret(args.data)
        require_local(args.data, "no such file or folder; name radiographs, a folder, a zip or an imported set")
    form.require()
    return target, form


# ---------------------------------------------------------------- the steps


def _export(args: argparse.Namespace, target: Path, form: Format) -> None:
    from fracray.evaluation.opening import checkpoint_folder, who
    from fracray.exporting.parity import BATCHES, TOLERANCE
    from fracray.runtime.console import new_console
    from fracray.training.checkpoint import load_checkpoint

    console = new_console()
    with checkpoint_folder(args.checkpoint) as folder:
        checkpoint = load_checkpoint(folder)
        _refuse_half(checkpoint)
        size = checkpoint.metadata.config.data.size
        console.print(f"{who([checkpoint])}: exporting as {args.format}, for images of {size} px", soft_wrap=True)
        sample = _sample(args, checkpoint, console)
        largest = _write(checkpoint, sample, target, form, console)
    what = "the logits that the checkpoint keeps" if sample.stored is not None else "the network's own float32 logits"
    console.print(
        f"{form.runtime} gives {what} to {largest:.1e} (limit {TOLERANCE:.0e}) on {sample.words}; at batches of "
        f"{', '.join(map(str, BATCHES))}",
        soft_wrap=True,
    )
    about, reader = beside(target)
    console.print(
        f"written: {target} ({target.stat().st_size / 2**20:.1f} MiB), {about.name}, {reader.name}", soft_wrap=True
    )


def _refuse_half(checkpoint: Checkpoint) -> None:
    """InputError where calibration and threshold belong to logits in bf16, which an export does not give."""
    import torch

    from fracray.evaluation.inference import in_bf16

    for one in checkpoint.members or (checkpoint,):
        if in_bf16(one, torch.device("cpu")):
            raise InputError(
                f"{one.folder}: was validated in bf16, by an older version: calibration and threshold belong to those "
                "logits, and an export computes in float32; train it again"
            )


def _sample(args: argparse.Namespace, checkpoint: Checkpoint, console: Console) -> Sample:
    """The radiographs to compare on."""
    from fracray.config import DataConfig
    from fracray.data.prepare import cache_folder
    from fracray.exporting.sample import gather, phantoms, radiographs
    from fracray.runtime.console import progress_bar
    from fracray.runtime.run_folder import is_in_run

    path, source = args.data, checkpoint.metadata.config.data.source
    # A checkpoint from elsewhere does not choose which paths are opened.
    if not path and is_in_run(args.checkpoint) and Path(source).is_absolute() and Path(source).exists():
        path = source
    files = phantoms(checkpoint)
    if path:
        with progress_bar(console, "MiB copied") as step:
            files = radiographs(path, cache_folder(DataConfig()), step)
    with progress_bar(console, "reading radiographs") as step:
        return gather(checkpoint, files, path or "phantoms drawn for this", step)


def _write(checkpoint: Checkpoint, sample: Sample, target: Path, form: Format, console: Console) -> float:
    """Write the export and what belongs beside it, once it is proven; the largest difference of a logit."""
    from fracray.exporting.description import description, reader_script
    from fracray.exporting.graph import Readout, trace
    from fracray.exporting.parity import expected, prove
    from fracray.runtime.console import progress_bar
    from fracray.runtime.storage import Folder

    config = checkpoint.metadata.config.data
    readout = Readout(checkpoint)
    about = description(checkpoint, readout.outputs)
    folder = Folder(target.parent)
    with folder.building(target.name) as partial:
        with console.status("exporting"):
            # Before the checkpoint moves to a GPU, to say what is expected.
            try:
                form.write(trace(readout, config.size), readout.outputs, about, partial)
            except (InputError, OSError):
                raise
            except Exception as error:  # whatever the exporter raises
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise RunError(
                    f"the network cannot be exported as {form.name}: {first}; try the other --format"
                ) from error
        said = expected(checkpoint, sample)
        with progress_bar(console, "comparing") as step:
            largest = prove(form.open(partial), readout.outputs, checkpoint, sample, said, form.runtime, step)
        # Before the export gets its name: where it is, they are.
        for path, text in zip(beside(target), (about, reader_script(config.crop)), strict=True):
            folder.write(path.name, text)
    return largest


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
