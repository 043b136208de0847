"""python -m fracray.serve: a checkpoint behind HTTP on this machine, with a page for a radiologist.

Only this machine's programs reach it, unless a token is given. Nothing of a picture is kept or logged.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fracray.errors import InputError, run_verb
from fracray.runtime.arguments import add_address, add_checkpoint, add_coverage, command

if TYPE_CHECKING:  # a command imports Torch only once its arguments are read
    from socket import socket

    from fracray.config import Config
    from fracray.serving.engine import Plan, Service
    from fracray.serving.guard import Guard
    from fracray.serving.limits import Limits

# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    cli = command(
        "serve",
        "Serve a checkpoint over HTTP: POST /predict takes radiographs and gives the rows of fracray.predict as JSON; "
        "GET / is a page that shows them. Ctrl-C or SIGTERM ends it after what is in work.",
        "  python -m fracray.serve runs/atlas\n"
        "  curl -F files=@hand.dcm 'http://127.0.0.1:8000/predict?heatmap=1'\n"
        "  python -m fracray.serve runs/atlas --host 0.0.0.0 --token-file token --queue 256\n"
        "  python -m fracray.serve runs/atlas --ray --address auto --replicas 2 8 --gpus-per-replica 0.5\n",
    )
    add_checkpoint(cli)
    cli.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default %(default)s: this machine alone); another one needs --token-file",
    )
    cli.add_argument("--port", type=int, default=8000, help="the port; 0 takes a free one (default %(default)s)")
    cli.add_argument(
        "--token-file", metavar="FILE", help="a file with a token that clients send as 'Authorization: Bearer TOKEN'"
    )
    cli.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that hold the network (default: one a GPU, else one); with --ray of each replica (default: 1)",
    )
    cli.add_argument(
        "--decoders",
        type=int,
        metavar="N",
        help="processes that decode (default: one a CPU); with --ray of each replica, which reserves as many CPUs "
        "(default: 1)",
    )
    cli.add_argument(
        "--batch", type=int, default=32, metavar="N", help="pictures of a forward pass, at most (default %(default)s)"
    )
    cli.add_argument(
        "--wait",
        type=float,
        default=5.0,
        metavar="MS",
        help="how long a picture waits for others (default %(default)g)",
    )
    add_coverage(cli)
    spread = cli.add_argument_group("on a Ray cluster, behind the server of this machine")
    spread.add_argument("--ray", action="store_true", help="predict in replicas that Ray Serve starts and replaces")
    add_address(spread)
    spread.add_argument(
        "--replicas",
        type=int,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="as many as the requests in work need, between these (default: 1 and what fits the cluster)",
    )
    spread.add_argument(
        "--gpus-per-replica",
        type=float,
        metavar="F",
        help="GPUs, or a fraction of one, of each replica (default: 1 where the cluster has room for it, else 0)",
    )
    limits = cli.add_argument_group("limits, beyond which a request is refused with what to do")
    limits.add_argument(
        "--max-megabytes", type=int, default=128, metavar="N", help="of a request (default %(default)s)"
    )
    limits.add_argument(
        "--max-megapixels", type=int, default=80, metavar="N", help="of a picture (default and most: 80)"
    )
    limits.add_argument("--max-files", type=int, default=64, metavar="N", help="of a request (default %(default)s)")
    limits.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="for an upload, for decoding one picture, for a forward pass, and until a client takes more of its answer "
        "(default %(default)g s)",
    )
    limits.add_argument(
        "--queue", type=int, default=64, metavar="N", help="requests at once; more get 429 (default %(default)s)"
    )
    return cli


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    _check(args)
    _serve(args)


def _check(args: argparse.Namespace) -> None:
    """Refuse what can be refused without opening a checkpoint."""
    from fracray.runtime.locations import require_local
    from fracray.serving.settings import RANGES

    for name, (least, most) in RANGES.items():
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and least <= value <= most):
            raise InputError(f"--{name.replace('_', '-')} {value:g}: expected a number from {least:g} to {most:g}")
    if not 0 < args.coverage < 1:
        raise InputError(f"--coverage {args.coverage:g}: expected a share above 0 and below 1, for example 0.9")
    _check_ray(args)
    require_local(args.checkpoint, "no such checkpoint folder or run")
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f'{error.name} is not installed; install it with: pip install "fracray[serve]"') from None
    if find_spec("highdicom") is None:  # its import takes a second, and is a decoder's
        raise InputError('highdicom is not installed; install it with: pip install "fracray[serve]"')


def _check_ray(args: argparse.Namespace) -> None:
    if not args.ray:
        for name in ("address", "replicas", "gpus_per_replica"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')}: is for replicas on Ray; add --ray")
        return
    if args.replicas and not 1 <= args.replicas[0] <= args.replicas[1] <= 10_000:
        words = " ".join(map(str, args.replicas))
        raise InputError(f"--replicas {words}: expected the least and the most of them, from 1 to 10000")
    gpus = args.gpus_per_replica
    if gpus is not None and not (0 <= gpus <= 1):
        raise InputError(f"--gpus-per-replica {gpus:g}: expected a share of a GPU from 0 to 1; a replica uses one")


# ---------------------------------------------------------------- the steps


def _serve(args: argparse.Namespace) -> None:
    from fracray.evaluation.opening import checkpoint_folder
    from fracray.serving.guard import Guard, read_token
    from fracray.serving.server import is_loopback, open_port

    token = read_token(args.token_file, "--token-file") if args.token_file else ""
    if not token and not is_loopback(args.host):
        raise InputError(
            f"--host {args.host}: other machines could send pictures and read answers; give --token-file FILE, or "
            "leave --host out"
        )
    port = open_port(args.host, args.port)
    with port, checkpoint_folder(args.checkpoint) as folder:
        _run(args, folder, port, Guard(token, args.host))


def _run(args: argparse.Namespace, folder: Path, port: socket, guard: Guard) -> None:
    from fracray.runtime.console import new_console
    from fracray.serving.server import run
    from fracray.serving.settings import limits_of
    from fracray.training.checkpoint import verify

    console = new_console()
    metadata = verify(folder)
    limits = limits_of(args)
    host, number = port.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{number}"

    def started() -> None:
        console.print(
            f"serving {metadata.trial or folder.name}, epoch {metadata.epoch}, at {url} ({where}; "
            f"{'a token is asked for' if args.token_file else 'no token'}); research only, no medical device. Ctrl-C "
            "stops it",
            soft_wrap=True,
        )

    console.print(f"starting the network of {args.checkpoint}", soft_wrap=True)
    with _service(args, folder, metadata.config, limits, (host, number)) as (service, where):
        ended = run(service, port, guard, limits, started)
    console.print(f"stopped; {ended}", soft_wrap=True)


@contextmanager
def _service(
    args: argparse.Namespace, folder: Path, config: Config, limits: Limits, listens: tuple[str, int]
) -> Iterator[tuple[Service, str]]:
    """What predicts, and where in words. listens: the address and port of this server."""
    from fracray.runtime.console import counted

    if not args.ray:
        from fracray.serving.engine import Engine

        plan = _plan(args)
        where = f"{counted(plan.workers, 'process', 'processes')} with the network, {counted(plan.decoders, 'decoder')}"
        yield Engine(folder, config, plan, limits, args.coverage), where
        return

    from fracray.runtime.ray_session import connect

    with connect(args.address):
        from fracray.runtime.resources import gpus_for
        from fracray.serving.engine import Plan
        from fracray.serving.replicas import OwnReplicas, application_name, spread

        cpus, workers = args.decoders or 1, args.workers or 1
        found = spread(args.replicas, cpus, gpus_for(1, args.gpus_per_replica, cpus))
        plan = Plan(workers, max(1, cpus // workers), cpus, args.batch, args.wait / 1000)
        where = (
            f"{found.least} to {counted(found.most, 'replica')} on Ray, each with {counted(found.cpus, 'CPU')} and "
            f"{found.gpus:g} GPUs"
        )
        name = application_name(*listens)
        yield OwnReplicas(folder, plan, limits, args.coverage, found, name, bool(args.address)), where


def _plan(args: argparse.Namespace) -> Plan:
    """On CPUs one process of the network, whose threads share out its batches: see docs/serve.md."""
    from fracray.serving.engine import Plan, gpus_seen

    gpus = gpus_seen()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = args.workers or max(1, len(gpus))
    threads = max(1, cpus // workers)
    return Plan(workers, threads, args.decoders or cpus, args.batch, args.wait / 1000, gpus)


if __name__ == "__main__":
    raise SystemExit(run_verb(main))
