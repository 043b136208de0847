"""python -m fracray.cluster: check a cluster file, send a search to the cluster, and follow it there."""

import argparse
import importlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fracray.cluster.checks import faults, remarks, unshared
from fracray.cluster.files import SLURM, ClusterFile, Need, read_cluster
from fracray.cluster.jobs import AGAIN_SECONDS, LOST_SECONDS, Follower, jobs, reach, submit
from fracray.config import PHANTOM, Config, load_config
from fracray.errors import InputError, RunError, run_verb
from fracray.runtime.console import new_console, new_table
from fracray.runtime.resources import EXPECTED, promise
from fracray.runtime.run_folder import CLUSTER_FILE
from fracray.search.space_file import load_space
from fracray.training.checkpoint import read_metadata

SENT = ("tune", "train")  # the verbs that run on a cluster as jobs
# Options that name a file here, which goes along, and what reads it.
FILES: dict[str, Callable[[str], Any]] = {"--space": load_space, "--config": load_config}
PLACES = {"--storage": "storage", "--data": "data"}  # options that name a place there, as the file's metadata does

# ---------------------------------------------------------------- the commands


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m fracray.cluster",
        description="Check a cluster file before it costs money, run searches and trainings on the cluster, and follow "
        "them from anywhere.",
        epilog="examples:\n"
        "  python -m fracray.cluster check cluster/gpu.yaml --space search_spaces/reg.yaml --gpus-per-trial 0.25\n"
        "  python -m fracray.cluster submit cluster/gpu.yaml -- tune --space search_spaces/reg.yaml --name atlas\n"
        "  python -m fracray.cluster attach cluster/gpu.yaml\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = cli.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = verbs.add_parser(
        "check",
        help="say what is wrong with a cluster file, with its line",
        description="Check a cluster file of `ray up`, a RayCluster or RayJob of KubeRay, or a script for Slurm: by "
        "Ray's schema, and whether its nodes can hold a trial, all see the storage, run this Ray and Python, open no "
        "port to the world, carry no secret, and stop costing when idle. Nothing is started, and no cloud is asked.",
    )
    check.add_argument("file", help="the cluster file")
    check.add_argument("--space", metavar="FILE", help="a search space, for what its trials ask for")
    check.add_argument("--workers-per-trial", type=int, help="as of tune")
    check.add_argument("--cpus-per-trial", type=float, help="as of tune")
    check.add_argument("--gpus-per-trial", type=float, help="as of tune")
    check.add_argument("--storage", help="where runs will be kept (default: the file's metadata.storage)")
    send = verbs.add_parser(
        "submit",
        help="run tune or train on the cluster's head, and follow it",
        description="Hand a command of fracray over to the cluster as a job of Ray's, and follow what it prints. The "
        "job goes on when this command ends (Ctrl-C, a closed laptop): `attach` follows it again. Files named by "
        "--space and --config go along; --data and --storage name places as the cluster sees them, by default those of "
        "the file's metadata.",
        usage="%(prog)s [-h] [--address URL] file -- {tune,train} ...",
        epilog="example:\n"
        "  python -m fracray.cluster submit cluster/gpu.yaml -- tune --space search_spaces/reg.yaml --name atlas\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    follow = verbs.add_parser(
        "attach",
        help="follow a job that was submitted",
        description="Print what a job has printed from its beginning, and go on until it ends.",
    )
    for verb in (send, follow):
        verb.add_argument("file", help="the cluster file, of a cluster that is up")
        verb.add_argument("--address", metavar="URL", help="of the dashboard, where it can be reached without a tunnel")
    follow.add_argument("job", nargs="?", help="name of the job (default: the latest)")
    return cli


def main(argv: Sequence[str]) -> None:
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    if at == len(words) and words[:1] == ["submit"] and (verb := next((word for word in words if word in SENT), None)):
        raise InputError(f"submit: put -- before {verb}: submit CLUSTER_FILE -- {verb} ...")
    args = parser().parse_args(words[:at])
    console = new_console()
    if args.verb == "check":
        _check(args, console)
    elif args.verb == "submit":
        _submit(args, words[at + 1 :], console)
    else:
        _attach(args, console)


# ---------------------------------------------------------------- check


def _check(args: argparse.Namespace, console: Console) -> None:
    cluster = read_cluster(args.file)
    need = _need(args)
    found = faults(cluster, need, args.storage)
    _say_cluster(console, cluster, need, args.storage)
    for remark in remarks(cluster):
        console.print(remark, style="yellow", soft_wrap=True, markup=False, highlight=False)
    for fault in found:
        console.print(fault, style="red", soft_wrap=True, markup=False, highlight=False)
    if found:
        raise InputError(f"{args.file}: {len(found)} fault(s), see above")
    console.print(f"{args.file}: nothing wrong was found", soft_wrap=True)


