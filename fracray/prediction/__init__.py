"""From a checkpoint and radiographs without labels to a table with a row for each, whatever becomes of it."""
