"""Commands as jobs on a cluster: reach its head, hand a command over, follow what it prints, hear how it ended.

The job is Ray's: it runs on the head whether anyone listens or not. Knows nothing of what the command does.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import aiohttp

from fracray.cluster.files import ClusterFile
from fracray.cluster.ray_cli import DASHBOARD_PORT, RAY, dashboard_port, reason
from fracray.errors import InputError, RunError

REACH_SECONDS = 60.0  # for the way to the head to open
AGAIN_SECONDS = 5.0  # between two tries to reach it again
ERASE, UP = "\x1b[2K", "\x1b[1A"  # a line on a terminal; to the line above
LOST_SECONDS = 600.0  # without an answer of the head; then it is given up


def set_token_mode() -> None:
    """Have Ray authenticate by the token in $RAY_AUTH_TOKEN or ~/.ray/auth_token, as the cluster files turn on."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def reach(cluster: ClusterFile | None, address: str | None) -> Iterator[Any]:
    """A client of the cluster's jobs (ray.job_submission.JobSubmissionClient), at `address` or through a tunnel.

    The tunnel is Ray's own, over SSH, or kubectl's; it ends with the block. RunError where there is no way through.
    """
    set_token_mode()
    if address is not None:
        yield _client(address)
        return
    assert cluster is not None
    port = _free_port()
    with _tunnel(cluster, port) as (process, words):
        deadline = time.monotonic() + REACH_SECONDS
        while True:
            try:
                client = _client(f"http://127.0.0.1:{port}")
                break
            except RunError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    words.seek(0)
                    why = reason(words.read()) or str(error)
                    raise RunError(f"{cluster.file.origin}: its head cannot be reached: {why}") from None
                time.sleep(0.5)
        yield client


def _client(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # What Ray tells of its uploads and connections is no news to who follows a job.
    for chatty in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{chatty}").setLevel(logging.WARNING)
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
    """A process that leads 127.0.0.1:`port` to the head's dashboard, and a file of what it says."""
    if cluster.kind == "RayCluster":
        named = cluster.file.tree["metadata"]
        namespace = ["--namespace", str(named["namespace"])] if "namespace" in named else []
        service = f"service/{named['name']}-head-svc"
        command = ["kubectl", "port-forward", *namespace, service, f"{port}:{DASHBOARD_PORT}"]
    else:
        there = str(dashboard_port(cluster))
        command = [*RAY, "dashboard", cluster.file.origin, "--port", str(port), "--remote-port", there]
    with tempfile.TemporaryFile("w+") as words:
        try:
            # In a session of its own: Ctrl-C is for what follows the log, and is no reason to lose the way.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, text=True, start_new_session=True
            )
        except FileNotFoundError:
            raise InputError(f"{command[0]} is not installed here; {cluster.file.origin} needs it") from None
        try:
            yield process, words
        finally:
            with suppress(ProcessLookupError):  # of all of its session: what Ray started ends with nothing else
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def submit(
    client: Any, job: str, command: Sequence[str], files: Mapping[str, bytes], environment: Mapping[str, str]
) -> None:
    """Hand a command over under the name `job`; `files` go along, under these names in the folder it runs in.

    RunError where the head refuses it.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        runtime: dict[str, Any] = {"env_vars": dict(environment)}
        if files:
            runtime["working_dir"] = folder
        try:
            client.submit_job(entrypoint=shlex.join(command), submission_id=job, runtime_env=runtime)
        except (RuntimeError, ConnectionError, ValueError) as error:
            raise RunError(f"the cluster did not take the job {job}: {_first_line(error)}") from None


class Follower:
    """What a job prints, from its beginning, over as many connections as it takes."""

    def __init__(self, job: str, out: IO[str]) -> None:
        self._job, self._out = job, out
        self._shown = 0
        self._heard = time.monotonic()
        self._line_ended = False

    def silence(self) -> float:
        """Seconds since the head last answered; a job that prints nothing is no silence of the head's."""
        return time.monotonic() - self._heard

    def follow(self, client: Any) -> str | None:
        """Print what is new until the job ends; its status ('SUCCEEDED', ...), None where the connection was lost."""
        # Not asyncio.run: it makes a cancellation of Ctrl-C, which what is awaited may swallow.
        loop = asyncio.new_event_loop()
        tail = loop.create_task(self._tail(client))
        began = time.monotonic()
        try:
            loop.run_until_complete(tail)
            status = client.get_job_status(self._job)
            self._heard = time.monotonic()
        except (TimeoutError, OSError, RuntimeError, aiohttp.ClientError) as error:
            if "does not exist" in str(error) or "not found" in str(error):
                raise InputError(f"{self._job}: the cluster knows no such job") from None
            if time.monotonic() - began > AGAIN_SECONDS:  # it was there until now, whether the job spoke or not
                self._heard = time.monotonic()
            return None
        finally:
            tail.cancel()
            loop.run_until_complete(asyncio.wait({tail}, timeout=1))  # lets it close its connection
            loop.run_until_complete(loop.shutdown_asyncgens())
            if tail.done() and not tail.cancelled():
                tail.exception()  # it was raised above; unasked, asyncio would print it again
            loop.close()
        return str(status.value) if status.is_terminal() else None

    async def _tail(self, client: Any) -> None:
        skip = self._shown  # Ray tells a job's words from their beginning, every time
        async for words in client.tail_job_logs(self._job):
            self._heard = time.monotonic()
            fresh, skip = words[skip:], max(0, skip - len(words))
            if fresh:
                self._out.write(self._redrawn(fresh))
                self._out.flush()
                self._shown += len(fresh)

    def _redrawn(self, words: str) -> str:
        """The words with a table's returns to the line's beginning, of which Ray's reader of logs makes new lines."""
        drawn = words.replace(f"\n{ERASE}", f"\r{ERASE}")
        if self._line_ended and words.startswith(ERASE):
            drawn = f"{UP}{drawn}"  # the return was the last of what came before
        self._line_ended = words.endswith("\n")
        return drawn


def jobs(client: Any) -> list[Any]:
    """The jobs that were handed over, oldest first (ray.job_submission.JobDetails)."""
    return sorted((job for job in client.list_jobs() if job.submission_id), key=lambda job: job.start_time or 0)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
