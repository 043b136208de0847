"""Prices of the nodes of a cluster file, and what work costs on them."""

import pytest

from fracray.cluster.prices import read_prices
from fracray.errors import InputError
from fracray.runtime.prices import NodePrice, Span, Work, money

FILE = "cluster/gpu.yaml"
NONE = Span(0.0, 0.0)


def test_the_types_of_a_file_get_the_prices_that_are_given():
    found = read_prices(FILE, "gpu=1.21, head=0.2")
    assert [(one.name, one.per_hour, one.head) for one in found] == [("head", 0.2, True), ("gpu", 1.21, False)]
    assert found[1].gpus == 1
    assert read_prices(None, None) == ()


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (None, "head=1", "name the cluster file with --cluster"),
        (FILE, None, "give prices too, with --price-per-hour"),
        (FILE, "gqu=1", "no type of node 'gqu' (did you mean 'gpu'?)"),
        (FILE, "gpu", "--price-per-hour gpu: expected NODE=PRICE"),
        (FILE, "head=1,gpu=cheap", "--price-per-hour gpu=cheap: expected NODE=PRICE"),
        (FILE, "gpu=-1", "a number of at least 0"),
        (FILE, "gpu=inf", "a number of at least 0"),
        ("cluster/local.yaml", "workers=1", "says not what a node of type workers has"),
        ("cluster/nowhere.yaml", "gpu=1", "cluster/nowhere.yaml"),
    ],
)
def test_other_prices_are_refused(file, text, told):
    with pytest.raises(InputError) as refused:
        read_prices(file, text)
    assert told in str(refused.value)


def test_what_work_costs_is_node_hours_times_price():
    head, small = NodePrice("head", 0, 0, 0.1, head=True), NodePrice("small", 4, 0, 0.5)
    work = Work(cpus=Span(8, 12), gpus=NONE, wall=Span(2, 3))
    assert money([small], work) == ["on small at 0.5 an hour: 2.00 to 3.00 node-hours, 1.00 to 1.50"]
    with_head = "; with head at 0.1 an hour for the whole time, 1.20 to 1.80"
    assert money([head, small], work) == [money([small], work)[0] + with_head]


def test_work_on_gpus_is_for_nodes_with_gpus_and_takes_what_is_scarcer():
    gpu, small = NodePrice("gpu", 8, 2, 3.0), NodePrice("small", 4, 0, 0.5)
    light = Work(cpus=Span(10, 10), gpus=Span(10, 10), wall=Span(1, 1))
    assert money([gpu, small], light) == ["on gpu at 3 an hour: 5.00 node-hours, 15.00"]
    heavy = Work(cpus=Span(80, 80), gpus=Span(10, 10), wall=Span(1, 1))
    assert "10.00 node-hours, 30.00" in money([gpu], heavy)[0]
    alone = Work(cpus=Span(8, 8), gpus=NONE, wall=Span(1, 1))
    assert money([gpu, small], alone) == money([small], alone)
    assert "none of the types of node that have a price is for this work" in money([gpu], alone)[0]
    assert "timed on GPUs" in money([small], light)[0]


def test_the_work_of_one_machine_with_a_head_that_works_pays_it_once():
    head = NodePrice("head", 4, 0, 0.5, head=True)
    told = money([head], Work(cpus=Span(8, 8), gpus=NONE, wall=Span(2, 2)))
    assert told == ["on head at 0.5 an hour: 2.00 node-hours, 1.00"]
