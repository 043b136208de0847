"""From files to batches: ingest, streams, augmentation."""
