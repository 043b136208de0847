"""Ray's servers for one command on one machine: without those that serve a dashboard, a log and a growing cluster."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fracray.runtime.replaced import replaced

IDLE_AGENT = Path(__file__).parent / "idle_agent.py"
AGENT, SESSION, NODE = "--dashboard_agent_command", "--session_dir", "--node_id"


@contextmanager
def fewer_servers() -> Iterator[list[Any]]:
    """Start no server that one command on one machine has no use for; Ray has no option for that. Gives the new nodes.

    They are the autoscaler's, the one that sends logs to the driver (`log_to_driver` is off), the dashboard's, which
    only counts uses without a dashboard, and its agent. Each costs half a second of a core and more, and Ray waits for
    the last two.
    """
    from ray._private import node

    whole, nodes = node.Node, []

    class Fewer(whole):  # type: ignore[misc, valid-type]
        def __init__(self, ray_params: Any, **more: Any) -> None:
            nodes.append(self)
            ray_params.no_monitor, ray_params.include_log_monitor = True, False
            super().__init__(ray_params, **more)

        def start_api_server(self, **_: Any) -> None:
            self._webui_url = ""

    with replaced(node, Node=Fewer), _idle_agents():
        yield nodes


@contextmanager
def _idle_agents() -> Iterator[None]:
    """Raylets that start in the block have a process that only waits as the agent of their dashboard.

    Ray's own agent offers no port either where what the dashboard needs is not installed. Ray imports that to find out,
    half a second long; here it is told that it is not.
    """
    from ray import _raylet
    from ray._private import services, utils

    core: Any = _raylet  # compiled, without types
    start = services.start_ray_process
    ports = core.METRICS_AGENT_PORT_NAME, core.METRICS_EXPORT_PORT_NAME, core.DASHBOARD_AGENT_LISTEN_PORT_NAME
    idle = subprocess.list2cmdline([sys.executable, "-S", "-P", str(IDLE_AGENT)])

    def start_process(command: Sequence[str], *given: Any, **more: Any) -> Any:
        options = dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)
        if AGENT in options:
            for port in ports:  # the raylet waits for these files of its session; -1: there is none
                core.persist_port(options[SESSION], options[NODE], port, -1)
            command = [f"{AGENT}={idle}" if word.startswith(f"{AGENT}=") else word for word in command]
        return start(command, *given, **more)

    def not_installed() -> ImportError:
        return ImportError("fracray starts no dashboard")

    with (
        replaced(services, start_ray_process=start_process),
        replaced(utils, get_dashboard_dependency_error=not_installed),
    ):
        yield
