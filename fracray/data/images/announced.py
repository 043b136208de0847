"""How large a picture says it is, read from its header before anything of it is decoded."""

import io
import warnings

from PIL import Image

from fracray.data.images import dicom, kinds, tiff
from fracray.data.images.dicom_fields import DicomError
from fracray.data.images.jpeg_png import open_deep_jpeg
from fracray.data.images.samples import MAX_PIXELS, PictureError

_PILLOWS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")
_MORE = MAX_PIXELS + 1  # of a header that announces more than is ever decoded, whatever its number


def announced_pixels(data: bytes) -> int:
    """Width times height (and frames of DICOM) as the header has them; 0 where it cannot be read.

    More than MAX_PIXELS for a picture that `decode` would refuse for its size.
    """
    kind = kinds.kind_of(data[: kinds.HEAD])
    try:
        if kind == kinds.DICOM:
            form = dicom.open_image(data, MAX_PIXELS).form
            return form.rows * form.columns
        if kind == kinds.TIFF:  # Pillow opens fewer of them
            page = tiff.open_page(data)
            return page.width * page.height
        if kind == kinds.JPEG and (deep := open_deep_jpeg(data)):
            return deep.width * deep.height
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = Image.open(io.BytesIO(data), formats=_PILLOWS).size
        return width * height
    except Image.DecompressionBombError:
        return _MORE
    except (PictureError, DicomError) as error:
        return _MORE if "announces more than" in str(error) else 0
    except Exception:  # whatever Pillow raises on unknown bytes: decoding says what is wrong
        return 0
