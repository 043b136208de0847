"""fracray."""

import os

# albumentations looks for a newer version over the network when it is imported. Every process that uses it through
# fracray, Ray's workers too, imports this package first.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
