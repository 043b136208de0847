"""`augment.extra`: which transforms of albumentations are accepted, and the messages for the others."""

import inspect
import os
import pickle
import subprocess
import sys
import warnings

import albumentations as A
import pytest

from fracray.config import Config, load_config, parse_assignments
from fracray.config.extra_transforms import FrozenMap, SettingError, read_extra, thaw
from fracray.errors import InputError

CLAHE = {"CLAHE": {"clip_limit": [1, 4], "p": 0.3}}


def extra_of(**leaves):
    return Config().with_leaves({f"augment.extra.{path.replace('__', '.')}": value for path, value in leaves.items()})


# ---- what is accepted


def test_transforms_keep_their_order_and_have_a_probability():
    config = Config().with_leaves({"augment.extra": {"GaussNoise": None, **CLAHE}})
    assert thaw(config.augment.extra) == {"GaussNoise": {"p": 0.5}, **CLAHE}
    assert list(config.augment.extra) == ["GaussNoise", "CLAHE"]
    other = Config().with_leaves({"augment.extra": {**CLAHE, "GaussNoise": {"p": 0.5}}})
    assert other != config  # the order is part of the augmentation


def test_a_config_with_transforms_is_frozen_hashed_pickled_saved_and_read_back(tmp_path):
    config = Config().with_leaves({"augment.extra": CLAHE, "augment.extra.CoarseDropout.p": 0.2})
    same = Config().with_leaves({"augment.extra": {**CLAHE, "CoarseDropout": {"p": 0.2}}})
    assert config == same
    assert hash(config) == hash(same) == hash(pickle.loads(pickle.dumps(config)))
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) != hash(Config())
    with pytest.raises(TypeError):
        config.augment.extra["CLAHE"] = FrozenMap()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert config.with_leaves(config.leaves()) == config


def test_a_config_that_was_saved_without_extra_still_loads(tmp_path):
    old = Config().model_dump(mode="json")
    del old["augment"]["extra"]
    assert Config.model_validate(old) == Config()


def test_arguments_are_leaves_and_lists_are_leaves_by_position():
    leaves = Config().with_leaves({"augment.extra": CLAHE}).leaves()
    found = {path: value for path, value in leaves.items() if path.startswith("augment.extra")}
    assert found == {
        "augment.extra.CLAHE.clip_limit.0": 1,
        "augment.extra.CLAHE.clip_limit.1": 4,
        "augment.extra.CLAHE.p": 0.3,
    }


def test_the_values_that_are_given_stay_as_they_are():
    given = {"CLAHE": {"clip_limit": [1, 4]}}
    Config().with_leaves({"augment.extra": given, "augment.extra.CLAHE.clip_limit.1": 8, "augment.extra.Blur.p": 0.2})
    assert given == {"CLAHE": {"clip_limit": [1, 4]}}


def test_paths_add_what_is_not_there():
    assert thaw(extra_of(CLAHE__p=0.1).augment.extra) == {"CLAHE": {"p": 0.1}}
    noise = extra_of(GaussNoise__std_range__1=0.3).augment.extra["GaussNoise"]
    assert noise["std_range"] == (inspect.signature(A.GaussNoise).parameters["std_range"].default[0], 0.3)


def test_command_line_words_set_a_transform_or_one_argument():
    words = ["augment.extra.CLAHE={clip_limit: [1, 4], p: 0.3}", "augment.extra.CLAHE.clip_limit.1=8"]
    assert thaw(Config().with_leaves(parse_assignments(words)).augment.extra) == {
        "CLAHE": {"clip_limit": [1, 8], "p": 0.3}
    }
    assert Config().with_leaves({"augment.extra": CLAHE}).with_leaves({"augment.extra": {}}) == Config()


def test_numbers_that_yaml_reads_as_strings_are_numbers():
    assert extra_of(GaussNoise__std_range=["1e-2", "5e-2"]).augment.extra["GaussNoise"]["std_range"] == (0.01, 0.05)


