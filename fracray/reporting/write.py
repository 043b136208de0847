"""Writes reports: for the command, and at the end of a search or a training, where it may fail without harm."""

import time

from rich.console import Console

from fracray.data.manifest import Manifest
from fracray.errors import InputError, RunError
from fracray.reporting.page import REPORT, AtHand, as_html
from fracray.reporting.subject import opened
from fracray.runtime.storage import Folder


def leave_report(run: Folder, images: Manifest, console: Console) -> None:
    """Write report.html into a run that has ended, and say so; an error is one line, for the run itself is done.

    images: the examined files that it ran on.
    """
    begun = time.monotonic()
    try:
        with opened(run.location) as subject:
            run.write(REPORT, as_html(subject, AtHand(images)))
    except Exception as error:
        kind = "" if isinstance(error, InputError | RunError) else f"{type(error).__name__}: "
        console.print(f"warning: no report was written: {kind}{error}", style="yellow", soft_wrap=True)
        return
    console.print(f"report: {run}/{REPORT} ({time.monotonic() - begun:.1f} s)", soft_wrap=True)
