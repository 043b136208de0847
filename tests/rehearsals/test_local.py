"""cluster/local.yaml from `ray up` to `ray down` over real SSH: a search, its best checkpoint fetched, a worker."""

import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from getpass import getuser
from pathlib import Path

import pytest
from machines import ROOT, Machine, environment_of_laptop, free_ports, make_key, missing, processes_of

from fracray.checkpoint import verify

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=f"not installed here: {', '.join(missing())}"),
]

SPACE = """
metric: val_accuracy
mode: max
trials: 2
epochs: 2
sampler: {name: random, seed: 0}
scheduler: {name: none}
base: {data: {size: 32, phantom: {count: 60}, split: {block: 2}}, model: {width: 4}}
space: {model.dropout: {float: [0.0, 0.7]}}
"""
WHEEL = "fracray-0.1.0-py3-none-any.whl"


class Laptop:
    """Where the commands are typed: a checkout with the filled-in cluster file, a home with key and token."""

    def __init__(self, folder: Path) -> None:
        self.home, self.checkout, self.temporary = folder / "home", folder / "fracray", folder / "t"
        for inner in (self.home / ".ray", self.checkout / "dist", self.temporary):
            inner.mkdir(parents=True)
        self.key = make_key(self.home / ".ssh" / "fracray")
        shutil.copytree(ROOT / "cluster", self.checkout / "cluster")
        (self.checkout / "dist" / WHEEL).write_text("stands for the wheel")
        (self.checkout / "space.yaml").write_text(SPACE)
        self.environment = environment_of_laptop(self.home, self.temporary)

    def run(self, *words: str | Path, code: int = 0, seconds: float = 60) -> str:
        """What a command prints; it must end with this exit code."""
        begun = time.monotonic()
        # To a file: SSH's connection outlives the command and would keep a pipe open.
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            process = subprocess.Popen(
                [str(word) for word in words],
                cwd=self.checkout,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
            said.seek(0)
            text = said.read()
        print(f"$ {' '.join(str(word) for word in words)}\n{text}[{time.monotonic() - begun:.0f} s]\n")
        assert process.wait() == code, text
        assert "Traceback" not in text, text
        return text

    def fracray(self, verb: str, *words: str | Path, code: int = 0, seconds: float = 60) -> str:
        return self.run(sys.executable, "-m", f"fracray.{verb}", *words, code=code, seconds=seconds)


def filled_in(laptop: Laptop, head: Machine, workers: list[Machine], shared: Path) -> str:
    """fracray's local.yaml as its user fills it in, and besides only what machines of a test need."""
    gcs, dashboard, client, *agents = free_ports(3 + 2 * (1 + len(workers)), head.address)
    name = f"fracray-{uuid.uuid4().hex[:8]}"  # Ray keeps SSH connections by the cluster's name
    jump = " ".join(head.ssh("-W", f"{head.address}:{head.port}"))  # Ray's files know no port of SSH
    of_head, *of_workers = [
        f"--node-ip-address={machine.address} --dashboard-agent-listen-port={agents[2 * at]} "
        f"--dashboard-agent-grpc-port={agents[2 * at + 1]}"
        for at, machine in enumerate([head, *workers])
    ]
    assert len(of_workers) < 2  # they have one start command in common
    install = "~/fracray-install"
    changes = [
        # As the file's user would.
        ("[YOUR-WORKER-1, YOUR-WORKER-2]", f"[{', '.join(worker.address for worker in workers)}]"),
        ("max_workers: 2", f"max_workers: {len(workers)}"),
        ("YOUR-HEAD", head.address),
        ("YOUR-USER", getuser()),
        ("~/.ssh/YOUR-KEY", str(laptop.key)),  # SSH takes ~ from the account, not from HOME
        ("/mnt/fracray", str(shared)),
        # As the test needs.
        ("cluster_name: fracray", f"cluster_name: {name}"),
        ("auth:\n", f"auth:\n  ssh_proxy_command: {jump}\n"),
        (
            "--port=6379 ",
            f"--port={gcs} --dashboard-port={dashboard} --ray-client-server-port={client} {of_head} ",
        ),
        ("$RAY_HEAD_IP:6379", " ".join([f"$RAY_HEAD_IP:{gcs}", *of_workers])),
        # The environment is the one of the tests: installing the lock takes gigabytes.
        (f"python3.11 -m venv {install}/venv", f"ln -sfn {sys.prefix} {install}/venv"),
        (
            f"{install}/venv/bin/pip install --require-hashes --only-binary :all: -r {install}/requirements.lock",
            f"cmp {install}/requirements.lock {laptop.checkout}/cluster/requirements.lock",
        ),
        (f"{install}/venv/bin/pip install --no-deps {install}/{WHEEL}", f"test -s {install}/{WHEEL}"),
    ]
    text = (laptop.checkout / "cluster" / "local.yaml").read_text()
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    return text


@pytest.fixture
def folder():
    # In /tmp: the paths of Ray's sockets have at most 107 bytes.
    path = Path(tempfile.mkdtemp(prefix="fr", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def laptop(folder):
    laptop = Laptop(folder / "laptop")
    yield laptop
    for process in processes_of(laptop.home):
        process.kill()


@pytest.fixture
def machines(folder, laptop):
    """A function that sets up as many machines, each with the laptop's key and token."""
    made = []

    def make(count: int) -> list[Machine]:
        addresses = [f"127.0.0.{number}" for number in range(2, count + 2)]  # .1 Ray would replace
        (port,) = free_ports(1, *addresses)
        made.extend(Machine(folder / f"m{at}", address, port, laptop.key) for at, address in enumerate(addresses))
        # As the page on clusters and the top of local.yaml have it.
        laptop.run("bash", "-c", "ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token")
        for machine in made:
            send = " ".join([*machine.ssh(), "'umask 077; mkdir -p ~/.ray; cat >~/.ray/auth_token'"])
            laptop.run("bash", "-c", f"{send} <~/.ray/auth_token")
        return made

    yield make
    for machine in made:
        machine.close()


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def test_a_search_on_a_machine_that_ssh_reaches(folder, laptop, machines):
    (head,) = machines(1)
    shared = folder / "mnt"
    file = "cluster/local.yaml"
    (laptop.checkout / file).write_text(filled_in(laptop, head, [], shared))
    laptop.fracray("cluster", "check", file)

    laptop.run("ray", "up", "-y", file)
    assert (head.home / "ray_bootstrap_config.yaml").exists()
    assert (head.home / "fracray-install" / WHEEL).read_text() == "stands for the wheel"
    assert head.processes()

    words = ["tune", "--space", "space.yaml", "--name", "atlas", "--data", "phantom", "--concurrent", "1"]
    out = laptop.fracray("cluster", "submit", file, "--", *words, seconds=200)
    assert "best of 2 finished trials" in out

    scratch = set(Path("/tmp").glob("fracray-*"))
    out = laptop.fracray("fetch", "atlas", "--cluster", file, "--to", "checkpoints")
    assert f"1 of 2 checkpoints of {shared}/runs/atlas on the head of {file}, verified:" in out
    (fetched,) = (laptop.checkout / "checkpoints").iterdir()
    verify(fetched)
    kept = shared / "runs" / "atlas" / "trials" / fetched.name / "best"
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        path.name: path.read_bytes() for path in kept.iterdir()
    }
    out = laptop.fracray("fetch", "none", "--cluster", file, "--to", "checkpoints", code=2)
    assert f"error: {file}: on its head: {shared}/runs/none: not a run folder" in out
    assert set(Path("/tmp").glob("fracray-*")) == scratch

    laptop.run("ray", "down", "-y", file)
    assert wait_until(lambda: not head.processes(), 20), head.processes()
    # Neither a tunnel nor SSH's own kept connection is left over.
    assert wait_until(lambda: not processes_of(laptop.home), 20), processes_of(laptop.home)


def test_ray_itself_starts_the_worker_by_ssh_from_the_head(folder, laptop, machines):
    head, worker = machines(2)
    file = "cluster/local.yaml"
    (laptop.checkout / file).write_text(filled_in(laptop, head, [worker], folder / "mnt"))
    laptop.run("ray", "up", "-y", file)
    status = ["ray", "exec", file, "RAY_AUTH_MODE=token ray status"]
    joined = wait_until(lambda: "\n 2 local.cluster.node" in laptop.run(*status), 60)
    logs = (head.temporary / "ray" / "session_latest" / "logs").glob("monitor*")
    assert joined, "".join(log.read_text() for log in sorted(logs))
    assert (worker.home / "fracray-install" / WHEEL).exists()
    assert any(process.name() == "raylet" for process in worker.processes())
    laptop.run("ray", "down", "-y", file)
    assert wait_until(lambda: not head.processes(), 20), head.processes()
