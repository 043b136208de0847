"""The picture of one BMP, WebP or GIF file, decoded by Pillow. Knows nothing of folders, labels or manifests."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from fracray.data.images.exif import orientation_in
from fracray.data.images.samples import TOO_LARGE, PictureError, check_size, said, shown

_MOST_COUNTED = 2**26  # bytes of a file whose frames are counted: it may have millions


@dataclass(frozen=True)
class PillowImage:
    """A file with one picture, whose size was checked and which is not decoded."""

    image: ImageFile.ImageFile
    mode: str
    orientation: int

    @property
    def width(self) -> int:
        """As stored, px."""
        return self.image.width

    @property
    def height(self) -> int:
        """As stored, px."""
        return self.image.height

    def gray(self) -> np.ndarray:
        """The picture as a viewer shows it, before it is turned: (height, width) uint8. PictureError where damaged."""
        try:
            self.image.load()
            if not self.image.has_transparency_data:
                return np.asarray(self.image.convert("L"))
            samples = np.asarray(self.image.convert("RGBA"))
        except Exception as error:
            raise _fault(error) from None
        # The fourth byte of a BMP is often left at 0 by programs that know no opacity.
        unused = self.image.format == "BMP" and not samples[..., 3].any()
        return shown(samples[..., :3], None if unused else samples[..., 3])


def open_image(data: bytes, kind: str) -> PillowImage:
    """The picture of a file of this kind ('BMP', 'WEBP' or 'GIF'), not decoded.

    PictureError for a file that is damaged or truncated, too large, or has several frames.
    """
    if kind == "WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise PictureError("truncated", "")
    try:
        image = Image.open(io.BytesIO(data), formats=(kind,))
    except Image.DecompressionBombError:
        raise PictureError("unreadable", TOO_LARGE) from None
    except Exception as error:
        raise _fault(error) from None
    check_size(*image.size)
    try:
        if getattr(image, "is_animated", False):
            frames = f"{getattr(image, 'n_frames', 1):,}" if len(data) < _MOST_COUNTED else "several"
            raise PictureError("unreadable", f"{frames} frames: a radiograph has one; save each as a file of its own")
    except PictureError:
        raise
    except Exception as error:
        raise _fault(error) from None
    return PillowImage(image, image.mode, orientation_in(image))


def _fault(error: Exception) -> PictureError:
    """What an error of Pillow on unknown bytes means."""
    words = said(error)
    if isinstance(error, EOFError) or "truncated" in words:
        return PictureError("truncated", "")
    return PictureError("unreadable", f"its pixels cannot be decoded: {words}")
