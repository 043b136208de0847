"""From a source of radiographs to batches for a model: sources, manifest, audit, splits, ingest, streams."""
