"""Checks of batch scripts for Slurm: errors that Slurm itself does not report. Starts nothing but `bash -n`."""

import re
import shutil
import subprocess
from collections.abc import Iterator

from fracray.cluster.files import ClusterFile
from fracray.cluster.slurm import COMMANDS, LATE, OPTIONS

UNLIMITED = re.compile(r"unlimited|infinite|-1|[0:-]*", re.I)  # times that are none for Slurm


def slurm_problems(cluster: ClusterFile) -> Iterator[str]:
    file, options, commands = cluster.file, cluster.file.tree[OPTIONS], cluster.file.tree[COMMANDS]
    if not any(re.search(r"\bRAY_AUTH_MODE=token\b", command) for command in commands):
        yield f"{file.origin}: does not turn on Ray's authentication; export RAY_AUTH_MODE=token in it"
    for at, line in enumerate(file.tree[LATE]):
        yield f"{file.where(LATE, str(at))}: {line}: Slurm ignores options below the first command; move it up"
    if "cpus-per-task" not in options:
        yield f"{file.where(OPTIONS)}: --cpus-per-task is missing: Slurm gives the task on each node a single CPU"
    if (tasks := options.get("ntasks-per-node")) != "1":
        where = file.where(OPTIONS, "ntasks-per-node")
        yield f"{where}: --ntasks-per-node is {tasks or 'missing'}: Ray must start once on each node; set it to 1"
    if "time" not in options:
        yield f"{file.where(OPTIONS)}: --time is missing: the limit of what the job can cost"
    elif UNLIMITED.fullmatch(options["time"]):
        where = file.where(OPTIONS, "time")
        yield f"{where}: --time={options['time']} is no limit of what the job can cost; give one, such as 08:00:00"
    if not any(re.search(r"\bray (symmetric-run|start)\b", command) for command in commands):
        yield f"{file.origin}: starts no Ray: no command is `ray symmetric-run` or `ray start`; see cluster/slurm.sh"
    if bash := shutil.which("bash"):
        errors = subprocess.run([bash, "-n", file.origin], capture_output=True, text=True, check=False).stderr
        for line, message in re.findall(r"line (\d+): (.*)", errors):
            yield f"{file.origin}:{line}: bash cannot parse it: {message}"
