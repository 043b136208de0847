"""The last that a process imports before it runs trials: notes when."""

import time

AT = time.time()
