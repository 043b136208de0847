"""EXIF's orientation: which way up a picture is shown. Knows nothing of pixels."""

from collections.abc import Callable
from functools import partial

from PIL import Image

_ORIENTATION = 0x0112


def orientation_of(read: Callable[[], Image.Exif]) -> int:
    """The orientation, 1 to 8, in what `read` returns; 1 where it says nothing that can be understood."""
    try:
        value = read().get(_ORIENTATION, 1)
    except Exception:  # whatever Pillow raises on unknown bytes
        return 1
    return value if value in range(1, 9) else 1


def orientation_in(image: Image.Image) -> int:
    """The orientation of an opened picture, as `orientation_of`."""
    return orientation_of(partial(exif_of, image))


def exif_of(image: Image.Image) -> Image.Exif:
    """What EXIF says of an opened picture; a TIFF says it in its own fields.

    Pillow also takes the orientation from XMP. Viewers, browsers and OpenCV do not.
    """
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)
    return image.getexif()
