"""Every depth, channel count and layout of every format shows what a viewer shows: in gray, alpha over black, upright.

The files are written sample by sample, or by Pillow or imagecodecs; what is expected is computed from the samples.
"""

import io
import struct

import cv2
import imagecodecs
import numpy as np
import pytest
from drawn_files import PACKED, exif, layouts, png, shade, tiff
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from fracray.data.images.decode import decode, upright
from fracray.data.images.dicom_display import TAILS

LUMA = np.array((0.299, 0.587, 0.114))


def expected(samples: np.ndarray, most: float, alpha: np.ndarray | None = None, deep: bool = False) -> np.ndarray:
    """Gray, 0 to 255, of samples (rows, columns, 1 or 3) up to `most`, and alpha, 0 to 1; deep: by percentiles."""
    gray = samples[..., 0].astype(float) if samples.shape[2] == 1 else samples.astype(float) @ LUMA
    low, high = 0.0, most
    if deep:
        lit = gray[alpha > 0] if alpha is not None else gray[np.isfinite(gray)]
        low, high = (np.percentile(lit, tail, method="inverted_cdf") for tail in TAILS)
    shown = np.clip((np.where(np.isfinite(gray), gray, low) - low) / (high - low), 0, 1) * 255
    return shown if alpha is None else shown * alpha


def agrees(data: bytes, wanted: np.ndarray, levels: float = 1.0) -> None:
    found = decode(data)
    assert found.fault == "", found.note
    assert found.gray is not None
    assert found.gray.dtype == np.uint8
    assert found.gray.shape == wanted.shape
    assert (found.height, found.width) == wanted.shape
    assert np.abs(found.gray - wanted).max() <= levels


def opacity(shape: tuple[int, ...]) -> np.ndarray:
    """Transparent on the left, half in the middle, opaque on the right: 0 to 1."""
    return np.clip(np.linspace(-0.5, 1.5, shape[1]), 0, 1)[None, :].repeat(shape[0], axis=0)


def channels(count: int) -> np.ndarray:
    """(rows, columns, count), 0 to 1: gray, or three colours that differ."""
    gray = shade()
    return gray[..., None] if count == 1 else np.dstack([gray, gray * 0.8 + 0.1, 1 - gray])


# ---------------------------------------------------------------- PNG


@pytest.mark.parametrize("turned", [0, 6])
@pytest.mark.parametrize("clear", [False, True], ids=["opaque", "transparent"])
@pytest.mark.parametrize(
    ("bits", "kind"), [*((bits, 0) for bits in (1, 2, 4, 8, 16)), (8, 2), (16, 2), (8, 4), (16, 4), (8, 6), (16, 6)]
)
def test_a_png_of_any_depth_shows_its_picture(bits, kind, clear, turned):
    most = 2**bits - 1
    colours = 3 if kind in (2, 6) else 1
    samples = np.rint(channels(colours) * most).astype(int)
    alpha, key = None, b""
    if kind in (4, 6):
        alpha = np.rint(opacity(samples.shape) * most) if clear else np.full(samples.shape[:2], most)
        stored = np.dstack([samples, alpha.astype(int)])
    else:
        stored = samples
        if clear:  # one colour is transparent
            value = samples[20, 3]
            key = struct.pack(f">{colours}H", *value)
            alpha = np.where((samples == value).all(axis=2), 0, most)
    wanted = expected(samples, most, None if alpha is None else alpha / most, bits > 8)
    agrees(png(stored, bits, kind, key, orientation=turned), upright(wanted, turned or 1), 1.5)


