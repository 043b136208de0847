"""The guard band over drawn layouts: no two parts are next to each other, and every image has exactly one fate."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fracray.config import AXES, Config, SplitConfig
from fracray.data.baselines import no_pixel_baselines
from fracray.data.file_numbers import number_files
from fracray.data.manifest import PARTS, UNUSED, Manifest, build, in_set, part_of
from fracray.data.splits.assign import assign_splits, explain, leaks
from fracray.data.splits.divide import divide
from fracray.errors import InputError

PROTOCOLS = ("grouped", "blocks", "kfold", "budget", "view", "device", "severity")


@st.composite
def layouts(draw: st.DrawFn) -> Manifest:
    """Series with gaps and repeated numbers, duplicates across blocks, files that are not used, some known patients."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows: list[dict] = []
    folders = draw(st.sampled_from((("",), ("a/", "b/"))))
    known = draw(st.sampled_from((0.0, 0.0, 0.3, 1.0)))
    for folder in folders:
        count = draw(st.integers(300, 600)) // len(folders)
        first = int(rng.integers(1, 5000))
        numbers = first + np.sort(rng.choice(int(count * draw(st.sampled_from((1, 2)))), count, replace=False))
        wave = rng.random(numbers.max() // 40 + 1)[numbers // 40]
        for number, ill in zip(numbers, rng.random(count) < 0.4 * wave + 0.1, strict=True):
            rows.append(
                {
                    "image_id": f"{folder}IMG{number:07d}",
                    "path": f"{folder}IMG{number:07d}.jpg",
                    "label": int(ill),
                    "status": "truncated" if rng.random() < 0.03 else "ok",
                    "batch": "old" if (number // 60) % 7 == 3 else "new",
                    "view": str(rng.choice(["frontal", "lateral", "oblique"], p=[0.6, 0.3, 0.1])),
                    "patient": f"p{number // 3}" if rng.random() < known else "",
                    "boxes": ((0.0, 0.0, *rng.uniform(2, 30, 2)),) if ill else (),
                    "boxes_width": 100,
                    "boxes_height": 120,
                }
            )
    for _ in range(int(rng.integers(0, 15))):
        one, other = rng.integers(len(rows), size=2)
        rows[one]["component"] = rows[other]["component"] = rows[min(one, other)]["image_id"]
    return build(rows, Path("drawn"))


@st.composite
def configs(draw: st.DrawFn) -> SplitConfig:
    protocol = draw(st.sampled_from(PROTOCOLS))
    return SplitConfig(
        protocol=protocol,
        shifts=draw(st.sampled_from(((), ("view",)))) if protocol not in AXES else (),
        block=draw(st.sampled_from((None, 5, 10, 20))),
        guard=draw(st.sampled_from((None, None, 0, 1, 2, 5))),
        fold=draw(st.integers(0, 4)),
        budget=60 if protocol == "budget" else draw(st.sampled_from((None, 60))),
        seed=draw(st.integers(0, 3)),
    )


def close(used: pd.DataFrame, distance: int) -> np.ndarray:
    """Which pairs of images, (n, n), have numbers of one series at most `distance` apart, and no known patient."""
    files = number_files(used)
    series, number = pd.factorize(files["series"])[0], files["number"].to_numpy()
    alone = ((used["patient"] == "") & (used["study"] == "")).to_numpy()
    near = np.abs(number[:, None] - number) <= distance
    return near & (series[:, None] == series) & alone[:, None] & alone


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(layouts(), configs(), st.integers(0, 3))
def test_no_parts_are_next_to_each_other_and_every_image_has_one_fate(manifest, config, rotation):
    try:
        divided = assign_splits(manifest, config, rotation)
    except InputError:
        assume(False)
    used, table = divided.used.sort_values("image_id"), divided.table
    part = part_of(used["split"]).map({"": -1, **{name: at for at, name in enumerate(PARTS)}}).to_numpy()
    near = close(used, config.guard_size)
    if config.guard_size:
        assert not (near & (part[:, None] >= 0) & (part >= 0) & (part[:, None] != part)).any()

    # each image is in sets of one part, or there is one reason why not; the flow counts all of them
    reason = used["unused"].to_numpy()
    assert ((part >= 0) == (reason == "")).all()
    assert set(reason) <= {"", *UNUSED}
    assert (table.loc[~table.index.isin(used.index), ["split", "unused"]] == "").all(axis=None)
    flow = divided.flow().as_dict()
    assert Counter(reason) == Counter({name: flow[name] for name in UNUSED if flow[name]} | {"": flow["in_parts"]})
    assert flow["found"] == len(table)
    assert leaks(table) == []

    # the test set is whole, and what is left out of the others is next to a later part, or a duplicate of such
    whole = assign_splits(manifest, config.model_copy(update={"guard": 0, "budget": None, **free(config)}), rotation)
    before = part_of(whole.used.sort_values("image_id")["split"])
    before = before.map({"": -1, **{name: at for at, name in enumerate(PARTS)}}).to_numpy()
    assert ((part == 2) == (before == 2)).all()
    assert ((part == before) | (part == -1)).all()
    assert set(np.unique(before[reason == "guard"])) <= {0, 1}
    kept = np.where(np.isin(reason, ("", "over_budget")), before, -1)
    component = used["component"].to_numpy()
    tied = np.isin(component, component[(before > 0) & (component != "")])  # in blocks: such were out before the guard
    dealt = np.where((reason == "held_out") & ~tied, 0, before)
    beside = (near & (kept > dealt[:, None])).any(axis=1) & (dealt >= 0)
    copies = np.isin(component, component[beside & (component != "")])
    wanted = (beside | copies) & (before >= 0) & (before < 2) & (config.guard_size > 0)
    assert ((reason == "guard") == wanted).all()


def free(config: SplitConfig) -> dict[str, str]:
    """The same division without the budget that protocol budget implies."""
    return {"protocol": "grouped"} if config.protocol == "budget" else {}


def listed(count: int = 1000, **columns) -> Manifest:
    rows = [{"image_id": f"IMG{n:07d}", "label": int(n % 5 == 0), "status": "ok"} for n in range(count)]
    manifest = build(rows, Path("drawn"))
    return replace(manifest, table=manifest.table.assign(**columns))


@pytest.mark.parametrize(
    ("settings", "guard"),
    [
        ({}, 5),
        ({"protocol": "blocks"}, 5),
        ({"protocol": "kfold"}, 5),
        ({"block": 20}, 2),
        ({"block": 9}, 0),
        ({"block": 1}, 0),
        ({"protocol": "random"}, 0),
        ({"block": 1, "guard": 3}, 3),
        ({"guard": 0}, 0),
    ],
)
def test_the_guard_is_5_numbers_and_at_most_a_tenth_of_a_block(settings, guard):
    assert SplitConfig(**settings).guard_size == guard


def test_where_all_patients_are_known_there_is_no_guard():
    """Their numbers say nothing: each patient has images all over the set."""
    known = listed(patient=[f"p{n % 100}" for n in range(1000)])
    assert assign_splits(known, SplitConfig(guard=50)).flow().guard == 0
    assert assign_splits(listed(), SplitConfig()).flow().guard > 0


def test_protocol_random_has_no_guard():
    assert assign_splits(listed(), SplitConfig(protocol="random")).flow().in_parts == 1000
    with pytest.raises(ValueError, match="protocol random mixes them; leave it out"):
        SplitConfig(protocol="random", guard=5)


def test_other_series_are_not_neighbours():
    rows = [
        {"image_id": f"{site}/{n}", "path": f"{site}/{n}.jpg", "label": int(n % 5 == 0), "status": "ok"}
        for site in "ab"
        for n in range(400)
    ]
    divided = assign_splits(build(rows, Path("drawn")), SplitConfig()).used
    site, number = divided["path"].str[0], divided["path"].str.extract(r"(\d+)\.")[0].astype(int)
    part = part_of(divided["split"])
    kept, lost = divided[part != ""].index, divided.index[divided["unused"] == "guard"]
    assert len(lost)
    for row in lost:
        mine = kept[(site[kept] == site[row]) & ((number[kept] - number[row]).abs() <= 5)]
        assert {"val", "test"} & set(part[mine])


def test_a_duplicate_of_an_image_in_the_band_goes_with_it():
    whole = assign_splits(listed(), SplitConfig(guard=0)).used["split"].tolist()
    lost = assign_splits(listed(), SplitConfig()).used["unused"].tolist()
    inner = [n for n, why in enumerate(lost) if whole[n] == "train" and not why]
    edge = next(n for n, why in enumerate(lost) if why and whole[n] == "train")
    copy = next(n for n in inner if n // 50 == edge // 50)  # the same block: groups stay as they are
    component = ["IMG_copies" if n in (edge, copy) else "" for n in range(1000)]
    manifest = listed(component=component)
    assert assign_splits(manifest, SplitConfig(guard=0)).used["split"].tolist() == whole
    again = assign_splits(manifest, SplitConfig()).used["unused"].tolist()
    assert [n for n in range(1000) if again[n] != lost[n]] == [copy]


@pytest.mark.parametrize("repeats", [1, 3])
def test_each_model_of_a_cross_validation_has_a_guard_of_its_own(tmp_path, repeats):
    manifest = listed()
    config = SplitConfig(protocol="kfold", folds=4, cross_validate=True, repeats=repeats)
    split = divide(manifest, config, True, tmp_path)
    near, tests = close(manifest.used, 5), set()
    for cells in (*split.rotations, *divide(manifest, config, True, tmp_path).rotations):  # computed, and read again
        part = part_of(pd.Series(cells)).to_numpy()
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            assert not (near & (part == one)[:, None] & (part == other)).any()
        tests.add("".join(np.where(part == "test", "x", " ")))
    assert len(split.rotations) == 3 * repeats
    assert len(tests) == 1


def test_what_goes_unused_is_counted_in_the_flow_and_said():
    config = SplitConfig()
    divided = assign_splits(listed(), config)
    flow = divided.flow()
    count = int((divided.table["unused"] == "guard").sum())
    assert flow.guard == count > 0
    assert flow.in_parts == flow.used - count
    assert f"guard {count}, in parts {1000 - count}" in flow.summary()
    assert f"{count} guard: within data.split.guard file numbers of a later part" in "\n".join(flow.lines())
    assert explain(divided, config) == (
        f"{count} images are within 5 file numbers of a later part, or duplicates of such, and are unused (a guard "
        "band: data.split.guard)",
    )


def test_a_guard_that_leaves_too_little_is_named():
    with pytest.raises(InputError, match=r"train would have \d+% .*lower data\.split\.guard \(now 100\)"):
        assign_splits(listed(), SplitConfig(guard=100))
    with pytest.raises(InputError) as error:
        assign_splits(listed(60), SplitConfig())
    assert "guard" not in str(error.value)  # there the blocks are at fault


# ---------------------------------------------------------------- what was made before there was a guard


def test_a_complete_config_without_a_guard_is_of_a_version_that_had_none():
    stored = Config().model_dump(mode="json")
    assert Config.model_validate(stored).data.split.guard is None
    del stored["data"]["split"]["guard"]
    assert Config.model_validate(stored).data.split.guard == 0
    del stored["data"]["split"]["seed"]  # a file written by hand
    assert Config.model_validate(stored).data.split.guard is None


def test_a_split_of_an_older_version_is_read_and_used_again(tmp_path):
    divided = assign_splits(listed(), SplitConfig(guard=0, budget=100))
    unused = int((divided.table["split"] == "").sum())
    path = tmp_path / "m.parquet"
    divided.write(path)
    pq.write_table(pq.read_table(path).drop_columns(["unused"]), path)
    assert Manifest.read(path).flow().unstated == unused > 0
    taken = assign_splits(listed(), SplitConfig(file=str(path)))
    assert taken.table["split"].tolist() == divided.table["split"].tolist()
    assert (taken.flow().unstated, taken.flow().in_parts) == (unused, 1000 - unused)


def test_on_fracatlas_no_neighbours_cross_a_border(fracatlas):
    """27 pairs of neighbours did; where one is fractured, 40% of both are, and 10% of pairs drawn at random."""
    open_, guarded = (assign_splits(fracatlas, SplitConfig(guard=guard)) for guard in (0, None))
    assert across(open_, 1)[0] == 27
    assert across(guarded, 5)[0] == 0
    assert guarded.flow().guard == 136
    assert (in_set(guarded.used["split"], "test") == in_set(open_.used["split"], "test")).all()
    found = [
        {one.part: one.auroc for one in no_pixel_baselines(divided.used) if one.name == "id neighbours"}["test"]
        for divided in (open_, guarded)
    ]
    assert found == pytest.approx([0.729, 0.705], abs=0.005)


def across(divided: Manifest, distance: int) -> tuple[int, float]:
    """How many pairs of images this close are in two parts, and the share of both fractured where one is."""
    used = divided.used
    part, label = part_of(used["split"]).to_numpy(), used["label"].to_numpy()
    pairs = np.triu(close(used, distance) & (part[:, None] != part) & (part != "") & (part[:, None] != ""), 1)
    one, other = np.nonzero(pairs)
    some = label[one] | label[other]
    return len(one), float((label[one] & label[other]).sum() / max(1, some.sum()))
