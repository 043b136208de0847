"""The meter: work in CPU time, waits in wall time, other threads counted apart; and the efficiency of a run."""

import threading
import time

import numpy as np
import pytest

from fracray.runtime.efficiency import (
    CHECKPOINTING,
    DATA_WAIT,
    IDLE,
    PHASES,
    STARTING,
    TRAINING,
    TRANSFORM,
    VALIDATION,
    Efficiency,
    EfficiencyTracker,
    Meter,
)


def burn(seconds):
    """Use this much CPU time of this thread."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        np.sort(np.arange(1000)[::-1])


def test_work_is_cpu_time_and_a_wait_is_wall_time_of_all_cores():
    meter = Meter(cores=2.0)
    with meter.work(TRAINING):
        burn(0.05)
        time.sleep(0.2)
    with meter.waiting(DATA_WAIT):
        time.sleep(0.1)
    taken = meter.take()
    assert 0.05 <= taken["training"] < 0.15
    assert taken["data_wait"] >= 0.2
    assert set(taken) == set(PHASES)
    assert not any(meter.take().values())  # each second is reported once


@pytest.mark.parametrize("threads", [1, 2])
def test_the_work_of_another_thread_is_not_the_training_threads(threads):
    meter = Meter(threads)
    begun, done = threading.Event(), threading.Event()

    def augment():
        with meter.helper(), meter.helping(TRANSFORM):
            begun.set()
            burn(0.2)
        done.set()

    with meter.work(TRAINING):
        threading.Thread(target=augment).start()
        begun.wait()
        burn(0.1)
        done.wait()
    taken = meter.take()
    assert taken["transform"] == pytest.approx(0.2, abs=0.05)
    assert taken["training"] == pytest.approx(0.1, abs=0.05)


def test_with_several_threads_the_work_of_torchs_own_threads_counts():
    meter = Meter(threads=2)
    with meter.work(TRAINING):
        torchs = threading.Thread(target=burn, args=(0.2,))
        torchs.start()
        torchs.join()
    assert meter.take()["training"] >= 0.2


def test_on_a_gpu_work_is_wall_time_of_its_share_and_helpers_cost_nothing():
    meter = Meter(cores=0.25, on_gpu=True)
    with meter.work(VALIDATION):
        time.sleep(0.2)
    with meter.helper(), meter.helping(CHECKPOINTING):
        burn(0.05)
    taken = meter.take()
    assert 0.05 <= taken["validation"] < 0.1
    assert taken["checkpointing"] == 0


def test_efficiency_is_useful_time_over_wall_time_times_cores():
    spent = Efficiency(wall=100.0, cores=2.0, seconds={TRAINING: 120.0, TRANSFORM: 40.0, VALIDATION: 10.0})
    assert spent.value == pytest.approx(0.8)
    shares = spent.shares()
    assert shares[VALIDATION] == pytest.approx(0.05)
    assert shares[IDLE] == pytest.approx(0.15)
    assert sum(shares.values()) == pytest.approx(1)


def test_the_time_before_the_first_epoch_counts_as_starting():
    tracker = EfficiencyTracker(begun=time.time() - 30, cores=lambda: 2.0, unit="CPU")
    assert tracker.efficiency() is None
    tracker.tell({"training": 8.0, "starting": 1.0}, took=10.0)
    tracker.tell({"training": 7.0}, took=5.0)
    spent = tracker.efficiency()
    assert spent is not None
    assert spent.wall == pytest.approx(30, abs=1)
    assert spent.seconds[TRAINING] == 15.0
    assert spent.seconds[STARTING] == pytest.approx(1 + 2 * 20, abs=1)
    assert spent.value == pytest.approx(15 / 60, abs=0.02)


def test_a_cluster_that_grows_is_counted_as_it_was(monkeypatch):
    clock, gpus = [1000.0], [0.0]
    monkeypatch.setattr("fracray.runtime.efficiency.time.time", lambda: clock[0])
    tracker = EfficiencyTracker(begun=970.0, cores=lambda: gpus[0], unit="GPU")
    clock[0], gpus[0] = 1010.0, 2.0
    tracker.look()  # forty seconds without a machine
    clock[0] = 1030.0
    tracker.tell({TRAINING: 20.0}, took=10.0)
    found = tracker.efficiency()
    assert found.available == pytest.approx(40.0)
    assert found.share(TRAINING) == pytest.approx(0.5)
    assert found.share(STARTING) == pytest.approx(0.5)
