"""Where radiographs come from and how they reach a model: sources, manifest, audit, splits, ingest, streams."""
