"""Search-space files: what they become, and that each fault is named with file, line and key."""

import warnings
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fracray.config import Config
from fracray.errors import InputError
from fracray.runtime.console import new_console
from fracray.search.auto import resolved
from fracray.search.space import SearchSpace
from fracray.search.space_file import load_space
from fracray.search.study import StudySearcher, sampler

SHIPPED = sorted((Path(__file__).parent.parent.parent / "search_spaces").glob("*.yaml"))

COMPLETE = """
metric: val_auroc
mode: max
trials: 9
epochs: 7
concurrent: 3
sampler: {name: tpe, seed: 5, startup_trials: 3}
scheduler: {name: median, grace_epochs: 1}
base:
  data: {size: 64}
  model: {width: 8}
space:
  model.dropout: {float: [0.0, 0.6]}
  augment.scale: {float: [0, 0.3], step: 1e-1}
  train.lr: {log_float: [1e-4, 1e-2]}
  train.batch_size: {int: [16, 64], step: 16}
  model.width: {log_int: [4, 64]}
  train.loss: {categorical: [weighted, focal]}
  train.focal_gamma: {float: [1, 3], when: {train.loss: focal}}
"""


def write(tmp_path, text):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return file


def space_of(tmp_path, body, top=""):
    return load_space(write(tmp_path, f"{top}\nspace:\n{body}"))


# ---- what a file becomes


def test_a_file_becomes_a_config_and_optuna_distributions(tmp_path):
    space = load_space(write(tmp_path, COMPLETE))
    config = space.config
    assert space.metrics == ("val_auroc",)
    assert (config.search.trials, config.train.epochs, config.search.concurrent) == (9, 7, 3)
    assert (config.search.sampler.seed, config.search.scheduler.name) == (5, "median")
    assert (config.data.size, config.model.width) == (64, 8)
    assert {dimension.path: dimension.distribution for dimension in space.dimensions} == {
        "model.dropout": FloatDistribution(0.0, 0.6),
        "augment.scale": FloatDistribution(0.0, 0.3, step=0.1),
        "train.lr": FloatDistribution(1e-4, 1e-2, log=True),
        "train.batch_size": IntDistribution(16, 64, step=16),
        "model.width": IntDistribution(4, 64, log=True),
        "train.loss": CategoricalDistribution(["weighted", "focal"]),
        "train.focal_gamma": FloatDistribution(1.0, 3.0),
    }


def test_what_the_file_leaves_out_keeps_its_default(tmp_path):
    space = space_of(tmp_path, "  model.dropout: {float: [0, 0.5]}")
    assert space.config == Config()


def test_the_command_line_wins_over_the_file_and_fixes_a_dimension(tmp_path):
    space = load_space(write(tmp_path, COMPLETE), {"search.trials": 2, "model.dropout": 0.15})
    assert space.config.search.trials == 2
    assert space.config.model.dropout == 0.15
    assert "model.dropout" not in [dimension.path for dimension in space.dimensions]


def test_fixing_every_dimension_leaves_no_search(tmp_path):
    file = write(tmp_path, "space:\n  model.dropout: {float: [0, 0.5]}\n")
    with pytest.raises(InputError, match=r"nothing is left to search; use fracray\.train"):
        load_space(file, {"model.dropout": 0.1})


def test_fixing_a_condition_away_is_no_fault_of_the_file(tmp_path):
    space = load_space(write(tmp_path, COMPLETE), {"train.loss": "weighted"})
    assert "train.focal_gamma" not in space.suggest(optuna.create_study().ask())


def test_defaults_are_the_configs_own_values_of_what_is_searched(tmp_path):
    values, outside = load_space(write(tmp_path, COMPLETE)).defaults()
    default = Config()
    assert values == {
        "model.dropout": default.model.dropout,
        "augment.scale": default.augment.scale,
        "train.lr": default.train.lr,
        "train.batch_size": default.train.batch_size,
        "model.width": 8,  # base's
        "train.loss": "weighted",
    }  # and no focal_gamma: its condition does not hold
    assert outside == []


