"""The albumentations transforms named in `augment.extra`: which can be used, with which arguments, and how to build.

albumentations is imported only where a transform is named. Knows nothing of the config tree, of data or of training.
"""

import functools
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fracray.errors import nearest

if TYPE_CHECKING:
    from albumentations import BasicTransform

SIZE_ARGUMENTS = {"height", "width", "size", "max_size", "min_height"}  # a transform that has one sets the image's size
TRIED_SIZES = (64, 96)  # sides of the images that a transform is tried on: one size alone could be the one it sets
TRIED_SEEDS = 2


class SettingError(ValueError):
    """A wrong value below a setting; `path` leads from the setting to the fault, `value` is the wrong value."""

    def __init__(self, path: tuple[str, ...], message: str, value: Any = None) -> None:
        super().__init__(message)
        self.path, self.value = path, value


class FrozenMap(Mapping[str, Any]):
    """A mapping that keeps its order and cannot be changed; equal only to one of the same order. Can be hashed."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, Any] | None = None) -> None:
        self._entries = dict(entries or {})

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenMap) and tuple(self.items()) == tuple(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return repr(self._entries)


def thaw(value: Any) -> Any:
    """Plain dicts and lists, as YAML and JSON write them."""
    if isinstance(value, FrozenMap):
        return {key: thaw(inner) for key, inner in value.items()}
    return [thaw(inner) for inner in value] if isinstance(value, tuple) else value


def read_extra(value: Any, known: bool = False) -> FrozenMap:
    """`augment.extra` as the user wrote it, checked and frozen; every transform has its `p`.

    `known`: it was checked before, as in a checkpoint, which must open also where albumentations has changed. Raises
    SettingError for a transform or an argument that albumentations does not have, a value that it refuses, and a
    transform that does not turn a gray uint8 image into one of the same size.
    """
    if not isinstance(value, Mapping | None):
        example = "{CLAHE: {clip_limit: [1, 4], p: 0.3}}"
        raise SettingError((), f"expected a mapping from transforms to their arguments, such as {example}", value)
    extra = {}
    for name, arguments in (value or {}).items():
        if not isinstance(arguments, Mapping | None):
            raise SettingError((str(name),), "expected a mapping of arguments, such as {p: 0.5}", arguments)
        frozen = _freeze(arguments or {}, (str(name),))
        if known:
            extra[str(name)] = frozen
            continue
        _transform_class(str(name))
        extra[str(name)] = frozen if "p" in frozen else FrozenMap({**frozen, "p": default_argument(str(name), "p")})
        _check(str(name), extra[str(name)])
    return FrozenMap(extra)


def make_transform(name: str, arguments: Mapping[str, Any]) -> "BasicTransform":
    """The albumentations transform of this name."""
    import albumentations

    transform: BasicTransform = getattr(albumentations, name)(**_plain(arguments))
    return transform


def default_argument(name: str, argument: str) -> Any:
    """The value of an argument that is not given, frozen; SettingError where the transform has none."""
    parameter = _parameters(name).get(argument)
    if parameter is None:
        raise _unknown_argument(name, argument)
    if parameter.default is parameter.empty:
        raise SettingError((name, argument), f"{name} has no default for {argument}; give it a value")
    return _freeze(parameter.default, (name, argument))


def _plain(value: Any) -> Any:
    """Dicts and tuples, as albumentations takes them."""
    if isinstance(value, tuple):
        return tuple(_plain(inner) for inner in value)
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, FrozenMap) else value


def _freeze(value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return FrozenMap({str(key): _freeze(inner, (*path, str(key))) for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_freeze(inner, (*path, str(at))) for at, inner in enumerate(value))
    if isinstance(value, str):
        try:
            value = float(value)  # YAML 1.1 reads 1e-3 as a string
        except ValueError:
            return value
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(path, "must be a finite number", value)
    if not isinstance(value, bool | int | float | None):
        raise SettingError(path, "must be a number, a string, a list or a mapping", value)
    return value


@functools.cache
def _transforms() -> dict[str, type["BasicTransform"]]:
    """Every concrete transform of albumentations by name."""
    import albumentations as A

    bases = (A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D)
    return {
        name: kind
        for name, kind in vars(A).items()
        if inspect.isclass(kind) and issubclass(kind, A.BasicTransform) and kind not in bases
    }


def _transform_class(name: str) -> type["BasicTransform"]:
    import albumentations as A

    kinds = _transforms()
    if name not in kinds:
        raise SettingError((name,), f"albumentations has no transform '{name}'{nearest(name, kinds)}")
    kind = kinds[name]
    why = ""
    if issubclass(kind, A.Transform3D) or not issubclass(kind, A.DualTransform | A.ImageOnlyTransform):
        why = "it does not return a two-dimensional image"
    elif issubclass(kind, A.Lambda):
        why = "it takes Python functions, which a config cannot hold"
    elif kind is A.ChannelShuffle:
        why = "it does not change an image with one channel"
    elif given := SIZE_ARGUMENTS & set(_signature(kind)):
        why = f"it sets the size of the image ({', '.join(sorted(given))}), which data.size does"
    if why:
        raise SettingError((name,), f"{name} cannot augment radiographs: {why}")
    return kind


def _signature(kind: type["BasicTransform"]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(kind.__init__).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in ("self", "strict")}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    return _signature(_transform_class(name))


def _unknown_argument(name: str, argument: str) -> SettingError:
    known = _parameters(name)
    words = f"{name} has no argument '{argument}'{nearest(argument, known)}; it has {', '.join(known)}"
    return SettingError((name, argument), words)


@functools.lru_cache(maxsize=1024)  # a search checks the same transform again in each of its trials
def _check(name: str, arguments: FrozenMap) -> None:
    """SettingError unless the transform can be built with these arguments and applied to a radiograph."""
    for argument in arguments:
        if argument not in _parameters(name):
            raise _unknown_argument(name, argument)
    for argument, parameter in _parameters(name).items():
        if parameter.default is parameter.empty and argument not in arguments:
            raise SettingError((name,), f"{name} needs the argument '{argument}'")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what albumentations only warns of would have no effect
        try:
            transform = make_transform(name, arguments)
        except (ValueError, TypeError, UserWarning) as error:
            raise _refusal(name, arguments, error) from None
        if needed := transform.targets_as_params:
            raise SettingError((name,), f"{name} cannot augment radiographs: it needs {', '.join(needed)} as well")
        _try_out(name, transform)


def _refusal(name: str, arguments: FrozenMap, error: Exception) -> SettingError:
    """The message of albumentations for a value that it refuses, in one line."""
    from pydantic import ValidationError

    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return SettingError((name,), " ".join(str(error).split()))
    faults = cause.errors()
    place = faults[0]["loc"][:1]
    words = [
        " ".join(fault["msg"].removeprefix("Value error, ").split()) for fault in faults if fault["loc"][:1] == place
    ]
    message = " or ".join(dict.fromkeys(word[:1].lower() + word[1:] for word in words))  # one for each type it may have
    argument = "".join(str(part) for part in place)
    return SettingError((name, argument) if argument else (name,), message, thaw(arguments.get(argument)))


def _try_out(name: str, transform: "BasicTransform") -> None:
    """SettingError unless it turns gray uint8 images into such images of the same size."""
    import numpy as np

    transform.p = 1.0
    for size in TRIED_SIZES:
        waves = np.sin(np.arange(size) / 5.0)
        image = (127.5 + 127.5 * np.outer(waves, waves)).astype(np.uint8)
        for seed in range(TRIED_SEEDS):
            transform.set_random_seed(seed)
            try:
                result = transform(image=image.copy())["image"]
            except Exception as error:
                words = f"it needs {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
                raise SettingError((name,), f"{name} cannot be applied to a gray radiograph: {words}") from None
            if result.shape != image.shape:
                raise SettingError(
                    (name,),
                    f"{name} cannot augment radiographs: it turns an image of {image.shape} pixels into one of "
                    f"{result.shape}; the size is that of data.size, with one channel",
                )
            if result.dtype != image.dtype:
                raise SettingError(
                    (name,), f"{name} cannot augment radiographs: it turns uint8 gray levels into {result.dtype}"
                )
