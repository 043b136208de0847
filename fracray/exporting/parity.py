"""Whether an export says what its checkpoint says; without this proof none is written.

Exporters are known to change a network without a word (PyTorch's issues 166797, 169178 and 148886). Knows an export as
a function.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit

from fracray.errors import RunError
from fracray.evaluation.inference import BATCH, looking_network
from fracray.exporting.formats import Run
from fracray.exporting.sample import Sample
from fracray.training.checkpoint import Checkpoint

BATCHES = (1, 3, 32)
TOLERANCE = 1e-4  # of logits, and of the heatmap's cells
EXACT = 1e-9  # of probabilities, from the export's own logits


def expected(checkpoint: Checkpoint, sample: Sample) -> dict[str, np.ndarray]:
    """What the checkpoint itself says of a sample: logit (n,) and, with a localiser, heatmap (n, h, w), float32.

    RunError where these are not the logits that the checkpoint keeps of its validation.
    """
    run = looking_network(checkpoint)
    parts = [run(sample.squares[at : at + BATCH]) for at in range(0, len(sample.squares), BATCH)]
    said = {"logit": np.concatenate([logits for logits, _ in parts])}
    if checkpoint.model.localises:
        where = np.concatenate([where for _, where in parts if where is not None])
        said["heatmap"] = expit(where)
    if sample.stored is not None and (apart := _apart(said["logit"], sample.stored)) > TOLERANCE:
        raise RunError(
            f"on {sample.words}, the network itself gives other logits here than in its validation: {apart:.2g} apart. "
            "The pictures are as they were, so another version of OpenCV or Torch is at work: export with the versions "
            "in the checkpoint's config.json, or compare on other radiographs with --data"
        )
    return said


def prove(
    run: Run,
    outputs: Sequence[str],
    checkpoint: Checkpoint,
    sample: Sample,
    said: dict[str, np.ndarray],
    runtime: str,
    progress: Callable[[int, int], None],
) -> float:
    """The largest difference of a logit between an export and its checkpoint, at all BATCHES.

    said: of `expected`. RunError where it is more than TOLERANCE, or any other output is not what it should be.
    """
    images = np.resize(sample.squares, (max(len(sample.squares), *BATCHES), *sample.squares.shape[1:]))[:, None]
    wanted = {name: np.resize(values, (len(images), *values.shape[1:])) for name, values in said.items()}
    if sample.stored is not None:
        wanted["logit of the validation"] = np.resize(sample.stored, len(images))
    card, largest = checkpoint.metadata, 0.0
    for batch in BATCHES:
        got = _run_all(run, outputs, images, batch, runtime, progress)
        wanted["probability"] = card.calibration.apply(got["logit"])
        wanted["call"] = (got["probability"] >= card.threshold).astype(np.uint8)
        for name, values in wanted.items():
            apart = _apart(got[name.split()[0]], values)
            limit = {"probability": EXACT, "call": 0.0}.get(name, TOLERANCE)
            if not apart <= limit:
                raise RunError(
                    f"nothing is written: {runtime} gives another {name} than the checkpoint, {apart:.2g} apart at a "
                    f"batch of {batch}, where {limit:g} is allowed. The exporter has changed the network; try the "
                    "other --format, or another version of torch, onnxscript or onnxruntime"
                )
            if name.startswith("logit"):
                largest = max(largest, apart)
    return largest


def _run_all(
    run: Run,
    outputs: Sequence[str],
    images: np.ndarray,
    batch: int,
    runtime: str,
    progress: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """All outputs by name, of images run in batches of this size."""
    parts: list[Sequence[np.ndarray]] = []
    for at in range(0, len(images), batch):
        try:
            parts.append(run(images[at : at + batch]))
        except Exception as error:  # whatever the runtime raises
            raise RunError(
                f"nothing is written: {runtime} cannot run the export at a batch of {batch}: {error}"
            ) from None
        done = BATCHES.index(batch) * len(images) + at + batch
        progress(done, len(BATCHES) * len(images))
    return {name: np.concatenate(values) for name, values in zip(outputs, zip(*parts, strict=True), strict=True)}


def _apart(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference; infinite between arrays of other shapes, and where one is not finite."""
    if found.shape != wanted.shape:
        return np.inf
    apart = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    return float(apart.max()) if np.isfinite(apart).all() else np.inf
