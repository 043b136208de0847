"""Cluster files, their checks, and jobs on a cluster. A room next to the commands; knows nothing of training."""
