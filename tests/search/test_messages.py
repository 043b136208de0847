"""What passes through Ray as a dict comes out as it went in."""

from math import isnan

from fracray.search.messages import Suggestion, TrialReport, searched
from fracray.training.epochs import EpochResult

RESULT = EpochResult(
    epoch=3,
    metrics={"train_loss": 0.5, "lr": 0.001, "val_accuracy": 0.7, "val/view_auroc": 0.6},
    best={"val_accuracy": 0.8, "val/view_auroc": 0.65, "worst_val_loss": 0.4},
    seconds=1.5,
    workers=2,
    core_seconds={"training": 2.0, "data_wait": 0.1},
)
RAYS = {"trial_id": "a", "timestamp": 1, "time_this_iter_s": 2.0, "node_ip": "127.0.0.1", "config": {"number": 1}}


def test_a_report_survives_the_way_through_tune():
    for report in (TrialReport(RESULT), TrialReport(RESULT, ran=False, done=True)):
        flat = report.to_tune(["val_accuracy"])
        assert TrialReport.from_tune({**RAYS, **flat}) == report
        assert flat[searched("val_accuracy")] == 0.8
        assert flat["training_iteration"] == 3


def test_a_trial_that_cannot_run_reports_its_reason_and_nan():
    report = TrialReport(None, failure="model.width: too large", done=True)
    flat = report.to_tune(["val_accuracy", "val_auroc"])
    assert all(isnan(flat[searched(metric)]) for metric in ("val_accuracy", "val_auroc"))
    assert TrialReport.from_tune({**RAYS, **flat}) == report
    assert report.reason(["val_accuracy"]) == "model.width: too large"


def test_a_trial_that_ended_before_its_first_report_has_no_result():
    assert TrialReport.from_tune(RAYS) == TrialReport(None)
    assert TrialReport.from_tune({}).reason(["val_accuracy"]) == ""
    assert TrialReport(RESULT).reason(["val_accuracy"]) == ""
    assert TrialReport(RESULT).reason(["val_accuracy", "val_auroc"]) == "val_auroc has no value in any epoch"


def test_a_suggestion_survives_the_way_through_tune():
    suggestion = Suggestion(7, {"model.dropout": 0.3, "model.weights": None})
    assert Suggestion.from_tune(suggestion.to_tune()) == suggestion


def test_an_epoch_is_the_same_from_json():
    assert EpochResult.from_json(RESULT.to_json()) == RESULT
