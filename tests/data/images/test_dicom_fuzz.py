"""Mutated DICOM files: none ends the process, hangs or raises, each has a named fate, and no note quotes a name."""

import re
import time
from collections import Counter
from pathlib import Path

import pytest
from drawn_faults import mutated

from fracray.data.images.decode import inspect_file
from fracray.data.manifest import STATUSES
from fracray.data.sources.image_folder import list_images

COUNT = 300


@pytest.mark.timeout(300)
def test_every_mutated_file_has_a_named_fate(tmp_path):
    check(range(COUNT), tmp_path)


def check(seeds: range, folder: Path) -> Counter[str]:
    """Inspect the files of these seeds as an import does; their fates, counted."""
    fates: Counter[str] = Counter()
    (folder / "set").mkdir()
    path = folder / "set" / "one.dcm"
    for seed in seeds:
        data, done = mutated(seed, folder)
        path.write_bytes(data)
        started = time.monotonic()
        list_images(path.parent)
        seen = inspect_file(path)
        assert time.monotonic() - started < 5, f"{seed}: {done}"
        fate = seen.fault or "ok"
        assert fate in STATUSES, f"{seed}: {done}"
        assert bool(seen.pixel_hash) == (fate in ("ok", "blank")), f"{seed}: {done}"
        assert fate == "ok" or seen.note, f"{seed}: {done}"
        assert not re.search(r"\bdoe\b|jane", seen.note, re.IGNORECASE), f"{seed}: {done}: {seen.note}"
        assert "Error" not in seen.note or fate == "unreadable", f"{seed}: {done}: {seen.note}"
        fates[fate] += 1
    assert sum(fates.values()) == len(seeds)
    return fates
