"""One training: network, loop, checkpoint, trial, and the workers that run it."""
