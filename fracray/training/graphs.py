"""CUDA graphs of a training step: recorded once, then launched as a whole, without Python between its kernels.

A step of a small network is hundreds of kernels of a few microseconds; started one by one they take several times
longer than the GPU needs for them. Knows nothing of networks, losses or optimisers.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fracray.config import Config
from fracray.errors import InputError

WARM_UP = 3  # steps before the recording, as Torch's notes on CUDA graphs advise: libraries choose their kernels

Step = Callable[..., Tensor]  # from tensors on the device, always of the same shapes, to one


def uses_graphs(config: Config, device: torch.device, world: int) -> bool:
    """Whether steps are recorded, by `train.graphs`. Raises InputError where it is 'on' and cannot be."""
    wanted = config.train.graphs
    if wanted == "off":
        return False
    why = ""
    if device.type != "cuda":
        why = "there is no GPU"
    elif world > 1:
        why = f"the training has {world} workers"
    elif config.train.compile:
        why = "train.compile = true"
    if why and wanted == "on":
        raise InputError(f"train.graphs = on: needs one worker with a GPU, and no train.compile, but {why}; set auto")
    return not why


class GraphedSteps:
    """The steps of one fit, after the first ones as a CUDA graph. What they compute is the same.

    All that changes from step to step must be an input, or a tensor that the caller fills: numbers are recorded as they
    are. Random draws are those of an ordinary step: Torch gives each replay the generator's seed and offset, and
    advances it (its note on CUDA graphs), so `torch.manual_seed` still determines them.

    Where a step makes the CPU wait for the GPU, or cannot be recorded for another reason, steps are taken one by one
    with a warning; with `must` that is an InputError.
    """

    def __init__(self, device: torch.device, must: bool) -> None:
        self._device, self._must = device, must
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._refused = False
        self._inputs: tuple[Tensor, ...] = ()
        self._result: Tensor

    @property
    def recorded(self) -> bool:
        return self._graph is not None

    def forget(self) -> None:
        """Record anew: tensors that the steps use were replaced."""
        self._graph, self._inputs, self._taken = None, (), 0

    def take(self, step: Step, inputs: Sequence[Tensor]) -> Tensor:
        """Take a step; its result holds until the next one."""
        if self._refused:
            return step(*inputs)
        if self._graph is None and self._taken < WARM_UP:
            self._taken += 1
            return self._warm_up(step, inputs)
        if self._graph is None and not self._record(step, inputs):
            return step(*inputs)
        assert self._graph is not None
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._result

    def _warm_up(self, step: Step, inputs: Sequence[Tensor]) -> Tensor:
        """An ordinary step, on another stream than the usual one, where a recording will be too."""
        side, usual = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        side.wait_stream(usual)
        # The last of them is watched: what makes the CPU wait would break the recording.
        with torch.cuda.stream(side), _Watch(self._taken == WARM_UP) as watch:
            result = step(*inputs)
        usual.wait_stream(side)
        result.record_stream(usual)
        if watch.waits:
            self._refuse(watch.waits)
        return result

    def _record(self, step: Step, inputs: Sequence[Tensor]) -> bool:
        """Record the step, which does not take it; whether that went well."""
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread's calls matter: another may be writing a checkpoint meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = step(*self._inputs)
        except RuntimeError as error:
            self._inputs = ()
            self._refuse(str(error).strip().splitlines()[0])
            return False
        self._graph = graph
        return True

    def _refuse(self, why: str) -> None:
        self._refused = True
        if self._must:
            raise InputError(f"train.graphs = on: the step of this network cannot be recorded ({why}); set auto or off")
        warnings.warn(f"train.graphs: steps are taken one by one, for they cannot be recorded: {why}", stacklevel=2)


class _Watch:
    """`with _Watch(True) as watch:` then `watch.waits`: what made the CPU wait for the GPU in the block, or ''."""

    def __init__(self, on: bool) -> None:
        self.waits = ""
        self._on = on

    def __enter__(self) -> "_Watch":
        if self._on:
            self._before = torch.cuda.get_sync_debug_mode()
            self._caught = warnings.catch_warnings(record=True)
            self._seen = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: object) -> None:
        if not self._on:
            return
        torch.cuda.set_sync_debug_mode(self._before)
        self._caught.__exit__(None, None, None)
        for warning in self._seen or ():
            said = str(warning.message)
            if "synchronizing CUDA operation" in said:
                self.waits = self.waits or said.splitlines()[0]
            elif not said.startswith("Synchronization debug mode is a prototype"):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
