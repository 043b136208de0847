"""Early stopping: the rules against Ray's own schedulers, and searches that are interrupted after any report."""

from collections import Counter, defaultdict
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from fracray.config import Config
from fracray.search.messages import TrialReport
from fracray.search.pasha import first_budget, noise, raised_budget, unstable
from fracray.search.schedulers import StoppingRule, StudyScheduler, bracket_of, percentile
from fracray.search.space_file import load_space
from fracray.search.study import JOURNAL, StudySearcher, epoch_budget, open_study
from fracray.training.epochs import EpochResult
from fracray.training.rungs import may_stop, rungs

SCHEDULERS = ("asha", "pasha", "hyperband", "median")


def config(name, epochs, grace=2, factor=3.0):
    settings = {"name": name, "grace_epochs": grace, "reduction_factor": factor}
    return Config.model_validate({"train": {"epochs": epochs}, "search": {"scheduler": settings}})


def random_curves(seed, trials, epochs):
    """The best value so far by trial and epoch, as (trials, epochs)."""
    generator = np.random.default_rng(seed)
    final, speed = generator.uniform(0.6, 0.9, (trials, 1)), generator.uniform(0.5, 5, (trials, 1))
    values = final * (1 - np.exp(-np.arange(1, epochs + 1) / speed)) + generator.normal(0, 0.03, (trials, epochs))
    return np.maximum.accumulate(values, axis=1).round(3)  # rounded: equal values occur, as accuracies do


# ---- the rules are Ray's


