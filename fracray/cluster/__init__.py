"""Cluster files, their checks, and jobs on a cluster. Stands beside the verbs."""
