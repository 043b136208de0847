"""From a source of radiographs to batches for a model: sources, manifest, audit, splits, ingest, streams."""

import sys

# pydicom imports python-gdcm, which imports Python 2's module `dl` and fails on a folder `dl` where we started.
sys.modules.setdefault("dl", None)  # type: ignore[arg-type]
