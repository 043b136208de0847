"""Files, run folders, the Ray session and the console, which all rooms use. Knows nothing of radiographs or models."""