@pytest.mark.parametrize("epochs", [1, 2, 7, 12, 27, 100])
@pytest.mark.parametrize("grace", [1, 2, 3, 9, 40])
@pytest.mark.parametrize("factor", [1.3, 1.5, 2.0, 2.7, 3.0, 4.0])
def test_the_rungs_are_those_of_rays_asha(epochs, grace, factor):
    asha = AsyncHyperBandScheduler(max_t=epochs, grace_period=min(grace, epochs), reduction_factor=factor)
    # A rung's milestone may be a fraction: the first epoch that reaches it is the one that is judged.
    (bracket,) = asha._brackets
    judged = {epoch for milestone, _ in bracket._rungs for epoch in [-int(-milestone // 1)] if epoch < epochs}
    assert set(rungs(config("asha", epochs, grace, factor))) == judged


def race(curves, decide, seed, at_once=4):
    """The last epoch of each trial where several run at a time, in a random order of reports."""
    generator = np.random.default_rng(seed)
    trials, epochs = curves.shape
    waiting, at, last = list(range(trials)), {}, {}
    while waiting or at:
        while waiting and len(at) < at_once:
            at[waiting.pop(0)] = 0
        number = int(generator.choice(list(at)))
        at[number] += 1
        if at[number] == epochs or decide(number, at[number], float(curves[number, at[number] - 1])):
            last[number] = at.pop(number)
    return [last[number] for number in range(trials)]


def ours(settings):
    rule, curves, budgets = StoppingRule(settings), defaultdict(dict), [first_budget(settings)]

    def decide(number, epoch, value):
        curves[number][epoch] = value
        budgets.append(raised_budget(settings, epoch, curves, budgets[-1]))
        stops = epoch >= budgets[-1] or rule.stops(number, epoch, value)
        rule.told(number, epoch, value)
        return stops

    return decide


def rays(scheduler):
    """A scheduler of Ray, asked as Tune asks it."""
    scheduler.set_search_properties("value", "max")
    trials, controller = {}, SimpleNamespace(get_live_trials=list)

    def decide(number, epoch, value):
        if number not in trials:
            trials[number] = _Trial(str(number))
            scheduler.on_trial_add(controller, trials[number])
        result = {"training_iteration": epoch, "value": value}
        return scheduler.on_trial_result(controller, trials[number], result) == TrialScheduler.STOP

    return decide


class _Trial:
    def __init__(self, trial_id):
        self.trial_id = trial_id


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("grace", "factor"), [(1, 3.0), (2, 2.0), (3, 3.0), (1, 4.0)])
def test_asha_stops_the_trials_that_rays_stops(seed, grace, factor):
    curves = random_curves(seed, trials=20, epochs=18)
    asha = AsyncHyperBandScheduler(max_t=18, grace_period=grace, reduction_factor=factor)
    assert race(curves, ours(config("asha", 18, grace, factor)), seed) == race(curves, rays(asha), seed)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("grace", [1, 3])
def test_median_stops_the_trials_that_rays_stops(seed, grace):
    curves = random_curves(seed, trials=20, epochs=12)
    median = MedianStoppingRule(time_attr="training_iteration", grace_period=grace, min_samples_required=3)
    assert race(curves, ours(config("median", 12, grace)), seed) == race(curves, rays(median), seed)


@pytest.mark.parametrize("seed", range(20))
def test_each_bracket_of_hyperband_is_an_asha_that_begins_later(seed):
    curves, settings = random_curves(seed, trials=40, epochs=27), config("hyperband", 27, grace=1)
    found = race(curves, ours(settings), seed)
    brackets = [bracket_of(number, 3, 3.0) for number in range(40)]
    asked = [rays(AsyncHyperBandScheduler(max_t=27, grace_period=3**s, reduction_factor=3)) for s in range(3)]

    def decide(number, epoch, value):
        return brackets[number] < 3 and asked[brackets[number]](number, epoch, value)

    assert found == race(curves, decide, seed)


@pytest.mark.parametrize("percent", [50, *((1 - 1 / factor) * 100 for factor in (1.3, 2.0, 2.7, 3.0, 4.0))])
def test_the_percentile_of_ordered_values_is_numpys_to_the_bit(percent):
    generator = np.random.default_rng(0)
    for count in range(1, 400):
        values = np.sort(generator.normal(0.8, 0.1, count)).tolist()
        assert percentile(values, percent) == np.percentile(values, percent)
        if percent == 50:
            assert percentile(values, 50) == np.median(values)


def test_hyperband_deals_the_trials_out_in_its_proportions():
    # Hyperband with R = 27 and eta = 3 has brackets of 27, 12, 6 and 4 configurations.
    counted = Counter(bracket_of(number, 3, 3.0) for number in range(49))
    assert [counted[bracket] for bracket in range(4)] == [27, 12, 6, 4]
    early = Counter(bracket_of(number, 3, 3.0) for number in range(12))
    assert len(early) >= 3


# ---- every scheduler stops trials, and keeps the best


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_every_scheduler_stops_trials_however_many_run_at_a_time(name, at_once):
    """12 trials, 9 epochs, two at a time: of Ray's HyperBandScheduler not one was stopped."""
    stopped = []
    for seed in range(20):
        curves = random_curves(seed, trials=12, epochs=9)
        last = race(curves, ours(config(name, 9, grace=1)), seed, at_once)
        assert max(last) in ((3, 9) if name == "pasha" else (9,))
        stopped.append(sum(epoch < 9 for epoch in last))
    assert min(stopped) >= 1
    assert np.mean(stopped) >= 3


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_trial_is_stopped_before_the_grace_epochs(name):
    for seed in range(10):
        last = race(random_curves(seed, trials=16, epochs=12), ours(config(name, 12, grace=4)), seed)
        assert 4 <= min(last) < 12


@pytest.mark.parametrize("name", [*SCHEDULERS, "none"])
def test_a_trial_keeps_its_state_wherever_it_may_be_stopped(name):
    """`may_stop` holds a trial's report back until its state is written."""
    settings = config(name, 12, grace=2, factor=2.0)
    stopped = set()
    for seed in range(30):
        stopped |= set(race(random_curves(seed, trials=16, epochs=12), ours(settings), seed)) - {12}
    assert stopped <= {epoch for epoch in range(1, 12) if may_stop(settings, epoch)}
    assert bool(stopped) == (name != "none")


# ---- PASHA's budget

LEVEL = {1: 0.50, 3: 0.60, 9: 0.70}  # a curve over the rungs of grace 1 and factor 3


def moved(by, **at):
    """The curve LEVEL shifted by `by`, with other values after the epochs e1, e3, ... that are named."""
    return {epoch: value + by for epoch, value in LEVEL.items()} | {int(key[1:]): value for key, value in at.items()}


def upto(epoch, **curves):
    """The curves as far as this epoch, by number in the order given."""
    return {
        number: {at: value for at, value in curve.items() if at <= epoch}
        for number, curve in enumerate(curves.values())
    }


def test_pasha_begins_with_two_rungs():
    assert first_budget(config("pasha", 81, grace=1)) == 3
    assert first_budget(config("pasha", 81, grace=4)) == 12
    assert first_budget(config("pasha", 3, grace=1)) == 3  # the second level is the last epoch
    assert first_budget(config("pasha", 2, grace=5)) == 2
    assert first_budget(config("asha", 81, grace=1)) == 81


def test_pasha_raises_the_budget_by_one_rung_when_the_top_two_rank_otherwise():
    settings = config("pasha", 27, grace=1)
    same = upto(3, a=moved(0.0), b=moved(0.1), c=moved(0.2))
    assert raised_budget(settings, 3, same, 3) == 3
    other = upto(3, a=moved(0.0), b=moved(0.1), c=moved(0.2, e3=0.55))
    assert raised_budget(settings, 3, other, 3) == 9
    # The rungs below are not looked at again: at 9 epochs the ranking is that at 3.
    settled = upto(9, a=moved(0.0), b=moved(0.1), c=moved(0.2, e3=0.55, e9=0.65))
    assert raised_budget(settings, 9, settled, 9) == 9
    # After the last rung come all epochs, and nothing after these.
    turned = upto(9, a=moved(0.0), b=moved(0.1), c=moved(0.2, e3=0.85, e9=0.65))
    assert raised_budget(settings, 9, turned, 9) == 27
    assert raised_budget(settings, 27, turned, 27) == 27


def test_pasha_raises_nothing_on_less_than_two_trials_in_the_top_rung_or_below_it():
    settings = config("pasha", 27, grace=1)
    turned = upto(3, a=moved(0.0), b=moved(0.1, e3=0.4))
    assert raised_budget(settings, 3, turned, 3) == 9
    assert raised_budget(settings, 1, turned, 3) == 3  # a report below the top rung
    assert raised_budget(settings, 3, {0: turned[0]}, 3) == 3
    # A trial that has not come to the top rung, or has no value in the rung below, has no rank.
    assert raised_budget(settings, 3, {0: turned[0], 1: {1: 0.6}}, 3) == 3
    assert raised_budget(settings, 3, {0: turned[0], 1: {3: 0.4}}, 3) == 3
    assert not unstable(turned, 3, 9)


def test_no_other_scheduler_has_a_budget():
    turned = upto(3, a=moved(0.0), b=moved(0.1, e3=0.4))
    for name in ("asha", "hyperband", "median", "none"):
        assert raised_budget(config(name, 27, grace=1), 3, turned, 27) == 27


def test_the_noise_is_the_difference_between_trials_that_overtake_each_other_there_and_back():
    steady = {1: 0.5, 2: 0.6, 3: 0.7}
    crossing = {1: 0.4, 2: 0.62, 3: 0.66}  # behind, ahead, behind
    once = {1: 0.45, 2: 0.5, 3: 0.71}  # overtakes the first one once
    assert noise({0: steady, 1: once}, 1, 3) == 0
    assert noise({0: steady, 1: crossing}, 1, 3) == pytest.approx(0.04)
    assert noise({0: steady, 1: crossing}, 3, 9) == 0  # neither has come beyond the rung below
    assert noise({0: steady, 1: {**crossing, 3: 0.7}}, 1, 3) == 0  # equal at the last: none is ahead
    several = {0: steady, 1: crossing, 2: {1: 0.3, 2: 0.7, 3: 0.6}}
    # 0 and 1 differ by 0.04, 0 and 2 by 0.1, 1 and 2 by 0.06: the 90th percentile of three is at 1.8.
    assert noise(several, 1, 3) == pytest.approx(0.06 + 0.8 * 0.04)


@pytest.mark.parametrize("seed", range(15))
def test_the_noise_is_that_of_every_pair_looked_at_alone(seed):
    generator = np.random.default_rng(seed)
    curves = {
        number: {
            epoch: float(value)
            for epoch, value in enumerate(curve[: generator.integers(2, 10)], start=1)
            if generator.random() < 0.95
        }
        for number, curve in enumerate(random_curves(seed, trials=25, epochs=9))
    }
    found, below, top = [], 3, 8
    for one, other in combinations(curves.values(), 2):
        shared = [epoch for epoch in range(top, 0, -1) if epoch in one and epoch in other]
        if not shared or shared[0] <= below:
            continue
        ahead = "".join("<=>"[int(np.sign(one[epoch] - other[epoch])) + 1] for epoch in shared)
        back = {"<": ">", ">": "<"}.get(ahead[0])
        if back and ahead[0] in ahead[ahead.find(back) :] and back in ahead:
            found.append(abs(one[shared[0]] - other[shared[0]]))
    assert found
    assert noise(curves, below, top) == np.percentile(found, 90)


def test_trials_that_change_places_within_the_noise_are_ranked_alike():
    noisy = {0: {1: 0.50, 2: 0.60, 3: 0.70}, 1: {1: 0.40, 2: 0.62, 3: 0.66}}  # noise 0.04
    close = {2: {1: 0.30, 3: 0.20}, 3: {1: 0.33, 3: 0.10}}  # 0.03 apart below, the other way round in the top rung
    far = {2: {1: 0.30, 3: 0.20}, 3: {1: 0.35, 3: 0.10}}
    assert unstable(close, 1, 3)
    assert not unstable(noisy | close, 1, 3)
    assert unstable(noisy | far, 1, 3)


def test_pasha_stops_at_the_budget_and_below_it_as_asha_does():
    curves = random_curves(4, trials=20, epochs=9)
    values = np.sort(curves, axis=0)[::-1]  # the best first, at every epoch: the ranking is stable
    last = race(values, ours(config("pasha", 9, grace=1)), seed=0)
    assert max(last) == 3
    asha = race(values, ours(config("asha", 9, grace=1)), seed=0)
    assert [min(3, epoch) for epoch in asha] == last
    assert set(last) == {1, 3}


def test_pasha_spends_less_than_asha_and_all_epochs_where_rankings_keep_changing():
    spent = dict.fromkeys(("asha", "pasha"), 0)
    for seed in range(10):
        curves = random_curves(seed, trials=20, epochs=27)
        for name in spent:
            spent[name] += sum(race(curves, ours(config(name, 27, grace=1)), seed))
    assert spent["pasha"] < spent["asha"]
    rising = np.array(
        [
            [0.1 + 0.01 * number] + [0.5 - 0.01 * number] * 2 + [0.5 + 0.01 * number] * 6 + [0.9] * 18
            for number in range(12)
        ]
    )
    assert max(race(rising, ours(config("pasha", 27, grace=1)), seed=0, at_once=12)) == 27


# ---- interrupted searches

SPACE = """
trials: {trials}
epochs: {epochs}
mode: {mode}
metric: {metric}
sampler: {{name: {sampler}, startup_trials: 3}}
scheduler: {{name: {scheduler}, grace_epochs: 1, reduction_factor: 2}}
space:
  model.dropout: {{float: [0.0, 0.6]}}
  train.lr: {{log_float: [1.0e-4, 1.0e-2]}}
  train.loss: {{categorical: [weighted, focal]}}
"""


class KilledError(Exception):
    """The driver is gone."""


class Drivers:
    """One driver after another on the same run: Tune's calls of the searcher and the scheduler, on known curves.

    `cut(reports, moment)` says whether the driver is killed after so many reports in all, either when the scheduler has
    "judged" one that the searcher has not seen yet, or when both have "seen" it.
    """

    def __init__(self, space, journal, curves, places, cut):
        self.space, self.journal, self.curves, self.places, self.cut = space, journal, curves, places, cut
        self.trained = defaultdict(int)  # epochs in each trial's folder
        self.ready = {}  # when each trial's next epoch is ready
        self.now, self.reports, self.ids = 0.0, 0, 0
        self.metric = space.metrics[0]

    def run(self):
        while True:
            try:
                self._drive()
            except KilledError:
                continue
            return self

    def _drive(self):
        searcher = StudySearcher(self.space, self.journal, len(self.curves))
        scheduler = StudyScheduler(searcher.stops)
        running = {}
        while True:
            while len(running) < self.places and isinstance(suggested := searcher.suggest(str(self.ids)), dict):
                number, trial_id = suggested["number"], str(self.ids)
                self.ids += 1
                self.ready.setdefault(number, self.now + self._takes(number))
                running[number] = trial_id
                for epoch in range(1, self.trained[number] + 1):  # what its folder holds is reported again
                    if not self._report(searcher, scheduler, trial_id, number, epoch):
                        del running[number]
                        break
            if not running:
                return
            number = min(running, key=lambda one: (self.ready[one], one))
            self.now = self.ready[number]
            self.ready[number] += self._takes(number)
            self.trained[number] += 1
            if not self._report(searcher, scheduler, running[number], number, self.trained[number], fresh=True):
                del running[number]

    def _takes(self, number):
        return 1.0 + 0.37 * (number * 7 % 5)

    def _report(self, searcher, scheduler, trial_id, number, epoch, fresh=False):
        """One report as Tune passes it on; False when the trial has ended with it."""
        value = float(self.curves[number, epoch - 1])
        diverged = not np.isfinite(value)
        best = float(np.nanmax([*self.curves[number, :epoch], -1])) if diverged else value
        kept = EpochResult(epoch, {self.metric: value}, {self.metric: best}, seconds=1.0, diverged=diverged)
        done = diverged or epoch == self.curves.shape[1]
        result = TrialReport(kept, done=done).to_tune([self.metric])
        stop = (
            done or scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial_id), result) == TrialScheduler.STOP
        )
        self.reports += fresh
        if fresh and self.cut(self.reports, "judged"):
            raise KilledError
        if stop:
            searcher.on_trial_complete(trial_id, result)
        else:
            searcher.on_trial_result(trial_id, result)
        if fresh and self.cut(self.reports, "seen"):
            raise KilledError
        return not stop

    def outcome(self):
        """What was suggested, reported and decided, by trial, and the epochs that pasha came to."""
        study = open_study(self.journal, self.space)
        self.budget = epoch_budget(study, self.space.config)
        return [
            (
                *(trial.number, trial.params, trial.state, trial.intermediate_values, trial.values, trial.constraints),
                self.budget,
            )
            for trial in study.get_trials()
        ]


