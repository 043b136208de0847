"""The training loop: plain PyTorch, from a stream of uint8 batches to a validated, resumable model.

Knows nothing of Ray, nor of how time is measured (see `metered`). A trial on one worker, a trial on eight and a final
training all run this loop; they differ in who calls `run_epoch` and who gets the report.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fracray.config import Config
from fracray.data.loading.plan import Batch, Plan
from fracray.metric_names import preference
from fracray.metrics import Calibration
from fracray.training.average import MovingAverage
from fracray.training.folding import folded
from fracray.training.graphs import GraphedSteps, uses_graphs
from fracray.training.growth import side_in
from fracray.training.inputs import Inputs, to_device
from fracray.training.layers import body, parameter_groups
from fracray.training.localise import map_loss
from fracray.training.loss import batch_loss, mixed_loss
from fracray.training.mixing import mixes
from fracray.training.model import build_model, float32, freeze_norm, freeze_stages, train_mode
from fracray.training.optimizer import AdamW
from fracray.training.precision import pick_precision
from fracray.training.ranks import GradientSum, add_up, norm_statistics, on_all, start_alike
from fracray.training.schedule import Rates
from fracray.training.validation import score_validation


class Stream(Protocol):
    """Where the batches come from: always the same ones for the same epoch."""

    @property
    def plan(self) -> Plan: ...
    def train(self, epoch: int) -> Iterator[Batch]: ...
    def validation(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Validation:
    """The averaged weights' logits on all validation sets, each image once; the same on every rank.

    rows: (n,) int64 in ascending order; labels: (n,); logits: (n,) float32.
    """

    rows: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    calibration: Calibration
    threshold: float


@dataclass(frozen=True)
class EpochReport:
    """The result of one epoch: metrics by name, its validation, and whether it is the best so far.

    folds, first: in cross-validation the validation of every model, the first one's included, and the metrics of the
    first model, whose weights are kept; else empty, and None.
    """

    epoch: int  # counted from 1
    metrics: dict[str, float]
    validation: Validation
    is_best: bool
    diverged: bool = False
    seconds: float = field(default=0.0, compare=False)
    folds: tuple[Validation, ...] = ()
    first: dict[str, float] | None = None

    @property
    def kept_metrics(self) -> dict[str, float]:
        """The metrics of the model whose weights are kept."""
        return self.metrics if self.first is None else self.first


def pick_device() -> torch.device:
    """The first GPU visible to this process, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def dropout_seed(seed: int, epoch: int, rank: int) -> int:
    """The seed of an epoch's dropout: it depends on nothing before the epoch, so that a resumed run repeats it."""
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1, np.uint64)[0])


