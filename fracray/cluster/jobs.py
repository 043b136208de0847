"""Commands as Ray jobs on a cluster: connect to the head, submit a job, print its output, return its status.

A job runs on the head with or without a connection. Knows nothing of what the command does.
"""

import asyncio
import logging
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import aiohttp

from fracray.cluster.files import ClusterFile
from fracray.cluster.ray_cli import DASHBOARD_PORT, RAY, dashboard_port, failure_reason
from fracray.cluster.submission import Submission
from fracray.errors import InputError, RunError

CONNECT_SECONDS = 60.0  # time limit for the first connection to the head
RETRY_SECONDS = 5.0  # between two tries to connect again
LOST_SECONDS = 600.0  # without an answer from the head, before `_follow` gives up
ERASE, UP = "\x1b[2K", "\x1b[1A"  # terminal codes: erase the line; go to the line above


@contextmanager
def open_client(cluster: ClusterFile, address: str | None) -> Iterator[Any]:
    """A client of the cluster's jobs (ray.job_submission.JobSubmissionClient), at `address` or through a tunnel.

    The tunnel is Ray's own, over SSH, or kubectl's; it ends with the block. RunError where there is no connection.
    """
    # Ray uses the token in $RAY_AUTH_TOKEN or ~/.ray/auth_token, as the cluster files require.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address is not None:
        yield _client(address)
        return
    port = _free_port()
    with _tunnel(cluster, port) as (process, output):
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                client = _client(f"http://127.0.0.1:{port}")
                break
            except RunError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    why = failure_reason(output.read()) or str(error)
                    raise RunError(f"{cluster.file.origin}: its head cannot be reached: {why}") from None
                time.sleep(0.5)
        yield client


def _client(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # Ray logs its uploads and connections, which would mix with the job's output.
    for name in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise RunError(f"{address}: {_first_line(error)}; put the cluster's token into ~/.ray/auth_token") from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"{address}: no Ray dashboard answers there: {_first_line(error)}") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _tunnel(cluster: ClusterFile, port: int) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A process that forwards 127.0.0.1:`port` to the head's dashboard, and a file with its output."""
    if cluster.kind == "RayCluster":
        named = cluster.file.tree["metadata"]
        namespace = ["--namespace", str(named["namespace"])] if "namespace" in named else []
        service = f"service/{named['name']}-head-svc"
        command = ["kubectl", "port-forward", *namespace, service, f"{port}:{DASHBOARD_PORT}"]
    else:
        there = str(dashboard_port(cluster))
        command = [*RAY, "dashboard", cluster.file.origin, "--port", str(port), "--remote-port", there]
    with tempfile.TemporaryFile("w+") as output:
        try:
            # In its own session: Ctrl-C must reach only the command that follows the log, not the tunnel.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True, start_new_session=True
            )
        except FileNotFoundError:
            raise InputError(f"{command[0]} is not installed here; {cluster.file.origin} needs it") from None
        try:
            yield process, output
        finally:
            with suppress(ProcessLookupError):  # the complete session, also what Ray started
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def submit(client: Any, job: str, submission: Submission, environment: Mapping[str, str]) -> None:
    """Submit a command as the job named `job`. RunError where the head refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in submission.files.items():
            (Path(folder) / name).write_bytes(data)
        runtime: dict[str, Any] = {"env_vars": dict(environment)}
        if submission.files:
            runtime["working_dir"] = folder
        try:
            client.submit_job(entrypoint=shlex.join(submission.command), submission_id=job, runtime_env=runtime)
        except (RuntimeError, ConnectionError, ValueError) as error:
            raise RunError(f"the cluster refused the job {job}: {_first_line(error)}") from None


class Follower:
    """Prints the output of a job from its beginning, over one or more connections."""

    def __init__(self, job: str, out: IO[str]) -> None:
        self._job, self._out = job, out
        self._shown = 0
        self._heard = time.monotonic()
        self._line_ended = False

    def silence(self) -> float:
        """Seconds since the last answer from the head, whether the job printed something or not."""
        return time.monotonic() - self._heard

    def follow(self, client: Any) -> str | None:
        """Print new output until the job ends. Returns its status ('SUCCEEDED', ...), None for a lost connection."""
        # Not asyncio.run: it turns Ctrl-C into a cancellation, which the awaited code may swallow.
        loop = asyncio.new_event_loop()
        tail = loop.create_task(self._tail(client))
        began = time.monotonic()
        try:
            loop.run_until_complete(tail)
            status = client.get_job_status(self._job)
            self._heard = time.monotonic()
        except (TimeoutError, OSError, RuntimeError, aiohttp.ClientError) as error:
            if "does not exist" in str(error) or "not found" in str(error):
                raise InputError(f"{self._job}: the cluster has no such job") from None
            if time.monotonic() - began > RETRY_SECONDS:  # the head answered until now
                self._heard = time.monotonic()
            return None
        finally:
            tail.cancel()
            loop.run_until_complete(asyncio.wait({tail}, timeout=1))  # so that it closes its connection
            loop.run_until_complete(loop.shutdown_asyncgens())
            if tail.done() and not tail.cancelled():
                tail.exception()  # already raised above; asyncio would print an exception that nobody reads
            loop.close()
        return str(status.value) if status.is_terminal() else None

    async def _tail(self, client: Any) -> None:
        skip = self._shown  # every connection sends the output from its beginning
        async for text in client.tail_job_logs(self._job):
            self._heard = time.monotonic()
            fresh, skip = text[skip:], max(0, skip - len(text))
            if fresh:
                self._out.write(self._redrawn(fresh))
                self._out.flush()
                self._shown += len(fresh)

    def _redrawn(self, text: str) -> str:
        """The text with the carriage returns of a live table, which Ray's log reader turns into new lines."""
        drawn = text.replace(f"\n{ERASE}", f"\r{ERASE}")
        if self._line_ended and text.startswith(ERASE):
            drawn = f"{UP}{drawn}"  # the carriage return was the last character of the text before
        self._line_ended = text.endswith("\n")
        return drawn


def list_jobs(client: Any) -> list[Any]:
    """The submitted jobs, oldest first (ray.job_submission.JobDetails)."""
    return sorted((job for job in client.list_jobs() if job.submission_id), key=lambda job: job.start_time or 0)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
