"""Stands in for the agent of Ray's dashboard, without which a raylet does not run: it waits, and ends with its raylet.

Run by its path and without site-packages: it imports nothing of fracray or Ray.
"""

import os
import time

if __name__ == "__main__":
    raylet = int(os.environ["RAY_RAYLET_PID"])  # set by the raylet, which may be gone already
    while os.getppid() == raylet:
        time.sleep(1)
