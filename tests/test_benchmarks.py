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


def test_its_epochs_run_on_the_cpu(main, capsys, tmp_path):
    words = ["--device", "cpu", "--size", "32", "--batch", "16", "--images", "40", "--passes", "1", "--rounds", "1"]
    main([*words, "--precision", "fp32", "--compile", "off", "--sharing", "--json", str(tmp_path / "gpu.json")])
    results = json.loads((tmp_path / "gpu.json").read_text())
    arms = {row["arm"]: row for row in results["epochs"]}
    assert list(arms) == ["synthetic tensors", "augmented on the CPU", "augmented on the device"]
    for row in arms.values():
        assert len(row["images_per_second"]) == len(row["ratio"]) == 1
    assert arms["synthetic tensors"]["ratio"] == [1]
    assert results["searches"] == []
    assert results["machine"]["packages"]["torch"]
    assert "images/s, augmented on the device" in capsys.readouterr().out
