"""The settings `augment`, `model` and `train`: one training."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from fracray.config.extra_transforms import FrozenMap, read_extra, thaw
from fracray.config.section import Probability, Rate, Section


def _read_extra(value: Any, info: ValidationInfo) -> FrozenMap:
    return read_extra(value, known=bool(info.context and info.context.get(KNOWN_EXTRA)))


KNOWN_EXTRA = "known_extra"  # in a validation's context: `augment.extra` was checked before
Extra = Annotated[FrozenMap, PlainValidator(_read_extra), PlainSerializer(thaw), WithJsonSchema({"type": "object"})]


# Raise it when equal settings and seeds would give other pictures: a run that is resumed says so.
AUGMENTATION_VERSION = 2
# Raise it when equal settings are trained or validated by other arithmetic; 1 validated as it trained, and trained all
# networks but fracture_cnn in fp32 on a CPU; 2 added up the gradients of several workers in fp32, and validated with
# the first worker's statistics of batch norm.
ARITHMETIC_VERSION = 3


class AugmentConfig(Section):
    """Strengths of the training augmentation; 0 turns a transform off. Validation and test are never augmented."""

    rotate: Annotated[float, Field(ge=0, le=180)] = Field(
        10.0, description="largest rotation in degrees, in both directions, 0 to 180; 0: off"
    )
    flip: Probability = Field(0.5, description="probability of a left-right flip, 0 to 1; 0: off")
    vertical_flip: Probability = Field(0.0, description="probability of an up-down flip, 0 to 1; 0: off")
    scale: Rate = Field(
        0.1,
        description="largest relative zoom, in and out, of width and height together, 0 to below 1; 0: off",
    )
    stretch: Rate | None = Field(
        None,
        description="largest relative stretch of width against height, both ways, 0 to below 1; 0: off; null: as scale",
    )
    brightness: Rate = Field(
        0.1,
        description="largest change of brightness as a share of full scale, inside the picture, 0 to below 1; 0: off",
    )
    contrast: Rate = Field(
        0.1, description="largest relative change of contrast, about the picture's mean gray, 0 to below 1; 0: off"
    )
    extra: Extra = Field(
        FrozenMap(),
        description="albumentations transforms that follow, in this order, by name with their arguments, such as "
        "{CLAHE: {clip_limit: [1, 4], p: 0.3}}; each argument is a setting (augment.extra.CLAHE.p, "
        "augment.extra.CLAHE.clip_limit.1), and arguments not given have the default of albumentations; {}: none",
    )

    @property
    def flips(self) -> bool:
        return bool(self.flip or self.vertical_flip)

    @property
    def warps(self) -> bool:
        """Whether pixels are interpolated; flips are then part of the warp."""
        return bool(self.rotate or self.scale or self.largest_stretch)

    @property
    def largest_stretch(self) -> float:
        return self.scale if self.stretch is None else self.stretch

    @property
    def regrays(self) -> bool:
        return bool(self.brightness or self.contrast)


class ModelConfig(Section):
    """The network and its two dropout rates."""

    name: str = Field(
        "fracture_cnn", description="'fracture_cnn', any network of timm, or torchvision/NAME for one of torchvision"
    )
    weights: str | None = Field(
        None, description="start from 'imagenet' or from the path of a .safetensors file; null: from scratch"
    )
    dropout: Rate = Field(0.2, description="dropout rate before the head, 0 to below 1; 0: off")
    spatial_dropout: Rate = Field(
        0.1, description="probability of dropping a complete feature map between stages, 0 to below 1; 0: off"
    )
    width: int = Field(32, ge=4, le=512, description="channels of the first stage of fracture_cnn, 4 to 512")
    freeze_norm: bool = Field(False, description="keep batch norm in evaluation mode during training")
    freeze_stages: int = Field(
        0, ge=0, description="first stages, with the stem, that keep their pretrained weights, 0 or more; 0: all train"
    )
    localise: bool = Field(
        False,
        description="a second head that says where a fracture is, at a sixteenth of the resolution, trained on the "
        "fractures' boxes where the set has some; what it finds counts in the image's logit",
    )
    mirror: bool = Field(
        False,
        description="outside of training, the logit is the mean of those of the radiograph and of its mirror image, "
        "which doubles the time of validation and of every prediction",
    )


def _as_switch(value: Any) -> Any:
    """YAML reads a plain on and off as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class TrainConfig(Section):
    """The optimisation of one model."""

    epochs: int = Field(12, ge=1, description="passes over the training images, 1 or more")
    first_size: int | None = Field(
        None,
        ge=16,
        description="side in pixels, 16 to data.size, of the images that the first epochs train on, which costs less; "
        "validation has the full size; null: every epoch trains on the full size",
    )
    grow_at: Rate = Field(
        0.6, description="share of the epochs after which images have their full size, 0 to below 1; see first_size"
    )
    batch_size: int = Field(64, ge=1, description="images per step, over all workers together, 1 or more")
    lr: Annotated[float, Field(gt=0)] = Field(2e-3, description="peak learning rate of AdamW, above 0")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="factor of the learning rate from each layer to the one before it, above 0 to 1: the head has "
        "train.lr, the first layer the least. Layers are the blocks of timm's networks, and stages in fracture_cnn and "
        "torchvision's; 1: all alike",
    )
    head_epochs: int = Field(
        0,
        ge=0,
        description="first epochs, fewer than train.epochs, that train the head alone, with all else, batch norm's "
        "statistics too, as pretrained; needs model.weights; 0: none",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.02, description="decoupled weight decay of AdamW, 0 or more; none on biases and norms; 0: off"
    )
    warmup: Rate = Field(
        0.1,
        description="share of all steps with linear warm-up of the learning rate, 0 to below 1, before its cosine "
        "decay; 0: no warm-up",
    )
    loss: Literal["weighted", "focal", "plain"] = Field(
        "weighted",
        description="weighted: cross-entropy, both classes with the same total weight; focal: focal loss with these "
        "weights; plain: cross-entropy",
    )
    focal_gamma: Annotated[float, Field(ge=0)] = Field(
        2.0, description="exponent of the focal loss, 0 or more; 0: the weighted loss; used by loss focal only"
    )
    balance: Probability = Field(
        0.0,
        description="how far the images of an epoch go towards half of each class, 0 to 1; it has as many as the "
        "training part: those of the rarer class several times, each time augmented anew, and of the other class "
        "another part in each epoch; 0: each image once",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="distance of the targets from 0 and 1, 0 to below 0.5; 0: off"
    )
    mixup: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="blend each image, its label and its map with those of another of its batch, by shares from the "
        "beta distribution with both parameters this number, 0 or more; 0.2 is usual; 0: off",
    )
    cutmix: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="paste a window of another image of its batch into each image, in label and map too; as mixup, the "
        "shares of the pixels are from the beta distribution, 0 or more; 1 is usual; each batch has one of both, where "
        "both are on; 0: off",
    )
    box_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="weight of the loss of the map against the boxes, 0 or more; used with model.localise"
    )
    clip_norm: Annotated[float, Field(ge=0)] = Field(
        1.0, description="largest norm of the gradient, 0 or more; 0: no clipping"
    )
    ema: Rate = Field(
        0.98,
        description="decay per step of the moving average of the weights, which is validated and saved, 0 to below 1; "
        "0: off",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="number format of the training's arithmetic; auto: bf16 where it is faster, else fp32. Validation "
        "is always in fp32",
    )
    channels_last: bool = Field(True, description="keep images in memory with the channels last, which is faster")
    compile: bool = Field(False, description="compile the network with torch.compile")
    graphs: Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_switch)] = Field(
        "auto",
        description="run each training step on a GPU as one CUDA graph, which frees it from waiting for Python; auto: "
        "where a trial has one worker with a GPU, without compile; on: refused where that is not so",
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of a worker, 1 or more; null: the CPUs that the worker is given"
    )
    keep_seconds: Annotated[float, Field(ge=0)] = Field(
        10.0,
        description="shortest time in seconds between two writes of what a resumed run needs, at the end of an epoch; "
        "also written where a trial may end. A killed process loses this time and the current epoch; 0: every epoch",
    )
    operating_point: Literal["accuracy", "balanced"] = Field(
        "accuracy",
        description="what the decision threshold, fixed on validation, maximises: accuracy or balanced accuracy",
    )
    seed: int = Field(
        0, ge=0, description="seed of the initial weights, the order of the images, augmentation and dropout, 0 or more"
    )
