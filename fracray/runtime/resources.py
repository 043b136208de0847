"""What a cluster's machines have, what a worker gets of it, and how many workers fit.

Knows nothing of data, models or of how Ray is started. Functions that ask Ray need a connected session.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fracray.errors import InputError

PROMISED = "FRACRAY_MACHINES"  # the machines that the cluster may grow to; Ray does not tell a driver
EXPECTED = "FRACRAY_EXPECTED"  # how many machines are being set up, where it is not known what they have
GPU_KIND = "accelerator_type:"  # before the model of a machine's GPUs, in the name of one of Ray's resources
GATHER_SECONDS = 1800.0  # longest wait for a machine that is being set up


@dataclass(frozen=True)
class WorkerResources:
    """What one trial or one training gets of the cluster: its workers, and the CPUs and GPUs of each.

    least: the number of workers with which a training can start and continue while there is no room for `workers`; 0
    means all or none.
    """

    workers: int
    cpus: float
    gpus: float = 0.0
    least: int = 0

    @property
    def elastic(self) -> bool:
        return 0 < self.least < self.workers

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU(s)" if self.gpus else ""
        return f"{self.workers} worker(s) of {self.cpus:g} CPU(s){gpus}"


@dataclass(frozen=True)
class Machine:
    """A kind of machine of a cluster: what each has, and how many there are or may be."""

    cpus: float
    gpus: float
    count: int

    def workers(self, cpus: float, gpus: float) -> int:
        """How many workers that each need so much fit on one machine."""
        fit = [(have + 1e-9) // want for have, want in ((self.cpus, cpus), (self.gpus, gpus)) if want]
        return int(min(fit, default=0))


def promise(machines: Sequence[Machine]) -> dict[str, str]:
    """The environment that tells a command on a cluster's head which machines are started on demand."""
    return {PROMISED: json.dumps([asdict(machine) for machine in machines])}


def machines() -> list[Machine]:
    """The machines that the cluster may have: those of its file if `submit` passed them on, else the present ones."""
    promised = os.environ.get(PROMISED)
    if promised:
        try:
            found = [Machine(float(one["cpus"]), float(one["gpus"]), int(one["count"])) for one in json.loads(promised)]
            return [machine for machine in found if machine.count] or [Machine(0.0, 0.0, 1)]
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{PROMISED}: {promised}: expected a list of {{cpus, gpus, count}} as JSON") from None
    return [Machine(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0), 1) for node in _alive()]


def _alive() -> list[dict[str, Any]]:
    """Ray's entries of the machines that are up."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def gather(say: Callable[[str], None]) -> None:
    """Wait for the machines that are being set up, with a message; half an hour at most."""
    expected = _expected()
    deadline, said = time.monotonic() + GATHER_SECONDS, 0
    while (up := len(_alive())) < expected:
        if time.monotonic() > deadline:
            say(f"continuing with {up} of the cluster's {expected} machines; `ray status` shows why others are missing")
            return
        if up != said:
            say(f"{up} of the cluster's {expected} machines are up; waiting for the others, which are being set up")
            said = up
        time.sleep(1)


def _expected() -> int:
    text = os.environ.get(EXPECTED, "0")
    if not text.isdecimal():
        raise InputError(f"{EXPECTED}: {text}: expected the number of machines")
    return int(text)


def alone() -> bool:
    """Whether this machine is the entire cluster, now and later: then all its processes see the same files."""
    return max(_expected(), sum(machine.count for machine in machines())) == 1


def memory_limit(control_groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process may use: the machine's, or fewer where its container has a limit.

    The limits of Linux' control groups, version 2 and 1, of the process' group and of those around it.
    """
    import psutil

    limits = [psutil.virtual_memory().total]
    try:
        groups = [line.split(":", 2) for line in control_groups.read_text().splitlines()]
    except OSError:  # no Linux
        groups = []
    for _, controllers, path in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (mounted / "memory", "memory.limit_in_bytes") if controllers else (mounted, "memory.max")
        # Inside a container the group's own folder is often mounted as the root.
        inside = root / path.lstrip("/")
        for folder in {root, inside, *(parent for parent in inside.parents if parent.is_relative_to(root))}:
            with suppress(OSError, ValueError):  # no such folder there, or "max"
                limits.append(int((folder / name).read_text()))
    return min(limits)


