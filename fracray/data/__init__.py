"""Where radiographs come from and how they reach a model: sources, manifest, audit, splits, ingest, streams."""

import sys

# pydicom imports python-gdcm, which imports a module `dl` of Python 2, and falls over a folder `dl` where we started.
sys.modules.setdefault("dl", None)  # type: ignore[arg-type]
