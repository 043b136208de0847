"""Ray Train's workers for one training or one place in a search, and the cores of a worker process."""

import os
import signal
import threading
import uuid
from collections.abc import Callable
from typing import Any

import torch

from fracray.config import Config
from fracray.errors import RunError
from fracray.runtime.efficiency import Meter
from fracray.runtime.memory import ONE_ARENA, keep_freed_memory
from fracray.runtime.resources import WorkerResources
from fracray.runtime.storage import Folder

MAX_FAILURES = 3
RESIZE_SECONDS = 30.0  # how often an elastic group looks for room for more workers; each growth costs a restart
# Ray counts a dead machine for up to 20 s, so the next group may be too large to start. Ray then waits this long for
# its machines, 60 s by default, and counts again.
REGROUP_SECONDS = 20


def run_workers(
    run: Folder,
    name: str,
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    each: WorkerResources,
    in_memory: bool,
    remedy: str = "",
) -> None:
    """Run `loop(settings)` on Ray Train's workers, in one process group.

    in_memory: the workers hold the images, and read none by Ray Data. remedy: is added to what an error says.
    When a worker dies, Ray stops its group and starts it again, up to three times; each trial then continues from the
    state in its folder. The same happens when an elastic group grows. Raises RunError when workers died more often, or
    when the loop itself failed.
    """
    import ray.train
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from fracray.runtime.ray_train import LeanTrainer

    if each.elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(REGROUP_SECONDS))
    trainer = LeanTrainer(
        loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=(each.least, each.workers) if each.elastic else each.workers,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=each.gpus > 0,
            resources_per_worker={"CPU": each.cpus, **({"GPU": each.gpus} if each.gpus else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if each.gpus else "gloo"),
        run_config=RunConfig(
            # Ray would silently resume a run with a known name and train nothing.
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=run.path("ray"),
            storage_filesystem=run.filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            # They train in a thread, from whose own arena a step of EfficientNet-Lite0 takes a quarter longer.
            worker_runtime_env={"env_vars": ONE_ARENA},
        ),
        in_memory=in_memory,
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RunError(f"training on {each.workers} worker(s): {_cause(error)}{remedy}") from None
    except ray.exceptions.RayActorError:
        raise RunError(
            f"training on {each.workers} worker(s): Ray Train's controller was lost (killed, or out of memory?){remedy}"
        ) from None
    except SystemExit:  # Ray raises it on Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # Ray replaces it


def _cause(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def use_cores(config: Config, cpus: float, gpus: float = 0.0) -> Meter:
    """Limit Torch to the CPUs of this worker: trials that share a machine must not slow each other down.

    Returns the meter of this process, which counts the time of its GPUs if it has any.
    """
    torch.set_num_threads(config.train.threads or max(1, int(cpus)))
    keep_freed_memory()
    return Meter(torch.get_num_threads(), gpus or cpus, on_gpu=gpus > 0)
