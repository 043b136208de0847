"""python -m fracray.refit: train a search's best configurations anew with several seeds, and make them an ensemble.

Read from top to bottom: the command, its checks, the steps. What is trained and compared is in `search.refit`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from fracray.errors import InputError, run_verb
from fracray.interrupts import remedy
from fracray.runtime.arguments import add_address, command
from fracray.runtime.locations import require_local

if TYPE_CHECKING:  # a command imports Torch and Ray only once its arguments are read and its files are found
    from fracray.config.search import RefitConfig
    from fracray.runtime.storage import Folder
    from fracray.search.space import SearchSpace

# ---------------------------------------------------------------- the command

MEMBERS = ("best", "winner", "all", "folds")  # the first is the default


def parser() -> argparse.ArgumentParser:
    cli = command(
        "refit",
        "Train the best configurations of a search anew with several seeds, the default configuration always among "
        "them; name the winner by mean, and make the best checkpoint of the run an ensemble: the mean logit of the "
        "trainings, calibrated anew. Choices are made on validation alone.",
        "  python -m fracray.refit runs/atlas\n"
        "  python -m fracray.refit runs/atlas --top 5 --seeds 5 --resume\n"
        "  python -m fracray.refit s3://bucket/runs/atlas --address auto --gpus-per-trial 0.25 --time-budget 3600\n"
        "  python -m fracray.refit runs/crossed --seeds 2 --members folds\n",
    )
    cli.add_argument("run", help="the run folder of a search, finished or not, as a path or URI")
    cli.add_argument(
        "--top", type=int, metavar="K", help="how many of the best configurations (default: the search's, or 3)"
    )
    cli.add_argument(
        "--seeds", type=int, metavar="N", help="trainings of each, which differ in train.seed (default: likewise)"
    )
    cli.add_argument(
        "--folds",
        action=argparse.BooleanOptionalAction,
        help="compare means over the folds of a kfold split: each training has a model for each fold but test "
        "(default: as in the search)",
    )
    cli.add_argument(
        "--members",
        choices=MEMBERS,
        help="of the ensemble: the winner's trainings, all of them, or best: whichever is best on validation, one of "
        "these or the mean of the weights of the winner's; folds: the winner's models of all folds, which together "
        "have learned from all but the test fold. Default: as in the search, or best. --resume keeps what was chosen",
    )
    cli.add_argument("--concurrent", type=int, metavar="N", help="trainings at a time (default: as in the search)")
    cli.add_argument("--workers-per-trial", type=int, metavar="N", help="Ray Train workers of a training (likewise)")
    cli.add_argument("--cpus-per-trial", type=float, metavar="N", help="CPUs of each worker (likewise)")
    cli.add_argument("--gpus-per-trial", type=float, metavar="N", help="GPUs of each worker (likewise)")
    cli.add_argument("--time-budget", type=float, metavar="SECONDS", help="stop training after this long")
    cli.add_argument(
        "--resume", action="store_true", help="continue this run's refit, with more of --top or --seeds too"
    )
    add_address(cli)
    return cli


FLAGS = {
    "concurrent": "search.concurrent",
    "workers_per_trial": "search.workers_per_trial",
    "cpus_per_trial": "search.cpus_per_trial",
    "gpus_per_trial": "search.gpus_per_trial",
}
TOP = 3  # where neither the command nor the search says how many


def main(argv: Sequence[str]) -> None:
    begun = time.time()
    args = parser().parse_args(argv)
    for flag in ("top", "seeds"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise InputError(f"--{flag} {getattr(args, flag)}: at least one is needed")
    if args.time_budget is not None and args.time_budget <= 0:
        raise InputError(f"--time-budget {args.time_budget:g}: give a number of seconds above 0")
    require_local(args.run, "no such run folder")
    with ExitStack() as held:  # the run, which no other command may work in
        space, run = _open(args, held)
        _refit(args, space, run, begun)


# ---------------------------------------------------------------- its checks


def _open(args: argparse.Namespace, held: ExitStack) -> tuple[SearchSpace, Folder]:
    """The search and its folder; what can be refused early is refused before anything is written."""
    from fracray.runtime.run_folder import REFIT, as_begun, open_for_work, open_run
    from fracray.search.refit import PLAN, RefitPlan, refit_config, refuse_members, refuse_other_folds
    from fracray.search.space_file import stored_space

    run = open_run(args.run)
    space = stored_space(run)
    space = replace(space, config=as_begun(run, space.config))
    leaves = {path: value for flag, path in FLAGS.items() if (value := getattr(args, flag)) is not None}
    space = replace(space, config=space.config.with_leaves(leaves, "command line"))
    held.enter_context(remedy(lambda: _how_to_continue(args, run)))
    held.enter_context(open_for_work(run, None, resume=True))
    own = run.sub(REFIT)
    if not own.exists(PLAN):
        if args.resume:
            raise InputError(f"--resume: {run} was not refitted yet; leave --resume out")
        _as_the_search_says(args, space.config.search.refit)
        refuse_members(args.members, refit_config(space.config, args.folds))
        return space, run
    if not args.resume:
        raise InputError(f"{own}: this search was refitted already; continue or extend that with --resume")
    before = RefitPlan.read(own)
    refuse_other_folds(before, own, args.folds, space.config)
    refuse_members(args.members, refit_config(space.config, before.folds))
    args.top, args.seeds = args.top or 0, args.seeds or len(before.seeds)  # without an option, the plan as it is
    return space, run


def _as_the_search_says(args: argparse.Namespace, asked: RefitConfig) -> None:
    """Fill in the options that were not given: from the search's settings, where it was to end with a refit."""
    if args.members is None and args.folds is not False and asked.top:
        args.members = asked.members
    if args.folds is None:
        args.folds = args.members == "folds" or (asked.top > 0 and asked.folds)
    args.top, args.seeds = args.top or asked.top or TOP, args.seeds or asked.seeds