def _need(args: argparse.Namespace) -> Need:
    config = load_space(args.space).config if args.space else Config()
    for name in ("workers_per_trial", "cpus_per_trial", "gpus_per_trial"):
        if (given := getattr(args, name)) is not None:
            config = config.with_leaves({f"search.{name}": given}, f"--{name.replace('_', '-')}")
    search = config.search
    return Need(search.workers_per_trial, search.cpus_per_trial, search.gpus_per_trial)


def _say_cluster(console: Console, cluster: ClusterFile, need: Need, storage: str | None) -> None:
    table = new_table("nodes", "at least", "at most", "CPUs", "GPUs", "workers of a trial on each")
    for node in cluster.nodes:
        room = node.workers(need)
        table.add_row(
            node.name,
            str(node.least),
            str(node.most),
            *("found out there" if value is None else f"{value:g}" for value in (node.cpus, node.gpus)),
            "found out there" if node.cpus is None else f"{room:g}",
        )
    console.print(f"{cluster.file.origin}: {cluster.kind}, at most {cluster.most} nodes; a trial asks for {need}")
    console.print(table)
    kept = (
        storage or cluster.storage or ("what --storage of the job names" if cluster.kind == SLURM else "no place yet")
    )
    console.print(f"runs are kept in {kept}", soft_wrap=True)


# ---------------------------------------------------------------- submit and attach


def _submit(args: argparse.Namespace, command: list[str], console: Console) -> None:
    cluster = read_cluster(args.file)
    if cluster.kind == "RayJob":
        raise InputError(f"{args.file}: a RayJob brings its own command; start it with kubectl apply -f {args.file}")
    if cluster.kind == SLURM:
        raise InputError(
            f"{args.file}: Slurm starts the cluster and the search together: sbatch {args.file} --space ..."
        )
    name, command, files = _prepared(cluster, command)
    with reach(cluster, args.address) as client:
        taken = {job.submission_id: job for job in jobs(client)}
        names = [_numbered(name, number) for number in range(1, len(taken) + 2)]
        if busy := next((one for one in names if one in taken and not taken[one].status.is_terminal()), None):
            raise InputError(
                f"--name {name}: the job {busy} is at work on it; choose another name, or follow the job: "
                f"{_again(args, busy)}"
            )
        job = next(one for one in names if one not in taken)
        submit(client, job, command, files, told(cluster, args.address))
    console.print(f"job {job} runs on the cluster; what it prints follows, and Ctrl-C leaves it running")
    _follow(args, cluster, job, console)


def _again(args: argparse.Namespace, job: str) -> str:
    """The command that follows a job again, reached as it was."""
    address = f" --address {args.address}" if args.address else ""
    return f"python -m fracray.cluster attach {args.file} {job}{address}"


def told(cluster: ClusterFile, address: str | None = None) -> dict[str, str]:
    """What the job cannot know by itself: what machines may still come, how it was reached and what screen shows it."""
    nodes = cluster.at_best(lambda node: node.gpus or 0.0)
    known = [node.machine for node in nodes if node.machine is not None]
    # Of machines of one's own the file does not say what they have, only how many `ray up` sets up.
    expected = {EXPECTED: str(sum(node.least for node in nodes))}
    environment = promise(known) if len(known) == len(nodes) else expected
    if address is None:  # whoever is told to go on is to find the same way
        environment[CLUSTER_FILE] = cluster.file.origin
    if sys.stdout.isatty():
        columns, lines = shutil.get_terminal_size()
        # Rich reads these three: the job's table is drawn for this terminal, in the job's log.
        environment |= {"TTY_COMPATIBLE": "1", "COLUMNS": str(columns), "LINES": str(lines)}
    return environment


def _numbered(name: str, number: int) -> str:
    """The name of a run's first job, and of those that take it up again."""
    return name if number == 1 else f"{name}-{number}"