def test_every_transform_of_albumentations_is_accepted_or_refused_with_a_reason():
    bases = (A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D)
    slow = {"Superpixels", "PiecewiseAffine"}
    names = {
        name
        for name, kind in vars(A).items()
        if inspect.isclass(kind) and issubclass(kind, A.BasicTransform) and kind not in bases and name not in slow
    }
    accepted, reasons = set(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a refusal is how the user learns of a fault, not a warning
        for name in names:
            try:
                read_extra({name: {}})
                accepted.add(name)
            except SettingError as error:
                reasons[name] = error.path[0], str(error)
    assert all(path == name and message for name, (path, message) in reasons.items())
    assert accepted >= {"CLAHE", "CoarseDropout", "GaussNoise", "RandomGamma", "ElasticTransform", "Sharpen", "Affine"}
    assert not accepted & {"RandomCrop", "Resize", "ToFloat", "ToRGB", "RandomFog", "FDA", "MaskDropout", "Lambda"}


# ---- what is refused: the transform, the argument and the place are named


@pytest.mark.parametrize(
    ("extra", "path", "words"),
    [
        ({"CLAEH": {}}, "CLAEH", "albumentations has no transform 'CLAEH' (did you mean 'CLAHE'?)"),
        ({"Compose": {}}, "Compose", "albumentations has no transform 'Compose'"),
        ({"CLAHE": {"clip_limt": 3}}, "CLAHE.clip_limt", "no argument 'clip_limt' (did you mean 'clip_limit'?)"),
        ({"CLAHE": {"always_apply": True}}, "CLAHE.always_apply", "CLAHE has no argument 'always_apply'"),
        ({"CLAHE": {"p": 2}}, "CLAHE.p = 2", "less than or equal to 1"),
        ({"CLAHE": {"clip_limit": "x"}}, "CLAHE.clip_limit = 'x'", "valid number"),
        ({"GaussNoise": {"std_range": [0.3, 0.1]}}, "GaussNoise.std_range = [0.3, 0.1]", "less than the second"),
        ({"CLAHE": {"p": float("nan")}}, "CLAHE.p = nan", "finite"),
        ({"CLAHE": [1]}, "CLAHE = [1]", "expected a mapping of arguments"),
        ({"MedianBlur": {"blur_limit": 4}}, "MedianBlur", "must be odd"),
        ({"RandomCrop": {"height": 64, "width": 64}}, "RandomCrop", "it sets the size of the image"),
        ({"RandomScale": {}}, "RandomScale", "it turns an image of (64, 64) pixels into"),
        ({"CropAndPad": {"percent": 0.1, "keep_size": False}}, "CropAndPad", "the size is that of data.size"),
        ({"ToFloat": {}}, "ToFloat", "it turns uint8 gray levels into float32"),
        (
            {"RandomFog": {}},
            "RandomFog",
            "cannot be applied to a gray radiograph: This transformation expects 3-channel",
        ),
        ({"ChannelShuffle": {}}, "ChannelShuffle", "does not change an image with one channel"),
        ({"HistogramMatching": {}}, "HistogramMatching", "it needs hm_metadata as well"),
        ({"GridElasticDeform": {"magnitude": 3}}, "GridElasticDeform", "needs the argument 'num_grid_xy'"),
        ({"ShiftScaleRotate": {}}, "ShiftScaleRotate", "Please use Affine transform instead"),
    ],
    ids=str,
)
def test_a_fault_is_named_with_transform_argument_and_place(extra, path, words):
    with pytest.raises(InputError) as error:
        Config().with_leaves({"augment.extra": extra}, "--set")
    assert str(error.value).startswith(f"--set: augment.extra.{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_mapping_is_refused_with_an_example():
    with pytest.raises(InputError, match=r"--set: augment\.extra = 5: expected a mapping .*CLAHE"):
        Config().with_leaves({"augment.extra": 5}, "--set")


@pytest.mark.parametrize("path", ["augment.extra.CLAHE.clip_limit.7", "augment.extra.CLAHE.clip_limit.high"])
def test_a_place_that_a_list_does_not_have_is_refused(path):
    config = Config().with_leaves({"augment.extra": CLAHE})
    with pytest.raises(InputError, match=r"is not a setting; the list has the places 0 to 1"):
        config.with_leaves({path: 1})
    with pytest.raises(InputError, match=r"is not a setting; augment\.extra\.CLAHE\.p is 0\.3"):
        config.with_leaves({"augment.extra.CLAHE.p.0": 1})


def test_extra_transforms_and_the_gpu_are_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"--set: augment\.extra: CLAHE can only run on the CPU.*augment_on=cpu"):
        Config().with_leaves({"augment.extra": CLAHE, "data.augment_on": "gpu"}, "--set")


# ---- what is imported


def python(code):
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


def test_configs_without_extra_and_the_usage_import_no_albumentations_and_nothing_slow():
    code = (
        "import sys; sys.argv = ['fracray', '--help']; from fracray.cli import main; main()\n"
        "from fracray.config import Config; Config().with_leaves({'augment.rotate': 3})\n"
        "print([name for name in ('albumentations', 'torch', 'ray', 'numpy', 'cv2') if name in sys.modules])"
    )
    assert python(code).stdout.splitlines()[-1] == "[]"


def test_the_module_of_augmentation_imports_neither_torch_nor_ray_nor_albumentations():
    code = (
        "import sys, fracray.data.loading.augment, fracray.data.loading.plan\n"
        "print([name for name in ('albumentations', 'torch', 'ray') if name in sys.modules])"
    )
    assert python(code).stdout.splitlines()[-1] == "[]"


def test_albumentations_looks_for_no_newer_version():
    code = (
        "import urllib.request\n"
        "def refuse(*_, **__): raise SystemExit('it asked the network')\n"
        "urllib.request.OpenerDirector.open = refuse\n"
        "from fracray.config import Config; import sys\n"
        "Config().with_leaves({'augment.extra.CLAHE.p': 0.5}); print('albumentations' in sys.modules)"
    )
    assert python(code).stdout.splitlines()[-1] == "True"


def test_what_was_checked_before_is_read_without_albumentations():
    """A checkpoint opens for inference also where albumentations is another version, or slow to import."""
    code = (
        "import sys; from fracray.config import Config, resolve\n"
        "tree = Config().model_dump()\n"
        "tree['augment']['extra'] = {'NoLongerThere': {'clip_limit': [1, 4], 'p': 0.3}}\n"
        "config = resolve(tree, 'config.json', known_extra=True).with_leaves({'data.size': 64})\n"
        "assert config.leaves()['augment.extra.NoLongerThere.clip_limit.1'] == 4\n"
        "assert 'albumentations' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
