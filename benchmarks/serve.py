"""Latency and throughput of fracray.serve on this machine, against the bare forward pass of the same network.

Clients in a process of their own send one radiograph a request over loopback, each the next one when it has its answer.
The bare forward pass runs over decoded squares in full batches, before the server starts, with all CPUs, so it pays
neither for decoding nor for HTTP. "decode and forward" does both in turn in one process, without HTTP. "CPU ms" is the
time of all CPUs for a picture, of the server and its processes; on a busy machine compare this and not the rates.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from table import write_results

from fracray.config import Config
from fracray.data.images.square import picture_of, square_of
from fracray.evaluation.inference import network
from fracray.metrics import Calibration
from fracray.runtime.console import new_console, new_table
from fracray.training.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from fracray.training.model import build_model

HERE = Path(__file__).parent


def request_of(data: bytes) -> bytes:
    """A whole HTTP request with one picture."""
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n' + data + b"\r\n--x--\r\n"
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(part)}\r\n"
    return head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + part


def load(port: int, requests: list[bytes], clients: int, seconds: float) -> list[tuple[int, float]]:
    """(status, seconds) of each request that so many clients send in turn, for so long. Status 0: no answer."""
    found: list[tuple[int, float]] = []

    async def client(start: int, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in itertools.islice(itertools.cycle(requests), start, None):
            begun = time.perf_counter()
            if begun > end:
                break
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                assert length is not None
                await reader.readexactly(int(length[1]))
                status = int(head.split(b" ", 2)[1])
            except (OSError, asyncio.IncompleteReadError):
                status = 0
            found.append((status, time.perf_counter() - begun))
            if status == 0 or b"connection: close" in head:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    async def all_clients() -> None:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(client(number, end) for number in range(clients)))

    asyncio.run(all_clients())
    return found


def rate(step: Any, seconds: float) -> tuple[float, float]:
    """Pictures a second, and milliseconds of all CPUs for one, of `step`, which returns how many it did."""
    step()
    begun, before, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begun < seconds:
        done += step()
    return done / (time.perf_counter() - begun), 1000 * (time.process_time() - before) / done


def cpu_seconds(server: psutil.Process) -> float:
    """What the server and its processes have used of all CPUs."""
    return sum(sum(one.cpu_times()[:2]) for one in (server, *server.children(recursive=True)))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("images", type=Path, help="a folder of radiographs, of which 64 are sent")
    cli.add_argument("--model", default="tf_efficientnet_lite0", help="with random weights (default %(default)s)")
    cli.add_argument("--size", type=int, default=224, help="px (default %(default)s)")
    cli.add_argument("--clients", type=int, default=32, help="(default %(default)s; then 10 times as many)")
    cli.add_argument("--seconds", type=float, default=20.0, help="of each measure (default %(default)g)")
    cli.add_argument("--serve", default="", help="more options of fracray.serve, in quotes")
    cli.add_argument("--json", type=Path, default=HERE / "results" / "serve.json", help="default %(default)s")
    args = cli.parse_args()
    paths = sorted(path for path in args.images.rglob("*.jpg"))[:: max(1, len(list(args.images.rglob("*.jpg"))) // 64)][
        :64
    ]
    files = [path.read_bytes() for path in paths]
    config = Config().with_leaves({"model.name": args.model, "data.size": args.size})
    with tempfile.TemporaryDirectory() as scratch:
        metadata = CheckpointMetadata(config, 0.5, Calibration(), {"val_accuracy": 0.5}, "f", epoch=1)
        folder = Path(scratch) / "model"
        save_checkpoint(folder, build_model(config.model).state_dict(), metadata)
        run = network(load_checkpoint(folder))

        def decoded(data: bytes) -> np.ndarray:
            return square_of(*picture_of(data, args.size, False), args.size, False)[0]

        cv2.setNumThreads(1)
        squares = np.stack([decoded(data) for data in files[:32]])
        places = itertools.cycle(range(0, len(files), 32))

        def both() -> int:
            start = next(places)
            some = files[start : start + 32]
            return len(run(np.stack([decoded(data) for data in some])))

        bare, bare_ms = rate(lambda: len(run(squares)), args.seconds)
        with_decoding, both_ms = rate(both, args.seconds)
        rows = measured(folder, [request_of(data) for data in files], args)
    table = new_table("clients")
    for heading in (
        "requests/s",
        "of bare",
        "of decode and forward",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "CPU ms",
        "answers",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        row |= {"of_bare": row["per_second"] / bare, "of_both": row["per_second"] / with_decoding}
        table.add_row(
            str(row["clients"]),
            f"{row['per_second']:.1f}",
            f"{row['of_bare']:.2f}",
            f"{row['of_both']:.2f}",
            *(f"{1000 * row[name]:.0f}" for name in ("p50", "p95", "p99")),
            f"{row['cpu_ms']:.1f}",
            ", ".join(f"{count} x {status}" for status, count in row["answers"].items()),
        )
    console = new_console()
    console.print(
        f"bare forward pass {bare:.1f} pictures/s, {bare_ms:.1f} CPU ms each; decode and forward {with_decoding:.1f}, "
        f"{both_ms:.1f}",
        soft_wrap=True,
    )
    settings = {"model": args.model, "size": args.size, "seconds": args.seconds, "serve": args.serve}
    figures = {"settings": settings, "bare": bare, "decode_and_forward": with_decoding, "clients": rows}
    figures |= {"bare_cpu_ms": bare_ms, "decode_and_forward_cpu_ms": both_ms}
    write_results(console, "serve", table, figures, args.json)


def measured(folder: Path, requests: list[bytes], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The server with 1 client, with --clients and with ten times as many: rate and latency of the answers 200."""
    words = [sys.executable, "-m", "fracray.serve", str(folder), "--port", "0", *args.serve.split()]
    rows = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        running = psutil.Process(server.pid)
        port = next(int(found[1]) for line in server.stdout if (found := re.search(r"at http://[^:]+:(\d+)", line)))
        with multiprocessing.get_context("spawn").Pool(1) as process:
            process.apply(load, (port, requests, args.clients, 3.0))
            for clients in (1, args.clients, 10 * args.clients):
                before = cpu_seconds(running)
                answers = process.apply(load, (port, requests, clients, args.seconds))
                used = cpu_seconds(running) - before
                times = np.array([taken for status, taken in answers if status == 200])
                row: dict[str, Any] = {"clients": clients, "per_second": len(times) / args.seconds}
                row |= {f"p{share}": float(np.percentile(times, share)) for share in (50, 95, 99)}
                row["cpu_ms"] = 1000 * used / max(1, len(times))
                rows.append(row | {"answers": dict(Counter(str(status) for status, _ in answers))})
        server.send_signal(signal.SIGTERM)
        server.stdout.read()
    return rows


if __name__ == "__main__":
    main()
