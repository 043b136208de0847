"""The Ray session of a command: on a local cluster that it starts, or on one that is up.

Knows nothing of data or models.
"""

import atexit
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Generic, TypeVar

import psutil

from fracray import interrupts
from fracray.errors import InputError, RunError
from fracray.runtime.imports import importing, wait_for_imports
from fracray.runtime.own_cluster import OwnCluster
from fracray.runtime.ray_servers import fewer_servers
from fracray.runtime.timeline import START

ENVIRONMENT = {
    # Ray Train's controller answers a report when it next polls its workers: every 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",
    "RAY_TRAIN_V2_ENABLED": "1",
    # fracray shows its own table and writes trials.parquet instead of Tune's tables and log files.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Trials run in the folder in which the command was started, so that relative paths in a config work.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A process without GPUs of its own must not hide the machine's GPUs from others.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # gRPC, which Ray Serve imports, notes on the terminal that a process forks.
    "GRPC_VERBOSITY": "ERROR",
}

SLOW_SECONDS = 10.0  # Ray gives its servers 30 s; what fails sooner does not fail for want of time
END_SECONDS = 5.0  # for killed processes to be gone

OWN = "FRACRAY_OWN_CLUSTER"  # set in the processes of such a cluster
NOTICES = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"

T = TypeVar("T")


class _Cluster:
    """The cluster that this process is connected to."""

    own = False  # `connect` has started it


def own_cluster() -> bool:
    """Whether `connect` has started the cluster, here or in the process whose cluster this one is part of.

    So all of Ray's processes have the environment of the command, and end with it.
    """
    return _Cluster.own or OWN in os.environ


def set_environment() -> None:
    """Set the variables that Ray reads at import or start, unless the user has set them."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class Shared(Generic[T]):
    """An object that is put into Ray's store once, and handed on by reference: a machine holds it once.

    The arrays of what `get` returns may only be read. It exists as long as the process that made it.
    """

    def __init__(self, value: T) -> None:
        import ray

        self._reference = ray.put(value)

    def get(self) -> T:
        import ray

        value: T = ray.get(self._reference)
        return value


@contextmanager
def connect(
    address: str | None,
    remedy: Callable[[], str] = lambda: "give the same command again",
    meanwhile: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Connect to the cluster at `address` ('auto', 'host:port'), or start a local one.

    A local cluster ends with the block. If it is killed before that, the command ends with exit code 1 and prints
    `remedy`. While Ray starts, the modules `meanwhile` are imported. The processes of a local cluster get the variables
    `environment`, but for those that the user has set. Raises InputError where no cluster answers, RunError where none
    can be started.
    """
    set_environment()
    import ray

    if address and address.startswith("ray://"):
        raise InputError(
            f"--address {address}: Ray Client is not supported; send the search to the cluster's head with "
            "`python -m fracray.cluster submit`"
        )
    if ray.is_initialized():  # a test or a notebook is connected already and stays connected
        yield
        return
    # Machines that are about to be taken away announce it. This one does not, and listening costs each training a
    # process: about a second of a CPU.
    lasting = {} if address else {NOTICES: "0"}
    with interrupts.careful(), importing(meanwhile), _variables(lasting):
        yield from _session(address, remedy, environment or {})


def _session(address: str | None, remedy: Callable[[], str], environment: Mapping[str, str]) -> Iterator[None]:
    import ray

    own = None if address else OwnCluster(remedy)
    try:
        try:
            with START.stretch("Ray starts"):
                _start(address, environment)
            with START.stretch("waits for imports"):
                wait_for_imports()
        except SystemExit:  # Ray's answer to SIGTERM
            raise KeyboardInterrupt from None
        with _sigterm_as_ctrl_c(own):
            quiet_ray_data()
            # fracray reports failed trials and lost processes in one line each; these loggers print tracebacks.
            for name in ("ray.tune", "ray._private.worker"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            if own:
                _mute_raylet_logs()
                own.is_up()
                _Cluster.own = True
            yield
    finally:
        _Cluster.own = False
        interrupts.listen()  # Ray has set a handler of its own
        if own is None or own.closes():
            ray.shutdown()
        else:
            atexit._clear()  # Ray's too


def _start(address: str | None, environment: Mapping[str, str]) -> None:
    import ray

    settings = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if not address:
        # Ray listens on every interface. A local cluster answers only clients that hold the token in ~/.ray: this is
        # Ray's default since 2.59, unless RAY_AUTH_MODE changes it (read when Ray is imported).
        # Without its servers the command could not end in order.
        with interrupts.children_apart(), fewer_servers() as nodes, _variables({**environment, OWN: "1"}):
            _start_patiently(partial(ray.init, address="local", include_dashboard=False, **settings), nodes)
        return
    try:
        ray.init(address=address, **settings)
    except Exception as error:
        raise InputError(f"--address {address}: no Ray cluster answers there: {_reason(error)}") from None


def _start_patiently(start: Callable[[], object], nodes: list[Any]) -> None:
    """Start Ray's servers; a second time where they needed more than the time that Ray gives them.

    nodes: those that `start` makes, each in the list before its first process starts.
    """
    for tries_left in (1, 0):
        begun = time.monotonic()
        try:
            start()
            return
        except Exception as error:  # Ray raises plain ones where a loaded machine takes too long
            seconds = time.monotonic() - begun
            _end(nodes)
            if seconds < SLOW_SECONDS:
                raise RunError(f"Ray could not be started on this machine: {_reason(error)}") from None
            slow = f"Ray's servers did not start in time on this machine ({_reason(error).rstrip('.')})"
        if tries_left:
            print(f"note: {slow}: they are started once more", file=sys.stderr, flush=True)
    raise RunError(
        f"{slow}, twice: it is too busy, or short of memory; end other programs or wait for them, and give the same "
        "command again"
    )


def _end(nodes: list[Any]) -> None:
    """End the processes of nodes that did not start, and what these have started: Ray leaves them until the exit."""
    import ray

    below = []
    for _, server in (one for node in nodes for one in node.live_processes()):
        with suppress(psutil.Error):
            below += psutil.Process(server.pid).children(recursive=True)
    ray.shutdown()  # where the servers were up and this process could not connect
    while nodes:
        nodes.pop().kill_all_processes(check_alive=False, wait=True)
    for process in below:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(below, timeout=END_SECONDS)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment in the block and for processes that start in it, unless the user has set them."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _sigterm_as_ctrl_c(own: OwnCluster | None) -> Iterator[None]:
    """SIGTERM, which schedulers and clouds send when time is up, ends the command as Ctrl-C does.

    Where its own cluster ends too, handlers that libraries have set for Ctrl-C, which wait for it, are passed over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def answer(*_: object) -> None:
        if own and own.hopeless:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _mute_raylet_logs() -> None:
    """Keep Ray from printing a paragraph for each killed process and forty lines of a raylet's log."""
    from ray._private.ray_logging import stdout_deduplicator

    # RAY_DEDUP_LOGS_SKIP_REGEX would do this, but Ray has already read it at import.
    stdout_deduplicator.skip_re = re.compile("Raylet is terminated|has been marked dead|A worker died or was killed")


def quiet_ray_data() -> None:
    """Turn off Ray Data's progress bars and log lines: fracray shows progress, and errors are raised anyway.

    Ray Data configures its loggers at import, so this must run after the import.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
