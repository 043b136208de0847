"""A place in the search, without Tune around it."""

from types import SimpleNamespace

import pytest

from fracray.errors import InputError, OutOfReachError
from fracray.runtime.resources import WorkerResources
from fracray.runtime.run_folder import trial_folder
from fracray.runtime.storage import Folder
from fracray.search.messages import Suggestion, TrialReport
from fracray.search.trainable import TrialActor
from tests.training.test_trial import make_job


@pytest.fixture
def place(tmp_path):
    job = make_job(tmp_path)
    actor = object.__new__(TrialActor)  # Tune's own part needs Ray
    actor.setup(Suggestion(0, {}).to_tune(), SimpleNamespace(get=lambda: job), WorkerResources(1, 1.0, 0.0))
    yield actor
    actor.cleanup()


def test_a_storage_out_of_reach_ends_the_process_and_not_the_trial(place, monkeypatch):
    """Else one machine without credentials would fail one trial after the other, for good."""

    def forbidden(folder, name=""):
        raise folder._out_of_reach(OSError("AWS Error ACCESS_DENIED"))

    monkeypatch.setattr(Folder, "exists", forbidden)
    with pytest.raises(OutOfReachError, match="ACCESS_DENIED"):
        place.step()


def test_a_mistake_fails_the_trial_and_the_process_takes_the_next(place, tmp_path, monkeypatch):
    def damaged(folder, name=""):
        raise InputError(f"{folder}: damaged")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "exists", damaged)
        report = TrialReport.from_tune(place.step())
    assert report.reason(["val_accuracy"]) == f"{trial_folder(Folder(tmp_path), 0)}: damaged"
    place.reset_config(Suggestion(1, {}).to_tune())
    assert TrialReport.from_tune(place.step()).result.epoch == 1
