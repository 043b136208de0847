"""The engine as a deployment of Ray Serve: replicas on a cluster, each with its own network, behind one HTTP interface.

Ray Serve starts replicas, replaces those that die, and shares the requests out. The HTTP interface is that of one
machine, with its limits and its guard: in this process with `--ray`, in a deployment with cluster/serve.yaml. Knows no
HTTP.
"""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from fracray.data.images.full_depth import FullDepth
from fracray.errors import InputError, RunError
from fracray.evaluation.opening import checkpoint_folder
from fracray.prediction.reading import Sender, unpack_checkpoint
from fracray.prediction.running import cause_of
from fracray.prediction.scoring import hash_of
from fracray.runtime.resources import alone, here, machines
from fracray.serving.census import Census
from fracray.serving.counters import Counters
from fracray.serving.engine import Engine, Plan, Upload, gpus_seen
from fracray.serving.limits import Limits, RefusedError
from fracray.serving.processes import STARTS_WITHIN
from fracray.training.checkpoint import verify

TRIES = 3  # replicas that are asked, one after another, where each dies with the request
STARTS = 2  # of a replica whose start fails, before it is given up
HEALTH_SECONDS = 2.0  # between looks of Ray Serve at whether each lives
LOGS = {"log_level": "ERROR", "enable_access_log": False}  # as on one machine, nothing of a request is logged
REPLICA = "replica"  # the deployment's name
_BACK = {"Retry-After": "10"}


@dataclass(frozen=True)
class Spread:
    """How many replicas there are, at least and at most, and the CPUs and GPUs that each reserves."""

    least: int
    most: int
    cpus: int
    gpus: float


def spread(asked: Sequence[int] | None, cpus: int, gpus: float) -> Spread:
    """The spread over this cluster; asked: the least and the most replicas, or None for 1 to as many as fit now.

    InputError where the least do not fit.
    """
    fit = sum(machine.count * machine.workers(cpus, gpus) for machine in machines())
    least, most = asked or (1, max(1, fit))
    if least > fit:
        raise InputError(
            f"--replicas {least} {most}: {fit} replicas of {cpus} CPU(s) and {gpus:g} GPU(s) fit the cluster; lower "
            "what is asked for, or what each needs (--decoders, --gpus-per-replica), or name a larger cluster"
        )
    return Spread(least, most, cpus, gpus)


class Replica:
    """An engine in a process of Ray Serve.

    location: the checkpoint's, as this machine sees it. sender: an actor of `Sender` that has it, or None. known: its
    hash when the service began; RunError where another one is there by now, as replicas must not differ.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, location: str, sender: Any, known: str, plan: Plan, limits: Limits, coverage: float
    ) -> None:
        # As long as the replica lives: a network's process that is lost reads the checkpoint again.
        self._held = contextlib.ExitStack()
        if sender is None:
            folder = self._held.enter_context(checkpoint_folder(location))
        else:
            folder = Path(self._held.enter_context(tempfile.TemporaryDirectory()))
            unpack_checkpoint(await sender.checkpoint.remote(), folder)
        _require(known, folder, location)
        # Ray shows a replica its GPUs, and one that has none those of the whole machine.
        plan = replace(plan, gpus=gpus_seen() if ray.get_gpu_ids() else ())
        self._engine = Engine(folder, verify(folder).config, plan, limits, coverage)
        self._held.callback(self._engine.stop)
        await self._engine.start()
        self._was_ready = time.monotonic()

    async def card(self) -> dict[str, Any]:
        return self._engine.card

    async def call(self, name: str, *args: Any) -> tuple[Any, tuple[Any, ...] | None]:
        """What the engine's method `name` returns, and None; or None, and the arguments of its RefusedError."""
        try:
            return await getattr(self._engine, name)(*args), None
        except RefusedError as refusal:
            return None, (refusal.status, refusal.words, refusal.headers)

    async def check_health(self) -> None:
        """Ray Serve asks; another replica takes this one's place where it raises, three times in a row."""
        if self._engine.ready:
            self._was_ready = time.monotonic()
        elif time.monotonic() - self._was_ready > STARTS_WITHIN:
            raise RunError("the network's process does not start again")

    def __del__(self) -> None:  # called by Ray Serve
        self._held.close()


def _require(known: str, folder: Path, location: str) -> None:
    if (found := hash_of(folder)) != known:
        raise RunError(
            f"{location}: the service began with the checkpoint {known}, and {found} is there now; shut the service "
            "down and start it again, or name a checkpoint that nothing replaces"
        )


def deployment(cpus: int, gpus: float, limits: Limits, **more: Any) -> serve.Deployment:
    """`Replica` as a deployment of Ray Serve, each with these CPUs and GPUs; one, where `more` does not say how many.

    Its `bind` takes the arguments of `Replica`.
    """
    return serve.deployment(
        Replica,
        name=REPLICA,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=limits.queue,  # a replica batches what it has
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=limits.seconds,
        **more,
    )


def application_name(host: str, port: int) -> str:
    """The name of the application of the server that listens there, on this machine of the cluster.

    No other server that runs has it. One that was killed leaves its replicas under it, for the next one to replace.
    """
    return f"fracray-{ray.util.get_node_ip_address()}-{host}-{port}".replace(":", "-")  # Ray Serve's names have colons


