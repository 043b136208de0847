"""AdamW as PyTorch has it, without loading PyTorch's compiler. Knows nothing of networks or of schedules."""

from typing import Any

import torch


def _plain(method: Any) -> Any:
    """A method of PyTorch's optimisers without the wrapper that imports `torch._dynamo` when it is first called.

    As it is where a version of PyTorch has no wrapper around it.
    """
    return getattr(method, "__wrapped__", method)


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization"), whose arithmetic is PyTorch's.

    PyTorch wraps these methods so that a compiled training step leaves them out; fracray compiles the network alone.
    The wrappers import the compiler, which costs each process more CPU time than PyTorch itself does.
    """

    add_param_group = _plain(torch.optim.Optimizer.add_param_group)
    load_state_dict = _plain(torch.optim.Optimizer.load_state_dict)
    state_dict = _plain(torch.optim.Optimizer.state_dict)
    step = torch.no_grad()(_plain(torch.optim.Adam.step))
    zero_grad = _plain(torch.optim.Optimizer.zero_grad)