@pytest.mark.parametrize(
    ("dimension", "path"),
    [
        ("model.dropout: {float: [0.3, 0.6]}", "model.dropout"),
        ("model.dropout: {float: [0, 0.6], step: 0.15}", "model.dropout"),  # between two steps
        ("train.loss: {categorical: [focal, plain]}", "train.loss"),
        ("model.weights: {categorical: [imagenet]}", "model.weights"),
        ("train.threads: {int: [1, 2]}", "train.threads"),  # the default is null
    ],
)
def test_a_default_outside_the_space_is_reported(tmp_path, dimension, path):
    assert space_of(tmp_path, f"  {dimension}").defaults()[1] == [path]


def test_choices_are_held_as_the_setting_holds_them(tmp_path):
    space = space_of(
        tmp_path, "  train.lr: {categorical: [1e-3, 2e-3]}\n  model.weights: {categorical: [null, imagenet]}"
    )
    assert space.dimensions[0].distribution.choices == (0.001, 0.002)  # YAML 1.1 takes 1e-3 for a string
    assert space.dimensions[1].distribution.choices == (None, "imagenet")
    assert space.defaults() == ({"train.lr": 0.002, "model.weights": None}, [])


def test_a_condition_stands_before_what_depends_on_it(tmp_path):
    space = space_of(
        tmp_path,
        "  train.focal_gamma: {float: [1, 3], when: {train.loss: focal}}\n"
        "  train.loss: {categorical: [weighted, focal], when: {model.freeze_norm: [true]}}\n"
        "  model.freeze_norm: {categorical: [true, false]}\n",
    )
    assert [dimension.path for dimension in space.dimensions] == [
        "model.freeze_norm",
        "train.loss",
        "train.focal_gamma",
    ]


# ---- faults: the file's text, the line that is at fault, words that must be in the message

