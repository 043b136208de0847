import os
from pathlib import Path

import pytest

from fracray.data.audit.scan import examine
from fracray.data.manifest import Manifest
from fracray.data.sources.fracatlas import read_fracatlas


@pytest.fixture(scope="session")
def fracatlas() -> Manifest:
    """The examined manifest of the real FracAtlas folder that FRACRAY_FRACATLAS names; skips the test without it."""
    folder = os.environ.get("FRACRAY_FRACATLAS")
    if not folder:
        pytest.skip("FRACRAY_FRACATLAS is not set")
    return examine(read_fracatlas(Path(folder)))
