"""The CSV tables of an evaluation, without one."""

import csv

from fracray.evaluation.written import write_csv


def test_no_text_of_a_table_is_a_formula_and_numbers_stay_numbers(tmp_path):
    curves = {"reliability": [], "roc": {"threshold": [-0.5]}, "precision_recall": {"threshold": [-0.5]}}
    predictions = [{"image_id": "=1+1", "group": "-g", "probability": -0.5}, {"image_id": "a", "group": "+"}]
    tree = {"curves": curves, "split": "test", "scores": {}, "sets": {}, "predictions": predictions}
    write_csv(str(tmp_path), tree)
    with open(tmp_path / "predictions.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["image_id", "group", "probability"],
            ["'=1+1", "'-g", "-0.5"],
            ["a", "'+", ""],
        ]
    assert (tmp_path / "roc.csv").read_text() == "threshold\n-0.5\n"
