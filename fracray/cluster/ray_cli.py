"""Ray's launcher as it is called here: commands on a cluster's head and copies from it, over SSH, and what they say.

For cluster files of `ray up`. Knows nothing of runs or jobs.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from fracray.cluster.files import ClusterFile
from fracray.errors import InputError, RunError

# Ray's command line in this Python: `ray` is on the PATH only where the environment is activated.
RAY = (sys.executable, "-m", "ray.scripts.scripts")
DASHBOARD_PORT = 8265
# What Ray and SSH say of every command, or say again of a failed one after the words that matter.
FAILED_COMMAND = re.compile(r"^(Error: )?(The exception is: )?(SSH command failed|Command failed)", re.M)
HABITS = re.compile(
    r"^(\d{4}-\d\d-\d\d [\d:,]+\s+(V*INFO|WARN)|Loaded cached provider configuration|If you experience issues with the"
    r"|Fetched IP:|Checking |Running `|Full command is|To ensure this mount updates properly"
    r"|(Shared )?[Cc]onnection to .* closed|Warning: Permanently added"
    r"|Attempting to establish dashboard|Forwarding ports|Error: Failed to forward dashboard|\d\. The )"
)


def run_on_head(cluster: ClusterFile, command: str) -> None:
    """Run a command of the shell on the head; RunError, with its last words, where it fails or none is reached."""
    _ray(cluster, "exec", cluster.file.origin, command)


def copy_from_head(cluster: ClusterFile, source: str, target: str) -> None:
    """Copy what is in the folder `source` of the head into the local folder `target`; RunError where that fails."""
    for tool in ("ssh", "rsync"):
        if shutil.which(tool) is None:
            raise InputError(f"{tool} is not installed here; without it nothing is copied from a cluster's head")
    # -v lets rsync's own words through, which Ray would keep to itself.
    _ray(cluster, "rsync-down", "-v", cluster.file.origin, f"{source}/", f"{target}/")


def dashboard_port(cluster: ClusterFile) -> int:
    """The port of the head on which Ray's dashboard answers, as the file's start commands say."""
    commands = cluster.file.tree.get("head_start_ray_commands") or []
    told = re.findall(r"--dashboard-port[ =](\d+)", "\n".join(str(command) for command in commands))
    return int(told[-1]) if told else DASHBOARD_PORT


def reason(words: str) -> str:
    """The line of what Ray printed that says why it failed; empty where none does."""
    if "Head node of cluster" in words:  # ... not found
        return (
            "no `ray up` of this machine has started such a cluster since the machine was booted (where it is up all "
            "the same, see 'Stopping to pay' in cluster/README.md)"
        )
    said = FAILED_COMMAND.split(words)[0]
    lines = [line.strip() for line in said.splitlines()]
    return next((line for line in reversed(lines) if line and not HABITS.match(line)), "")


def _ray(cluster: ClusterFile, *words: str) -> None:
    if shutil.which("ssh") is None:
        raise InputError(f"ssh is not installed here; {cluster.file.origin} needs it")
    # Into a file: SSH keeps its connection for the next command, and with it the end of a pipe that we would read.
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        command: Sequence[str] = (*RAY, *words)
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, check=False
        ).returncode
        if code == 0:
            return
        said.seek(0)
        why = reason(said.read()) or f"ray {words[0]} ended with exit code {code}"
    raise RunError(f"{cluster.file.origin}: its head cannot be asked: {why}")
