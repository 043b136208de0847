"""What a command did until its first epoch, and the imports that run beside it."""

import subprocess
import sys
import threading
import time

import pytest

from fracray.runtime import imports
from fracray.runtime.efficiency import EfficiencyTracker
from fracray.runtime.timeline import COMMAND, FIRST_EPOCH, IMPORTS, START, Stretch, Timeline


def test_a_timeline_tells_each_lane_in_order_and_leaves_out_an_earlier_command():
    told = Timeline()
    told.add("b", Stretch("second", 12.0, 13.0), Stretch("first", 11.0, 12.0))
    told.add("a", Stretch("of an earlier command", 1.0, 9.9), Stretch("across the zero", 9.0, 10.5))
    told.add("c", Stretch("of an earlier command", 1.0, 2.0))
    assert told.as_dict(zero=10.0) == {
        "b": [{"name": "first", "begun": 1.0, "ended": 2.0}, {"name": "second", "begun": 2.0, "ended": 3.0}],
        "a": [{"name": "across the zero", "begun": -1.0, "ended": 0.5}],
    }


def test_a_stretch_is_noted_even_if_it_fails():
    told = Timeline()
    with pytest.raises(ValueError), told.stretch("fails"):
        raise ValueError
    assert [one.name for one in told.lanes[COMMAND]] == ["fails"]


def test_the_first_epoch_of_the_processes_that_began_first_is_told():
    now = time.time()
    tracker = EfficiencyTracker(begun=now - 30, cores=lambda: 2.0, unit="CPU")
    tracker.tell({"training": 1.0}, took=5.0)
    for late, begun in enumerate((now - 9, now - 8, now + 60)):  # the last one replaces a process that was lost
        tracker.started((Stretch("process and imports", begun - 5, begun), Stretch(FIRST_EPOCH, begun, begun + 1)))
        assert tracker.efficiency().first_epoch == pytest.approx(21, abs=0.01)
        assert f"trial process {late + 1}" in tracker.efficiency().start or late == 2
    kept = tracker.efficiency().as_dict()
    assert kept["first_epoch_seconds"] == tracker.efficiency().first_epoch
    assert "trial process 3" not in kept["start"]


def test_modules_are_imported_beside_a_block_that_is_left_when_they_are_there(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.5)\nDONE = True\n")
    (tmp_path / "broken_to_import.py").write_text("raise OSError('no such thing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    begun = time.monotonic()
    with imports.importing(["broken_to_import", "slow_to_import"]):
        inside = time.monotonic() - begun
    assert inside < 0.4
    assert sys.modules["slow_to_import"].DONE
    assert not any(thread.name == "imports" for thread in threading.enumerate())
    assert {"broken_to_import", "slow_to_import"} <= {one.name for one in START.lanes[IMPORTS]}
    with pytest.raises(OSError, match="no such thing"):
        import broken_to_import  # noqa: F401


def test_what_a_search_begins_with_needs_no_torch():
    """A second of a core: only the processes that train need it, and the command when the search has ended."""
    code = (
        "import sys; from fracray.search.imports import FIRST; import importlib; "
        "[importlib.import_module(name) for name in (*FIRST, 'fracray.search.model_check')]; "
        "print([name for name in ('torch', 'scipy.optimize', 'scipy.stats', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_process_that_trains_loads_neither_the_compiler_nor_readers_of_images():
    code = (
        "import sys; from fracray.search.imports import TRIAL; import importlib; "
        "[importlib.import_module(name) for name in TRIAL]; import torch; "
        "from fracray.training.optimizer import AdamW; weight = torch.ones(3, requires_grad=True); "
        "optimizer = AdamW([weight]); weight.sum().backward(); optimizer.step(); optimizer.zero_grad(); "
        "optimizer.load_state_dict(optimizer.state_dict()); "
        "print([name for name in ('torch._dynamo', 'pydicom', 'timm', 'sklearn', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
