import os
from pathlib import Path

import pytest

from fracray.data.audit import examine
from fracray.data.fracatlas import read_fracatlas
from fracray.data.manifest import Manifest


@pytest.fixture(scope="session")
def fracatlas() -> Manifest:
    """The examined manifest of the real FracAtlas folder that FRACRAY_FRACATLAS names; skips the test without it."""
    folder = os.environ.get("FRACRAY_FRACATLAS")
    if not folder:
        pytest.skip("FRACRAY_FRACATLAS is not set")
    return examine(read_fracatlas(Path(folder)))
