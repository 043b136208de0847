"""What a search costs on nodes of known price: node-hours times the price that the user gives.

No price list comes with fracray: it would be out of date, and prices differ by region and contract.
"""

from collections.abc import Sequence
from dataclasses import dataclass

HOLDS = (
    "Each line is the whole of the work on nodes of one type, all of whose CPUs or GPUs are busy, each as fast as the "
    "one that was timed. Not in it: nodes that start or stand idle, work that is done again after a spot node was "
    "taken away, disks, storage, traffic and taxes"
)


@dataclass(frozen=True)
class NodePrice:
    """What an hour of a type of node costs, in any currency; cpus, gpus: what Ray may use of one."""

    name: str
    cpus: float
    gpus: float
    per_hour: float
    head: bool = False


@dataclass(frozen=True)
class Span:
    """From the least to the most."""

    low: float
    high: float

    def times(self, factor: float) -> "Span":
        return Span(self.low * factor, self.high * factor)

    def plus(self, other: "Span") -> "Span":
        return Span(self.low + other.low, self.high + other.high)

    def __str__(self) -> str:
        low, high = (
            f"{value:,.2f}" if value >= 0.01 or not value else f"{value:.2g}" for value in (self.low, self.high)
        )
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Work:
    """What is to be paid for, in hours: of CPUs and of GPUs, added up over the places, and on the clock."""

    cpus: Span
    gpus: Span
    wall: Span


def money(prices: Sequence[NodePrice], work: Work) -> list[str]:
    """A sentence for each type of node on which the work can run, with that of the head in it, if that has a price."""
    head = next((price for price in prices if price.head), None)
    lines = []
    for price in prices:
        hours = _node_hours(price, work)
        if hours is None:
            continue
        cost = hours.times(price.per_hour)
        told = f"on {price.name} at {price.per_hour:g} an hour: {hours} node-hours, {cost}"
        if head is not None and head is not price:
            more = work.wall.times(head.per_hour)
            told += f"; with {head.name} at {head.per_hour:g} an hour for the whole time, {cost.plus(more)}"
        lines.append(told)
    on = "GPUs" if work.gpus.high else "CPUs alone"
    return lines or [f"none of the types of node that have a price is for this work, which was timed on {on}"]


def _node_hours(price: NodePrice, work: Work) -> Span | None:
    """How long one node of this type would be busy; None where it has not what the work takes, or GPUs for nothing."""
    if price.gpus and not work.gpus.high:
        return None
    found = Span(0.0, 0.0)
    for needed, has in ((work.cpus, price.cpus), (work.gpus, price.gpus)):
        if not needed.high:
            continue
        if not has:
            return None
        hours = needed.times(1 / has)
        found = Span(max(found.low, hours.low), max(found.high, hours.high))
    return found
