"""No-pixel predictors: how well the label is predicted without the picture, from size, file number or tags.

A classifier that learns one of these shortcuts scores well on the same archive and fails elsewhere. Reads the
manifest's table only. Must not open a file, and must not know of networks or of Ray. scikit-learn takes a second of CPU
time to import in every process of a search, where it is rarely needed: it is imported where it is used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from fracray.data.file_numbers import number_files
from fracray.data.manifest import BORDERS, in_set, sets_named
from fracray.metrics import Interval, auroc_over_folds

# Of 3 to 200 neighbours, weighted or not, the most predictive over both protocols on FracAtlas: mean AUROC 0.89 where
# rows are split at random, 0.70 with blocks of 50 kept together.
NEIGHBOURS = 50
TAGS = ("region", "view", "hardware", "multiscan")
FOLDS = 5

Scorer = Callable[[pd.DataFrame], np.ndarray]  # rows to probabilities of a fracture
Fitter = Callable[[pd.DataFrame, int], Scorer]  # training rows and a seed to a scorer
Features = Callable[[pd.DataFrame], pd.DataFrame]


# ---------------------------------------------------------------- next to a model's score


@dataclass(frozen=True)
class Baseline:
    """The score of a no-pixel predictor; rates in [0, 1], auroc NaN where `part` has one class only."""

    name: str  # 'majority', 'tags', 'id neighbours'
    part: str
    accuracy: float
    balanced_accuracy: float
    auroc: float

    def as_dict(self) -> dict[str, str | float | None]:
        """By name, as JSON values; undefined scores are null."""
        return {name: None if value != value else value for name, value in asdict(self).items()}  # noqa: PLR0124 - nan

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Baseline":
        """From what `as_dict` gave."""
        known: dict[str, Any] = {name: np.nan if value is None else value for name, value in values.items()}
        return cls(**known)


def no_pixel_baselines(table: pd.DataFrame, sets: Sequence[str] | None = None, seed: int = 0) -> tuple[Baseline, ...]:
    """Scores on each of `sets` (default: all but train) of three no-pixel predictors fitted to train.

    majority: the more frequent label. tags: logistic regression on region, view, hardware and multiscan. id neighbours:
    the share of fractured among the NEIGHBOURS training images of nearest file number, weighted by 1/distance; omitted
    where a file of the table has no number in a series (`number_files`). Fractured is predicted where the probability
    exceeds 0.5. Sets without rows are omitted; without training rows the result is empty.
    """
    table = _with_numbers(table)
    train = table[in_set(table["split"], "train")]
    if train.empty:
        return ()
    if sets is None:
        sets = [name for name in sets_named(table["split"]) if name != "train"]
    scorers = {name: fit(train, seed) for name, fit in _baselines(table).items()}
    return tuple(
        _baseline(name, part, rows["label"].to_numpy(), scorer(rows))
        for part in sets
        if len(rows := table[in_set(table["split"], part)])
        for name, scorer in scorers.items()
    )


def cross_fitted_baselines(table: pd.DataFrame, seed: int = 0, folds: int = FOLDS) -> tuple[Baseline, ...]:
    """The same predictors on the complete table, part 'all', each image scored by predictors fitted to other groups.

    For data that is not split into parts; its rows need `group`. Empty where there are fewer than two groups.
    """
    fold = _deal(table["group"].to_numpy(), folds, seed)
    if fold is None:
        return ()
    table, label = _with_numbers(table), table["label"].to_numpy()
    found = []
    for name, probability in _cross_fit(table, _baselines(table), fold, seed).items():
        baseline = asdict(_baseline(name, "all", label, probability))
        auroc = auroc_over_folds(label, probability, table["group"], fold).value
        found.append(Baseline(**baseline | {"auroc": auroc}))
    return tuple(found)


def mean_baselines(folds: Sequence[Baseline]) -> tuple[Baseline, ...]:
    """The mean scores of each predictor over the given folds, under the part of the first."""
    found = []
    for name in dict.fromkeys(baseline.name for baseline in folds):
        mine = [baseline for baseline in folds if baseline.name == name]
        found.append(
            replace(
                mine[0],
                accuracy=float(np.mean([baseline.accuracy for baseline in mine])),
                balanced_accuracy=float(np.mean([baseline.balanced_accuracy for baseline in mine])),
                auroc=float(np.mean([baseline.auroc for baseline in mine])),
            )
        )
    return tuple(found)


def _baselines(table: pd.DataFrame) -> dict[str, Fitter]:
    fits: dict[str, Fitter] = {"majority": _majority, "tags": _tags}
    return fits | ({"id neighbours": _neighbours} if _numbered(table) else {})


def _baseline(name: str, part: str, label: np.ndarray, probability: np.ndarray) -> Baseline:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

    predicted = (probability > 0.5).astype(int)
    both = len(set(label)) == 2
    return Baseline(
        name=name,
        part=part,
        accuracy=float(accuracy_score(label, predicted)),
        balanced_accuracy=float(balanced_accuracy_score(label, predicted) if both else np.nan),
        auroc=float(roc_auc_score(label, probability) if both else np.nan),
    )


# ---------------------------------------------------------------- what an audit reports


@dataclass(frozen=True)
class Shortcut:
    """How well one property of a picture predicts its label, in groups that the predictor was not fitted to.

    auroc: mean over the folds, with a 95% interval over groups; all nan where it was not scored; `unscored` says why.
    """

    name: str
    sees: str
    auroc: Interval
    unscored: str = ""


@dataclass(frozen=True)
class IdLeak:
    """How well neighbouring file numbers predict the label when blocks of `block` numbers are held out together.

    A block of 1 is a random split, row by row.
    """

    block: int
    auroc: Interval


_SIZE = "width, height and their ratio"
_MODE = "the file's colour mode (gray, RGB)"
_BORDERS = "widths of uniform black and white borders, letterboxing"
_BRIGHTNESS = "mean gray value"
_NUMBERS = f"labels of the {NEIGHBOURS} nearest file numbers"
_ALL = "all of the above"


def score_shortcuts(table: pd.DataFrame, seed: int = 0) -> tuple[Shortcut, ...]:
    """One Shortcut each for size, mode, borders, brightness, tags, id neighbours, and all of them together.

    table: rows of an examined manifest with `group`. Each is cross-fitted over FOLDS folds of groups: gradient boosting
    for numbers and modes, the predictors of `no_pixel_baselines` for tags and id neighbours.
    """
    table = _with_numbers(table)
    columns: dict[str, tuple[str, Features]] = {
        "size": (_SIZE, _size),
        "mode": (_MODE, lambda rows: pd.get_dummies(rows["mode"], dtype=float)),
        "borders": (_BORDERS, _borders),
        "brightness": (_BRIGHTNESS, lambda rows: rows[["brightness"]]),
        "tags": (", ".join(name for name in TAGS if table[name].nunique() > 1), _one_hot),
    }
    varying = {name: seen for name, (_, seen) in columns.items() if (seen(table).nunique(dropna=False) > 1).any()}
    everything: list[Features] = [*varying.values(), *([_numbers] if _numbered(table) else [])]
    fits = {name: _tags if name == "tags" else _boosted(seen) for name, seen in varying.items()}
    if _numbered(table):
        fits["id neighbours"] = _neighbours
    if len(everything) > 1:
        fits["together"] = _boosted(lambda rows: pd.concat([seen(rows) for seen in everything], axis=1))
    fold = _deal(table["group"].to_numpy(), FOLDS, seed)
    found = {} if fold is None else _cross_fit(table, fits, fold, seed)
    label = table["label"].to_numpy()
    sees = {name: words for name, (words, _) in columns.items()} | {"id neighbours": _NUMBERS, "together": _ALL}
    why = "fewer than two groups" if fold is None else "the same in every file"
    none = {
        "tags": "no tags",
        "id neighbours": "file names without running numbers",
        "together": "fewer than two of them differ between files",
    }
    return tuple(
        Shortcut(name, words, auroc_over_folds(label, found[name], table["group"], fold))
        if fold is not None and name in found
        else Shortcut(name, words, Interval(np.nan, np.nan, np.nan), why if fold is None else none.get(name, why))
        for name, words in sees.items()
    )


def score_leak(table: pd.DataFrame, groups: Mapping[int, np.ndarray], seed: int = 0) -> tuple[IdLeak, ...]:
    """The AUROC of id neighbours for each block size; `groups` gives the rows held out together for each size.

    Empty where a file has no number in a series; sizes with fewer than two groups are omitted.
    """
    table = _with_numbers(table)
    if not _numbered(table):
        return ()
    label = table["label"].to_numpy()
    leaks = []
    for block, group in groups.items():
        fold = _deal(group, FOLDS, seed)
        if fold is not None:
            found = _cross_fit(table, {"id": _neighbours}, fold, seed)["id"]
            leaks.append(IdLeak(block, auroc_over_folds(label, found, group, fold)))
    return tuple(leaks)


# ---------------------------------------------------------------- predictors


def _deal(groups: np.ndarray, folds: int, seed: int) -> np.ndarray | None:
    """The fold of each row, groups kept together; None where there are fewer than two groups."""
    from sklearn.model_selection import GroupKFold

    folds = min(folds, len(set(groups)))
    if folds < 2:
        return None
    fold = np.empty(len(groups), dtype=int)
    for number, (_, held) in enumerate(
        GroupKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(groups)), groups=groups)
    ):
        fold[held] = number
    return fold


def _cross_fit(table: pd.DataFrame, fits: Mapping[str, Fitter], fold: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Probabilities by predictor, each row's from one fitted to the other folds."""
    found = {name: np.empty(len(table)) for name in fits}
    # On a busy machine threads wait for each other at every split of every tree: up to 15 times slower.
    with threadpool_limits(1):
        for number in np.unique(fold):
            for name, fit in fits.items():
                found[name][fold == number] = fit(table[fold != number], seed)(table[fold == number])
    return found


