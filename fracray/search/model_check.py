"""The networks that a search space can ask for, built before anything is launched."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from fracray.config import Config
from fracray.errors import InputError
from fracray.search.space import Dimension, SearchSpace

# What fracture_cnn takes at every value that a config can have.
ANY = ("model.width", "model.spatial_dropout")
# What a network needs to be built, and what asks for a kind of it; the other settings fit any network.
NETWORK = (
    *("model.name", "model.weights", "model.width", "model.spatial_dropout"),
    *("model.freeze_stages", "model.localise"),
    *("train.layer_decay", "train.head_epochs"),
)
GROWN = "train.first_size"  # it is not searched: a network is tried at this size too


def check_models(space: SearchSpace) -> None:
    """Build each network that a trial can ask for; InputError, with the line, for an unknown name or missing weights.

    Every choice is tried with every other, of a range both ends.
    """
    lines = {dimension.path: dimension.where for dimension in space.dimensions}
    tried: list[Config] = []
    for leaves in _combinations(space):
        config = space.config.with_leaves(leaves, space.origin)
        if config in tried:
            continue
        tried.append(config)
        if _always_builds(config):
            continue
        from fracray.training.growth import try_network  # Torch: a second of a core, before anything is launched

        try:
            try_network(config)
        except InputError as error:
            path = "model.weights" if _builds_without_weights(config) else "model.name"
            path = next((named for named in lines if named in NETWORK and str(error).startswith(named)), path)
            raise InputError(f"{lines.get(path, lines.get('model.name', space.origin))}: {error}") from None


def _always_builds(config: Config) -> bool:
    """Whether the network is fracture_cnn as it is by default, but for what it takes at every value."""
    leaves, default = config.leaves(), Config().leaves()
    return all(leaves[path] == default[path] for path in (*NETWORK, GROWN) if path not in ANY)


def _builds_without_weights(config: Config) -> bool:
    from fracray.training.model import build_model

    try:
        build_model(config.model, load_weights=False, size=config.data.size)
    except InputError:
        return False
    return True


def _combinations(space: SearchSpace) -> Iterator[dict[str, Any]]:
    """The searched settings of `NETWORK` in all their combinations, as the conditions allow them."""
    needed, named = set(NETWORK), dict[str, list[Any]]()
    for dimension in reversed(space.dimensions):  # each comes after those that its conditions name
        if dimension.path in needed:
            for path, allowed in dimension.when:
                needed.add(path)
                named.setdefault(path, []).extend(allowed)
    searched = [dimension for dimension in space.dimensions if dimension.path in needed]
    for values in product(*(_values(dimension, named.get(dimension.path, [])) for dimension in searched)):
        leaves, chosen = space.config.leaves(), dict[str, Any]()
        for dimension, value in zip(searched, values, strict=True):
            if dimension.active({**leaves, **chosen}):
                chosen[dimension.path] = value
        yield {path: value for path, value in chosen.items() if path in NETWORK}


def _values(dimension: Dimension, named: list[Any]) -> list[Any]:
    """Its choices or ends, and the values that conditions name; of a rate only the highest, which needs the most."""
    if dimension.path == "model.spatial_dropout":
        return [max([*dimension.choices, *named])]
    values = list(dimension.choices)
    return values + [value for value in dict.fromkeys(named) if value not in values]
