"""Which processes import what trials need before they get one."""

import os

import pytest

from fracray.config import Config
from fracray.data.cache import note_prepared, was_prepared
from fracray.search.imports import TRIAL, preload


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setattr("fracray.search.imports.glob", lambda _: [])  # no GPU
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    config = Config().with_leaves({"data.cache": str(tmp_path)}, "test")
    note_prepared(config.data)
    return config


def test_a_set_is_known_to_be_prepared_by_what_determines_its_shards(prepared):
    def again(**leaves):
        return was_prepared(prepared.with_leaves({name.replace("__", "."): leaves[name] for name in leaves}, "").data)

    assert again()
    assert again(data__split__fold=1)  # read from the same shards
    assert not again(data__size=64)
    assert not again(data__source="elsewhere")
    assert not again(data__phantom__count=150)


def test_processes_import_ahead_where_trials_run_in_most_of_them(prepared):
    assert preload(prepared) == {"RAY_preload_python_modules": ",".join(TRIAL), "OMP_NUM_THREADS": "1"}
    two = preload(prepared.with_leaves({"search.cpus_per_trial": 2}, "test"))
    assert two["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    "leaves",
    [
        {"data.size": 64},
        {"search.concurrent": 1},
        {"search.trials": 1},
        {"search.cpus_per_trial": 4},
        {"search.workers_per_trial": 2},
    ],
    ids=["radiographs to read", "one trial at a time", "one trial", "few places", "workers of Ray Train"],
)
def test_elsewhere_they_do_not(prepared, leaves):
    assert preload(prepared.with_leaves(leaves, "test")) == {}


def test_with_a_gpu_they_do_not_for_there_are_far_more_processes_than_places(prepared, monkeypatch):
    monkeypatch.setattr("fracray.search.imports.glob", lambda pattern: ["/dev/nvidia0"] if "nvidia" in pattern else [])
    assert preload(prepared) == {}
    assert preload(prepared.with_leaves({"search.gpus_per_trial": 0}, "test"))
