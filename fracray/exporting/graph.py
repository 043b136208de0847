"""A checkpoint as one graph, from stored pixels to a calibrated probability; in float32, whatever it was trained in.

Knows no file formats and no radiographs.
"""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fracray.training.checkpoint import Checkpoint

OUTPUTS = {
    "probability": "(B,) float64: of a fracture, calibrated: sigmoid(logit / temperature + bias)",
    "logit": "(B,) float32: the network's output; of an ensemble, the mean",
    "call": "(B,) uint8: 1 where the probability reaches the threshold",
    "heatmap": "(B, h, w) float32: the probability of a fracture in each cell of the square, not calibrated",
}


class Readout(nn.Module):
    """A checkpoint's network with what comes after it.

    forward: (B, 1, S, S) uint8 to a tensor for each of `outputs`, in the order of OUTPUTS; heatmap only where the
    network, or each of an ensemble's, has a localiser.
    """

    temperature: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network = checkpoint.model
        card = checkpoint.metadata
        # As tensors: the ONNX exporter writes Python's numbers in float32, and then calls that float64.
        self.register_buffer("temperature", torch.tensor(card.calibration.temperature, dtype=torch.float64))
        self.register_buffer("bias", torch.tensor(card.calibration.bias, dtype=torch.float64))
        self.register_buffer("threshold", torch.tensor(card.threshold, dtype=torch.float64))
        self.outputs = tuple(name for name in OUTPUTS if name != "heatmap" or checkpoint.model.localises)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, *where = self.network(images, True) if self.network.localises else (self.network(images),)
        # In float64, as `Calibration.apply`: a probability at the threshold then falls on the same side.
        probability = torch.sigmoid(logits.double() / self.temperature + self.bias)
        return probability, logits, (probability >= self.threshold).to(torch.uint8), *map(torch.sigmoid, where)


def trace(readout: Readout, size: int) -> ExportedProgram:
    """The program of a network on the CPU for any number of images of this size, without traces of this machine.

    It is for prediction alone: the network is put into evaluation mode, and has no gradients from here on.
    """
    # Of two images: torch.export takes a batch of 0 or 1 as fixed.
    example = torch.zeros((2, 1, size, size), dtype=torch.uint8)
    program = torch.export.export(
        readout.eval().requires_grad_(False), (example,), dynamic_shapes=({0: Dim("batch", min=1)},)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program