def _majority(train: pd.DataFrame, seed: int) -> Scorer:
    prevalence = float(train["label"].mean())
    return lambda rows: np.full(len(rows), prevalence)


def _tags(train: pd.DataFrame, seed: int) -> Scorer:
    from sklearn.linear_model import LogisticRegression

    if train["label"].nunique() < 2:
        return _majority(train, seed)
    columns = _one_hot(train).columns
    model = LogisticRegression(max_iter=1000, random_state=seed).fit(_one_hot(train), train["label"])
    return lambda rows: model.predict_proba(_one_hot(rows).reindex(columns=columns, fill_value=0))[:, 1]


def _boosted(features: Features) -> Fitter:
    """Shallow gradient-boosted trees on features, which may have missing values."""

    def fit(train: pd.DataFrame, seed: int) -> Scorer:
        from sklearn.ensemble import HistGradientBoostingClassifier

        if train["label"].nunique() < 2:
            return _majority(train, seed)
        columns = features(train).columns
        # With few images, leaves of at least 20 allow no split at all, and a shortcut would go unnoticed.
        leaf = min(20, max(2, len(train) // 20))
        model = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, min_samples_leaf=leaf, early_stopping=False, random_state=seed
        )
        model.fit(features(train), train["label"])
        return lambda rows: model.predict_proba(features(rows).reindex(columns=columns, fill_value=0))[:, 1]

    return fit


def _neighbours(train: pd.DataFrame, seed: int) -> Scorer:
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(min(NEIGHBOURS, len(train)), weights="distance").fit(_numbers(train), train["label"])
    fractured = list(model.classes_).index(1) if 1 in model.classes_ else None
    return lambda rows: np.zeros(len(rows)) if fractured is None else model.predict_proba(_numbers(rows))[:, fractured]


def _with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what `_numbered` and `_numbers` need of `number_files`, which a part of its rows does not tell."""
    files = number_files(table)
    found = table.assign(number=files["number"], ordered=files["ordered"])
    return found.assign(series=pd.factorize(files["series"])[0]) if files["series"].nunique() > 1 else found


def _numbered(table: pd.DataFrame) -> bool:
    return bool(table["ordered"].all())


def _numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """The number, and the series, if there are several, so that another one is farther than any number."""
    numbers = pd.DataFrame({"number": rows["number"].astype(float)})
    return numbers.assign(series=rows["series"] * 1e19) if "series" in rows else numbers


def _one_hot(rows: pd.DataFrame) -> pd.DataFrame:
    tags = [rows[name].str.get_dummies("+").add_prefix(f"{name} ") for name in TAGS[:2]]
    return pd.concat([*tags, rows[list(TAGS[2:])]], axis=1)


def _size(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[["width", "height"]].assign(ratio=rows["width"] / rows["height"])


def _borders(rows: pd.DataFrame) -> pd.DataFrame:
    """Widths as shares of the picture's side, and the smaller of two opposite black ones: letterboxing."""
    side = {"top": rows["height"], "bottom": rows["height"], "left": rows["width"], "right": rows["width"]}
    shares = pd.DataFrame({name: rows[name] / side[name.split("_")[1]] for name in BORDERS})
    return shares.assign(
        letterbox_rows=shares[["black_top", "black_bottom"]].min(axis=1),
        letterbox_columns=shares[["black_left", "black_right"]].min(axis=1),
    )
