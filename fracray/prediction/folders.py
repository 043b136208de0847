"""The folders that a prediction writes pictures or DICOM files to, beside its table. Knows paths and nothing else."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fracray.errors import InputError
from fracray.prediction.inputs import Picture
from fracray.runtime.claim import CLAIMS, LOCK, claimed
from fracray.runtime.storage import Folder


@contextmanager
def result_folder(
    flag: str, named: str, inputs: Iterable[str], pictures: Sequence[Picture], may_hold_files: bool
) -> Iterator[Path]:
    """The folder that an option names, made if need be and claimed for this command; of results, and of nothing else.

    inputs: the paths of the command line. InputError where it holds a radiograph to predict on, which a result could
    replace; where it lies in a folder of radiographs, among which its pictures would be the next time; where it holds
    files, unless it may; where another command writes to it; and where it cannot be made.
    """
    root = Path(named).expanduser()
    place = root.resolve()
    holding = {parent for file in {one.file for one in pictures if one.file} for parent in Path(file).resolve().parents}
    if place in holding:
        raise InputError(f"{flag} {named}: radiographs to predict on lie in it; name another folder")
    for path in inputs:
        folder = Path(path).expanduser()
        if "://" not in path and folder.is_dir() and place.is_relative_to(folder.resolve()):
            raise InputError(f"{flag} {named}: lies in {path}, whose pictures are predicted on; name another folder")
    with ExitStack() as held:
        try:
            root.mkdir(parents=True, exist_ok=True)
            held.enter_context(claimed(Folder(root), "folder", flag, trace=False))
            if not may_hold_files and any(entry.name not in (LOCK, CLAIMS) for entry in root.iterdir()):
                raise InputError(
                    f"{flag} {named}: holds files already; name a new folder, or replace those of the same names with "
                    "--overwrite"
                )
        except OSError as error:
            raise InputError(f"{flag} {named}: cannot be made: {error.strerror}; name another folder") from None
        yield root
