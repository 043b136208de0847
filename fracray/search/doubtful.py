"""The labels that a refit over folds puts in doubt: a CSV of all images and a page, in the refit's run folder.

What is listed is in `data.audit.doubtful`; here is where the probabilities come from.
"""

from functools import reduce

import numpy as np
import pandas as pd
from rich.console import Console

from fracray.data.audit.doubtful import Doubtful, list_doubtful
from fracray.data.audit.doubtful_page import doubtful_page
from fracray.data.prepare import Prepared
from fracray.errors import RunError
from fracray.metrics import cross_fitted
from fracray.runtime.console import counted
from fracray.runtime.run_folder import FOLDS, refit_number, trial_folder
from fracray.runtime.storage import Folder
from fracray.search.judged import read_folds
from fracray.search.refit import Outcome

LIST, PAGE = "doubtful.csv", "doubtful.html"


def write_doubtful(own: Folder, prepared: Prepared, found: Outcome, console: Console) -> None:
    """Write what the winner's trainings say of the labels, into the run folder of their refit, and print one line.

    Any failure is printed as a warning: the refit is worth more than its list.
    """
    try:
        trained = [trial_folder(own, refit_number(found.winner.number, seed)) for seed in found.seeds]
        held = held_out(trained)
        listed = list_doubtful(prepared.manifest, held)
        own.write(LIST, listed.csv())
        models = (
            f"{found.winner.name}, {prepared.config.split.rotations_in_words}, {counted(len(found.seeds), 'seed')}: "
            "the mean logit of the models that were not trained on an image, calibrated on other groups of its fold; "
            "the epoch was chosen on all folds together"
        )
        if prepared.config.split.repeats > 1:
            models += "; the probability is the mean over the dealings, whose folds are numbered on"
        own.write(PAGE, doubtful_page(listed, prepared.manifest, prepared.origin, models))
        console.print(_line(listed, own), soft_wrap=True)
    except Exception as error:
        console.print(
            f"warning: the list of doubtful labels could not be written to {own}: {type(error).__name__}: {error}",
            style="yellow",
            soft_wrap=True,
        )


def held_out(trained: list[Folder]) -> pd.DataFrame:
    """Columns image_id, fold and probability: of trainings that differ in their seed, each image once.

    The logit is the mean over the trainings, of the model that was not trained on the image's fold. It is calibrated
    within the fold, on images of other groups, so that no probability has seen its own label. Where folds were dealt
    several times, the probability is the mean over the folds that an image was in, and the fold is the first of them.
    RunError where a training of an older version kept no predictions of its folds.
    """
    place = ["image_id", "fold"]
    tables = []
    for folder in trained:
        table = read_folds(folder)
        if table is None:
            raise RunError(
                f"{folder} has no {FOLDS}: it was trained by an older version of fracray; refit another copy of the run"
            )
        tables.append(table.set_index(place))
    first = tables[0]
    logits = reduce(np.add, (table["logit"].reindex(first.index).to_numpy(np.float64) for table in tables))
    found = first.assign(logit=logits / len(tables), probability=np.nan)
    for _, rows in found.groupby("fold"):
        told = cross_fitted(rows["label"].to_numpy(), rows["logit"].to_numpy(), rows["group"].to_numpy())
        found.loc[rows.index, "probability"] = told
    of_images = found.reset_index().groupby("image_id", sort=False)
    return of_images.agg({"fold": "first", "probability": "mean"}).reset_index()


def _line(listed: Doubtful, own: Folder) -> str:
    return (
        f"doubtful labels: {listed.flagged:,} of {counted(len(listed.judged), 'image')} flagged, "
        f"{len(listed.found):,} named by the audit; nothing was changed: {own}/{PAGE}"
    )