@pytest.mark.parametrize("clear", [False, True], ids=["opaque", "transparent"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_png_with_a_palette_shows_its_colours(bits, clear):
    rng = np.random.default_rng(bits)
    table = rng.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    indices = rng.integers(0, 2**bits, (30, 44))
    alpha = rng.integers(0, 256, 2**bits, dtype=np.uint8) if clear else np.full(2**bits, 255)
    wanted = expected(table[indices], 255, alpha[indices] / 255)
    agrees(png(indices, bits, 3, alpha.tobytes() if clear else b"", table.tobytes()), wanted, 1.5)


@pytest.mark.parametrize("used", [10, 12, 16])
@pytest.mark.parametrize("kind", [0, 2, 4, 6], ids=["gray", "RGB", "gray and alpha", "RGBA"])
def test_16_bits_that_hold_fewer_are_one_picture_in_gray_and_in_colour(kind, used):
    """Scanners fill 10 or 12 bits: cut to 8, such a picture is nearly black (a mean of 3 instead of 58)."""
    gray = np.rint(shade() * (2**used - 1)).astype(int)
    plain = decode(png(gray, 16, 0)).gray
    layers = [gray] * (3 if kind in (2, 6) else 1) + [np.full_like(gray, 65535)] * (kind in (4, 6))
    assert (decode(png(np.dstack(layers), 16, kind)).gray == plain).all()
    assert plain.mean() > 80


def test_an_opaque_png_is_decoded_as_without_its_alpha():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    plain = decode(png(colours, 8, 2)).gray
    assert (decode(png(np.dstack([colours, np.full((50, 60), 255)]), 8, 6)).gray == plain).all()


def test_what_lies_below_a_transparent_ground_is_not_shown():
    """White below full transparency: dropped alpha would show it, and it would set the brightest percentile."""
    gray = np.rint(shade() * 4095).astype(int)
    hidden = np.zeros(gray.shape, bool)
    hidden[:, :20] = True
    for bits in (8, 16):
        stored = np.where(hidden, 2**bits - 1, gray >> (4 if bits == 8 else 0))
        shown = decode(png(np.dstack([stored, np.where(hidden, 0, 2**bits - 1)]), bits, 4)).gray
        assert (shown[hidden] == 0).all()
        assert shown[~hidden].max() > 230


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_damaged_png_is_not_shown_as_far_as_it_goes(mode):
    """OpenCV shows what comes before the damage and black below it, and says nothing."""
    stream = io.BytesIO()
    Image.fromarray(np.rint(channels(3) * 255).astype(np.uint8)).convert(mode).save(stream, "PNG")
    data = stream.getvalue()
    first, last = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    for at in range(first, last, max(1, (last - first) // 60)):
        seen = decode(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert (seen.fault, seen.note) == ("unreadable", "its part IDAT is damaged: the checksum is wrong")


def test_gamma_is_not_applied():
    samples = np.rint(shade() * 255).astype(int)
    assert (decode(png(samples, 8, 0, before=[(b"gAMA", struct.pack(">I", 100_000))])).gray == samples).all()


# ---------------------------------------------------------------- TIFF


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"])
def test_a_tiff_of_any_type_and_layout_shows_its_picture(dtype, count):
    kind, size = np.dtype(dtype).kind, np.dtype(dtype).itemsize
    colours = 3 if count > 2 else 1
    ideal = channels(colours)
    if kind == "f":
        samples, most = (ideal * 1000).astype(dtype), 1000.0
    else:
        most = 2.0 ** (8 * size) - 1
        samples = (np.rint(ideal * most) - (2 ** (8 * size - 1) if kind == "i" else 0)).astype(dtype)
    stored, alpha, extra = samples, None, ()
    if count in (2, 4):
        alpha, extra = opacity(samples.shape), (2,)
        full = 1 if kind == "f" else np.iinfo(dtype.replace("i", "u")).max
        layer = (
            (alpha * full).astype(dtype) if kind == "f" else (alpha * full).astype(dtype.replace("i", "u")).view(dtype)
        )
        stored, alpha = np.dstack([samples, layer]), (alpha * full).astype(dtype.replace("i", "u")) / full
    values = samples.astype(float) + (2 ** (8 * size - 1) if kind == "i" else 0)
    wanted = expected(values, most, alpha, deep=dtype not in ("u1", "i1"))
    for layout in layouts():
        agrees(tiff(stored, extra=extra, **layout), wanted, 1.5)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("inverted", [False, True], ids=["0 is black", "0 is white"])
def test_a_tiff_of_few_bits_and_one_whose_zero_is_white(bits, inverted):
    most = 2**bits - 1
    samples = np.rint(channels(1) * most).astype(np.uint16 if bits > 8 else np.uint8)
    wanted = expected(samples, most, deep=bits > 8)
    data = tiff(samples, bits, kind=0 if inverted else 1)
    agrees(data, 255 - wanted if inverted else wanted, 1.0)


@pytest.mark.parametrize("full", [255, 65535], ids=["8 bits in 16", "16 bits"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_tiff_with_a_palette(bits, full):
    rng = np.random.default_rng(bits)
    table = rng.integers(0, full + 1, (2**bits, 3))
    table[0] = full
    indices = rng.integers(0, 2**bits, (30, 44, 1), dtype=np.uint8)
    data = tiff(indices, bits, kind=3, palette=table.T.ravel().tolist())
    agrees(data, expected(table[indices[..., 0]], full), 1.5)


def test_colours_that_are_multiplied_with_their_alpha_lie_over_black_already():
    colours, alpha = np.rint(channels(3) * 255), opacity((40, 56))
    stored = np.dstack([colours * alpha[..., None], alpha * 255]).astype(np.uint8)
    agrees(tiff(stored, extra=(1,)), expected(colours, 255, alpha), 2)


def test_further_samples_of_a_tiff_without_a_meaning_are_left_out():
    colours = np.rint(channels(3) * 255).astype(np.uint8)
    plain = decode(tiff(colours)).gray
    assert (decode(tiff(np.dstack([colours, colours[..., :1] // 2]), extra=(0,))).gray == plain).all()


def test_tags_that_a_tiff_may_leave_out_or_repeat_in_short():
    picture = np.rint(channels(3) * 65535).astype(np.uint16)
    plain = decode(tiff(picture)).gray
    assert (decode(tiff(picture, tags=[(258, 3, [16])])).gray == plain).all()  # one depth for all samples
    assert "sampleformat 4" in decode(tiff(picture, tags=[(339, 3, [4, 4, 4])])).note  # numbers of no stated kind
    gray = picture[..., :1]
    assert (decode(tiff(gray, tags=[(262, 3, [1])])).gray == decode(tiff(gray)).gray).all()


def test_numbers_of_a_tiff_that_are_not_finite_are_black():
    samples = channels(1).astype(np.float32)
    samples[3, 4], samples[5, 6], samples[7, 8] = np.nan, np.inf, -np.inf
    agrees(tiff(samples), np.where(np.isfinite(samples[..., 0]), expected(samples, 1, deep=True), 0), 1)
    huge = np.float64([[[-1.7e308], [0], [1.7e308]]]).repeat(4, axis=0)
    assert decode(tiff(huge)).gray[0].tolist() == [0, 128, 255]
    assert not decode(tiff(np.full((4, 4, 1), np.nan, np.float32))).gray.any()


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits", None])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "CMYK", "YCbCr", "P", "I;16", "F"])
def test_pillows_own_tiffs_agree_with_pillow(mode, compression):
    if compression == "jpeg" and mode not in ("L", "RGB", "CMYK", "YCbCr"):
        pytest.skip("JPEG holds gray and colours of 8 bits")
    ideal = shade()
    if mode in ("I;16", "F"):
        image = Image.fromarray((ideal * 60_000).astype(np.uint16 if mode == "I;16" else np.float32))
        wanted = expected((ideal * 60_000)[..., None], 60_000, deep=True)
    else:
        image = Image.fromarray(np.rint(channels(3) * 255).astype(np.uint8)).convert(mode)
        wanted = np.asarray(image.convert("RGB").convert("L"))
    stream = io.BytesIO()
    image.save(stream, "TIFF", compression=compression, **({"quality": 98} if compression == "jpeg" else {}))
    agrees(stream.getvalue(), wanted.astype(float), 8 if compression == "jpeg" else 2)


def test_several_pages_are_refused_with_their_number_and_small_copies_do_not_count():
    picture = np.rint(channels(1) * 255).astype(np.uint8)
    seen = decode(tiff(picture, pages=(0, 0, 0)))
    assert (seen.fault, seen.note[:8]) == ("unreadable", "3 pages:")
    plain = decode(tiff(picture)).gray
    for pages in ((0, 1), (1, 0), (0, 4, 1)):
        assert (decode(tiff(picture, pages=pages)).gray == plain).all()
    looped = bytearray(tiff(picture, pages=(0,)))
    first = struct.unpack_from("<I", looped, 4)[0]
    struct.pack_into("<I", looped, len(looped) - 4, first)
    assert (decode(bytes(looped)).gray == plain).all()


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ([(256, 4, [10**9]), (257, 4, [10**9])], "announces more than"),
        ([(256, 4, [8000]), (257, 4, [8000]), (277, 3, [16]), (258, 3, [64] * 16)], "would decode to more than"),
        ([(322, 4, [2**31]), (323, 4, [2**31])], "would decode to more than"),
        ([(262, 3, [8])], "TIFF of CIELab"),
        ([(262, 3, [32803])], "a colour filter array"),
        ([(258, 3, [5, 6, 5]), (277, 3, [3]), (262, 3, [2])], "several depths"),
        ([(256, 4, [0])], "without pixels"),
        ([(262, 3, [3])], "palette is incomplete"),
        ([(259, 3, [34712])], "cannot be decoded"),
        ([(338, 3, [1, 1, 1, 1])], "more are extra"),
        ([(277, 3, [1]), (262, 3, [2])], "1 samples of 3 colours"),
    ],
)
def test_a_tiff_that_is_not_read_says_why_before_memory_is_taken(tags, said):
    seen = decode(tiff(np.rint(channels(1) * 255).astype(np.uint8), tags=tags))
    assert seen.fault == "unreadable"
    assert said in seen.note


@pytest.mark.parametrize("packing", PACKED)
def test_a_tiff_cut_anywhere_is_not_a_picture(packing):
    data = tiff(np.rint(channels(3) * 65535).astype(np.uint16), packing=packing)
    for end in range(8, len(data), len(data) // 40):
        seen = decode(data[:end])
        assert (seen.fault, seen.gray) == ("truncated", None)


# ---------------------------------------------------------------- JPEG


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("bits", "lossless"), [(12, False), (12, True), (16, True)])
def test_a_jpeg_of_more_than_8_bits(bits, lossless, count):
    ideal = channels(1) if count == 1 else np.dstack([shade()] * 3)
    samples = np.rint(ideal * (2**bits - 1)).astype(np.uint16)
    data = imagecodecs.jpeg8_encode(samples.squeeze(), level=98, bitspersample=bits, lossless=lossless)
    agrees(data, expected(samples, 0, deep=True), 1.5 if lossless else 4)
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(exif(8))) + b"Exif\0\0" + exif(8) + data[2:]
    assert (decode(turned).gray == upright(decode(data).gray, 8)).all()
    assert decode(turned).orientation == 8
    assert decode(data[: len(data) // 2]).fault == "truncated"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCCK"])
def test_an_8_bit_jpeg_agrees_with_pillow(mode):
    """Adobe's CMYK is inverted in the file."""
    image = Image.fromarray(np.rint(channels(3) * 255).astype(np.uint8))
    if mode == "YCCK":
        data = imagecodecs.jpeg8_encode(np.asarray(image.convert("CMYK")), colorspace="CMYK", outcolorspace="YCCK")
        wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").convert("L"))
    else:
        stream = io.BytesIO()
        image.convert(mode).save(stream, "JPEG", quality=98)
        data, wanted = stream.getvalue(), np.asarray(image.convert("L"))
    agrees(data, wanted.astype(float), 8)


# ---------------------------------------------------------------- BMP, WebP, GIF


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP", "PNG", "TIFF"])
def test_every_format_of_pillow_shows_the_same_picture(kind, mode):
    rgba = np.dstack([np.rint(channels(3) * 255), np.rint(opacity((40, 56)) * 255)]).astype(np.uint8)
    image = Image.fromarray(rgba) if mode == "RGBA" else Image.fromarray(rgba[..., :3]).convert(mode)
    data = written(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    stored = Image.open(io.BytesIO(data)).convert("RGBA")
    black = Image.new("RGBA", stored.size, (0, 0, 0, 255))
    agrees(data, np.asarray(Image.alpha_composite(black, stored).convert("L")).astype(float), 2)


def test_the_fourth_byte_of_a_bmp_is_opacity_only_where_it_is_used():
    rgba = np.dstack([np.rint(channels(3) * 255), np.rint(opacity((40, 56)) * 255)]).astype(np.uint8)
    unused = rgba * np.uint8([1, 1, 1, 0])
    for pixels, alpha in ((rgba, rgba[..., 3] / 255), (unused, None)):
        body = pixels[::-1, :, [2, 1, 0, 3]].tobytes()
        masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        head = struct.pack("<IiiHHIIiiII", 108, 56, 40, 1, 32, 3, len(body), 2835, 2835, 0, 0) + masks + b"BGRs"
        head += b"\0" * (108 - len(head))
        data = struct.pack("<2sIHHI", b"BM", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body
        agrees(data, expected(rgba[..., :3], 255, alpha), 1.5)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_refused_with_its_number_of_frames(kind):
    frames = [Image.fromarray(np.roll(np.rint(shade() * 255).astype(np.uint8), 9 * at)) for at in range(3)]
    seen = decode(written(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert (seen.fault, seen.note[:9]) == ("unreadable", "3 frames:")
    one = decode(written(frames[0], kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.abs(one.gray - np.asarray(frames[0]).astype(int)).max() <= 1


def test_a_jpeg_with_further_pictures_behind_it_shows_the_first():
    """MPO: the JPEG of a camera, with a preview appended."""
    pictures = [Image.fromarray(np.rint(shade() * level).astype(np.uint8)).convert("RGB") for level in (255, 90)]
    data = written(pictures[0], "MPO", save_all=True, append_images=pictures[1:], quality=97)
    agrees(data, np.asarray(pictures[0].convert("L")).astype(float), 4)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP"])
def test_a_bomb_is_refused_before_it_is_decoded(kind):
    data = bytearray(written(Image.fromarray(np.rint(shade() * 255).astype(np.uint8)), kind, lossless=True))
    if kind == "BMP":
        struct.pack_into("<ii", data, 18, 60_000, 60_000)
    elif kind == "GIF":
        struct.pack_into("<HH", data, 6, 60_000, 60_000)
    else:
        struct.pack_into("<I", data, 21, (16_383 << 14) | 16_383)  # VP8L: width and height less 1
    assert "announces more than 80,000,000 pixels" in decode(bytes(data)).note


# ---------------------------------------------------------------- EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_format_is_turned_as_exif_says(kind, orientation):
    image = Image.fromarray(np.rint(channels(3) * 255).astype(np.uint8))
    about = Image.Exif()
    about[0x0112] = orientation
    data = written(image, kind, exif=about, **({"lossless": True} if kind == "WEBP" else {}))
    seen = decode(data)
    with Image.open(io.BytesIO(data)) as opened:
        wanted = np.asarray(ImageOps.exif_transpose(opened).convert("L"))
    assert (seen.orientation, seen.width, seen.height) == (orientation, *wanted.shape[::-1])
    assert np.abs(seen.gray.astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_xmp_turns_no_picture(kind):
    """Browsers and OpenCV, with which an export's reader decodes, do not turn it either; Pillow does."""
    words = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>{words}</rdf:RDF></x:xmpmeta>'
    about = PngInfo()
    about.add_itxt("XML:com.adobe.xmp", xmp)
    image = Image.fromarray(np.rint(channels(1) * 255).astype(np.uint8)[..., 0])
    data = written(image, kind, **({"pnginfo": about} if kind == "PNG" else {"xmp": xmp.encode()}))
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.getexif()[0x0112] == 6
    seen = decode(data)
    assert (seen.orientation, seen.width, seen.height) == (1, *image.size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_pictures_are_turned_too(orientation):
    samples = np.rint(channels(3) * 4095).astype(np.uint16)
    for plain, turned in (
        (png(samples, 16, 2), png(samples, 16, 2, orientation=orientation)),
        (tiff(samples), tiff(samples, tags=[(274, 3, [orientation])])),
    ):
        assert (decode(turned).gray == upright(decode(plain).gray, orientation)).all()


def tiffs_that_decoders_change(**layout) -> dict[str, tuple[bytes, np.ndarray]]:
    """Of which imagecodecs or Pillow would turn the picture, or exchange dark and bright; with what they show."""
    gray = np.rint(shade() * 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    colour = written(Image.fromarray(gray).convert("RGB"), "JPEG", quality=98, subsampling=0)
    colours, layout = [(259, 3, [7]), (530, 3, [1, 1])], {"tags": [], **layout}

    def drawn(samples: np.ndarray, kind: int, strip: bytes = b"", tags=()) -> bytes:
        return tiff(samples, kind=kind, stored=strip, **layout | {"tags": [*layout["tags"], *tags]})

    inks = np.dstack([255 - gray] * 3 + [gray * 0])
    found = {
        "gray JPEG": (drawn(gray[..., None], 1, coded, [(259, 3, [7])]), gray),
        "gray JPEG, 0 is white": (drawn(gray[..., None], 0, coded, [(259, 3, [7])]), 255 - gray),
        "YCbCr JPEG": (drawn(np.dstack([gray] * 3), 6, colour, colours), gray),
        "CMYK": (drawn(inks, 5), gray),
        "0 is white": (drawn(gray[..., None], 0), 255 - gray),
    }
    if layout["big"] and layout["order"] == ">":  # which Pillow refuses, and so fracray does
        assert all(decode(found.pop(kind)[0]).fault == "unreadable" for kind in ("YCbCr JPEG", "CMYK"))
    return found


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(9))
def test_a_tiff_is_turned_and_inverted_once_whatever_its_decoder_does(order, big, orientation):
    tags = [(274, 3, [orientation])] if orientation else []
    for name, (data, shown) in tiffs_that_decoders_change(order=order, big=big, tags=tags).items():
        seen, wanted = decode(data), upright(shown, orientation)
        assert (seen.fault, seen.orientation) == ("", orientation or 1), name
        assert (seen.width, seen.height) == wanted.shape[::-1], name
        assert np.abs(seen.gray.astype(int) - wanted).mean() <= 2, name


def test_xmp_does_not_turn_a_tiff_that_pillow_decodes():
    words = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"/>'
    image = Image.fromarray(np.rint(channels(3) * 255).astype(np.uint8)).convert("CMYK")
    plain, described = (written(image, "TIFF", tiffinfo=tags) for tags in ({}, {700: words}))
    assert (decode(described).gray == decode(plain).gray).all()


# ---------------------------------------------------------------- what is not read


def test_a_kind_that_is_not_read_is_named():
    for head, name in (
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\0\x18ftypisom", "QuickTime or MP4 video"),
        (b"%PDF-1.7", "PDF"),
        (struct.pack("<i", 348) + b"\0" * 340 + b"n+1\0", "NIfTI or Analyze"),
        (b"8BPS\0\1", "Photoshop"),
    ):
        seen = decode(head + b"\0" * 200)
        assert (seen.fault, seen.note) == ("unreadable", f"{name} is not read: convert it to PNG, TIFF or DICOM")
    assert decode(b"").note == "an empty file"
    assert decode(b"BM is how this text begins").note.startswith("its first bytes are not those of JPEG, PNG, TIFF")
    assert decode(cv2.imencode(".jp2", np.zeros((32, 32), np.uint8))[1].tobytes()).note.startswith("JPEG 2000")
