"""Running numbers of files and small folders, by name alone; and what they are worth where patients are unknown."""

import random
from pathlib import Path

import pandas as pd
import pytest

from fracray.config import SplitConfig
from fracray.data.file_numbers import number_files, small_folders
from fracray.data.manifest import Manifest, build, part_of
from fracray.data.patients import known_patients
from fracray.data.sources.image_folder import RadiographFile, name_images
from fracray.data.sources.patient_names import patients_by_pattern
from fracray.data.splits.assign import assign_splits, leaks
from fracray.data.splits.groups import name_groups
from fracray.errors import InputError


def listed(paths: list[str], patients: list[str] | None = None, **columns: object) -> Manifest:
    """A manifest of files at these paths, with the ids that an import gives them."""
    ids = name_images([RadiographFile(path, None) for path in paths])
    rows = [
        {"image_id": image_id, "path": path, "label": at % 2, "status": "ok", "patient": patient}
        for at, (image_id, path, patient) in enumerate(zip(ids, paths, patients or [""] * len(paths), strict=True))
    ]
    manifest = build(rows, Path("nowhere"))
    return Manifest(manifest.table.assign(**columns), manifest.root)


draw = random.Random(0)
CLASS = ("normal", "fractured")
# name: (paths, series, files counted, files repeating)
LAYOUTS = {
    "FracAtlas": ([f"images/{draw.choice(CLASS)}/IMG{n:07d}.jpg" for n in range(400)], 1, 400, 0),
    "MURA": ([f"t/XR/patient{p}/study{s}/image{k}.png" for p in range(60) for s in (1, 2) for k in (1, 2)], 120, 0, 0),
    "sites above classes": ([f"{s}/{draw.choice(CLASS)}/I{n:04d}.jpg" for s in "ab" for n in range(200)], 2, 400, 400),
    "classes above sites": ([f"{draw.choice(CLASS)}/{s}/I{n:04d}.jpg" for s in "ab" for n in range(200)], 2, 400, 400),
    "numbers by class": ([f"{c}/{n}.jpg" for c in CLASS for n in range(200)], 2, 400, 400),
    "two counters": ([f"{c}{n:04d}.jpg" for c in ("IMG", "DSC") for n in range(200)], 2, 400, 400),
    "one counter, many prefixes": ([f"{draw.choice(('hand', 'leg'))}_{n}.jpg" for n in range(200)], 1, 200, 0),
    "a few copies": (
        [f"{draw.choice(CLASS)}/IMG{n:04d}.jpg" for n in range(200)] + [f"{c}/IMG0300.jpg" for c in CLASS], 1, 202, 0,
    ),
    "case of Windows": ([f"{draw.choice('Ii')}{n}.{draw.choice(('JPG', 'jpg'))}" for n in range(200)], 1, 200, 0),
    "leading zeros": ([f"{n:0{draw.randrange(1, 9)}d}.jpg" for n in range(200)], 1, 200, 0),
    "dates": ([f"x_20{y}{m:02d}{d:02d}.png" for y in (19, 20, 21) for m in range(1, 13) for d in (2, 9, 16)], 1, 0, 0),
    "a counter for each day": ([f"202103{d:02d}_{k}.png" for d in range(1, 28) for k in range(1, 9)], 27, 0, 0),
    "times": ([f"20210304_{h:02d}{m:02d}07.png" for h in range(8, 18) for m in range(0, 60, 3)], 1, 0, 0),
    "UIDs": ([f"1.2.826.0.1.3680043.8.498.{draw.getrandbits(120)}" for _ in range(300)], 1, 0, 0),
    "accession numbers": ([f"{draw.randrange(10**8):08d}.png" for _ in range(300)], 1, 0, 0),
    "rows of a study": ([f"{s}_{k}.png" for s in range(100) for k in (1, 2)], 100, 0, 0),
    "patient after the view": ([f"{v}_P{p:04d}.png" for p in range(100) for v in ("ap", "lat")], 2, 200, 200),
    "no number": ([f"{n:03d}/left.png" for n in range(100)], 1, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_series_is_what_one_counter_gave(layout):
    paths, series, counted, repeating = LAYOUTS[layout]
    manifest = listed(paths)
    files = number_files(manifest.used)
    assert files["series"].nunique() == series
    assert (files["counted"].sum(), files["repeats"].sum()) == (counted, repeating)
    known = known_patients(manifest.used)
    assert (known.numbered, known.restarted) == (counted - repeating, repeating)
    assert known.images == len(paths)
    # Silent only where every file has a running number that is its own.
    assert bool(known.warning()) == (counted - repeating < len(paths))


def test_the_number_of_a_path_with_its_suffix():
    files = number_files(listed(["a/x1.png", "b/x1.png", "b/x2.tar.gz", "b/1.2.34"]).table)
    assert files["number"].tolist() == [1, 1, -1, 34]


def test_a_picture_that_was_copied_is_no_other_picture_of_its_number():
    paths = [f"{draw.choice(CLASS)}/{n}.jpg" for n in range(40)]
    paths += [f"{c}/{n}.jpg" for n in range(40, 80) for c in CLASS]
    copied = [""] * 40 + [f"c{n}" for n in range(40, 80) for _ in CLASS]
    assert number_files(listed(paths, component=copied).table)["series"].nunique() == 1
    assert number_files(listed(paths).table)["series"].nunique() == 2


def test_small_folders_are_the_outermost_that_may_be_a_patient():
    mura = LAYOUTS["MURA"][0]
    assert small_folders(mura) == [path.split("/")[2] for path in mura]
    many = [f"site/{n:03d}/{k}.png" for n in range(40) for k in range(2)]
    assert small_folders(many + [f"site/000/{k}.png" for k in range(2, 90)])[-1] == ""  # too large for a patient
    assert set(small_folders([f"{c}/{n}.png" for c in CLASS for n in range(20)])) == {""}  # too few
    assert small_folders(["A/1/x.png", "a/1/y.png"] + [f"{n}/1/x.png" for n in range(9)])[:2] == ["a", "a"]
    assert small_folders([]) == []


def test_sites_are_not_mixed_into_one_sequence():
    used = name_groups(listed(LAYOUTS["classes above sites"][0]), SplitConfig(block=50)).used
    site, number = used["path"].str.split("/").str[1], used["path"].str.extract(r"(\d+)\.")[0].astype(int)
    assert (used.groupby("group")["path"].size() == 50).all()
    assert (site.groupby(used["group"]).nunique() == 1).all()
    assert (used["group"].groupby([site, number // 50]).nunique() == 1).all()  # both classes


def test_a_folder_joins_images_without_a_patient_only():
    paths = [f"{n:02d}/{k}.png" for n in range(20) for k in "abc"]
    patients = ["", "", "", "P1", "", "P1", "P2", "", "P3", "P4", "P4", "P5"] + [""] * 48
    group = name_groups(listed(paths, patients), SplitConfig()).used["group"].tolist()
    assert [group.index(one) for one in group[:12]] == [0, 0, 0, 3, 3, 3, 6, 7, 8, 9, 9, 11]
    assert len(set(group[12:])) == 16
    blocks = assign_splits(listed(paths), SplitConfig(protocol="blocks")).used
    part = part_of(blocks["split"])
    assert (part[part != ""].groupby(blocks["path"].str[:2]).nunique() == 1).all()


def test_one_patient_for_all_cannot_be_split():
    paths = [f"{n}.png" for n in range(60)]
    with pytest.raises(InputError, match="all 60 used images have the same patient"):
        assign_splits(listed(paths, ["X"] * 60), SplitConfig())
    with pytest.raises(InputError, match="no patient is divided, and there are 2: change"):
        assign_splits(listed(paths, ["X", "X", "Y", "Y"] * 15), SplitConfig())


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"patient": "X"}, ""),
        ({"patient": ["X"] * 39 + [""]}, "no patient is known for 1 of 40 images: "),
        ({"study": "S"}, "no patient is known, only the study: "),
        ({"study": ["S"] * 39 + [""]}, "no patient is known, only the study for 39 of 40 images: "),
    ],
)
def test_what_is_known_of_patients(columns, words):
    known = known_patients(listed([f"{n}.png" for n in range(40)], **columns).used)
    assert known.warning().startswith(words)
    assert bool(known.warning()) == bool(words)
    if words:
        assert "may lie in training and test at once" in known.warning()
        assert "intervals may be too narrow" in known.warning(divided=False)


# ---------------------------------------------------------------- over drawn layouts


def layout(seed: int) -> tuple[list[str], list[str], str]:
    """Paths of a drawn layout, the true patient of each, and the pattern that finds it."""
    rng = random.Random(seed)
    width, start = rng.choice((0, 4)), rng.randrange(3000)
    word = rng.choice(("patient", "P", "case_", "7-", "x"))
    where = rng.choice(("folder", "study", "name", "end"))
    tops = rng.choice(([""], ["normal/", "fractured/"], ["train/", "valid/"], ["a/b/", "a/c/", "d/"]))
    below = rng.choice(("", "images/", "normal|fractured"))
    restart = rng.random() < 0.6  # the numbers of pictures start again for each patient
    upper = rng.random() < 0.2
    paths, owners, count = [], [], start
    for person in range(rng.randrange(25, 60)):
        name = f"{word}{start + person:0{width}d}"
        for picture in range(rng.choice((1, 1, 2, 3, 8))):
            count += 1
            number = picture + 1 if restart else count
            top = rng.choice(tops)
            inner = rng.choice(below.split("|")) + "/" if "|" in below else below
            suffix = rng.choice((".png", ".JPG")) if upper else ".png"
            paths.append(
                {
                    "folder": f"{top}{name}/{inner}image{number}{suffix}",
                    "study": f"{top}{name}/study{picture % 2 + 1}/{inner}{number}{suffix}",
                    "name": f"{top}{name}_{inner.replace('/', '_')}{number}{suffix}",
                    "end": f"{top}{number}_{person % 3}+{name}{suffix}",
                }[where]
            )
            owners.append(name)
    keep = list(dict.fromkeys(paths))  # a name may be drawn twice
    owner = dict(zip(paths, owners, strict=True))
    body = f"{word}[0-9]*" if word != "7-" else "7-*"
    return keep, [owner[path] for path in keep], {"name": f"({body})_*", "end": f"*+({body})"}.get(where, body)


@pytest.mark.parametrize("seed", range(60))
def test_no_patient_of_a_layout_is_divided_or_there_is_a_warning(seed):
    paths, owners, pattern = layout(seed)
    found = patients_by_pattern(paths, pattern)
    assert found == owners
    for named in (True, False):
        manifest = listed(paths, found if named else None)
        known = known_patients(manifest.used)
        warning = known.warning()
        assert not (named and warning)
        for config in (SplitConfig(block=10, seed=seed), SplitConfig(protocol=("kfold", "blocks")[seed % 2])):
            try:
                used = assign_splits(manifest, config).used
            except InputError:
                continue
            assert leaks(used) == []
            part = part_of(used["split"])
            owner = pd.Series(owners, manifest.table.index)
            divided = (part[part != ""].groupby(owner[part != ""]).nunique() > 1).any()
            # Blocks of a running number may divide a patient at their edges, which the audit says.
            expected = not named and bool(warning or known.numbered == known.images)
            assert not divided or expected, (paths[:9], config)
