"""The best configurations of an earlier search, as the first trials of a new one."""

from collections.abc import Mapping
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState

from fracray.errors import InputError
from fracray.runtime.storage import Folder
from fracray.search.space import SearchSpace
from fracray.search.study import JOURNAL, LEAVES, stored_study

DATA = "data.json"
MOST = 4  # configurations that are taken over


def refuse_other_split(run: Folder, location: str) -> None:
    """InputError where the run at `location` divided the radiographs of `run` otherwise.

    What it chose may then rest on radiographs that are in this run's test part.
    """
    ours, theirs = (folder.read_json(DATA) for folder in (run, Folder(location)))
    if ours["fingerprint"] == theirs["fingerprint"] and ours["split_fingerprint"] != theirs["split_fingerprint"]:
        raise InputError(
            f"search.warm_start: {location} divided the same radiographs otherwise, so what it chose may rest on this "
            "run's test part; use its data.split, or leave search.warm_start out"
        )


def warm_points(space: SearchSpace, location: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The settings of the best trials of the run at `location` that this space can have, and why others cannot.

    Only trials that ran all epochs count, best first, by the earlier search's own first metric. A setting that it did
    not search has the default of this space; the default itself is left out, for it runs anyway.
    Raises InputError where the run has no search, or no such trial.
    """
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
    for trial in sorted(done, key=lambda trial: (sign * trial.values[0], trial.number)):
        point = _within(space, trial.user_attrs.get(LEAVES, {}))
        outside = [path for path, value in point.items() if not _dimension(space, path).contains(value)]
        if outside:
            path = outside[0]
            notes.append(f"trial {trial.number} of {location} has {path} = {point[path]}, which this space does not")
        elif point not in (default, *points):
            points.append(point)
        if len(points) == MOST:
            break
    return points, notes


def _within(space: SearchSpace, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The values of this space's settings in a trial: the trial's own, else the default's."""
    chosen: dict[str, Any] = {}
    defaults = space.config.leaves()
    for dimension in space.dimensions:
        if dimension.active({**defaults, **chosen}):
            chosen[dimension.path] = leaves.get(dimension.path, defaults[dimension.path])
    return chosen


def _dimension(space: SearchSpace, path: str) -> Any:
    return next(dimension.values for dimension in space.dimensions if dimension.path == path)
