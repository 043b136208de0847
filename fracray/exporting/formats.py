"""The formats of an export: how a program is written as one file, and how that file is run again.

Knows neither checkpoints nor radiographs.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fracray.errors import InputError

if TYPE_CHECKING:  # the command line names the formats, and so must not wait for Torch
    from torch.export import ExportedProgram

INPUT = "images"
DESCRIPTION = "preprocess.json"  # in a .pt2 file
KEY = "fracray"  # of the description in ONNX's metadata
OPSET = 18  # the oldest that PyTorch's exporter writes without a conversion
LARGEST = 2**31 - 2**22  # bytes of tensors: one ONNX file holds less than 2 GiB
BATCH = "batch"

Run = Callable[[np.ndarray], Sequence[np.ndarray]]


class Format(ABC):
    """A format. `name` is that of --format, `suffix` that of its files, `runtime` what runs them."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    runtime: ClassVar[str]

    @abstractmethod
    def require(self) -> None:
        """InputError where a package that it needs is not installed."""

    @abstractmethod
    def write(self, program: ExportedProgram, outputs: Sequence[str], description: str, path: Path) -> None:
        """Write one file. InputError where the format cannot hold it."""

    @abstractmethod
    def open(self, path: Path) -> Run:
        """A written file on the CPU as a function of images (B, 1, S, S) uint8 to its outputs."""


class Onnx(Format):
    name, suffix, runtime = "onnx", ".onnx", "ONNX Runtime"

    def require(self) -> None:
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f'--format onnx: {" and ".join(missing)} missing; install with pip install "fracray[export]"'
            )

    def write(self, program: ExportedProgram, outputs: Sequence[str], description: str, path: Path) -> None:
        import onnx
        import torch

        size = sum(tensor.nbytes for tensor in program.state_dict.values())
        if size > LARGEST:
            raise InputError(
                f"--format onnx: {size / 2**30:.1f} GiB do not fit into one file; use --format torch-export"
            )
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            external_data=False,
            verbose=False,
        )
        assert exported is not None
        model = exported.model_proto
        for node in model.graph.node:
            del node.metadata_props[:]  # the exporter's own notes: modules and source lines
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
        del model.graph.value_info[:]  # with the exporter's name of the batch
        onnx.helper.set_model_props(model, {KEY: description})
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def open(self, path: Path) -> Run:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {INPUT: images})


class TorchExport(Format):
    name, suffix, runtime = "torch-export", ".pt2", "the reloaded program"

    def require(self) -> None:
        pass

    def write(self, program: ExportedProgram, outputs: Sequence[str], description: str, path: Path) -> None:
        import torch

        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={DESCRIPTION: description})

    def open(self, path: Path) -> Run:
        import torch

        with path.open("rb") as file:
            module = torch.export.load(file).module()

        def run(images: np.ndarray) -> Sequence[np.ndarray]:
            with torch.inference_mode():
                return [output.numpy() for output in module(torch.from_numpy(images))]

        return run


FORMATS: dict[str, Format] = {one.name: one for one in (Onnx(), TorchExport())}