class Fit:
    """One model's training, an epoch at a time.

    With `world` > 1 a torch.distributed process group must be up, and every rank calls the same methods. Metrics are
    of the complete set and the same on every rank.
    """

    def __init__(
        self,
        config: Config,
        stream: Stream,
        device: torch.device | None = None,
        metric: str = "val_accuracy",
        mode: str = "max",
    ) -> None:
        self.config = config
        self.stream = stream
        self.device = device or pick_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # graphs are recorded on the current device
        self.rank, self.world = stream.plan.rank, stream.plan.world
        self.metric, self.mode = metric, mode

        torch.manual_seed(config.train.seed)
        self.model = build_model(config.model).to(self.device)
        if config.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if self.world > 1:
            start_alike(self.model)
        self.precision = pick_precision(config, self.device, self.model)
        if self.world > 1 and not on_all(self.precision is torch.bfloat16, self.device):
            self.precision = torch.float32  # machines may differ, and what they send one another must not
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        freeze_stages(self.model, config.model.freeze_stages)
        self._moving = MovingAverage(self.averaged, self.model)
        groups = parameter_groups(self.model, config.train.weight_decay, config.train.layer_decay)
        self._rates = Rates(config.train, self.device, [group["lr_scale"] for group in groups])
        self.optimizer = AdamW(groups, lr=self._rates.lrs[0], betas=(0.9, 0.99), capturable=self._rates.on_device)
        self._body = body(self.model)
        self._head_alone = False
        self._forward = torch.compile(self.model) if config.train.compile else self.model
        self._gradients = GradientSum(self.precision)
        self._graphed: GraphedSteps | None = None
        if uses_graphs(config, self.device, self.world):
            self._graphed = GraphedSteps(self.device, must=config.train.graphs == "on")

        intact, fractured = stream.plan.class_counts
        self.positive_weight = float(intact / max(1, fractured))
        self._inputs = Inputs(config, stream.plan, self.averaged, self.device)
        self._side: int | None = None  # of the images that the running epoch trains on; None: the full one
        self.epochs_done = 0
        self.best: dict[str, float] = {}
        self.best_weights: dict[str, torch.Tensor] = {}

    @property
    def total_steps(self) -> int:
        return self.config.train.epochs * self.stream.plan.steps

    @property
    def done(self) -> bool:
        return self.epochs_done >= self.config.train.epochs

    def run_epoch(self) -> EpochReport:
        """Train one epoch, validate the averaged weights, and keep them if they are the best so far."""
        report = self.advance()
        if report.diverged or not self.is_better(report.metrics):
            return report
        self.keep(report.metrics)
        return replace(report, is_best=True)

    def advance(self) -> EpochReport:
        """Train one epoch and validate the averaged weights; the caller decides whether to keep them."""
        started = time.perf_counter()
        train_loss = self._train_epoch(self.epochs_done)
        validation, metrics = self.validate()
        self.epochs_done += 1
        diverged = not math.isfinite(train_loss) or not math.isfinite(metrics["val_loss"])
        metrics = {"epoch": float(self.epochs_done), "train_loss": train_loss, "lr": self._rate(), **metrics}
        return EpochReport(
            self.epochs_done, metrics, validation, False, diverged, seconds=time.perf_counter() - started
        )

    def keep(self, metrics: dict[str, float]) -> None:
        """Remember the averaged weights as the best so far, under these metrics."""
        self.best = metrics
        self.best_weights = {name: tensor.clone() for name, tensor in self.averaged.state_dict().items()}

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def is_better(self, metrics: dict[str, float]) -> bool:
        """Whether these metrics are preferred to the best so far: see `metric_names.preference`."""
        return not self.best or self._preference(metrics) > self._preference(self.best)

    def _preference(self, metrics: dict[str, float]) -> tuple[float, float]:
        return preference(metrics[self.metric], metrics["val_loss"], self.mode)

    def _train_epoch(self, epoch: int) -> float:
        self._open(head_alone=epoch < self.config.train.head_epochs)
        self._train_mode()
        self._resize(side_in(self.config, epoch))
        torch.manual_seed(dropout_seed(self.config.train.seed, epoch, self.rank))
        total = torch.zeros((), device=self.device)
        for step, batch in enumerate(self.stream.train(epoch), start=epoch * self.stream.plan.steps):
            total += self._step(batch, step)
        if self.world > 1:
            self._agree(total)
        return float(total) / len(self.stream.plan.train_rows)  # waits until a GPU has done all steps

    def _agree(self, total: torch.Tensor) -> None:
        """Add up the epoch's losses over the ranks; batch norm's statistics, each rank's own, become their means."""
        statistics = norm_statistics(self.model, self.averaged)
        add_up([total, *statistics])
        if statistics:
            torch._foreach_div_(statistics, self.world)

    def _open(self, head_alone: bool) -> None:
        """From now on train the head alone, or all that is not frozen for good."""
        if head_alone == self._head_alone:
            return
        self._head_alone = head_alone
        for parameter in self._body:
            parameter.requires_grad_(not head_alone)
        if self._graphed is not None:
            self._graphed.forget()

    def _resize(self, side: int | None) -> None:
        """Train on images of this side from now on."""
        if side == self._side:
            return
        self._side = side
        if self._graphed is not None:
            self._graphed.forget()

    def _train_mode(self) -> None:
        train_mode(self.model, self.config.model.freeze_norm)

    def _step(self, batch: Batch, step: int) -> torch.Tensor:
        """One optimiser step; returns the sum of this rank's losses of the labels."""
        self._rates.set(step, self.total_steps)
        for group, lr in zip(self.optimizer.param_groups, self._rates.lrs, strict=True):
            group["lr"] = lr
        images, labels, *maps = self._inputs.of(batch, *divmod(step, self.stream.plan.steps), self._side)
        too_few = len(labels) < 2
        if too_few:  # one image has no batch statistics
            freeze_norm(self.model)
        if self._graphed is not None and len(labels) == self.stream.plan.batch_size:
            total = self._graphed.take(self._update, [images, labels, *maps])
        else:
            total = self._update(images, labels, *maps, count=batch.global_count, counted=float(len(batch.rows) > 0))
        if too_few:
            self._train_mode()
        return total

    def _update(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *maps: torch.Tensor,
        count: int | None = None,
        counted: float = 1.0,
    ) -> torch.Tensor:
        """What a step does on the device; all that changes from step to step is a tensor, see `GraphedSteps`.

        maps: shares and what is known, as `map_loss` takes them, once or twice; none where the map is not trained.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision is torch.bfloat16):
            if maps:
                logits, where = self._forward(images.unsqueeze(1), True)
            else:
                logits = self._forward(images.unsqueeze(1))
        loss = mixed_loss if mixes(self.config.train) else batch_loss
        losses = loss(logits.float(), labels, self.config.train, self.positive_weight)
        total = losses.sum() * counted
        learnt = total
        for shares, known in zip(maps[::2], maps[1::2], strict=True):
            learnt = learnt + self.config.train.box_weight * counted * map_loss(where, shares, known).sum()
        # Before the step and not after it: a recording that failed leaves gradients behind.
        self.optimizer.zero_grad(set_to_none=True)
        (learnt / (count or len(labels))).backward()
        if self.world > 1:  # the sum of these is the gradient of the mean over the global batch
            self._gradients.exchange(self.model.parameters())
        if self.config.train.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        self._moving.update(self._rates.average)
        return total.detach()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything that the next epoch depends on: copies of tensors by name, and the rest as JSON values."""
        moving = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        moving |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            moving |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
        tensors = {name: tensor.clone() for name, tensor in moving.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        meta: dict[str, Any] = {
            "epochs_done": self.epochs_done,
            "best": self.best,
        }
        return tensors, meta

    def load_state(self, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Resume from what `state` returned: the epochs that follow are those of an uninterrupted run."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.averaged.load_state_dict(part("averaged."))
        self.best_weights = {name: tensor.to(self.device) for name, tensor in part("best.").items()}
        optimizer = self.optimizer.state_dict()
        for name, tensor in part("optimizer.").items():
            index, slot = name.split(".", 1)
            optimizer["state"].setdefault(int(index), {})[slot] = tensor
        self.optimizer.load_state_dict(optimizer)
        if self._graphed is not None:
            self._graphed.forget()
        self.epochs_done, self.best = meta["epochs_done"], meta["best"]

    @torch.inference_mode()
    def validate(self) -> tuple[Validation, dict[str, float]]:
        """Score the averaged weights on all validation images; every rank gets the same result.

        Always in float32, whatever the training's arithmetic: calibration and threshold then hold wherever the
        checkpoint is used.
        """
        model = folded(self.averaged, self.config.data.size)
        rows = np.sort(self.stream.plan.val_rows)
        logits, scored = np.zeros(len(rows), dtype=np.float32), 0
        for batch in self.stream.validation():
            if len(batch.rows):
                with float32():
                    found = model(to_device(batch.images, self.device).unsqueeze(1))
                logits[np.searchsorted(rows, batch.rows)] = found.cpu().numpy()
                scored += len(batch.rows)
        if self.world > 1:  # each image is in one rank's part, and zero on the others
            shared = torch.from_numpy(np.append(logits, np.float32(scored))).to(self.device)
            add_up([shared])
            *told, scored = shared.tolist()
            logits = np.array(told, dtype=np.float32)
        if scored != len(rows):
            raise RuntimeError(f"{scored:.0f} validation images were scored, and there are {len(rows)}")
        return self._score(rows, self.stream.plan.labels[rows], logits)

    def _score(self, rows: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> tuple[Validation, dict[str, float]]:
        """Score every validation set, with the calibration and the threshold that are fitted on 'val'."""
        if not np.isfinite(logits).all():
            return Validation(rows, labels, logits, Calibration(1.0, 0.0), 0.5), {"val_loss": math.nan}
        inside = {name: np.searchsorted(rows, members) for name, members in self.stream.plan.val_sets.items()}
        groups = rows if self.stream.plan.groups is None else self.stream.plan.groups[rows]
        calibration, threshold, metrics = score_validation(
            labels, logits, groups, inside, self.config.train.operating_point
        )
        return Validation(rows, labels, logits, calibration, threshold), metrics
