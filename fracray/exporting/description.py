"""What someone who runs an export must know, as JSON: the geometry of its input, and where its numbers come from.

The same text is in the file itself and in FILE.preprocess.json beside it, with a script that follows it.
"""

import json
from pathlib import Path

from fracray.config import DataConfig
from fracray.data.images import crop
from fracray.exporting import reader
from fracray.exporting.formats import INPUT
from fracray.exporting.graph import OUTPUTS
from fracray.prediction.scoring import hash_of
from fracray.training.card import FLOAT32
from fracray.training.checkpoint import Checkpoint

_IMPORT = "from fracray.data.images.crop import anatomy\n"  # of the reader in this package


def description(checkpoint: Checkpoint, outputs: tuple[str, ...]) -> str:
    """The description of a checkpoint's export, as JSON."""
    card, size = checkpoint.metadata, checkpoint.metadata.config.data.size
    networks = checkpoint.members or (checkpoint,)
    tree = {
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["batch", 1, size, size],
            "geometry": _geometry(card.config.data),
        },
        "size": size,
        "crop": card.config.data.crop,
        "least": crop.LEAST if card.config.data.crop else 1,
        "outputs": {name: OUTPUTS[name] for name in outputs},
        "calibration": {"temperature": card.calibration.temperature, "bias": card.calibration.bias},
        "threshold": card.threshold,
        "out_of_fold": card.out_of_fold,
        "operating_point": card.config.train.operating_point,
        "classes": card.classes,
        "arithmetic": FLOAT32,
        "networks": [
            {
                "name": one.metadata.config.model.name,
                "trial": one.metadata.trial,
                "epoch": one.metadata.epoch,
                **{name: float(one.model.state_dict()[name].flatten()[0]) for name in ("mean", "std")},
            }
            for one in networks
        ],
        "normalisation": "inside the graph: (x / 255 - mean) / std, of each network",
        "checkpoint": hash_of(checkpoint.folder),
        "data_fingerprint": card.data_fingerprint,
        "versions": card.versions,
        "use": "for research; not a medical device",
    }
    return json.dumps(tree, indent=2, allow_nan=False) + "\n"


def reader_script(cropped: bool) -> str:
    """The script that makes an export's input from a JPEG and runs it; it needs no fracray."""
    text = Path(reader.__file__).read_text()
    assert text.count(_IMPORT) == 1, "the reader finds the anatomy by one import"
    if not cropped:
        return text.replace(_IMPORT, "anatomy = None  # these radiographs are not cropped\n")
    return text.replace(_IMPORT, "\n" + Path(crop.__file__).read_text().split('"""', 2)[2])


def _geometry(data: DataConfig) -> str:
    factor = "half of it" if data.crop else "it"
    words = (
        f"gray, 8 bits, turned as EXIF says. A JPEG is decoded at 1/8, 1/4 or 1/2 of its scale, at the smallest where "
        f"{factor} is still twice the size or more on its longer side. "
    )
    if data.crop:
        words += "The part that holds the anatomy is cut out (see the reader). "
    return words + (
        f"Letterboxed: longer side scaled to {data.size} px, by area averaging, or linearly where it is enlarged; "
        "centred on 0 in a square"
    )