class Replicas:
    """As `Engine`, of the replicas of an application that runs. name: the application's; handle: of its replicas."""

    def __init__(self, name: str, handle: Any = None) -> None:
        self._name, self._handle, self._lost = name, handle, 0
        self._census = Census(name, REPLICA)
        self.counters = Counters()
        self.counters.gauge("fracray_replicas", "Replicas that predict", lambda: self._census.running)
        self.counters.gauge(
            "fracray_replicas_age_seconds",
            "Time since it was last known how many replicas predict",
            lambda: self._census.age,
        )
        self.counters.gauge(
            "fracray_answers_lost", "Answers lost with their replica, asked for again", lambda: self._lost
        )
        self.card: dict[str, Any] = {}

    async def start(self) -> None:
        """Wait for a replica, and keep count of them from then on."""
        self.card = await self._handle.card.remote()
        self._census.start(running=1)

    @property
    def ready(self) -> bool:
        """Whether a picture would be predicted on now; also false where that has not been known for some time."""
        return self._census.known and self._census.running > 0

    async def rows(self, uploads: Sequence[Upload], mapped: bool) -> list[dict[str, Any]]:
        """As `Engine.rows`."""
        rows: list[dict[str, Any]] = await self._ask("rows", uploads, mapped)
        for row in rows:
            self.counters.pictures.labels("failed" if row["error"] else "read").inc()
        return rows

    async def picture(self, upload: Upload) -> FullDepth:
        """As `Engine.picture`."""
        found: FullDepth = await self._ask("picture", upload)
        return found

    async def report(self, upload: Upload) -> bytes:
        """As `Engine.report`."""
        found: bytes = await self._ask("report", upload)
        return found

    async def _ask(self, name: str, *args: Any) -> Any:
        """What a replica answers. Where it dies another one is asked: nothing is changed by asking twice.

        RefusedError as the replica's, and 503 where none is there, or none answers.
        """
        if self._census.known and not self._census.running:
            raise RefusedError(503, "no replica is up; one starts: send the request once more", _BACK)
        for _ in range(TRIES):
            try:
                async with asyncio.timeout(STARTS_WITHIN):
                    answer, refusal = await self._handle.call.remote(name, *args)
            except RayTaskError:  # a fault of ours
                raise
            except TimeoutError:
                break
            except (RayError, RayServeException):
                self._lost += 1
                continue
            if refusal is not None:
                raise RefusedError(*refusal)
            return answer
        raise RefusedError(503, "the replicas that worked on it were lost: send the request once more", _BACK)

    def stop(self) -> None:
        """Count no longer; whoever started the replicas takes them down."""
        self._census.stop()


class OwnReplicas(Replicas):
    """Replicas that this process starts, on the cluster that it is connected to, and takes down.

    name: of the application in Ray Serve; one of the same name is replaced. stays: whether the cluster outlives this
    process, so that `stop` has to take the replicas down.
    """

    def __init__(
        self, folder: Path, plan: Plan, limits: Limits, coverage: float, spread: Spread, name: str, stays: bool
    ) -> None:
        super().__init__(name)
        self._folder, self._spread, self._limits, self._stays = folder, spread, limits, stays
        self._settings = (plan, limits, coverage)
        self._sender: Any = None

    async def start(self) -> None:
        """Start the least number of replicas; RunError where they do not start."""
        try:
            self._deploy()  # holds up the loop, in which nothing else goes on yet: Ctrl-C ends it at once
            await super().start()
        except (RayError, RayServeException, RuntimeError) as error:
            self.stop()
            raise RunError(f"Ray Serve could not start a replica: {cause_of(error)}") from None
        except BaseException:
            self.stop()
            raise

    def _deploy(self) -> None:
        if not alone():
            actor = ray.remote(num_cpus=0, scheduling_strategy=here())
            self._sender = actor(Sender).remote(self._folder)
        # Its log stays off the terminal: what matters of it is counted, or raised.
        logging.getLogger("ray.serve").addFilter(lambda record: False)  # Ray Serve undoes a level
        serve.start(proxy_location="Disabled", logging_config=LOGS)
        deployed = deployment(
            self._spread.cpus,
            self._spread.gpus,
            self._limits,
            autoscaling_config={
                "min_replicas": self._spread.least,
                "max_replicas": self._spread.most,
                # All of them work before the queue is full.
                "target_ongoing_requests": max(1.0, self._limits.queue / (2 * self._spread.most)),
            },
            max_constructor_retry_count=STARTS,
        )
        bound = deployed.bind(str(self._folder), self._sender, hash_of(self._folder), *self._settings)
        self._handle = serve.run(bound, name=self._name, route_prefix=None, logging_config=LOGS)

    def stop(self) -> None:
        """Take the replicas down."""
        super().stop()
        if not self._stays:
            return
        with contextlib.suppress(RayError, RayServeException):  # what is gone need not be taken down
            serve.delete(self._name)
            if not serve.status().applications:
                serve.shutdown()
