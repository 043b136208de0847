"""The Ray cluster a command runs on: one of this machine's own, or one that is up; and what fits on its machines.

Knows nothing of data or models.
"""

import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from fracray.errors import InputError, RunError

ENVIRONMENT = {
    # The controller of Ray Train answers a report when it next looks at its workers: every 2 s unless told otherwise.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Tune's own tables and log files: fracray's board and trials.parquet stand in their place.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Trials stay in the folder the command was given in, so that relative paths in a config mean what they say.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A process that asked Ray for no GPU leaves the ones it sees alone.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

FILE = "FRACRAY_CLUSTER_FILE"  # by what file `submit` reached the cluster, as it was typed
EXPECTED = "FRACRAY_EXPECTED"  # how many machines are on their way, where nobody knows what they have
GATHER_SECONDS = 1800.0  # which a machine may take to be set up
PROMISED = "FRACRAY_MACHINES"  # what the cluster may grow to: Ray itself does not say it to a driver
SERVERS = ("raylet", "gcs_server")  # without either of them a local cluster is none
ENDING = threading.Lock()  # one word of farewell is enough


def set_environment() -> None:
    """What Ray reads when it is imported or started, set where the user has not set it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def connect(address: str | None, remedy: Callable[[], str] = lambda: "give the same command again") -> Iterator[None]:
    """Be connected to the cluster at `address` ('auto', 'host:port'), or to a fresh local one.

    A local cluster ends with the block; if it is killed before that, the command ends with exit code 1 and the words of
    `remedy`. Raises InputError where no cluster answers, RunError where none can be started.
    """
    set_environment()
    import ray

    if address and address.startswith("ray://"):
        raise InputError(
            f"--address {address}: from afar a search is sent to the cluster's head: python -m fracray.cluster submit"
        )
    if ray.is_initialized():  # a test or a notebook is connected already, and stays so
        yield
        return
    settings = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address:
            ray.init(address=address, **settings)
        else:
            # Ray listens on every interface. A local cluster answers only who holds the token in ~/.ray: that is
            # Ray's default since 2.59, which RAY_AUTH_MODE, read when Ray is imported, would change.
            ray.init(address="local", include_dashboard=False, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if address:
            raise InputError(f"--address {address}: no Ray cluster answers there: {reason}") from None
        raise RunError(f"Ray could not be started on this machine: {reason}") from None
    quiet_ray_data()
    # What becomes of trials and of their processes the board tells, in a line each; these tell it in tracebacks.
    for name in ("ray.tune", "ray._private.worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    closing = threading.Event()
    if not address:
        _mute_obituary()
        servers = [child for child in psutil.Process().children() if child.name() in SERVERS]
        for server in servers:
            threading.Thread(target=_end_with, args=(server, closing, remedy), daemon=True).start()
    try:
        with _terminated_as_interrupted():
            yield
    finally:
        closing.set()
        ray.shutdown()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Have SIGTERM, by which schedulers and clouds say that time is up, end a command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _mute_obituary() -> None:
    """Have Ray not print a paragraph on each killed process and forty lines of a raylet's log over fracray's words."""
    from ray._private.ray_logging import stdout_deduplicator

    # What RAY_DEDUP_LOGS_SKIP_REGEX sets; but that is read at the import of Ray, which is long past.
    stdout_deduplicator.skip_re = re.compile("Raylet is terminated|has been marked dead|A worker died or was killed")


def _end_with(server: psutil.Process, closing: threading.Event, remedy: Callable[[], str]) -> None:
    """End this process as soon as a server of its own cluster dies, unless that is closing.

    Ray tells the driver only after 15 s to a minute, at length, and Tune then waits for ever for room for its trials.
    The driver stands in Ray's C++ meanwhile, where no exception reaches it. Leaving without a goodbye loses what a
    killed driver loses, and `--resume` mends that.
    """
    with suppress(ChildProcessError):  # Ray itself may have taken note of its end
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    if closing.is_set() or not ENDING.acquire(blocking=False):
        return
    try:
        words = "failed: the Ray cluster of this command was killed (was the machine short of memory?)"
        with suppress(Exception):  # the remedy may ask a storage that is out of reach
            words += f"; {remedy()}"
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Ray would print its last log lines there
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live table had hidden it
        os.write(sys.stderr.fileno(), f"{show_cursor}{words}\n".encode())
    finally:
        os._exit(1)


def quiet_ray_data() -> None:
    """Progress and errors are fracray's to show: Ray Data would print the traceback of each, and raises it anyway.

    It sets its loggers up at import, so they are turned down after it.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@dataclass(frozen=True)
class Machine:
    """A kind of machine of a cluster: what each has, and how many there are or may be."""

    cpus: float
    gpus: float
    count: int

    def workers(self, cpus: float, gpus: float) -> int:
        """How many workers that ask for so much fit on one."""
        fit = [(have + 1e-9) // want for have, want in ((self.cpus, cpus), (self.gpus, gpus)) if want]
        return int(min(fit, default=0))


def promise(machines: Sequence[Machine]) -> dict[str, str]:
    """The environment that tells a command on a cluster's head of machines that are started when they are needed."""
    return {PROMISED: json.dumps([asdict(machine) for machine in machines])}


def machines() -> list[Machine]:
    """The machines that the cluster may have: those of its file where `submit` told them, else those it has now."""
    promised = os.environ.get(PROMISED)
    if promised:
        try:
            found = [Machine(float(one["cpus"]), float(one["gpus"]), int(one["count"])) for one in json.loads(promised)]
            return [machine for machine in found if machine.count] or [Machine(0.0, 0.0, 1)]
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{PROMISED}: {promised}: expected a list of {{cpus, gpus, count}} as JSON") from None
    return [Machine(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0), 1) for node in _alive()]


def _alive() -> list[dict[str, Any]]:
    """The cluster's present machines, as Ray tells of them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def gather(say: Callable[[str], None]) -> None:
    """Wait for the machines that `submit` was told are on their way, saying so; for half an hour at most."""
    expected = _expected()
    deadline, said = time.monotonic() + GATHER_SECONDS, 0
    while (up := len(_alive())) < expected:
        if time.monotonic() > deadline:
            say(f"going on with {up} of the cluster's {expected} machines; see what keeps the others with `ray status`")
            return
        if up != said:
            say(f"{up} of the cluster's {expected} machines are up; waiting for the others, which are being set up")
            said = up
        time.sleep(1)


def _expected() -> int:
    told = os.environ.get(EXPECTED, "0")
    if not told.isdecimal():
        raise InputError(f"{EXPECTED}: {told}: expected the number of machines")
    return int(told)


def alone() -> bool:
    """Whether this machine is the whole cluster, now and later: then it sees whatever this process sees."""
    return max(_expected(), sum(machine.count for machine in machines())) == 1


def capacity(resource: str) -> float:
    """How much of a resource ('CPU', 'GPU') the cluster may have."""
    each = {"CPU": lambda machine: machine.cpus, "GPU": lambda machine: machine.gpus}[resource]
    return float(sum(machine.count * each(machine) for machine in machines()))


def present(resource: str) -> float:
    """How much of a resource ('CPU', 'GPU') the cluster has now."""
    import ray

    return float(ray.cluster_resources().get(resource, 0.0))


def here() -> Any:
    """The scheduling strategy that keeps a task or actor on the machine of this process."""
    import ray

    return _on(ray.get_runtime_context().get_node_id())


def _on(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def require_seen(path: str, setting: str) -> None:
    """InputError, naming the setting, where one of the cluster's present machines does not see this local file."""
    if alone():
        return
    import ray

    sees = ray.remote(num_cpus=0)(os.path.exists)
    asked = {
        node["NodeManagerAddress"]: sees.options(scheduling_strategy=_on(node["NodeID"])).remote(path)
        for node in _alive()
    }
    blind = [address for address, answer in asked.items() if not _seen(answer)]
    if blind:
        raise InputError(
            f"{setting}: the machine(s) {', '.join(blind)} of the cluster do not see this folder; name a URI "
            "(s3://..., gs://...), or a folder on a disk that all machines share"
        )


def _seen(answer: Any) -> bool:
    import ray

    try:
        return bool(ray.get(answer))
    except ray.exceptions.RayError:  # the machine has gone meanwhile
        return True


def _slots(cpus: float, gpus: float, spare_cpus: float) -> int:
    """How many workers that ask for so much fit the machines, of which one keeps `spare_cpus`."""
    known = machines()
    slots = sum(machine.count * machine.workers(cpus, gpus) for machine in known)
    left = max((machine.cpus - machine.workers(cpus, gpus) * cpus for machine in known), default=0.0)
    if cpus and left + 1e-9 < spare_cpus:
        slots -= math.ceil((spare_cpus - left) / cpus - 1e-9)
    return slots


def cpus_for(workers: int, gpus: float, spare_cpus: float = 0.0) -> float:
    """The most whole CPUs that each of so many workers can have; `spare_cpus` as of trials_at_once.

    1 where there is not one for each, and half a one where that leaves room for what is to be spared.
    """
    most, rest = int(max(machine.cpus for machine in machines())), 0.5 if spare_cpus else 1.0
    return next((float(cpus) for cpus in range(most, 0, -1) if _slots(cpus, gpus, spare_cpus) >= workers), rest)


def refuse_shared_gpu(workers: int, gpus: float) -> None:
    """InputError where the workers of one training would share a GPU."""
    if workers > 1 and gpus % 1:
        raise InputError(
            f"{workers} workers with {gpus:g} GPU(s) each: workers of one training cannot share a GPU; "
            "give each a whole number of GPUs, or train on one worker"
        )


def trials_at_once(workers: int, cpus: float, gpus: float, spare_cpus: float = 0.0, asked: int | None = None) -> int:
    """How many trials of `workers` workers with `cpus` and `gpus` each fit the cluster at once; at least 1.

    A worker stands on one machine; the workers of a trial may stand on several. `spare_cpus` are left on one of them
    for Ray Data's tasks. Raises InputError, naming the setting, when not even one fits or when fewer fit than were
    asked for.
    """
    refuse_shared_gpu(workers, gpus)
    for what, each, spare in (("GPU", gpus, 0.0), ("CPU", cpus, spare_cpus)):
        need, have = workers * each, capacity(what)
        if need + spare > have + 1e-9:
            data = f" and {spare:g} for Ray Data's tasks" if spare else ""
            raise InputError(
                f"{workers} worker(s) with {each:g} {what}(s) each ask for {need:g} {what}(s){data}, and the cluster "
                f"has {have:g}; lower the workers or the {what}s of each, or connect to a larger cluster with --address"
            )
    slots = max(0, _slots(cpus, gpus, spare_cpus))
    fit = slots // workers
    if fit < 1:
        told = ", ".join(f"{one.count} with {one.cpus:g} CPUs and {one.gpus:g} GPUs" for one in machines())
        raise InputError(
            f"{workers} worker(s) with {cpus:g} CPU(s) and {gpus:g} GPU(s) each: each must stand on one machine, and "
            f"only {slots} fit the cluster's ({told}); lower what each asks for"
        )
    if asked is not None and asked > fit:
        raise InputError(
            f"--concurrent {asked}: only {fit} trial(s) fit the cluster at once "
            f"({capacity('CPU'):g} CPUs, {capacity('GPU'):g} GPUs); lower --concurrent or what each trial asks for"
        )
    return asked or fit
