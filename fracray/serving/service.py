"""A checkpoint as an application of Ray Serve, which `serve deploy cluster/serve.yaml` and KubeRay's RayService import.

Two deployments: `http` is the interface of one machine, behind Ray Serve's own HTTP server; `replica` predicts. The
file sets how many there are and what each gets.
"""

from typing import Any

from ray import serve

from fracray.evaluation.opening import checkpoint_folder
from fracray.prediction.scoring import hash_of
from fracray.serving.app import make_app
from fracray.serving.engine import Plan
from fracray.serving.guard import Guard, read_token
from fracray.serving.replicas import LOGS, Replicas, deployment
from fracray.serving.settings import ServiceSettings, limits_of


@serve.ingress()
class Http:
    """The application of `fracray.serve`, which asks the replicas. A token is always asked for: others can connect."""

    async def __init__(self, replica: Any, settings: ServiceSettings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._guard = Guard(read_token(settings.token_file, "token_file"), host="")
        self._limits = limits_of(settings)
        self._service = Replicas(serve.get_replica_context().app_name, replica)
        await self._service.start()

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self._service, self._guard, self._limits)

    def __del__(self) -> None:  # called by Ray Serve
        self._service.stop()


def build(settings: ServiceSettings) -> serve.Application:
    """The application, with the least of everything where the file does not say more.

    InputError where the checkpoint cannot be opened. All replicas have the one that is there now.
    """
    with checkpoint_folder(settings.checkpoint) as folder:
        known = hash_of(folder)
    limits = limits_of(settings)
    threads = max(1, settings.decoders // settings.workers)
    plan = Plan(settings.workers, threads, settings.decoders, settings.batch, settings.wait / 1000)
    # Without `autoscaling_config`: Ray Serve would heed it, and not the file's `num_replicas`.
    replica = deployment(settings.decoders, 0.0, limits, logging_config=LOGS)
    http = serve.deployment(
        Http,
        name="http",
        ray_actor_options={"num_cpus": 1},
        # What is above `queue` gets its 429 here, and not a place in a queue of Ray Serve without a limit. Ray Serve
        # queues some requests even while places are free, and answers 503 by itself where its queue is full.
        max_ongoing_requests=4 * limits.queue,
        max_queued_requests=4 * limits.queue,
        graceful_shutdown_timeout_s=limits.seconds,
        logging_config=LOGS,
    )
    return http.bind(replica.bind(settings.checkpoint, None, known, plan, limits, settings.coverage), settings)
