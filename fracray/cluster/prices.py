"""The prices that the user gives for the types of nodes of a cluster file."""

from math import inf, nan

from fracray.cluster.files import read_cluster
from fracray.errors import InputError, nearest
from fracray.runtime.prices import NodePrice


def read_prices(file: str | None, text: str | None) -> tuple[NodePrice, ...]:
    """'head=0.13,gpu_spot=0.39' for the types of the cluster file, in its order; none without either.

    InputError for one flag without the other, a name that the file does not have, what is no price, and a type of
    which the file does not say what its nodes have.
    """
    if file is None and text is None:
        return ()
    if file is None:
        raise InputError(f"--price-per-hour {text}: of which nodes? name the cluster file with --cluster too")
    if text is None:
        raise InputError(f"--cluster {file}: is for an estimate in money; give prices too, with --price-per-hour")
    nodes = {node.name: node for node in read_cluster(file).nodes}
    given: dict[str, float] = {}
    for word in text.split(","):
        name, _, price = (each.strip() for each in word.partition("="))
        if name not in nodes:
            raise InputError(
                f"--price-per-hour {word.strip()}: {file} has no type of node '{name}'{nearest(name, nodes)}; it has "
                f"{', '.join(nodes)}"
            )
        given[name] = _price(price, word.strip())
    found = []
    for name, node in nodes.items():
        if name not in given:
            continue
        if node.cpus is None and not node.head:
            raise InputError(f"{node.place}: says not what a node of type {name} has; give its resources, or no price")
        found.append(NodePrice(name, node.cpus or 0.0, node.gpus or 0.0, given[name], node.head))
    return tuple(found)


def _price(text: str, word: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = nan
    if not 0 <= price < inf:
        raise InputError(f"--price-per-hour {word}: expected NODE=PRICE with a number of at least 0, as in head=0.13")
    return price