def smallest_memory() -> int:
    """Bytes of memory of the smallest machine that is up, this one included, by `memory_limit`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = _alive()
    others = [node["NodeID"] for node in nodes if node["NodeID"] != ray.get_runtime_context().get_node_id()]
    ask = ray.remote(num_cpus=0)(memory_limit)
    limits = [memory_limit()]
    for node in others:
        with suppress(ray.exceptions.RayError):  # lost since
            limits.append(
                ray.get(ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, False)).remote())
            )
    return min(limits)


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
    """InputError, naming the setting, where a present machine of the cluster does not see this local file."""
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
    except ray.exceptions.RayError:  # the machine has left the cluster
        return True


def _slots(cpus: float, gpus: float, spare_cpus: float) -> int:
    """How many workers that each need so much fit the machines, if one machine keeps `spare_cpus` free."""
    known = machines()
    slots = sum(machine.count * machine.workers(cpus, gpus) for machine in known)
    left = max((machine.cpus - machine.workers(cpus, gpus) * cpus for machine in known), default=0.0)
    if cpus and left + 1e-9 < spare_cpus:
        slots -= math.ceil((spare_cpus - left) / cpus - 1e-9)
    return slots


def cpus_for(workers: int, gpus: float, spare_cpus: float = 0.0) -> float:
    """The largest number of CPUs that each of so many workers can have; `spare_cpus` as in `trials_at_once`.

    A whole number, at least 1; half a CPU where only that leaves room for the spare ones.
    """
    most, rest = int(max(machine.cpus for machine in machines())), 0.5 if spare_cpus else 1.0
    return next((float(cpus) for cpus in range(most, 0, -1) if _slots(cpus, gpus, spare_cpus) >= workers), rest)


def gpus_for(workers: int, asked: float | None, cpus: float = 0.0) -> float:
    """The GPUs of each of so many workers: as asked, or with None one where the cluster has room for it, else 0."""
    if asked is not None:
        return asked
    return 1.0 if _slots(cpus, 1.0, 0.0) >= workers and torch_uses_gpus() else 0.0


def torch_uses_gpus() -> bool:
    """Whether Torch can compute on the GPUs that Ray counts on this machine, or has been built for those of others."""
    import ray
    import torch

    node = ray.get_runtime_context().get_node_id()
    if any(one["NodeID"] == node and one["Resources"].get("GPU") for one in _alive()):
        return torch.cuda.is_available()
    return torch.backends.cuda.is_built()


def gpu_words(each: WorkerResources, whose: str, asked: float | None) -> str:
    """Which GPUs are used: '1 x NVIDIA H200 for each trial', or why none is. whose: 'trial' or 'worker'.

    asked: the GPUs of each worker that a setting or an option names; None where it leaves that to the cluster.
    """
    if each.gpus:
        group = each.workers > 1 and whose != "worker"
        who = f"of a {whose}'s {each.workers} workers" if group else whose
        return f"{each.gpus:g} x {_gpu_model()} for each {who}"
    have, why = capacity("GPU"), ""
    if have and asked is not None:
        why = f", as asked, of the cluster's {have:g}"
    elif have < each.workers and have:
        why = f", as {each.workers} workers need one each and the cluster has {have:g}"
    elif have and not torch_uses_gpus():
        why = f", as PyTorch cannot use the cluster's {have:g} (an old driver, or a build for CPUs?)"
    elif have:
        why = ", as no machine has both the GPUs and the CPUs for it"
    return f"no GPU{why}: {whose}s train on CPUs"


def _gpu_model() -> str:
    """The models of the GPUs that are up, as Ray names them; 'GPU' where it knows none."""
    kinds = {
        name.removeprefix(GPU_KIND)
        for node in _alive()
        if node["Resources"].get("GPU")
        for name in node["Resources"]
        if name.startswith(GPU_KIND)
    }
    # Ray names the maker of other GPUs alone.
    named = (kind if kind.startswith(("AMD", "Intel")) else f"NVIDIA {kind}" for kind in sorted(kinds))
    return " or ".join(named).replace("-", " ") or "GPU"


def refuse_shared_gpu(workers: int, gpus: float) -> None:
    """InputError where the workers of one training would share a GPU."""
    if workers > 1 and gpus % 1:
        raise InputError(
            f"{workers} workers with {gpus:g} GPU(s) each: workers of one training cannot share a GPU; "
            "give each a whole number of GPUs, or train on one worker"
        )


def refuse_missing_gpu(augment_on: str, has_gpu: bool) -> None:
    """InputError where images are to be augmented on a GPU (`data.augment_on`) and the worker has none."""
    if augment_on == "gpu" and not has_gpu:
        raise InputError(
            "data.augment_on = gpu: the worker that would augment has no GPU; give each worker one (--gpus-per-trial "
            "of tune, --gpus-per-worker of train), or leave data.augment_on at cpu"
        )


def trials_at_once(each: WorkerResources, spare_cpus: float = 0.0, asked: int | None = None) -> int:
    """How many trials with these resources fit the cluster at a time; at least 1.

    A worker needs one machine; the workers of a trial may be on several. One machine keeps `spare_cpus` free for Ray
    Data's tasks. Raises InputError, naming the setting, when not even one trial fits or when fewer than `asked` fit.
    """
    refuse_shared_gpu(each.workers, each.gpus)
    for what, of_each, spare in (("GPU", each.gpus, 0.0), ("CPU", each.cpus, spare_cpus)):
        need, have = each.workers * of_each, capacity(what)
        if need + spare > have + 1e-9:
            data = f", plus {spare:g} for Ray Data's tasks" if spare else ""
            raise InputError(
                f"{each.workers} worker(s) with {of_each:g} {what}(s) each need {need:g} {what}(s){data}, and the "
                f"cluster has {have:g}; use fewer workers, or fewer {what}s for each, or connect to a larger cluster "
                "with --address"
            )
    slots = max(0, _slots(each.cpus, each.gpus, spare_cpus))
    fit = slots // each.workers
    if fit < 1:
        found = ", ".join(f"{one.count} with {one.cpus:g} CPUs and {one.gpus:g} GPUs" for one in machines())
        raise InputError(
            f"{each.workers} worker(s) with {each.cpus:g} CPU(s) and {each.gpus:g} GPU(s) each: a worker needs one "
            f"machine, and only {slots} fit the cluster's ({found}); reduce what each needs"
        )
    if asked is not None and asked > fit:
        raise InputError(
            f"--concurrent {asked}: only {fit} trial(s) fit the cluster at a time "
            f"({capacity('CPU'):g} CPUs, {capacity('GPU'):g} GPUs); lower --concurrent or what each trial needs"
        )
    return asked or fit
