"""benchmarks/gpu.py: skipped with a message if there is no GPU, and its steps tested on the CPU."""

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def main(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("FRACRAY_CACHE", str(tmp_path / "cache"))  # which the benchmark changes: put back afterwards
    from gpu import main

    return main


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_skipped_with_a_word(main, capsys, tmp_path):
    main(["--json", str(tmp_path / "gpu.json")])
    assert "skipped: this machine has no GPU" in capsys.readouterr().out
    assert not (tmp_path / "gpu.json").exists()


def test_its_epochs_and_processes_run_on_the_cpu(main, capsys, tmp_path):
    words = ["--device", "cpu", "--networks", "fracture_cnn:32:16", "--images", "40", "--epoch-steps", "2"]
    words += ["--rounds", "1", "--precision", "fp32", "--steps", "graphs", "eager", "--processes", "1", "2"]
    main([*words, "--window", "0.1", "--budget", "600", "--json", str(tmp_path / "gpu.json")])
    results = json.loads((tmp_path / "gpu.json").read_text())
    arms = {row["arm"]: row for row in results["epochs"]}
    assert list(arms) == ["synthetic tensors", "augmented on the device", "augmented on the CPU"]
    for row in arms.values():
        assert row["steps"] == "eager"  # a CPU has no graphs
        assert len(row["images_per_second"]) == len(row["ratio"]) == 1
    assert arms["synthetic tensors"]["ratio"] == [1]
    assert [(row["processes"], len(row["each"])) for row in results["processes"]] == [(1, 1), (2, 2)]
    assert results["searches"] == results["streams"] == []
    assert results["machine"]["packages"]["torch"]
    assert "images/s, augmented on the device" in capsys.readouterr().out


def test_what_does_not_fit_its_budget_is_left_out(main, capsys, tmp_path):
    words = ["--device", "cpu", "--networks", "fracture_cnn:32:16", "--images", "40", "--rounds", "1"]
    main([*words, "--budget", "0", "--processes", "--json", str(tmp_path / "gpu.json")])
    assert "left out, for want of time: fracture_cnn, bf16, eager" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu.json").read_text())["epochs"] == []
