"""What the ranks of a training tell each other: one message a step, and a few numbers at the end of an epoch.

Each message is the sum over the ranks of one flat tensor on the training's device, but for the weights at the start,
which are the first rank's. gloo and NCCL take both, every rank gets the same bits, and no rank is waited for anywhere
else. Where a rank has died, gloo raises a RuntimeError on the others. Knows nothing of losses, schedules or data.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GradientSum:
    """Replaces the gradients of all ranks by their sum, with one all-reduce of one flat tensor after the backward pass.

    `dtype`: in which they are sent, the training's own arithmetic. With bf16 the gradients of convolutions and linear
    layers are numbers of bf16 already, so only their sum is rounded.

    DistributedDataParallel sends them in parts during the backward pass, and batch norm's statistics before each
    forward pass. Where a rank has one core, which sending uses too, that hides nothing and takes more CPU time.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._parameters: list[nn.Parameter] = []
        self._sent, self._sums = torch.empty(0), torch.empty(0)
        self._sent_views: list[Tensor] = []
        self._sum_views: list[Tensor] = []

    @torch.no_grad()
    def exchange(self, parameters: Iterable[nn.Parameter]) -> None:
        """All ranks call it with the same parameters, of which the same have a gradient; the others keep having none.

        The sums overwrite each other from step to step.
        """
        learning = [parameter for parameter in parameters if parameter.grad is not None]
        if not _same(learning, self._parameters):
            self._lay_out(learning)
        gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
        torch._foreach_copy_(self._sent_views, gradients)
        dist.all_reduce(self._sent)
        if self._sent is not self._sums:
            self._sums.copy_(self._sent)
        for parameter, view in zip(learning, self._sum_views, strict=True):
            parameter.grad = view

    def _lay_out(self, learning: list[nn.Parameter]) -> None:
        """A place in the flat tensors for each of these parameters, with its strides."""
        device, count = learning[0].device, sum(parameter.numel() for parameter in learning)
        self._parameters = learning
        self._sums = torch.empty(count, dtype=torch.float32, device=device)
        self._sent = self._sums
        if self._dtype is not torch.float32:
            self._sent = torch.empty(count, dtype=self._dtype, device=device)
        self._sum_views, self._sent_views = _views(self._sums, learning), _views(self._sent, learning)


def _same(these: list[nn.Parameter], those: list[nn.Parameter]) -> bool:
    return len(these) == len(those) and all(one is other for one, other in zip(these, those, strict=True))


def _views(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    ends = accumulate(tensor.numel() for tensor in like)
    return [
        flat.as_strided(tensor.shape, tensor.stride(), end - tensor.numel())
        for tensor, end in zip(like, ends, strict=True)
    ]


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype, on the training's device, by their sums over the ranks, with one all-reduce."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    _spread(flat, tensors)


def on_all(holds: bool, device: torch.device) -> bool:
    """Whether it holds on every rank; all ranks call it."""
    failing = torch.tensor(float(not holds), device=device)
    dist.all_reduce(failing)
    return not failing


@torch.no_grad()
def start_alike(model: nn.Module) -> None:
    """Give every rank the floats of the first one's model, with one broadcast: other CPUs may round them otherwise."""
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.broadcast(flat, 0)
    _spread(flat, tensors)


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def norm_statistics(model: nn.Module, averaged: nn.Module) -> list[Tensor]:
    """The running means and variances of the model's batch norms that learn them, and those of its average."""
    found = []
    for module, average in zip(model.modules(), averaged.modules(), strict=True):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
            for norm in (module, average):
                assert isinstance(norm.running_mean, Tensor)
                assert isinstance(norm.running_var, Tensor)
                found += [norm.running_mean, norm.running_var]
    return found