def _prepared(cluster: ClusterFile, command: list[str]) -> tuple[str, list[str], dict[str, bytes]]:
    """The run's name, the command as the head is to run it, and the files that go along."""
    if not command or command[0] not in SENT:
        raise InputError(f"submit: after -- stands {' or '.join(SENT)} with its options, as on a laptop")
    verb, options = command[0], _split(command[1:])
    # As the head will read them, so that a slip of the pen costs no job.
    importlib.import_module(f"fracray.{verb}").parser().parse_args(command[1:])
    given = dict(options)
    files: dict[str, bytes] = {}
    sent: list[str] = []
    for option, value in options:
        if option in FILES and value is not None and Path(value).is_file():
            FILES[option](value)
            files[Path(value).name] = Path(value).read_bytes()
            sent += [option, Path(value).name]
            continue
        if option == "--config" and value is not None and Path(value).is_dir():  # a checkpoint: its config goes along
            files["config.yaml"] = read_metadata(value).config.to_yaml().encode()
            sent += [option, "config.yaml"]
            continue
        # The config of a checkpoint may be one that only the cluster sees.
        if option in FILES and value is not None and not (option == "--config" and _is_whole(value)):
            raise InputError(f"{option} {value}: no such file here; files go along to the cluster")
        if option in PLACES and value is not None and not _is_whole(value) and (option, value) != ("--data", PHANTOM):
            raise InputError(f"{option} {value}: on a cluster name a URI, or a whole path as its nodes see it")
        sent += [option] if value is None else [option, value]
    if "--resume" in given and "--name" not in given:
        raise InputError("--resume: name the run with --name")
    for option, key in PLACES.items():
        place = cluster.storage if key == "storage" else cluster.data
        if option not in given and place and not (option == "--data" and "--resume" in given):
            sent += [option, place]
    kept = given.get("--storage") or cluster.storage
    if fault := next(unshared(cluster, kept), None):
        raise InputError(fault)
    name = given.get("--name") or f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}"
    if "--name" not in given:
        sent += ["--name", name]
    if "--address" not in given:
        sent += ["--address", "auto"]
    return name, ["python", "-m", f"fracray.{verb}", *sent], files


def _is_whole(place: str) -> bool:
    """Whether a place means the same on every machine: a URI or a whole path."""
    return "://" in place or Path(place).is_absolute()


def _split(words: list[str]) -> list[tuple[str, str | None]]:
    """Options with their values, None for one without: `--a b --c --d=e` as (--a, b), (--c, None), (--d, e)."""
    options: list[tuple[str, str | None]] = []
    for word in words:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            options.append((option, value if equals else None))
        elif options and options[-1][1] is None:
            options[-1] = (options[-1][0], word)
        else:
            raise InputError(f"submit: {word} belongs to no option; quote values that hold spaces")
    return options


def _attach(args: argparse.Namespace, console: Console) -> None:
    cluster = read_cluster(args.file)
    if cluster.kind == SLURM:
        raise InputError(f"{args.file}: Slurm keeps what a job prints: tail -f fracray-JOB.log")
    if cluster.kind == "RayJob":
        name = (cluster.file.tree.get("metadata") or {}).get("name", "NAME")
        raise InputError(f"{args.file}: Kubernetes keeps what a RayJob prints: kubectl logs -f -l job-name={name}")
    with reach(cluster, args.address) as client:
        known = [job.submission_id for job in jobs(client)]
        if not known:
            raise InputError(f"{args.file}: no job was submitted to this cluster")
        job = args.job or known[-1]
        if job not in known:
            raise InputError(f"{args.file}: no job {job}; there are {', '.join(known)}")
    _follow(args, cluster, job, console)


def _follow(args: argparse.Namespace, cluster: ClusterFile, job: str, console: Console) -> None:
    """Print what a job prints until it ends, over as many connections as it takes, and end as it ended."""
    follower = Follower(job, sys.stdout)
    again, gone, minutes = _again(args, job), False, LOST_SECONDS / 60
    try:
        while follower.silence() < LOST_SECONDS:
            status = None
            try:
                with reach(cluster, args.address) as client:
                    gone = False
                    status = follower.follow(client)
            except RunError as error:
                first, gone = not gone, True
                if first:
                    words = f"\n{error}\ntrying again for {minutes:.0f} minutes; the job does not depend on it"
                    console.print(words, soft_wrap=True, markup=False, highlight=False)
            if status == "SUCCEEDED":
                return
            if status is not None:
                raise RunError(f"the job {job} ended as {status}; its words stand above")
            time.sleep(AGAIN_SECONDS)
    except KeyboardInterrupt:
        # Told as what is known: nobody has heard of the head since it was lost.
        console.print(
            f"\n{'the job may go on' if gone else 'the job goes on'}; follow it again with: {again}", soft_wrap=True
        )
        raise
    finally:
        console.show_cursor()  # the job's table may have hidden it
    raise RunError(
        f"the cluster has been out of reach for {minutes:.0f} minutes. Where its head lives the job may well go on: "
        f"{again}; where it is gone, start the cluster again and submit the same with --resume"
    )


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
