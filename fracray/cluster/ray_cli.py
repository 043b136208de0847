"""Ray's command line on a cluster of `ray up`: run commands on the head and copy files from it, over SSH.

Knows nothing of runs or jobs.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from fracray.cluster.files import ClusterFile
from fracray.errors import InputError, RunError

# Ray's command line in this Python: `ray` may not be on the PATH.
RAY = (sys.executable, "-m", "ray.scripts.scripts")
DASHBOARD_PORT = 8265
# Lines that Ray and SSH print for every command, and those that follow the reason of a failed one.
FAILED_COMMAND = re.compile(r"^(Error: )?(The exception is: )?(SSH command failed|Command failed)", re.M)
NOISE = re.compile(
    r"^(\d{4}-\d\d-\d\d [\d:,]+\s+(V*INFO|WARN)|Loaded cached provider configuration|If you experience issues with the"
    r"|Fetched IP:|Checking |Running `|Full command is|To ensure this mount updates properly"
    r"|(Shared )?[Cc]onnection to .* closed|Warning: Permanently added"
    r"|Attempting to establish dashboard|Forwarding ports|Error: Failed to forward dashboard|\d\. The )"
)


def run_on_head(cluster: ClusterFile, command: str) -> None:
    """Run a shell command on the head. RunError, with the last line of its output, where it fails or SSH does."""
    _ray(cluster, "exec", cluster.file.origin, command)


def copy_from_head(cluster: ClusterFile, source: str, target: str) -> None:
    """Copy the contents of the head's folder `source` into the local folder `target`. RunError where that fails."""
    for tool in ("ssh", "rsync"):
        if shutil.which(tool) is None:
            raise InputError(f"{tool} is not installed here; copies from a cluster's head need it")
    # Without -v Ray hides rsync's error messages.
    _ray(cluster, "rsync-down", "-v", cluster.file.origin, f"{source}/", f"{target}/")


def dashboard_port(cluster: ClusterFile) -> int:
    """The port of Ray's dashboard on the head, from the file's start commands."""
    commands = cluster.file.tree.get("head_start_ray_commands") or []
    ports = re.findall(r"--dashboard-port[ =](\d+)", "\n".join(str(command) for command in commands))
    return int(ports[-1]) if ports else DASHBOARD_PORT


def failure_reason(output: str) -> str:
    """The line of Ray's output that says why the command failed; empty where there is none."""
    if "Head node of cluster" in output:  # ... not found
        return (
            "no `ray up` on this machine has started this cluster since the last boot (if the cluster runs anyway, see "
            "'Stop the costs' in cluster/README.md)"
        )
    before = FAILED_COMMAND.split(output)[0]
    lines = [line.strip() for line in before.splitlines()]
    return next((line for line in reversed(lines) if line and not NOISE.match(line)), "")


def _ray(cluster: ClusterFile, *words: str) -> None:
    if shutil.which("ssh") is None:
        raise InputError(f"ssh is not installed here; {cluster.file.origin} needs it")
    # To a file and not a pipe: SSH keeps its connection open for the next command, and a pipe would stay open with it.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        command: Sequence[str] = (*RAY, *words)
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
        if code == 0:
            return
        output.seek(0)
        why = failure_reason(output.read()) or f"ray {words[0]} ended with exit code {code}"
    raise RunError(f"{cluster.file.origin}: the command on its head failed: {why}")
