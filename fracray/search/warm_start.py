"""The best configurations of an earlier search, as the first trials of a new one."""

from dataclasses import dataclass
from functools import cached_property
from math import fsum
from typing import TYPE_CHECKING, Any

from fracray.errors import InputError
from fracray.runtime.console import counted
from fracray.runtime.run_folder import DATA
from fracray.runtime.storage import Folder
from fracray.search.space import SearchSpace

if TYPE_CHECKING:  # a search that starts from no other one needs Optuna and Tune only once it has its run
    from optuna.trial import FrozenTrial
    from rich.console import Console

MOST = 4  # configurations that are taken over


@dataclass(frozen=True)
class WarmStart:
    """The best configurations of the earlier search that a space names in search.warm_start; it is read only once."""

    space: SearchSpace

    @cached_property
    def points(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The trials that follow the default one, and why others of the earlier search cannot; see `warm_points`."""
        location = self.space.config.search.warm_start
        return ([], []) if location is None else warm_points(self.space, location)


def refuse_other_split(run: Folder, location: str) -> None:
    """InputError where the run at `location` trained or validated on radiographs of the test part of `run`.

    What it chose would rest on them. Folds that are validated otherwise have the same test part.
    """
    earlier = Folder(location)
    ours, theirs = (folder.read_json(DATA) for folder in (run, earlier))
    if ours["fingerprint"] != theirs["fingerprint"] or ours["split_fingerprint"] == theirs["split_fingerprint"]:
        return
    seen = _images(run, ("test",)) & _images(earlier, ("train", "val"))
    if seen:
        raise InputError(
            f"search.warm_start: {location} divided the same radiographs otherwise, and what it chose rests on "
            f"{len(seen):,} of this run's test part; use its data.split, or leave search.warm_start out"
        )


def _images(run: Folder, parts: tuple[str, ...]) -> set[str]:
    """The ids of the images that a run has in these parts."""
    from fracray.data.manifest import MANIFEST, Manifest, part_of  # slow to import, and rarely needed

    with run.local_copy(MANIFEST) as path:
        used = Manifest.read(path).used
    return set(used.loc[part_of(used["split"]).isin(parts), "image_id"])


def warm_points(space: SearchSpace, location: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The settings of the best trials of the run at `location` that this space can have, and why others cannot.

    Only trials that ran all epochs count, the best first: by the earlier search's own first metric, and what broke its
    constraints last. A setting that it did not search has the default of this space; the default itself is left out,
    for it runs anyway.
    Raises InputError where the run has no search, or no such trial.
    """
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    from fracray.search.study import JOURNAL, LEAVES, stored_study

    run = Folder(location)
    if not run.exists(JOURNAL):
        raise InputError(f"search.warm_start: {location} is no run of fracray.tune (it has no {JOURNAL}); name one")
    with stored_study(run) as study:
        done = [] if study is None else study.get_trials(states=(TrialState.COMPLETE,))
        sign = -1 if study is not None and study.directions[0] is StudyDirection.MAXIMIZE else 1
    if not done:
        raise InputError(f"search.warm_start: no trial of {location} ran all of its epochs; leave it out")
    points: list[dict[str, Any]] = []
    notes = []
    default, _ = space.defaults()
    for trial in sorted(done, key=lambda trial: (_missed(trial), sign * trial.values[0], trial.number)):
        point, outside = space.settings_of(trial.user_attrs.get(LEAVES, {}))
        if outside:
            path = outside[0]
            notes.append(f"trial {trial.number} of {location} has {path} = {point[path]}, which this space does not")
        elif point not in (default, *points):
            points.append(point)
        if len(points) == MOST:
            break
    return points, notes


def _missed(trial: "FrozenTrial") -> float:
    """By how much a trial breaks the constraints of its search, in all."""
    return fsum(excess for excess in trial.constraints.values() if excess > 0)


def told_points(warm: WarmStart, run: Folder, console: "Console") -> list[dict[str, Any]]:
    """The trials that follow the default one, from the earlier search that the space names; says how many they are."""
    location = warm.space.config.search.warm_start
    if location is None:
        return []
    refuse_other_split(run, location)
    points, notes = warm.points
    if notes:
        left = counted(len(notes), "trial is", "trials are")
        console.print(f"note: {left} left out: {notes[0]}{', ...' * (len(notes) > 1)}", style="yellow", soft_wrap=True)
    many = counted(len(points), "trial that follows the default one is", "trials that follow the default one are")
    console.print(f"{many} from {location}, best first", soft_wrap=True)
    return points
