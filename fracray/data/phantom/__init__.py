"""Synthetic radiographs, drawn from a seed, to try the tool without any data."""
