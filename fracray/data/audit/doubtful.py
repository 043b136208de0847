"""The labels of a set that are in doubt: what models that never saw them say, and what the audit found.

Lists images and changes none. Knows the manifest and probabilities; nothing of models, and it opens no file.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fracray.data.audit.scan import SAME_PICTURE
from fracray.data.manifest import UNLABELLED, Manifest, part_of
from fracray.data.sources.fracatlas import CSV_SAYS
from fracray.metrics import LabelDoubt, doubt_labels
from fracray.runtime.spreadsheets import as_cell

MOST_TWINS = 5  # named in one note
_BOXED = 0.5  # share of the fractured that have a box, from which on a missing one says something of the label


@dataclass(frozen=True)
class Doubtful:
    """All images of a set, those with the most doubtful labels first.

    table: a row for each image of the manifest. Flagged ones first; in each half, those come first whose label the
    models believe least; images without a probability are last, of these the audit's first. Columns: rank (from 1),
    image_id, path, label, probability (of a fracture) and self_confidence (both nan where no model gave one), flagged,
    fold (-1 for none), use (what the image was used for), region, view, audit (what it found, '' for nothing), twins
    (image_ids of the same or nearly the same picture with the other label), set (where there are any, the component).
    doubt: of the images that have a probability.
    """

    table: pd.DataFrame
    doubt: LabelDoubt

    @property
    def judged(self) -> pd.DataFrame:
        """The images with a probability."""
        return self.table[self.table["probability"].notna()]

    @property
    def found(self) -> pd.DataFrame:
        """The images that the audit names."""
        return self.table[self.table["audit"] != ""]

    @property
    def flagged(self) -> int:
        return int(self.table["flagged"].sum())

    def csv(self) -> str:
        """The table for a reader, who fills in its last column: a line for each image; True and False are 1 and 0."""
        shown = self.table.drop(columns="set").assign(verdict="")
        shown["flagged"] = shown["flagged"].astype(int)
        shown["fold"] = shown["fold"].astype("Int64").mask(shown["fold"] < 0)
        shown["label"] = shown["label"].astype("Int64").mask(shown["label"] < 0)
        shown["twins"] = shown["twins"].map(" ".join)
        for name in ("image_id", "path", "use", "region", "view", "audit", "twins"):
            shown[name] = shown[name].map(as_cell)
        return shown.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def list_doubtful(manifest: Manifest, held: pd.DataFrame) -> Doubtful:
    """Every image of a manifest with what is held against its label.

    held: columns image_id, fold and probability (0 to 1, of a fracture) of images that the model of their fold was not
    trained on, each once.
    """
    assert not held["image_id"].duplicated().any(), "an image has one probability"
    known = held.set_index("image_id")
    table = manifest.table
    ids = table["image_id"]
    probability = ids.map(known["probability"]).to_numpy(np.float64)
    judged = ~np.isnan(probability)
    assert judged.sum() == len(held), "probabilities of images that the manifest does not have"
    label = np.where(table["status"].isin(UNLABELLED), -1, table["label"])
    doubt = doubt_labels(label[judged], probability[judged])
    confidence, flagged = np.full(len(table), np.nan), np.zeros(len(table), dtype=bool)
    confidence[judged], flagged[judged] = doubt.self_confidence, doubt.flagged
    twins = _twins(table)
    found = pd.DataFrame(
        {
            "image_id": ids,
            "path": table["path"],
            "label": label,
            "probability": probability,
            "self_confidence": confidence,
            "flagged": flagged,
            "fold": ids.map(known["fold"]).fillna(-1).astype(int),
            "use": _use(table, judged),
            "region": table["region"],
            "view": table["view"],
            "audit": _against(table, twins),
            "twins": twins,
            "set": table["component"].where(twins.map(len) > 0, ""),
        }
    )
    quiet = found["audit"] == ""
    order = np.lexsort((ids, quiet, np.where(judged, confidence, 2.0), ~flagged))
    found = found.iloc[order].reset_index(drop=True)
    found.insert(0, "rank", np.arange(1, len(found) + 1))
    return Doubtful(found, doubt)


def _twins(table: pd.DataFrame) -> pd.Series:
    """The image_ids of the same or nearly the same picture with the other label, a tuple for each row."""
    alike = table[(table["component"] != "") & ~table["status"].isin((*UNLABELLED, "blank"))]
    found = pd.Series([()] * len(table), index=table.index, dtype=object)
    for _, rows in alike.groupby("component", sort=False):
        if rows["label"].nunique() > 1:
            by_label = {value: tuple(mine) for value, mine in rows.groupby("label")["image_id"]}
            for index, label in zip(rows.index, rows["label"], strict=True):
                found.at[index] = by_label[1 - label]
    return found


def _against(table: pd.DataFrame, twins: pd.Series) -> list[str]:
    """What the audit found that speaks against the label of each row; '' for nothing."""
    boxes = table["boxes"].map(len).to_numpy()
    fractured = ((table["label"] == 1) & ~table["status"].isin(UNLABELLED)).to_numpy()
    expects = (boxes[fractured] > 0).mean() >= _BOXED if fractured.any() else False
    found = []
    rows = zip(table["status"], table["note"], table["label"], boxes, twins, strict=True)
    for status, note, label, count, others in rows:
        words = [note] if status == "conflict" or SAME_PICTURE in note or CSV_SAYS in note else []
        if others and SAME_PICTURE not in note:
            more = f" and {len(others) - MOST_TWINS:,} more" if len(others) > MOST_TWINS else ""
            words.append(f"nearly the same picture as {', '.join(others[:MOST_TWINS])}{more}, with the other label")
        if status not in UNLABELLED and not words:  # else the note speaks of the boxes
            if count and not label:
                words.append("has a box, but is labelled not fractured")
            if label and not count and expects:
                words.append("labelled fractured, but has no box, as most of the fractured ones here have")
        found.append("; ".join(words))
    return found


def _use(table: pd.DataFrame, judged: np.ndarray) -> list[str]:
    """What each image was used for, or why not."""
    found = []
    rows = zip(judged, table["status"], table["duplicate_of"], part_of(table["split"]), table["unused"], strict=True)
    for known, status, copied, part, unused in rows:
        if known:
            found.append("trained and validated on")
        elif status != "ok":
            found.append(f"not used: {status}")
        elif copied:
            found.append(f"not used: the same as {copied}")
        elif part == "test":
            found.append("test")
        else:  # of another fold's guard band, for instance
            found.append(f"not validated on{f': {unused}' if unused else ''}")
    return found
