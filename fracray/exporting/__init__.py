"""A checkpoint as one file that runs without fracray: its graph, its description, and the proof that it is the same."""
