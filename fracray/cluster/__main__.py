"""python -m fracray.cluster: check a cluster file, submit a command to the cluster as a job, and follow the job.

Arguments and the cluster file are read before anything slow is imported.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fracray.cluster.files import SERVE, SERVICES, SLURM, ClusterFile, read_cluster
from fracray.config import Config
from fracray.errors import InputError, RunError, run_verb
from fracray.runtime.arguments import Parser
from fracray.runtime.resources import WorkerResources

if TYPE_CHECKING:
    from rich.console import Console

SENT = ("tune", "refit", "train")  # the commands that run on a cluster as jobs

# ---------------------------------------------------------------- arguments


def parser() -> argparse.ArgumentParser:
    cli = Parser(
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
        help="report the problems of a cluster file, each with its line",
        description="Check a cluster file of `ray up`, a RayCluster, RayJob or RayService of KubeRay, a Slurm script, "
        "or a configuration of Ray Serve. What is checked: Ray's schema; nodes that can hold a trial or a replica and "
        "all see the storage; the same Ray and Python as here; no port open to the world; no secret in the file; an "
        "end to the costs of idle nodes. Starts nothing and contacts no cloud.",
    )
    check.add_argument("file", help="the cluster file")
    check.add_argument("--space", metavar="FILE", help="a search space; its trials set what is needed")
    check.add_argument("--workers-per-trial", type=int, help="as in tune")
    check.add_argument("--cpus-per-trial", type=float, help="as in tune")
    check.add_argument("--gpus-per-trial", type=float, help="as in tune")
    check.add_argument(
        "--nodes", metavar="FILE", help="for a service of Ray Serve: the file of the cluster that it will run on"
    )
    check.add_argument("--storage", help="where runs will be kept (default: the file's metadata.storage)")
    send = verbs.add_parser(
        "submit",
        help="run tune, refit or train on the cluster's head, and follow it",
        description="Submit a fracray command to the cluster as a Ray job and print its output. The job continues when "
        "this command ends (Ctrl-C, a closed laptop); `attach` follows it again. Files given with --space and --config "
        "are sent along. --data, --storage and the run of refit are places as the cluster sees them; the defaults of "
        "the first two are those in the file's metadata.",
        usage="%(prog)s [-h] [--address URL] file -- {tune,refit,train} ...",
        epilog="example:\n"
        "  python -m fracray.cluster submit cluster/gpu.yaml -- tune --space search_spaces/reg.yaml --name atlas\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    follow = verbs.add_parser(
        "attach",
        help="follow a submitted job",
        description="Print the output of a job from its beginning, until the job ends.",
    )
    for verb in (send, follow):
        verb.add_argument("file", help="the cluster file of a running cluster")
        verb.add_argument("--address", metavar="URL", help="the dashboard's URL, if it can be reached without a tunnel")
    follow.add_argument("job", nargs="?", help="name of the job (default: the latest)")
    return cli


def main(argv: Sequence[str]) -> None:
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    if at == len(words) and words[:1] == ["submit"] and (verb := next((word for word in words if word in SENT), None)):
        raise InputError(f"submit: put -- before {verb}: submit FILE -- {verb} ...")
    args = parser().parse_args(words[:at])
    cluster = read_cluster(args.file)
    if args.verb == "check":
        _check(args, cluster)
    elif args.verb == "submit":
        _submit(args, cluster, words[at + 1 :])
    else:
        _attach(args, cluster)


# ---------------------------------------------------------------- check


def _check(args: argparse.Namespace, cluster: ClusterFile) -> None:
    need = None
    if cluster.kind in SERVICES:
        cluster = _on_its_nodes(args, cluster)
    elif args.nodes:
        raise InputError(f"--nodes {args.nodes}: {args.file} has its own nodes; leave --nodes out")
    else:
        need = _need(args, cluster)

    from fracray.cluster.checks import problems, warnings
    from fracray.runtime.console import new_console

    console = new_console()
    found = problems(cluster, need, args.storage)
    if need is None:
        _print_deployments(console, cluster)
    else:
        _print_nodes(console, cluster, need, args.storage)
    for style, lines in (("yellow", warnings(cluster)), ("red", found)):
        for line in lines:
            console.print(line, style=style, soft_wrap=True, markup=False, highlight=False)
    if found:
        raise InputError(f"{args.file}: {len(found)} problem(s), see above")
    console.print(f"{args.file}: no problems found", soft_wrap=True)


def _on_its_nodes(args: argparse.Namespace, service: ClusterFile) -> ClusterFile:
    """The service with the nodes that it will run on."""
    for option in ("space", "workers_per_trial", "cpus_per_trial", "gpus_per_trial", "storage"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option.replace('_', '-')}: is for searches, and {args.file} describes a service")
    if not args.nodes:
        return service
    if service.kind != SERVE:
        raise InputError(f"--nodes {args.nodes}: {args.file} has its own nodes; leave --nodes out")
    other = read_cluster(args.nodes)
    if not other.nodes:
        raise InputError(f"--nodes {args.nodes}: describes a service; name the file of a cluster, as cluster/gpu.yaml")
    return replace(service, nodes=other.nodes, cap=other.cap)


def _need(args: argparse.Namespace, cluster: ClusterFile) -> WorkerResources:
    config = Config()
    if args.space:
        from fracray.search.space_file import load_space

        config = load_space(args.space).config
    for name in ("workers_per_trial", "cpus_per_trial", "gpus_per_trial"):
        if (given := getattr(args, name)) is not None:
            config = config.with_leaves({f"search.{name}": given}, f"--{name.replace('_', '-')}")
    search = config.search
    gpus = search.gpus_per_trial
    if gpus is None:  # as tune decides it once the cluster is up
        nodes = cluster.at_full_size(lambda node: node.gpus or 0.0)
        gpus = float(sum(node.most * (node.gpus or 0.0) for node in nodes) >= search.workers_per_trial)
    return WorkerResources(search.workers_per_trial, search.cpus_per_trial, gpus)


def _print_deployments(console: "Console", cluster: ClusterFile) -> None:
    from fracray.cluster.deployments import deployments
    from fracray.runtime.console import new_table

    table = new_table("deployment", "replicas at least", "at most", "CPUs", "GPUs")
    for one in deployments(cluster):
        table.add_row(one.name, str(one.least), str(one.most), f"{one.cpus:g}", f"{one.gpus:g}")
    unknown = "" if cluster.nodes else "; --nodes FILE compares it with the nodes of a cluster"
    console.print(f"{cluster.file.origin}: {cluster.kind}{unknown}", soft_wrap=True)
    console.print(table)


def _print_nodes(console: "Console", cluster: ClusterFile, need: WorkerResources, storage: str | None) -> None:
    from fracray.runtime.console import new_table

    table = new_table("nodes", "at least", "at most", "CPUs", "GPUs", "trial workers per node")
    for node in cluster.nodes:
        table.add_row(
            node.name,
            str(node.least),
            str(node.most),
            *("known on the node" if value is None else f"{value:g}" for value in (node.cpus, node.gpus)),
            "known on the node" if node.cpus is None else f"{node.workers(need):g}",
        )
    console.print(f"{cluster.file.origin}: {cluster.kind}, at most {cluster.most} nodes; a trial needs {need}")
    console.print(table)
    unset = "the place given by --storage of the job" if cluster.kind == SLURM else "no place: none is given"
    console.print(f"runs are kept in {storage or cluster.storage or unset}", soft_wrap=True)


# ---------------------------------------------------------------- submit and attach


def _submit(args: argparse.Namespace, cluster: ClusterFile, words: list[str]) -> None:
    if cluster.kind == "RayJob":
        raise InputError(f"{args.file}: a RayJob contains its command; start it with kubectl apply -f {args.file}")
    if cluster.kind in SERVICES:
        raise InputError(f"{args.file}: describes a service and runs no job; start it with {_deploys(args, cluster)}")
    if cluster.kind == SLURM:
        raise InputError(
            f"{args.file}: Slurm starts the cluster and the search together: sbatch {args.file} --space ..."
        )
    if not words or words[0] not in SENT:
        raise InputError(f"submit: after -- give {', '.join(SENT[:-1])} or {SENT[-1]} with its options, as on a laptop")

    from fracray.cluster.jobs import list_jobs, open_client, submit
    from fracray.cluster.submission import job_environment, prepare
    from fracray.runtime.console import new_console

    submission = prepare(cluster, words[0], words[1:])
    with open_client(cluster, args.address) as client:
        known = {job.submission_id: job for job in list_jobs(client)}
        # The first job of a run has its name; those that resume it have a number too.
        names = [submission.run, *(f"{submission.run}-{number}" for number in range(2, len(known) + 2))]
        if busy := next((name for name in names if name in known and not known[name].status.is_terminal()), None):
            raise InputError(
                f"run {submission.run}: the job {busy} still runs; choose another run, or follow the job: "
                f"{_attach_command(args, busy)}"
            )
        job = next(name for name in names if name not in known)
        submit(client, job, submission, job_environment(cluster, args.address))
    console = new_console()
    console.print(f"job {job} runs on the cluster; its output follows. Ctrl-C leaves the job running")
    _follow(args, cluster, job, console)


def _deploys(args: argparse.Namespace, cluster: ClusterFile) -> str:
    return f"serve deploy {args.file}" if cluster.kind == SERVE else f"kubectl apply -f {args.file}"


def _attach(args: argparse.Namespace, cluster: ClusterFile) -> None:
    if cluster.kind == SLURM:
        raise InputError(f"{args.file}: Slurm writes the output to a file: tail -f fracray-JOB.log")
    if cluster.kind in SERVICES:
        raise InputError(f"{args.file}: describes a service and runs no job; `serve status` shows it")
    if cluster.kind == "RayJob":
        name = (cluster.file.tree.get("metadata") or {}).get("name", "NAME")
        raise InputError(f"{args.file}: Kubernetes keeps the output of a RayJob: kubectl logs -f -l job-name={name}")

    from fracray.cluster.jobs import list_jobs, open_client
    from fracray.runtime.console import new_console

    with open_client(cluster, args.address) as client:
        known = [job.submission_id for job in list_jobs(client)]
    if not known:
        raise InputError(f"{args.file}: this cluster has no submitted job")
    job = args.job or known[-1]
    if job not in known:
        raise InputError(f"{args.file}: no job {job}; the jobs are {', '.join(known)}")
    _follow(args, cluster, job, new_console())


def _attach_command(args: argparse.Namespace, job: str) -> str:
    address = f" --address {args.address}" if args.address else ""
    return f"python -m fracray.cluster attach {args.file} {job}{address}"


def _follow(args: argparse.Namespace, cluster: ClusterFile, job: str, console: "Console") -> None:
    """Print the output of a job until it ends, reconnecting when the connection is lost.

    RunError where the job failed, or where the head has not answered for LOST_SECONDS.
    """
    from fracray.cluster.jobs import LOST_SECONDS, RETRY_SECONDS, Follower, open_client

    follower = Follower(job, sys.stdout)
    again, lost, minutes = _attach_command(args, job), False, LOST_SECONDS / 60
    try:
        while follower.silence() < LOST_SECONDS:
            status = None
            try:
                with open_client(cluster, args.address) as client:
                    lost = False
                    status = follower.follow(client)
            except RunError as error:
                first, lost = not lost, True  # before the message: Ctrl-C may come as soon as it is read
                if first:
                    message = f"\n{error}\ntrying again for {minutes:.0f} minutes; the job does not depend on it"
                    console.print(message, soft_wrap=True, markup=False, highlight=False)
            if status == "SUCCEEDED":
                return
            if status is not None:
                raise RunError(f"the job {job} ended as {status}; see its output above")
            time.sleep(RETRY_SECONDS)
    except KeyboardInterrupt:
        state = "connection lost; job state unknown" if lost else "the job continues"
        raise KeyboardInterrupt(f"{state}; follow it again with: {again}") from None
    finally:
        console.show_cursor()  # the job's table may have hidden it
    raise RunError(
        f"no answer from the cluster for {minutes:.0f} minutes. If its head still runs, the job may continue: "
        f"{again}; if not, start the cluster again and submit the same command with --resume"
    )


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
