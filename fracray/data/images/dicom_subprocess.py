"""DICOM's compressed pixels, decoded in a process of its own: GDCM ends its process over some damaged files.

The process is this file, run as a script: a whole DICOM file comes in, its stored pixels go out. It lives as long as
the thread that asks, and is started anew after it died. Knows nothing of what pixels mean; sizes were checked before.
"""

import struct
import subprocess
import sys
import threading
from io import BytesIO

import numpy as np

_LENGTH = struct.Struct("<Q")
PATIENCE = 120.0  # seconds for one file; the largest take some
_mine = threading.local()


def decode_apart(data: bytes) -> np.ndarray | None:
    """The pixels of a file of one frame as `pydicom` returns them; None where no decoder can, or one died of it."""
    child = getattr(_mine, "child", None)
    if child is None or child.poll() is not None:
        child = _mine.child = subprocess.Popen(
            # -P: the folder of this file is full of modules that the child must not take for others.
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    assert child.stdin is not None
    assert child.stdout is not None
    watch = threading.Timer(PATIENCE, child.kill)  # a decoder may also never end
    watch.start()
    try:
        child.stdin.write(_LENGTH.pack(len(data)))
        child.stdin.write(data)
        child.stdin.flush()
        head = child.stdout.read(_LENGTH.size)
        if len(head) == _LENGTH.size:
            size = _LENGTH.unpack(head)[0]
            answer = child.stdout.read(size)
            if len(answer) == size:
                return np.load(BytesIO(answer), allow_pickle=False) if answer else None
    except BrokenPipeError:
        pass
    finally:
        watch.cancel()
    child.kill()
    child.wait()  # else the next file might be handed to it while it dies
    return None


def _serve() -> None:
    from pydicom import dcmread
    from pydicom.pixels import get_decoder

    while len(head := sys.stdin.buffer.read(_LENGTH.size)) == _LENGTH.size:
        data = sys.stdin.buffer.read(_LENGTH.unpack(head)[0])
        answer = BytesIO()
        try:
            dataset = dcmread(BytesIO(data), force=True)
            pixels, _ = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, index=0)
            np.save(answer, pixels, allow_pickle=False)
        except Exception:  # decoders on unknown bytes; the asker says what that means
            answer = BytesIO()
        sys.stdout.buffer.write(_LENGTH.pack(len(answer.getvalue())))
        sys.stdout.buffer.write(answer.getvalue())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
