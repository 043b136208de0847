"""A search that is resumed: the settings that were decided when it began, and the refusal of another one."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from fracray.runtime.run_folder import as_begun, refuse_other, stored_config
from fracray.runtime.storage import Folder
from fracray.search.space import SearchSpace
from fracray.search.study import begun_space

GPUS = "search.gpus_per_trial"


def as_it_began(run: Folder, space: SearchSpace) -> SearchSpace:
    """The space, with what was decided when the search of this run began."""
    space = replace(space, config=as_begun(run, space.config))
    before = stored_config(run).leaves()
    if space.config.search.gpus_per_trial is None:  # searches of older versions took none where none was named
        space = replace(space, config=space.config.with_leaves({GPUS: before[GPUS]}))
    return space


def refuse_another(
    run: Folder, space: SearchSpace, stored: Callable[[], SearchSpace], free: Collection[str], where: str
) -> None:
    """InputError where the space is not that of the run, but for the settings in `free`.

    stored: reads the run's own space file, where its study does not say what it began with. where: what asks for it.
    """

    def kept(leaves: dict[str, Any]) -> dict[str, Any]:
        return {path: value for path, value in leaves.items() if path not in free}

    refuse_other(run, kept(stored_config(run).leaves()), kept(space.config.leaves()), where)
    refuse_other(run, begun_space(run) or stored().described(), space.described(), where)
