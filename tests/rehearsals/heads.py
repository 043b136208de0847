"""What the rehearsals share: a Ray head started with `ray start`, a small search space, and waiting.

Every head has its own dashboard, token and folder.
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from machines import free_ports

ROOT = Path(__file__).parent.parent.parent
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Head:
    """url: of the dashboard; address: of Ray; environment: for commands that connect to it; temporary: its files."""

    url: str
    address: str
    environment: dict[str, str]
    temporary: str
    process: subprocess.Popen[str]


def home_of(folder):
    """The environment of a user whose home is `folder`, with fracray and Ray's token."""
    home = {"HOME": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    environment = {**os.environ, **home, "PYTHONPATH": str(ROOT), "FRACRAY_CACHE": str(folder / "cache")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for name in ("RAY_ADDRESS", "FRACRAY_MACHINES", "FRACRAY_EXPECTED", "FRACRAY_CLUSTER_FILE"):
        environment.pop(name, None)
    return environment


@contextmanager
def started_head(folder, *options, before=(), ip="127.0.0.1", ports=None, **variables):
    """A head with these additional options of `ray start`; `before` precedes the command (ip netns exec ...)."""
    environment = {**home_of(folder), **variables}
    ports = ports or free_ports(6, ip)
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "node-manager-port")
    given = [f"--{name}={port}" for name, port in zip((*names, "ray-client-server-port"), ports, strict=True)]
    # /tmp is short: the paths of Ray's sockets have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        start = ["ray", "start", "--head", "--block", f"--dashboard-host={ip}", f"--node-ip-address={ip}"]
        process = subprocess.Popen(
            [*before, *start, f"--temp-dir={temporary}", *given, *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        url = f"http://{ip}:{ports[1]}"
        try:
            wait_for(lambda: answers(url, before), process)
            yield Head(url, f"{ip}:{ports[0]}", environment, temporary, process)
        finally:
            end(process)


def end(process):
    """Kill a Ray started with `ray start --block`; with SIGTERM it would wait half a minute for idle actors."""
    if process.poll() is not None:
        return
    for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait(60)


def answers(url, before=()):
    """Whether a dashboard answers there, if only to refuse whoever has no token."""
    if before:
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import heads; "
        code += f"raise SystemExit(not heads.answers({url!r}))"
        return subprocess.run([*before, sys.executable, "-c", code], check=False).returncode == 0
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=2)
    except urllib.error.HTTPError as error:
        return error.code == 401  # without the token
    except OSError:
        return False
    return True


def wait_for(condition, process=None, seconds=300):
    """Wait until the condition is true and return its value; the process, if given, must not end before that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process is None or process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, f"not true after {seconds} s"
        time.sleep(0.1)
    return found


def space(trials, epochs, size=32, count=60, width=4, **train):
    """The text of a search space: random trials on phantom radiographs, without early stopping."""
    base = {"data": {"size": size, "phantom": {"count": count}, "split": {"block": 2}}, "model": {"width": width}}
    return yaml.safe_dump(
        {
            "metric": "val_accuracy",
            "mode": "max",
            "trials": trials,
            "epochs": epochs,
            "sampler": {"name": "random", "seed": 0},
            "scheduler": {"name": "none"},
            "base": {**base, "train": train},
            "space": {"model.dropout": {"float": [0.0, 0.7]}},
        }
    )


def fracray(head, *words, before=(), **options):
    """Start `python -m fracray.WORDS`; its output is read from stdout."""
    verb, *rest = map(str, words)
    return subprocess.Popen(
        [*before, sys.executable, "-m", f"fracray.{verb}", *rest],
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finished(process, seconds=300):
    """The output of a command, which must end with exit code 0."""
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"not finished after {seconds} s: {process.communicate()[0]}") from None
    assert process.returncode == 0, out
    return out


def read_until(process, words):
    """The output of a command up to the line with these words, which must come."""
    output = ""
    while words not in output:
        line = process.stdout.readline()
        assert line, output
        output += line
    return output
