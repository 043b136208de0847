"""Self-contained HTML pages: the styles, the escaping and the pictures that all of fracray's pages share.

Knows nothing of what is shown. A page loads nothing from elsewhere: styles, charts (SVG) and pictures (JPEG) are in it.
"""

import base64
from functools import cache
from typing import Any

import cv2
import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

QUALITY = 80  # of a JPEG


def page_environment(package: str) -> Environment:
    """Where the templates of a package find each other and the shared ones, `page.css` and `parts.html`.

    What they are given is escaped, and a name that they are not given is an error.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("fracray.runtime")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def macros() -> Any:
    """The macros of `parts.html`, as functions."""
    return page_environment("fracray.runtime").get_template("parts.html").module


def picture_uri(pixels: np.ndarray) -> Markup:
    """A picture, (h, w) gray or (h, w, 3) BGR uint8, as a data URI with a JPEG in it."""
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return Markup("data:image/jpeg;base64,") + escape(base64.b64encode(data).decode())
