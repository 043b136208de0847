"""The ingest: known files are decoded as unknown ones are, and shards cover the used images once, in order."""

import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pandas as pd
import pytest
from drawn_fracatlas import Atlas, jpeg, picture

from fracray.config import DataConfig
from fracray.data import duplicates
from fracray.data.images import decode as imagefile
from fracray.data.images.letterbox import letterbox
from fracray.data.images.square import decode
from fracray.data.loading.ingest import SHARD_BYTES, _tasks, fingerprint, ingest
from fracray.data.loading.shards import open_shards
from fracray.data.prepare import examined
from fracray.errors import InputError, RunError
from fracray.runtime.console import new_console
from fracray.runtime.resources import Machine, promise
from fracray.runtime.storage import Folder


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(160, 200), (517, 403)])
def test_a_known_jpeg_is_decoded_as_an_unknown_one(orientation, width, height):
    data = jpeg(picture(3, width, height), orientation=orientation)
    shown = (width, height) if orientation < 5 else (height, width)
    known = imagefile.KnownGeometry(*shown, orientation)
    for size in (32, 64, 128):
        side = max(shown)
        assert np.array_equal(decode(data, side, size, known), decode(data, side, size))


def test_a_file_that_is_not_as_known_is_judged_again():
    data = jpeg(picture(3), orientation=6)
    for wrong in (
        imagefile.KnownGeometry(160, 200, 6),
        imagefile.KnownGeometry(90, 90, 1),
        imagefile.KnownGeometry(0, 0, 0),
    ):
        assert np.array_equal(decode(data, 200, 64, wrong), decode(data, 200, 64))
    with pytest.raises(ValueError, match="not decodable"):
        decode(data[: len(data) // 2], 200, 64, imagefile.KnownGeometry(200, 160, 6))


def test_rubbish_behind_the_end_and_png_take_the_careful_way():
    image = picture(5)
    png = cv2.imencode(".png", image)[1].tobytes()
    known = imagefile.KnownGeometry(160, 200, 1)
    assert np.array_equal(decode(png, 200, 64, known), letterbox(image, 64))
    data = jpeg(image)
    assert np.array_equal(decode(data + b"rubbish", 200, 64, known), decode(data, 200, 64))


# ---------------------------------------------------------------- shards


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    made = Atlas(tmp_path_factory.mktemp("atlas"))
    for number in range(24):
        made.add(number, label=number % 2)
    return made.write()


@pytest.fixture(scope="module")
def manifest(atlas, tmp_path_factory):
    return examined(DataConfig(source=str(atlas), cache=str(tmp_path_factory.mktemp("cache"))), new_console())


def test_shards_of_a_large_set_are_many_bounded_and_in_order(ray_local, manifest, tmp_path):
    size = 512
    many = replace(
        manifest,
        table=pd.concat(
            [manifest.used.assign(image_id=f"{n}-" + manifest.used["image_id"]) for n in range(4)], ignore_index=True
        ),
    )
    reported = []
    shards = ingest(many, size, Folder(tmp_path), lambda done, total: reported.append((done, total)))
    assert shards.count == len(many.used) == 96
    assert len(shards.files) == 3
    ends = [file.first + file.count for file in shards.files]
    assert [file.first for file in shards.files] == [0, *ends[:-1]]
    assert all(file.count * size * size <= SHARD_BYTES for file in shards.files)
    assert reported[-1] == (96, 96)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    images = shards.load()
    for row in (0, 31, 32, 95):
        path = many.root / many.used["path"].iloc[row]
        assert np.array_equal(images[row], decode(path.read_bytes(), 200, size))
    assert open_shards(shards.folder) == shards


@pytest.mark.parametrize(("count", "side"), [(1, 400), (3331, 413), (3331, 2600), (400_000, 413)])
@pytest.mark.parametrize("cpus", [1, 2, 16, 300])
def test_tasks_hold_complete_files_fewer_and_fewer_and_keep_all_cpus_busy(count, side, cpus):
    used = pd.DataFrame({"width": [side] * count, "height": [side] * count})
    tasks = _tasks(used, rows=64, cpus=cpus)
    sizes = [size for _, size in tasks]
    assert [start for start, _ in tasks] == [sum(sizes[:at]) for at in range(len(tasks))]
    assert sum(sizes) == count
    assert all(start % 64 == 0 for start, _ in tasks)
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) <= max(64, count / (2 * cpus))
    assert max(sizes) * side**2 < 1.4e9  # some two to four seconds of decoding
    assert sizes[-1] <= 64


def test_a_file_cut_after_it_was_examined_is_named(ray_local, manifest, tmp_path):
    first = manifest.used["path"].iloc[5]
    for path in manifest.used["path"]:
        copy = tmp_path / "set" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((manifest.root / path).read_bytes())
    cut = tmp_path / "set" / first
    cut.write_bytes(cut.read_bytes()[:-2000])
    with pytest.raises(RunError, match=f"{cut.name}: .*; it was readable when the data set was examined: restore"):
        ingest(replace(manifest, root=tmp_path / "set"), 32, Folder(tmp_path / "cache"))
    assert list((tmp_path / "cache" / "shards").iterdir()) == []


def test_machines_that_see_neither_radiographs_nor_cache_write_the_same_shards(
    ray_local, manifest, s3, tmp_path, monkeypatch
):
    """As on a cluster: an actor here sends the radiographs, and the shards are at a URI."""
    here = ingest(manifest, 64, Folder(tmp_path))
    monkeypatch.setenv(*promise([Machine(2, 0, 2)]).popitem())
    place = Folder(s3("cluster"))
    shards = ingest(manifest, 64, place)
    assert shards.files == here.files
    assert np.array_equal(shards.load(), here.load())
    before = place.names("shards")
    assert ingest(manifest, 64, place) == shards
    assert place.names("shards") == before == [shards.folder.name]
    alone_here = ingest(manifest, 64, Folder(tmp_path / "other"), shared=False)  # as evaluate does on a cluster
    assert np.array_equal(alone_here.load(), here.load())
    with pytest.raises(RunError, match=r"No such file.*; it was readable when the data set was examined"):
        ingest(replace(manifest, root=tmp_path / "gone"), 48, place)
    assert not place.exists(f"shards/{fingerprint(manifest, 48)}/index.json")


def test_shards_are_not_reused_when_other_rows_of_the_same_files_are_used(ray_local, manifest, tmp_path):
    """A repaired table, another box or a newer audit changes which rows are used, and no file, id or label."""
    ingest(manifest, 32, Folder(tmp_path))
    for column, value in (("status", "conflict"), ("duplicate_of", manifest.table["image_id"][2])):
        table = manifest.table.copy()
        table.loc[table.index[1], column] = value
        fewer = replace(manifest, table=table)
        assert fewer.fingerprint() == manifest.fingerprint()
        images = ingest(fewer, 32, Folder(tmp_path)).load()
        assert len(images) == len(fewer.used) == 23
        for row, path in enumerate(fewer.used["path"]):
            assert np.array_equal(images[row], decode((fewer.root / path).read_bytes(), 200, 32)), path


def test_shards_of_another_number_of_images_are_refused(ray_local, manifest, tmp_path):
    shards = ingest(manifest, 32, Folder(tmp_path))
    index = shards.folder.read_json("index.json")
    shards.folder.write_json("index.json", index | {"files": index["files"][:-1]})
    with pytest.raises(RunError, match=r"shards/\w+: holds \d+ images, not the 24 that are used; remove it"):
        ingest(manifest, 32, Folder(tmp_path))


# ---------------------------------------------------------------- the manifest is found again


def test_the_manifest_is_examined_again_when_a_file_changes_appears_or_moves(tmp_path):
    atlas = Atlas(tmp_path / "set")
    for number in range(4):
        atlas.add(number, label=number % 2)
    root = atlas.write()
    config = DataConfig(source=str(root), cache=str(tmp_path / "cache"))

    def examinations():
        examined(config, new_console())
        return len(list((tmp_path / "cache" / "manifests").iterdir()))

    assert [examinations(), examinations()] == [1, 1]
    image = root / "images" / "Non_fractured" / "IMG0000000.jpg"
    image.write_bytes(jpeg(picture(77)))
    assert examinations() == 2
    (root / "images" / "Fractured" / "dangling.jpg").symlink_to(root / "nowhere")
    assert examinations() == 3
    (root / "images" / "Fractured" / "dangling.jpg").unlink()
    image.rename(root / "images" / "Fractured" / image.name)
    assert examinations() == 4
    assert examinations() == 4


def test_files_behind_links_are_seen_to_change_too(tmp_path):
    atlas = Atlas(tmp_path / "disk")
    for number in range(4):
        atlas.add(number, label=number % 2)
    atlas.write()
    root = tmp_path / "set"
    root.mkdir()
    (root / "dataset.csv").symlink_to("../disk/dataset.csv")
    (root / "images").symlink_to("../disk/images")
    config = DataConfig(source=str(root), cache=str(tmp_path / "cache"))
    before = examined(config, new_console())
    image = tmp_path / "disk" / before.table["path"][0]
    image.write_bytes(jpeg(picture(77)))
    after = examined(config, new_console())
    assert after.table["sha256"][0] != before.table["sha256"][0]
    # Links in circles end, and so does one to itself; where a link leads to is told.
    (root / "images" / "around").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    assert examined(config, new_console()).fingerprint() == after.fingerprint()
    # A link that a set does not hold may lead to all of a disk, here to the cache itself: what is there does not count.
    (root / "away").symlink_to(tmp_path)
    examined(config, new_console())
    known = set((tmp_path / "cache" / "manifests").iterdir())
    (tmp_path / "more.jpg").write_bytes(jpeg(picture(79)))
    examined(config, new_console())
    assert set((tmp_path / "cache" / "manifests").iterdir()) == known
    (tmp_path / "other" / "Fractured").mkdir(parents=True)
    (tmp_path / "other" / "Fractured" / "IMG0000001.jpg").write_bytes(jpeg(picture(78)))
    (root / "images").unlink()
    (root / "images").symlink_to("../other")
    assert examined(config, new_console()).flow().missing == 3


def test_a_folder_that_may_not_be_listed_is_skipped_where_it_does_not_matter_and_named_where_it_does():
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        place.chmod(0o777)
        atlas = Atlas(place / "set")
        for number in range(4):
            atlas.add(number, label=number % 2)
        root = atlas.write()
        config = DataConfig(source=str(place), cache=str(place / "cache"))
        examined(config, new_console())  # loads what only root may read of Python itself
        config = config.model_copy(update={"cache": str(place / "own")})
        for closed in (root / "lost+found", place / "private"):
            closed.mkdir(mode=0)
        with as_nobody():
            assert examined(config, new_console()).flow().used == 4
        (root / "images" / "Fractured").chmod(0)
        with as_nobody(), pytest.raises(InputError, match=r"images/Fractured: cannot be listed: Permission denied; "):
            examined(config, new_console())


@contextmanager
def as_nobody():
    """Without the rights of root, who may read everything."""
    if root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


# ---------------------------------------------------------------- near duplicates in bounded memory


def test_near_duplicates_are_those_of_comparing_all_pairs(monkeypatch):
    import imagehash
    from PIL import Image

    originals = [picture(seed, 128, 128) for seed in range(40)]
    pictures = [
        *originals,
        *(cv2.convertScaleAbs(image, alpha=0.8, beta=10) for image in originals[:8]),
        *(cv2.imdecode(cv2.imencode(".jpg", image, [1, 40])[1], 0) for image in originals[8:16]),
    ]
    thumbs = np.stack([cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA) for image in pictures])
    hashes = np.array([int(str(imagehash.phash(Image.fromarray(thumb))), 16) for thumb in thumbs], dtype=np.uint64)
    found = {(a, b) for a, b, _ in duplicates.near_duplicates(thumbs, hashes)}
    assert found == {(at, 40 + at) for at in range(16)}
    expected = duplicates.near_duplicates(thumbs, hashes)
    monkeypatch.setattr(duplicates, "_BLOCK", 9)  # the last block is not full
    assert duplicates.near_duplicates(thumbs, hashes) == expected


@pytest.mark.parametrize("block", [1024, 9])
def test_hashes_are_near_up_to_18_differing_bits(monkeypatch, block):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    random = np.random.default_rng(0)
    first = random.integers(0, 2**64, dtype=np.uint64)
    flipped = [int(sum(1 << int(bit) for bit in random.permutation(64)[:count])) for count in range(65)]
    hashes = np.array([first, *(first ^ np.uint64(bits) for bits in flipped)], dtype=np.uint64)
    blocks = list(duplicates._near_pairs(hashes))
    pairs = {(int(a), int(b)) for left, right in blocks for a, b in zip(left, right, strict=True)}
    assert len(pairs) == sum(len(left) for left, _ in blocks)
    numbers = [int(one) for one in hashes]
    assert pairs == {
        (a, b) for b in range(len(numbers)) for a in range(b) if (numbers[a] ^ numbers[b]).bit_count() <= 18
    }
    assert (0, 19) in pairs  # 18 bits differ
    assert (0, 20) not in pairs
