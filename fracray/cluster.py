"""python -m fracray.cluster: check a cluster file, send a search to the cluster, and follow it there."""

import argparse
from collections.abc import Sequence

from rich.console import Console

from fracray.cluster_file import ClusterFile, Need, read_cluster
from fracray.cluster_rules import faults
from fracray.config import SearchConfig
from fracray.errors import InputError, run_verb
from fracray.show import new_console, new_table
from fracray.space_file import load_space

# ---------------------------------------------------------------- the commands


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m fracray.cluster",
        description="Check a cluster file before it costs money.",
        epilog="examples:\n"
        "  python -m fracray.cluster check cluster/gpu.yaml\n"
        "  python -m fracray.cluster check cluster/gpu.yaml --space search_spaces/reg.yaml --gpus-per-trial 0.25\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = cli.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = verbs.add_parser(
        "check",
        help="say what is wrong with a cluster file, with its line",
        description="Check a cluster file of `ray up`, or a RayCluster or RayJob of KubeRay: by Ray's schema, and "
        "whether its nodes can hold a trial, all see the storage, run this Ray and Python, open no port to the world, "
        "carry no secret, and stop costing when idle. Nothing is started, and no cloud is asked.",
    )
    check.add_argument("file", help="the cluster file")
    check.add_argument("--space", metavar="FILE", help="a search space, for what its trials ask for")
    check.add_argument("--workers-per-trial", type=int, help="as of tune")
    check.add_argument("--cpus-per-trial", type=float, help="as of tune")
    check.add_argument("--gpus-per-trial", type=float, help="as of tune")
    check.add_argument("--storage", help="where runs will be kept (default: the file's metadata.storage)")
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    _check(args, new_console())


# ---------------------------------------------------------------- check


def _check(args: argparse.Namespace, console: Console) -> None:
    cluster = read_cluster(args.file)
    need = _need(args)
    found = faults(cluster, need, args.storage)
    _say_cluster(console, cluster, need, args.storage)
    for fault in found:
        console.print(fault, style="red", soft_wrap=True, markup=False, highlight=False)
    if found:
        raise InputError(f"{args.file}: {len(found)} fault(s), see above")
    console.print(f"{args.file}: nothing wrong was found", soft_wrap=True)


def _need(args: argparse.Namespace) -> Need:
    search = load_space(args.space).config.search if args.space else SearchConfig()
    given = {
        name: getattr(args, name)
        for name in ("workers_per_trial", "cpus_per_trial", "gpus_per_trial")
        if getattr(args, name) is not None
    }
    search = SearchConfig.model_validate(search.model_dump() | given)
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
    console.print(f"runs are kept in {storage or cluster.storage or 'no place that the file names'}", soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
