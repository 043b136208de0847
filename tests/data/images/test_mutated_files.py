"""Damaged files: whatever happens to their bytes, decoding ends soon, raises nothing and says what is wrong."""

import io
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
from drawn_files import png, shade, tiff
from PIL import Image

COUNT, SEED = 400, 20260725
MOST_SECONDS = 5.0


def originals() -> dict[str, bytes]:
    """A small file of every format and of every way to decode it."""
    gray = np.rint(shade(60, 80) * 255).astype(np.uint8)
    deep, colours = gray.astype(np.uint16) * 16, np.dstack([gray, gray // 2, 255 - gray])
    files = {
        "jpeg 12": imagecodecs.jpeg8_encode(deep, bitspersample=12),
        "png 16": png(np.dstack([deep] * 3), 16, 2),
        "png alpha": png(np.dstack([gray, gray]), 8, 4),
        "png key": png(gray, 8, 0, b"\0\x09"),
    }
    for packing in (1, 5, 8, 32773):
        files[f"tiff {packing}"] = tiff(np.dstack([deep] * 4), extra=(2,), packing=packing, planar=packing == 5)
    files["tiff float"] = tiff(shade()[..., None].astype(np.float32), big=True, order=">", packing=8)
    files["tiff palette"] = tiff(gray[..., None], kind=3, palette=[at * 257 for at in range(256)] * 3)
    for kind, modes in {
        "JPEG": ("L", "RGB", "CMYK"),
        "PNG": ("L", "RGB", "P", "1"),
        "TIFF": ("CMYK", "YCbCr", "1"),
        "BMP": ("L", "RGB", "1"),
        "GIF": ("L", "P"),
        "WEBP": ("RGB", "RGBA"),
    }.items():
        for mode in modes:
            stream = io.BytesIO()
            Image.fromarray(colours).convert(mode).save(stream, kind)
            files[f"{kind} {mode}"] = stream.getvalue()
    return files


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The same file with bytes changed, cut off, lost, repeated or put in; half of the changes in its first 200."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        if not changed:
            break
        at = int(rng.integers(0, min(len(changed), 200) if rng.random() < 0.5 else len(changed)))
        some = int(rng.integers(1, 60))
        match rng.integers(0, 6):
            case 0:
                changed[at] = int(rng.integers(0, 256))
            case 1:
                changed[at] ^= 1 << int(rng.integers(0, 8))
            case 2:
                changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"])
            case 3:
                del changed[at : at + some]
            case 4:
                changed[at:at] = changed[at : at + some] if rng.random() < 0.5 else rng.bytes(some)
            case _:
                del changed[len(changed) - int(rng.integers(0, len(changed) // 2 + 1)) :]
    return bytes(changed)


def fuzz(count: int, seed: int) -> None:
    """Decode `count` mutated files and print how many have which fate; exits at the first that has none."""
    from fracray.data.images.decode import decode

    rng, files = np.random.default_rng(seed), originals()
    names, fates, slowest = list(files), Counter(), 0.0
    for name in names:
        assert decode(files[name]).fault == "", name
    for number in range(count):
        name = names[number % len(names)]
        data = mutated(files[name], rng)
        begun = time.monotonic()
        seen = decode(data)
        took = time.monotonic() - begun
        slowest = max(slowest, took)
        where = f"file {number}, of {name}"
        assert took < MOST_SECONDS, f"{where}: {took:.1f} s"
        assert seen.fault in ("", "truncated", "unreadable"), where
        assert seen.fault != "unreadable" or seen.note, f"{where}: no cause"
        assert seen.fault or (seen.gray is not None and seen.gray.shape == (seen.height, seen.width)), where
        assert "object at" not in seen.note, f"{where}: {seen.note}"
        fates[seen.fault or "read"] += 1
    print(dict(fates), f"slowest {slowest:.2f} s", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


def test_mutated_files_have_a_named_fate_and_never_crash_or_block():
    """In a process of its own, because a decoder that crashes takes the process with it."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import {Path(__file__).stem} as it; it.fuzz({COUNT}, {SEED})"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
