"""Transfer learning with fixed defaults, written out plainly in PyTorch: what `quality.py` measures fracray against.

The settings are those that Ultralytics' documentation gives for classification: 224 px, batches of 16, 100 epochs, SGD
at 0.01 (AdamW where there are fewer than 10,000 steps), weight decay 5e-4, three epochs of warm-up, a linear decay to a
hundredth, an average of the weights, random crops of a half to all of the area, flips, RandAugment and erasing. The
network is EfficientNet-Lite0 of timm with ImageNet's weights. Nothing of fracray is used but these weights. Prints a
line of JSON after each epoch.
"""

import argparse
import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fracray.training.pretrained import packaged_imagenet

NETWORK, SIZE, BATCH, EPOCHS, WARMUP = "tf_efficientnet_lite0", 224, 16, 100, 3
NORMAL = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
END = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), NORMAL]
TRAIN = v2.Compose(
    [v2.RandomResizedCrop(SIZE, (0.5, 1.0)), v2.RandomHorizontalFlip(), v2.RandAugment(), *END, v2.RandomErasing(0.4)]
)
VAL = v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE), *END])


class Radiographs(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, paths: Sequence[str], labels: Sequence[int], transform: v2.Compose) -> None:
        self._paths, self._labels, self._transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self._paths[index]) as image:
            return self._transform(image.convert("RGB")), self._labels[index]


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--parts", required=True, help="JSON: {train: {path: [...], label: [...]}, val: {...}}")
    cli.add_argument("--epochs", type=int, default=EPOCHS, help="default %(default)s")
    args = cli.parse_args()
    parts = json.loads(Path(args.parts).read_text())
    torch.manual_seed(0)
    train = Radiographs(parts["train"]["path"], parts["train"]["label"], TRAIN)
    batches = DataLoader(train, BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True)
    held_out = DataLoader(Radiographs(parts["val"]["path"], parts["val"]["label"], VAL), 2 * BATCH)
    network = timm.create_model(NETWORK, num_classes=2)
    weights = packaged_imagenet(NETWORK)
    network.load_state_dict({name: weights[name] for name in weights if "classifier" not in name}, strict=False)
    averaged = copy.deepcopy(network).eval()
    steps = args.epochs * len(batches)
    if steps < 10_000:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            network.parameters(), 0.002 * 5 / (4 + 2), betas=(0.9, 0.999), weight_decay=5e-4
        )
    else:
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    warmup = WARMUP * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * (1 - 0.99 * step / steps)
    )
    done = 0
    for epoch in range(1, args.epochs + 1):
        network.train()
        for images, labels in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            done += 1
            share = 0.9999 * (1 - math.exp(-done / 2000))
            with torch.no_grad():
                for kept, new in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
                    if kept.is_floating_point():
                        kept.lerp_(new, 1 - share)
        with torch.inference_mode():
            scores = torch.cat([averaged(images).softmax(1)[:, 1] for images, _ in held_out])
        auroc = float(roc_auc_score(parts["val"]["label"], scores))
        print(json.dumps({"epoch": epoch, "val_auroc": auroc}), flush=True)


if __name__ == "__main__":
    main()
