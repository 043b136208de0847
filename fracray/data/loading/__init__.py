"""From files to batches: ingest, plan, streams, augmentation."""
