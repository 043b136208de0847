"""The files of a multipart request, in memory only, within the limits. Knows HTTP, and nothing of pictures."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from fracray.serving.engine import Upload
from fracray.serving.limits import Limits, RefusedError, Visit, too_many_bytes

FIELD = "files"
Part = tuple[str, UploadFile | str]
_ARCHIVES = {b"PK\x03\x04": "ZIP", b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7z", b"Rar!": "RAR"}


class _InMemory(MultiPartParser):
    """Starlette's parser, which would write files of more than a megabyte to the disk."""

    spool_max_size = 2**62


async def read_uploads(request: Request, visit: Visit, limits: Limits) -> list[Upload]:
    """All files of the request. RefusedError where it is no multipart form, too large, too slow, or has an archive."""
    kind = request.headers.get("content-type", "")
    encoding = request.headers.get("content-encoding", "identity")
    if not kind.lower().startswith("multipart/form-data") or encoding != "identity":
        raise RefusedError(
            415,
            f"expected a multipart/form-data request without compression, with pictures in the field '{FIELD}': "
            f"curl -F {FIELD}=@hand.png",
        )
    if int(request.headers.get("content-length") or 0) > limits.bytes:  # uvicorn lets only numbers through
        raise RefusedError(413, too_many_bytes(limits))

    parser = _InMemory(request.headers, _stream(request, visit.take), max_files=limits.files, max_fields=limits.files)
    try:
        async with asyncio.timeout(limits.seconds):
            parts = _readable((await parser.parse()).multi_items())
    except TimeoutError:
        raise RefusedError(
            408, f"the upload took longer than {limits.seconds:g} s; send fewer pictures at once"
        ) from None
    except MultiPartException as error:
        if "Too many" in error.message:
            raise RefusedError(413, f"more than {limits.files} files in a request; send them in several") from None
        raise RefusedError(400, f"not a whole multipart form: {error.message}; send it again") from None
    except UnicodeError:
        raise RefusedError(400, "the name of a file or a field is no valid Unicode; send names in UTF-8") from None
    uploads = []
    for name, part in parts:
        if isinstance(part, str) or name != FIELD:
            raise RefusedError(400, f"the field '{name[:40]}' is not known; send pictures in the field '{FIELD}'")
        upload = Upload(part.filename or FIELD, part.file.read())
        if archive := next((kind for mark, kind in _ARCHIVES.items() if upload.data.startswith(mark)), ""):
            raise RefusedError(413, f"{upload.name}: {archive} is not unpacked here; send the pictures in it")
        uploads.append(upload)
    if not uploads:
        raise RefusedError(400, f"no file in the request; send pictures in the field '{FIELD}'")
    return uploads


def _readable(parts: list[Part]) -> list[Part]:
    """The same parts. UnicodeError where a name cannot be written as UTF-8: the client chooses its charset, and some
    charsets give half characters, which no row and no answer can hold."""
    for name, part in parts:
        name.encode()
        if not isinstance(part, str):
            (part.filename or "").encode()
    return parts


async def _stream(request: Request, take: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    async for chunk in request.stream():
        take(len(chunk))
        yield chunk


async def drain(request: Request, seconds: float) -> None:
    """Read what the client still sends and forget it, so that it can read its answer; for so long at most."""
    try:
        async with asyncio.timeout(seconds):
            async for _ in request.stream():
                pass
    except (TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: it was read
        pass