DROPOUT = "space:\n  model.dropout: {float: [0, 0.5]}\n"
FAULTS = {
    "unknown top key": (f"trails: 3\n{DROPOUT}", 1, ["unknown key 'trails'", "did you mean 'trials'?"]),
    "unknown key of a dimension": (
        "space:\n  model.dropout:\n    flaot: [0, 0.5]\n",
        3,
        ["model.dropout", "unknown key 'flaot'", "did you mean 'float'?"],
    ),
    "unknown key in base": (
        f"base:\n  model:\n    dropuot: 0.1\n{DROPOUT}",
        3,
        ["'model.dropuot' is not a setting", "did you mean 'model.dropout'?"],
    ),
    "unknown key of the sampler": (f"sampler:\n  sed: 1\n{DROPOUT}", 2, ["search.sampler.sed", "search.sampler.seed"]),
    "unknown sampler": (
        f"trials: 2\nsampler: {{name: bohb}}\n{DROPOUT}",
        2,
        ["search.sampler.name", "'tpe'", "'cmaes'"],
    ),
    "unknown scheduler": (f"scheduler: {{name: pbt}}\n{DROPOUT}", 1, ["search.scheduler.name", "'asha'"]),
    "trials that are no number": (f"mode: max\ntrials: many\n{DROPOUT}", 2, ["search.trials = 'many'", "integer"]),
    "no trials": (f"trials: 0\n{DROPOUT}", 1, ["search.trials = 0", "greater than or equal to 1"]),
    "epochs that are no number": (f"epochs: long\n{DROPOUT}", 1, ["train.epochs = 'long'"]),
    "base value out of range": (f"base:\n  model: {{dropout: 2}}\n{DROPOUT}", 2, ["model.dropout = 2", "less than 1"]),
    "base section no mapping": (f"epochs: 3\nbase: {{train: 5}}\n{DROPOUT}", 2, ["train = 5", "dictionary"]),
    "base no mapping": (f"base: [a]\n{DROPOUT}", 1, ["base must be a mapping"]),
    "search in base": (
        f"base:\n  search: {{trials: 3}}\n{DROPOUT}",
        2,
        ["write the settings of the search at the top of the file"],
    ),
    "unknown path": (
        "space:\n  model.dropout: {float: [0, 0.5]}\n  model.spatial: {float: [0, 0.5]}\n",
        3,
        ["'model.spatial' is not a setting", "did you mean 'model.spatial_dropout'?"],
    ),
    "path of a section": ("space:\n  augment: {float: [0, 1]}\n", 2, ["'augment'", "augment.rotate"]),
    "path that cannot be compared": ("space:\n  data.size: {int: [32, 64]}\n", 2, ["data.size cannot be searched"]),
    "searched epochs": ("space:\n  train.epochs: {int: [1, 9]}\n", 2, ["train.epochs cannot be searched"]),
    "range from high to low": (
        "space:\n  model.dropout: {float: [0.5, 0.1]}\n",
        2,
        ["low must be below high in the range [0.5, 0.1]"],
    ),
    "empty range": ("space:\n  model.dropout: {float: [0.5, 0.5]}\n", 2, ["low must be below high"]),
    "infinite range": ("space:\n  train.lr: {float: [0.1, .inf]}\n", 2, ["train.lr", "low must be below high"]),
    "range of one number": ("space:\n  model.dropout: {float: [0.5]}\n", 2, ["two numbers, [low, high]; got [0.5]"]),
    "range of words": ("space:\n  model.dropout: {float: [low, high]}\n", 2, ["two numbers"]),
    "range without a kind": ("space:\n  model.dropout: [0, 0.5]\n", 2, ["{kind: [...]}", "log_float"]),
    "two kinds": ("space:\n  model.dropout: {float: [0, 1], int: [0, 1]}\n", 2, ["exactly one kind"]),
    "no kind": ("space:\n  model.dropout: {step: 0.1}\n", 2, ["exactly one kind"]),
    "kind of another type": ("space:\n  train.loss: {float: [0, 1]}\n", 2, ["train.loss = 0.0", "'weighted'"]),
    "float range of a whole number": (
        "space:\n  train.batch_size: {float: [16, 64]}\n",
        2,
        ["train.batch_size = ", "valid integer"],
    ),
    "int range with fractions": ("space:\n  train.batch_size: {int: [1.5, 3]}\n", 2, ["integers; got [1.5, 3]"]),
    "log range from 0": ("space:\n  train.lr: {log_float: [0, 0.1]}\n", 2, ["must start above 0; got 0"]),
    "log_int range from 0": ("space:\n  model.width: {log_int: [0, 64]}\n", 2, ["must start above 0"]),
    "step that does not divide": (
        "space:\n  model.dropout: {float: [0, 0.5], step: 0.2}\n",
        2,
        ["[0, 0.5] is not a multiple of the step 0.2"],
    ),
    "int step that does not divide": (
        "space:\n  train.batch_size: {int: [16, 64], step: 10}\n",
        2,
        ["not a multiple of the step 10"],
    ),
    "step of 0": ("space:\n  model.dropout: {float: [0, 0.5], step: 0}\n", 2, ["step must be", "got 0"]),
    "step on a log range": ("space:\n  train.lr: {log_float: [0.001, 0.1], step: 0.01}\n", 2, ["not logarithmic"]),
    "choices twice": ("space:\n  train.loss: {categorical: [focal, focal]}\n", 2, ["distinct values"]),
    "choices twice once typed": ("space:\n  train.lr: {categorical: [1, 1.0]}\n", 2, ["distinct values"]),
    "choices with a step": ("space:\n  train.lr: {categorical: [1, 2], step: 1}\n", 2, ["no step"]),
    "no choices": ("space:\n  train.loss: {categorical: []}\n", 2, ["categorical takes a list"]),
    "choice that is no value of the setting": (
        "space:\n  train.loss: {categorical: [focal, hinge]}\n",
        2,
        ["train.loss = 'hinge'", "'weighted', 'focal' or 'plain'"],
    ),
    "choice that is a list": ("space:\n  model.dropout: {categorical: [[0, 1]]}\n", 2, ["model.dropout = [0, 1]"]),
    "values that the setting does not admit": (
        "space:\n  model.dropout: {float: [0, 1.5]}\n",
        2,
        ["model.dropout = 1.5", "less than 1"],
    ),
    "conditions in a circle": (
        "space:\n  model.freeze_norm: {categorical: [true, false], when: {train.compile: true}}\n"
        "  train.compile: {categorical: [true, false], when: {model.freeze_norm: true}}\n",
        2,
        ["model.freeze_norm, train.compile depend on each other"],
    ),
    "its own condition": (
        "space:\n  train.compile: {categorical: [true, false], when: {train.compile: true}}\n",
        2,
        ["cannot be its own condition"],
    ),
    "condition on an unknown path": (
        "space:\n  model.dropout:\n    float: [0, 0.5]\n    when: {model.nme: x}\n",
        4,
        ["'model.nme' is not a setting", "did you mean 'model.name'?"],
    ),
    "condition without a value": (
        "space:\n  model.dropout: {float: [0, 0.5], when: {model.name: []}}\n",
        2,
        ["when takes a mapping"],
    ),
    "condition that is a word": (
        "space:\n  model.dropout: {float: [0, 0.5], when: often}\n",
        2,
        ["when takes a mapping"],
    ),
    "condition value that never occurs": (
        "space:\n  train.loss: {categorical: [weighted, focal]}\n"
        "  train.focal_gamma: {float: [1, 3], when: {train.loss: plain}}\n",
        3,
        ["train.loss is never 'plain'", "['weighted', 'focal']"],
    ),
    "condition value outside a range": (
        "space:\n  model.width: {int: [8, 64]}\n  model.dropout: {float: [0, 0.5], when: {model.width: 100}}\n",
        3,
        ["model.width is never 100", "[8, 64]"],
    ),
    "condition on a setting that is fixed otherwise": (
        "space:\n  train.lr: {float: [0.1, 0.2]}\n  model.dropout: {float: [0, 0.5], when: {model.name: resnet18}}\n",
        3,
        ["model.name is 'fracture_cnn' in every trial"],
    ),
    "unknown metric": (f"metric: val_auc\n{DROPOUT}", 1, ["'val_auc' is not reported", "did you mean 'val_auroc'?"]),
    "no metric": (f"metric: []\n{DROPOUT}", 1, ["takes one reported metric or a list"]),
    "metric twice": (f"metric: [val_f1, val_f1]\nscheduler: {{name: none}}\n{DROPOUT}", 1, ["list of different ones"]),
    "loss is not maximised": (f"mode: max\nmetric: val_loss\n{DROPOUT}", 1, ["better when lower; set mode: min"]),
    "loss with the default mode": (f"trials: 2\nmetric: val_loss\n{DROPOUT}", 2, ["set mode: min"]),
    "accuracy is not minimised": (
        f"metric: val_accuracy\nmode: min\n{DROPOUT}",
        2,
        ["better when higher; set mode: max"],
    ),
    "metrics of two directions": (
        f"metric: [val_auroc, val_brier]\nscheduler: {{name: none}}\n{DROPOUT}",
        1,
        ["val_auroc, val_brier", "one mode"],
    ),
    "Pareto front with early stopping": (
        f"metric: [val_f1, val_auroc]\nscheduler: {{name: asha}}\n{DROPOUT}",
        2,
        ["set scheduler: {name: none}"],
    ),
    "Pareto front with cmaes": (
        f"metric: [val_f1, val_auroc]\nscheduler: {{name: none}}\nsampler: {{name: cmaes}}\n{DROPOUT}",
        3,
        ["use tpe, nsga2 or random"],
    ),
    "grid over a continuous range": (
        f"sampler: {{name: grid}}\n{DROPOUT}",
        3,
        ["model.dropout", "give the range a step"],
    ),
    "grid over a log range": (
        "sampler: {name: grid}\nspace:\n  model.width: {log_int: [4, 64]}\n",
        3,
        ["use {categorical: [...]}"],
    ),
    "grid with conditions": (
        "sampler: {name: grid}\nspace:\n  train.loss: {categorical: [weighted, focal]}\n"
        "  train.focal_gamma: {float: [1, 3], step: 1, when: {train.loss: focal}}\n",
        4,
        ["train.focal_gamma", "a grid takes no conditional dimensions"],
    ),
    "key twice": (f"{DROPOUT}  model.dropout: {{float: [0, 0.4]}}\n", 3, ["'model.dropout' is given twice", "line 2"]),
    "key twice deep inside": (
        f"base:\n  model:\n    dropout: 0.1\n    dropout: 0.2\n{DROPOUT}",
        4,
        ["'dropout' is given twice", "line 3"],
    ),
    "broken YAML": ("trials: 3\nspace: {model.dropout: [\n", 3, ["not valid YAML"]),
    "tab in YAML": ("space:\n\tmodel.dropout: 3\n", 2, ["not valid YAML"]),
    "object in YAML": ("trials: !!python/object/apply:os.getcwd []\n", 1, ["not valid YAML"]),
    "space that is a list": ("trials: 1\nspace: [model.dropout]\n", 2, ["space must be a mapping"]),
    "empty space": ("trials: 1\nspace:\n", 2, ["nothing to search"]),
    # no line to name
    "no space": ("trials: 3\n", None, ["nothing to search"]),
    "empty file": ("", None, ["expected a mapping with the keys metric, mode, constraints, trials"]),
    "list": ("- metric\n", None, ["expected a mapping"]),
    "alias inside itself": ("space: &a\n  model.dropout: *a\n", None, ["alias"]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named_with_file_line_and_key(tmp_path, case):
    text, line, words = FAULTS[case]
    file = write(tmp_path, text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # optuna would warn and continue with another value
        with pytest.raises(InputError) as error:
            load_space(file)
    message = str(error.value)
    assert message.startswith(f"{file}:{line}: " if line else f"{file}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such search-space file"):
        load_space(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="not readable"):
        load_space(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match=r"binary\.yaml"):
        load_space(tmp_path / "binary.yaml")


def test_a_bad_override_is_blamed_on_the_command_line(tmp_path):
    with pytest.raises(InputError, match=r"^command line: search\.trials = 0"):
        load_space(write(tmp_path, COMPLETE), {"search.trials": 0})


SHIFTED = """
metric: worst_val_auroc
base: {data: {split: {shifts: [device, view=lateral]}}}
space:
  model.dropout: {float: [0.0, 0.7]}
"""


def test_a_search_may_maximise_any_validation_set_their_mean_or_their_worst(tmp_path):
    for metric in ("val_accuracy", "val/device_accuracy", "val/view_auroc", "mean_val_f1", "worst_val_auroc"):
        space = load_space(write(tmp_path, SHIFTED.replace("worst_val_auroc", metric)))
        assert space.metrics == (metric,)
    with pytest.raises(InputError, match=r"yaml:2: metric 'val/region_auroc' is not reported.*worst_val_\*"):
        load_space(write(tmp_path, SHIFTED.replace("worst_val_auroc", "val/region_auroc")))
    with pytest.raises(InputError, match=r"'worst_val_auroc' is not reported"):  # without shifts there is one set
        load_space(write(tmp_path, SHIFTED.replace("shifts: [device, view=lateral]", "seed: 1")))
    with pytest.raises(InputError, match=r"worst_val_brier is better when lower; set mode: min"):
        load_space(write(tmp_path, SHIFTED.replace("worst_val_auroc", "worst_val_brier")))


# ---- what Optuna suggests

SEARCHED = """
  model.dropout: {float: [0.1, 0.6]}
  train.lr: {log_float: [1e-4, 1e-2]}
  train.batch_size: {int: [16, 64], step: 16}
  model.width: {log_int: [4, 64]}
"""
CONDITIONAL = """
  train.loss: {categorical: [weighted, focal, plain]}
  train.focal_gamma: {float: [1, 3], when: {train.loss: focal}}
  augment.rotate: {float: [0, 30], when: {train.loss: [focal, plain], train.batch_size: [16, 32]}}
"""


def run_study(space: SearchSpace, trials: int) -> list[dict]:
    """Leaves of `trials` trials of a study in memory, scored by a smooth function of them."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler(space), direction="maximize")
    chosen = []
    for _ in range(trials):
        trial = study.ask()
        leaves = space.suggest(trial)
        study.tell(trial, -((leaves["model.dropout"] - 0.3) ** 2) - leaves.get("train.focal_gamma", 2.0))
        chosen.append(leaves)
    return chosen


def admits(distribution, value):
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    inside = distribution.low <= value <= distribution.high
    if distribution.step is not None and not distribution.log:
        steps = (value - distribution.low) / distribution.step
        inside = inside and abs(steps - round(steps)) < 1e-9
    return inside and (isinstance(value, int) or isinstance(distribution, FloatDistribution))


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "cmaes"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_suggestions_lie_in_their_ranges_and_respect_conditions(tmp_path, sampler):
    space = space_of(tmp_path, SEARCHED + CONDITIONAL, f"sampler: {{name: {sampler}, startup_trials: 10}}")
    distributions = {dimension.path: dimension.distribution for dimension in space.dimensions}
    chosen = run_study(space, 30)
    for leaves in chosen:
        assert all(admits(distributions[path], value) for path, value in leaves.items())
        assert ("train.focal_gamma" in leaves) == (leaves["train.loss"] == "focal")
        assert ("augment.rotate" in leaves) == (
            leaves["train.loss"] != "weighted" and leaves["train.batch_size"] in (16, 32)
        )
        space.config.with_leaves(leaves)
    assert len({leaves["train.loss"] for leaves in chosen}) == 3
    assert len({leaves["model.dropout"] for leaves in chosen}) > 15


def test_a_samplers_seed_decides_its_suggestions(tmp_path):
    def first(seed):
        return run_study(space_of(tmp_path, SEARCHED, f"sampler: {{name: tpe, seed: {seed}, startup_trials: 3}}"), 6)

    assert first(1) == first(1) != first(2)


def test_a_model_of_the_past_is_used_after_the_startup_trials(tmp_path):
    """TPE, the Gaussian process and CMA-ES come nearer to the optimum than their own random start."""
    for name in ("tpe", "gp", "cmaes"):
        space = space_of(tmp_path, SEARCHED, f"sampler: {{name: {name}, startup_trials: 10}}\ntrials: 60")
        misses = [abs(leaves["model.dropout"] - 0.3) for leaves in run_study(space, 60)]
        assert sum(misses[-20:]) / 20 < 0.6 * sum(misses[:10]) / 10


# ---- grids

GRID = """
  model.dropout: {float: [0.1, 0.3], step: 0.1}
  train.batch_size: {int: [32, 64], step: 32}
  train.loss: {categorical: [weighted, focal]}
"""


def test_a_grid_has_every_combination_once(tmp_path):
    space = space_of(tmp_path, GRID, "sampler: {name: grid}")
    assert space.grid() == {
        "model.dropout": [0.1, 0.2, 0.3],
        "train.batch_size": [32, 64],
        "train.loss": ["weighted", "focal"],
    }
    points = list(space.points())
    assert len({tuple(point.items()) for point in points}) == len(points) == space.grid_points == 12
    assert points == list(space.points())
    assert points != list(space_of(tmp_path, GRID, "sampler: {name: grid, seed: 1}").points())


def test_a_grid_that_lacks_the_default_has_one_trial_more(tmp_path):
    space = space_of(tmp_path, "  model.dropout: {categorical: [0.3, 0.4]}", "sampler: {name: grid}")
    assert space.grid_points == 3
    assert space_of(tmp_path, GRID).grid_points is None


# ---- transforms of augment.extra

EXTRA = """
base: {augment: {extra: {CLAHE: {clip_limit: [1, 4], p: 0.2}}}}
space:
  augment.extra.CLAHE.p: {float: [0.0, 0.5]}
  augment.extra.CLAHE.clip_limit.1: {float: [2, 8]}
  augment.extra.CoarseDropout.p: {float: [0, 0.5]}
  augment.extra.CoarseDropout.num_holes_range.1: {int: [2, 6]}
  augment.extra.CoarseDropout.fill: {categorical: [0, random_uniform]}
"""


def test_extra_transforms_are_searched_and_those_not_in_base_are_off_by_default(tmp_path):
    space = load_space(write(tmp_path, EXTRA))
    assert (
        space.config.augment.extra["CLAHE"]
        == Config().with_leaves({"augment.extra.CLAHE": {"clip_limit": [1, 4], "p": 0.2}}).augment.extra["CLAHE"]
    )
    assert space.config.augment.extra["CoarseDropout"]["p"] == 0.0
    values, outside = space.defaults()
    assert values["augment.extra.CLAHE.p"] == 0.2
    assert values["augment.extra.CLAHE.clip_limit.1"] == 4
    assert values["augment.extra.CoarseDropout.p"] == 0.0
    assert values["augment.extra.CoarseDropout.fill"] == 0
    assert outside == [path for path in values if not _inside(space, path, values[path])]
    searcher = StudySearcher(resolved(space, 2, new_console()), tmp_path / "journal", 12)
    for trial in range(12):
        leaves = searcher.suggest(str(trial))["leaves"]
        changed = space.config.with_leaves(leaves)
        assert all(changed.leaves()[path] == value for path, value in leaves.items())
        searcher.on_trial_complete(str(trial), {"best_val_accuracy": 0.5})


def _inside(space, path, value):
    spread = next(dimension.distribution for dimension in space.dimensions if dimension.path == path)
    return (
        value in spread.choices if isinstance(spread, CategoricalDistribution) else spread.low <= value <= spread.high
    )


def test_what_is_set_on_the_command_line_is_not_searched_nor_are_its_parts(tmp_path):
    file = write(tmp_path, EXTRA)
    space = load_space(file, {"augment.extra.CoarseDropout": {"p": 0.3}, "augment.extra.CLAHE.p": 0.1})
    assert [dimension.path for dimension in space.dimensions] == ["augment.extra.CLAHE.clip_limit.1"]
    assert space.config.augment.extra["CoarseDropout"]["p"] == 0.3
    with pytest.raises(InputError, match="--set fixes every dimension"):
        load_space(file, {"augment.extra": {}})


GPU = "base: {data: {augment_on: gpu}, augment: {extra: {CLAHE: {p: 0.2}}}}\n"
EXTRA_FAULTS = {
    "unknown transform in base": (
        "base:\n  augment:\n    extra:\n      CLAEH: {p: 0.2}\nspace: {model.dropout: {float: [0, 0.5]}}\n",
        4,
        ["augment.extra.CLAEH: albumentations has no transform 'CLAEH' (did you mean 'CLAHE'?)"],
    ),
    "unknown argument in base": (
        "base:\n  augment:\n    extra:\n      CLAHE:\n        clip: 2\nspace: {model.dropout: {float: [0, 0.5]}}\n",
        5,
        ["augment.extra.CLAHE.clip: CLAHE has no argument 'clip'"],
    ),
    "wrong value in base": (
        "base:\n  augment:\n    extra: {CLAHE: {p: 3}}\nspace: {model.dropout: {float: [0, 0.5]}}\n",
        3,
        ["augment.extra.CLAHE.p = 3", "less than or equal to 1"],
    ),
    "unknown transform": ("space:\n  augment.extra.CLAEH.p: {float: [0, 1]}\n", 2, ["no transform 'CLAEH'"]),
    "unknown argument": ("space:\n  augment.extra.CLAHE.q: {float: [0, 1]}\n", 2, ["CLAHE has no argument 'q'"]),
    "transform without argument": ("space:\n  augment.extra.CLAHE: {float: [0, 1]}\n", 2, ["augment.extra.CLAHE.p"]),
    "all of extra": ("space:\n  augment.extra: {float: [0, 1]}\n", 2, ["'augment.extra' is not a setting"]),
    "transform that no trial would apply": (
        "space:\n  augment.extra.CLAHE.clip_limit: {float: [1, 8]}\n",
        2,
        ["CLAHE is not in base, so no trial would apply it; search augment.extra.CLAHE.p too"],
    ),
    "list": (
        "base: {augment: {extra: {CLAHE: {clip_limit: [1, 4]}}}}\n"
        "space:\n  augment.extra.CLAHE.clip_limit: {float: [1, 8]}\n",
        3,
        ["name one of augment.extra.CLAHE.clip_limit.0, augment.extra.CLAHE.clip_limit.1"],
    ),
    "place that the list lacks": (
        "space:\n  augment.extra.GaussNoise.p: {float: [0, 1]}\n"
        "  augment.extra.GaussNoise.std_range.2: {float: [0, 1]}\n",
        3,
        ["'augment.extra.GaussNoise.std_range.2' is not a setting"],
    ),
    "range beyond the argument": ("space:\n  augment.extra.CLAHE.p: {float: [0, 1.5]}\n", 2, ["p = 1.5", "less than"]),
    "ends that cross": (
        "base: {augment: {extra: {GaussNoise: {std_range: [0.1, 0.2]}}}}\n"
        "space:\n  augment.extra.GaussNoise.std_range.0: {float: [0, 0.15]}\n"
        "  augment.extra.GaussNoise.std_range.1: {float: [0.12, 0.3]}\n",
        4,
        ["std_range = [0.15, 0.12]", "less than the second"],
    ),
    "condition on what is not there": (
        "space:\n  model.dropout: {float: [0, 1], when: {augment.extra.CLAHE.p: 0.5}}\n".replace("1]", "0.5]"),
        2,
        ["'augment.extra.CLAHE.p' is not a setting of this search"],
    ),
    "on the gpu": (f"{GPU}space: {{model.dropout: {{float: [0, 0.5]}}}}\n", 1, ["run on the CPU", "augment_on=cpu"]),
    "searched on the gpu": (
        "base: {data: {augment_on: gpu}}\nspace:\n  augment.extra.CLAHE.p: {float: [0, 1]}\n",
        3,
        ["CLAHE can only run on the CPU", "set data.augment_on=cpu"],
    ),
}


@pytest.mark.parametrize("case", EXTRA_FAULTS)
def test_a_fault_of_an_extra_transform_is_named_with_file_line_and_argument(tmp_path, case):
    text, line, words = EXTRA_FAULTS[case]
    file = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_space(file)
    assert str(error.value).startswith(f"{file}:{line}: ")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# ---- the files that are shipped


@pytest.mark.parametrize("file", SHIPPED, ids=[file.stem for file in SHIPPED])
def test_a_shipped_space_loads_and_begins_with_the_default(tmp_path, file):
    space = load_space(file)
    values, outside = space.defaults()
    assert outside == []
    first = StudySearcher(resolved(space, 2, new_console()), tmp_path / "journal", 3).suggest("a")
    assert first == {"number": 0, "leaves": values}
    assert space.config.with_leaves(first["leaves"]) == space.config


def test_the_missions_question_is_asked_by_reg():
    reg = load_space(next(file for file in SHIPPED if file.stem == "reg"))
    assert reg.metrics == ("val_accuracy",)
    assert {dimension.path for dimension in reg.dimensions} >= {
        "model.dropout",
        "model.spatial_dropout",
        *(f"augment.{name}" for name in ("rotate", "flip", "scale", "brightness", "contrast")),
    }