def _how_to_continue(args: argparse.Namespace, run: Folder) -> str:
    """What to type after an interruption: the plan has --top, --seeds and --folds, and soon --members."""
    from fracray.runtime.run_folder import REFIT, refit_command, typed_options
    from fracray.search.refit import PLAN

    if not run.sub(REFIT).exists(PLAN):
        return "give the same command again"
    members = "" if args.members is None else f" --members {args.members}"
    options = typed_options(**{flag: getattr(args, flag) for flag in (*FLAGS, "address")})
    return f"continue with: {refit_command(run)}{members} --resume{options}"


# ---------------------------------------------------------------- the steps


def _refit(args: argparse.Namespace, space: SearchSpace, run: Folder, begun: float) -> None:
    import psutil

    from fracray.data.prepare import prepare
    from fracray.data.report import say_phantom, say_prepared
    from fracray.reporting.write import leave_report
    from fracray.runtime.console import new_console
    from fracray.runtime.efficiency import EfficiencyTracker
    from fracray.runtime.ray_session import connect
    from fracray.runtime.resources import gather, present, refuse_missing_gpu, require_seen
    from fracray.search.launch import find_places
    from fracray.search.refit_run import RefitOptions, refit, searched_trials
    from fracray.training.job import refuse_change

    if __name__ == "__main__":  # the process does nothing else, so its start is part of what the refit costs
        begun = psutil.Process().create_time()
    search = space.config.search
    options = RefitOptions(
        top=args.top, seeds=args.seeds, folds=bool(args.folds), members=args.members, seconds=args.time_budget
    )
    refuse_missing_gpu(space.config.data.augment_on, search.gpus_per_trial != 0)
    if not searched_trials(space, run):
        raise InputError(
            f"{run}: no trial has finished an epoch yet, so there is nothing to refit; continue the search"
        )
    console = new_console()
    say_phantom(console, space.config)
    with connect(args.address, lambda: _how_to_continue(args, run)):
        gather(lambda words: console.print(words, soft_wrap=True))
        each = find_places(space.config, console)  # refused before anything that takes long
        if run.is_local:
            require_seen(run.path("environment.json"), args.run)
        prepared = prepare(space.config.data, console, shelf=run.around)
        say_prepared(console, prepared, space.config.model.localise)
        refuse_change(run, prepared.summary())
        unit = "GPU" if each.gpus else "CPU"
        tracker = EfficiencyTracker(begun, lambda: present(unit), unit)
        finished, over = refit(space, run, prepared, options, tracker, console)
        leave_report(run, prepared.manifest, console)
    if not finished:
        words = f"the refit is not finished; {_how_to_continue(args, run)}"
        if not over:
            raise KeyboardInterrupt(words)
        console.print(f"\n{words}", soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