def space_of(tmp_path, scheduler, sampler="random", mode="max", trials=10, epochs=8):
    file = tmp_path / "space.yaml"
    metric = {"max": "val_accuracy", "min": "val_loss"}[mode]
    file.write_text(
        SPACE.format(scheduler=scheduler, sampler=sampler, mode=mode, metric=metric, trials=trials, epochs=epochs)
    )
    return load_space(file)


def never(reports, moment):
    return False


@pytest.fixture
def drive(tmp_path):
    count = iter(range(10_000))

    def run(space, curves, places, cut=never):
        return Drivers(space, tmp_path / f"{next(count)}-{JOURNAL}", curves, places, cut).run().outcome()

    return run


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("moment", ["judged", "seen"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_search_killed_at_every_report_decides_as_one_that_was_not(tmp_path, drive, scheduler, moment, places):
    space = space_of(tmp_path, scheduler)
    pruned = 0
    for seed in range(2):
        curves = random_curves(seed, trials=10, epochs=8)
        whole = drive(space, curves, places)
        assert whole[0][-1] == (4 if scheduler == "pasha" else 8)  # pasha has raised it from 2
        assert drive(space, curves, places, lambda reports, at: at == moment) == whole
        pruned += sum(state is TrialState.PRUNED for _, _, state, *_ in whole)
    assert pruned >= 2


@pytest.mark.parametrize(
    ("scheduler", "mode"), [("asha", "max"), ("pasha", "max"), ("hyperband", "max"), ("median", "min")]
)
def test_a_search_killed_once_anywhere_decides_as_one_that_was_not(tmp_path, drive, scheduler, mode):
    space = space_of(tmp_path, scheduler, mode=mode, trials=6, epochs=6)
    curves = random_curves(8 if scheduler == "pasha" else 3, trials=6, epochs=6)  # of 8 pasha raises its budget
    curves[2, 3:] = np.nan  # one diverges
    if mode == "min":
        curves = 1 - curves
    whole = drive(space, curves, places=2)
    states = [state for _, _, state, *_ in whole]
    assert TrialState.COMPLETE in states or scheduler == "pasha"
    assert TrialState.PRUNED in states
    most = sum(len(values) for _, _, _, values, *_ in whole) + 1
    for when in range(1, most + 1):
        for moment in ("judged", "seen"):
            cut = (when, moment)
            assert drive(space, curves, 2, lambda *now, cut=cut: now == cut) == whole, cut


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes"])
def test_a_search_of_one_trial_at_a_time_suggests_the_same_over_interruptions(tmp_path, drive, sampler):
    space, curves = space_of(tmp_path, "asha", sampler), random_curves(1, trials=10, epochs=8)
    whole = drive(space, curves, places=1)
    assert len({tuple(params.values()) for _, params, *_ in whole}) == 10
    assert drive(space, curves, 1, lambda reports, at: at == "seen") == whole


def test_a_search_of_several_trials_at_a_time_draws_the_same_random_settings(tmp_path, drive):
    space, curves = space_of(tmp_path, "none"), random_curves(1, trials=10, epochs=8)
    alone, beside = ([params for _, params, *_ in drive(space, curves, places)] for places in (1, 3))
    assert alone == beside


def test_a_trial_that_is_taken_up_again_is_judged_where_it_was_not_yet(tmp_path):
    """It was judged in the rung of epoch 1 and goes on; at epoch 8 it is no rival to those at epoch 1."""
    space = space_of(tmp_path, "asha", trials=3, epochs=16)
    curves = np.array([np.linspace(0.5, 0.9, 16)] * 3)
    killed = Drivers(space, tmp_path / JOURNAL, curves, 1, lambda reports, at: (reports, at) == (8, "seen"))
    for _, _, state, values, *_ in killed.run().outcome():
        assert state is TrialState.COMPLETE  # equal curves: none is below another
        assert len(values) == 16


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_default_configuration_is_never_stopped_but_at_pashas_budget(tmp_path, drive, scheduler):
    """It would be stopped, as the last trial of the same curve is; the gain is against what all its epochs give."""
    curves = np.array([np.full(8, 0.1), *random_curves(1, trials=8, epochs=8), np.full(8, 0.1)])
    found = drive(space_of(tmp_path, scheduler), curves, 3)
    assert len(found[0][3]) == (found[0][-1] if scheduler == "pasha" else 8)
    assert len(found[-1][3]) < len(found[0][3])
    assert found[-1][2] is TrialState.PRUNED
