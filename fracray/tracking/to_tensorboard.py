"""Entries as event files of TensorBoard: a folder for each, the settings for its HPARAMS page.

What is there is read back from the event files themselves, so it does not matter which process wrote them.
"""

import json
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fracray.errors import InputError
from fracray.runtime.storage import Folder, write_named
from fracray.search.states import State
from fracray.tracking.entries import Entry, Point
from fracray.tracking.targets import Tally, first_value, new_points

MARK = "fracray.json"  # in the folder of a run: its key
FACTS, FILES, STATE = "facts", "files", "state"  # texts
BEGUN, ENDED = "_hparams_/session_start_info", "_hparams_/session_end_info"
EVENTS = "events.out.tfevents.*"


@dataclass
class _Known:
    """What the event files of an entry hold."""

    folder: Path
    tags: set[str] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    first: dict[str, dict[int, list[float]]] = field(default_factory=dict)  # values by tag and step


class TensorboardWriter:
    """Writes below a folder, which `tensorboard --logdir` opens. where: the option, for messages."""

    def __init__(self, folder: Path, where: str) -> None:
        self.tally = Tally()
        self._folder, self._known = folder, dict[str, _Known]()
        self._open: dict[str, Any] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{where}: cannot be written: {error}; choose another folder") from None

    # ---------------------------------------------------------------- entries

    def write(self, entry: Entry) -> None:
        from tensorboardX import summary

        self.tally.entries.add(entry.key)
        known = self._known.get(entry.key) or self._look_up(entry)
        settings = {name: _plain(value) for name, value in entry.settings.items()}
        begun, ended = (summary.hparams(settings, {})[place] for place in (1, 2))
        if BEGUN not in known.tags and entry.parent and settings:  # the settings of a whole run are a text
            self._add(entry, known, begun, entry.begun)
        if not entry.parent:
            self._say(entry, known, FACTS, _table({**entry.settings, **entry.tags}))
        self._say(entry, known, STATE, str(entry.state))
        tag = next(iter(entry.points[0].values)) if entry.points else ""
        steps = known.first.setdefault(tag, {})
        points = new_points(entry, steps)
        if any(point.step in steps for point in points):
            self._purge(entry, known, points[0])
        for point in points:
            for name, value in point.values.items():
                self._add(entry, known, summary.scalar(name, value), entry.begun + point.seconds, point.step)
            steps[point.step] = [first_value(point)]
        self.tally.steps += len(points)
        if entry.state in (State.DONE, State.STOPPED) and BEGUN in known.tags and ENDED not in known.tags:
            self._add(entry, known, ended, entry.ended)
        self._flush(entry)

    def _say(self, entry: Entry, known: _Known, tag: str, text: str) -> None:
        """A text, where it is not the last one under this tag."""
        from tensorboardX import summary

        if known.texts.get(tag) != text:
            self._add(entry, known, summary.text(tag, text), time.time())
            known.texts[tag] = text

    def _add(self, entry: Entry, known: _Known, what: Any, at: float, step: int = 0) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file(entry, known).write_event(Event(wall_time=at, step=step, summary=what))
        known.tags.update(value.tag for value in what.value)

    def _purge(self, entry: Entry, known: _Known, first: Point) -> None:
        """Tell TensorBoard to forget what it has from this step on: those epochs were trained again."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        at = entry.begun + first.seconds
        self._file(entry, known).write_event(Event(wall_time=at, step=first.step, session_log=start))

    def _file(self, entry: Entry, known: _Known) -> Any:
        from tensorboardX.event_file_writer import EventsWriter

        if entry.key not in self._open:
            known.folder.mkdir(parents=True, exist_ok=True)
            # The name has whole seconds: a second file within one would replace the first. Files are read by name.
            suffix = f".{time.time_ns()}"
            self._open[entry.key] = EventsWriter(str(known.folder / "events"), suffix)
        return self._open[entry.key]

    def _flush(self, entry: Entry) -> None:
        if entry.key in self._open:
            self._open[entry.key].flush()
            if entry.state is not State.RUNNING:
                self._open.pop(entry.key).close()

    def _look_up(self, entry: Entry) -> _Known:
        known = self._known[entry.key] = _Known(self._place(entry))
        for event in read_events(known.folder):
            if event.HasField("session_log"):
                for steps in known.first.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                known.tags.add(value.tag)
                if value.HasField("simple_value"):
                    known.first.setdefault(value.tag, {})[event.step] = [value.simple_value]
                elif value.tensor.string_val:
                    known.texts[value.tag.removesuffix("/text_summary")] = value.tensor.string_val[0].decode()
        self.tally.new_entries += not known.tags
        return known

    def _place(self, entry: Entry) -> Path:
        """The folder of an entry: NAME/t0007, NAME/refit/t0007-seed1; of another run of that name, NAME-KEY/..."""
        if entry.parent:
            below = entry.key.partition("/")[2].removeprefix("trials/")
            return self._known[entry.root].folder / below
        folder = self._folder / entry.name
        mark = folder / MARK
        if mark.exists() and json.loads(mark.read_text())["key"] != entry.key:
            folder = self._folder / f"{entry.name}-{entry.key[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        write_named(folder / MARK, json.dumps({"key": entry.key}).encode())
        return folder

    # ---------------------------------------------------------------- files

    def attach(self, entry: Entry, run: Folder, names: Sequence[str]) -> None:
        """Say where the files are: TensorBoard keeps none."""
        known = self._known[entry.key]
        text = _table({name: run.path(name) if run.is_local else f"{run}/{name}" for name in names})
        self._say(entry, known, FILES, text)
        self._flush(entry)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def read_events(folder: Path) -> Iterator[Any]:
    """All events in a folder's event files, the oldest file first; the rest of a file that is cut off is left out."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob(EVENTS)):
        data, place = path.read_bytes(), 0
        while place + 12 <= len(data):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", data, place)
            if place + length + 16 > len(data):
                break
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += length + 16


def _plain(value: Any) -> str | bool | float:
    return value if isinstance(value, str | bool | int | float) else str(value)


def _table(rows: dict[str, Any]) -> str:
    """A table in Markdown."""
    lines = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(("| | |", "|---|---|", *lines))
