"""How many trials Ray Tune lets run at a time."""

import pytest
from ray.tune import PlacementGroupFactory
from ray.tune.execution import tune_controller

from fracray.runtime.resources import WorkerResources
from fracray.search import launch


@pytest.mark.parametrize(("cpus", "fit"), [(0.05, 40), (0.7, 2), (1.0, 2)])
def test_on_its_own_cluster_as_many_trials_run_as_its_cpus_hold(ray_local, monkeypatch, cpus, fit):
    monkeypatch.setattr(launch, "own_cluster", lambda: True)
    with launch._started_processes(WorkerResources(1, cpus, 0.0)):
        manager = tune_controller.PlacementGroupResourceManager()
    request, running = PlacementGroupFactory([{"CPU": cpus}]), 0
    manager.request_resources(request)
    while manager.acquire_resources(request):
        running += 1
    assert running == fit
