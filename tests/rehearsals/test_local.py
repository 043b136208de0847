"""cluster/local.yaml from `ray up` to `ray down` over real SSH: a search on two machines, and its best checkpoint.

The machines share only the folder of runs. The radiographs are on the head.
"""

import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from getpass import getuser
from pathlib import Path

import psutil
import pytest
from heads import space, wait_for
from machines import ROOT, Machine, environment_of_laptop, free_ports, make_key, missing, processes_of

from fracray.config import PhantomConfig
from fracray.data.phantom.draw import write_phantoms
from fracray.training.checkpoint import verify

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=f"not installed here: {', '.join(missing())}"),
]

WHEEL = "fracray-0.1.0-py3-none-any.whl"


class Laptop:
    """The machine of the user: a checkout with the filled-in cluster file, a home with key and token."""

    def __init__(self, folder: Path) -> None:
        self.home, self.checkout, self.temporary = folder / "home", folder / "fracray", folder / "t"
        for inner in (self.home / ".ray", self.checkout / "dist", self.temporary):
            inner.mkdir(parents=True)
        self.key = make_key(self.home / ".ssh" / "fracray")
        shutil.copytree(ROOT / "cluster", self.checkout / "cluster")
        (self.checkout / "dist" / WHEEL).write_text("in place of the wheel")
        (self.checkout / "space.yaml").write_text(space(2, 2))
        self.environment = environment_of_laptop(self.home, self.temporary)

    def run(self, *words: str | Path, code: int = 0, seconds: float = 240) -> str:
        """The output of a command, which must end with this exit code."""
        started = time.monotonic()
        # To a file: SSH's connection stays open after the command and would keep a pipe open.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                [str(word) for word in words],
                cwd=self.checkout,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
            output.seek(0)
            text = output.read()
        print(f"$ {' '.join(str(word) for word in words)}\n{text}[{time.monotonic() - started:.0f} s]\n")
        assert process.wait() == code, text
        assert "Traceback" not in text, text
        return text

    def fracray(self, verb: str, *words: str | Path, code: int = 0, seconds: float = 240) -> str:
        return self.run(sys.executable, "-m", f"fracray.{verb}", *words, code=code, seconds=seconds)


def filled_in(laptop: Laptop, head: Machine, worker: Machine, shared: Path) -> str:
    """fracray's local.yaml with a user's values, and the few changes that the test's machines need."""
    gcs, dashboard, client, *agents = free_ports(7, head.address)
    name = f"fracray-{uuid.uuid4().hex[:8]}"  # Ray keeps SSH connections by the cluster's name
    jump = " ".join(head.ssh("-W", f"{head.address}:{head.port}"))  # Ray's files have no setting for SSH's port
    # One CPU each, so that two trials run on two machines.
    of_head, of_worker = [
        f"--num-cpus=1 --node-ip-address={machine.address} --dashboard-agent-listen-port={agents[2 * at]} "
        f"--dashboard-agent-grpc-port={agents[2 * at + 1]}"
        for at, machine in enumerate([head, worker])
    ]
    of_worker += f" --temp-dir={worker.temporary}/ray"  # different from the head's
    install = "~/fracray-install"
    changes = [
        # The user's values.
        ("[YOUR-WORKER-1, YOUR-WORKER-2]", f"[{worker.address}]"),
        ("max_workers: 2", "max_workers: 1"),
        ("YOUR-HEAD", head.address),
        ("YOUR-USER", getuser()),
        ("~/.ssh/YOUR-KEY", str(laptop.key)),  # SSH takes ~ from the account, not from HOME
        ("/mnt/fracray", str(shared)),
        # Changes for the test.
        ("cluster_name: fracray", f"cluster_name: {name}"),
        ("auth:\n", f"auth:\n  ssh_proxy_command: {jump}\n"),
        (
            "--port=6379 ",
            f"--port={gcs} --dashboard-port={dashboard} --ray-client-server-port={client} {of_head} ",
        ),
        ("$RAY_HEAD_IP:6379", f"$RAY_HEAD_IP:{gcs} {of_worker}"),
        # The environment of the tests: installing the lock takes gigabytes.
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
    """A function that starts machines with the laptop's key and token."""
    made = []

    def make(count: int) -> list[Machine]:
        addresses = [f"127.0.0.{number}" for number in range(2, count + 2)]  # Ray would replace .1
        (port,) = free_ports(1, *addresses)
        places = [folder / f"m{at}" for at in range(count)]
        for place in places:
            place.mkdir()
        for place, address in zip(places, addresses, strict=True):
            others = [other for other in places if other != place]
            made.append(Machine(place, address, port, laptop.key, unseen=others))
        # The commands of cluster/README.md and of the top of local.yaml.
        laptop.run("bash", "-c", "ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token")
        for machine in made:
            send = " ".join([*machine.ssh(), "'umask 077; mkdir -p ~/.ray; cat >~/.ray/auth_token'"])
            laptop.run("bash", "-c", f"{send} <~/.ray/auth_token")
        return made

    yield make
    for machine in made:
        machine.close()


def test_a_search_on_machines_over_ssh(folder, laptop, machines):
    head, worker = machines(2)
    shared, file, data = folder / "mnt", "cluster/local.yaml", head.home / "radiographs"
    write_phantoms(data, PhantomConfig(count=60))
    (laptop.checkout / file).write_text(filled_in(laptop, head, worker, shared))
    laptop.fracray("cluster", "check", file)

    laptop.run("ray", "up", "-y", file)
    assert (head.home / "ray_bootstrap_config.yaml").exists()
    assert (head.home / "fracray-install" / WHEEL).read_text() == "in place of the wheel"
    assert head.processes()

    # Immediately: the job waits for the worker, which Ray on the head sets up over SSH only now.
    words = ["tune", "--space", "space.yaml", "--name", "atlas", "--data", data, "--concurrent", "2"]
    out = laptop.fracray("cluster", "submit", file, "--", *words, seconds=240)
    assert "best of 2 finished trials" in out
    assert f"python -m fracray.fetch {shared}/runs/atlas --cluster {file} --to checkpoints/atlas" in out
    assert (worker.home / "fracray-install" / WHEEL).exists()
    assert [trials_on(machine) for machine in (head, worker)] == [1, 1]
    status = "RAY_AUTH_MODE=token ray status"
    assert "\n 2 local.cluster.node" in laptop.run("ray", "exec", file, status)

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

    # Restarted, as after a change of the file: nothing of the first start remains.
    # The new head finds no heartbeat of the worker, and starts Ray there anew; again, if that takes longer than 30 s.
    # A `ray start --block` that is replaced needs a while to end.
    before = [process for machine in (head, worker) for process in machine.processes() if of_ray(process)]
    assert len(before) > 2
    laptop.run("ray", "up", "-y", "--restart-only", file)
    wait_for(lambda: not any(process.is_running() for process in before), seconds=120)
    wait_for(lambda: [starts_on(machine) for machine in (head, worker)] == [0, 1], seconds=120)
    wait_for(lambda: "\n 2 local.cluster.node" in laptop.run("ray", "exec", file, status), seconds=120)

    laptop.run("ray", "down", "-y", file)
    wait_for(lambda: not head.processes(), seconds=20)
    wait_for(lambda: not worker.processes(), seconds=60)  # they end a while after they lose the head
    # No tunnel and no connection of SSH remains.
    wait_for(lambda: not processes_of(laptop.home), seconds=20)


def of_ray(process: psutil.Process) -> bool:
    """Whether this is a process of Ray itself, and not one of SSH or a shell."""
    with suppress(psutil.Error):
        return any(word.startswith("ray::") or "/ray" in word for word in process.cmdline()[:3])
    return False


def starts_on(machine: Machine) -> int:
    """Number of `ray start --block` processes there."""
    return sum({"start", "--block"} <= set(process.cmdline()) for process in machine.processes())


def trials_on(machine: Machine) -> int:
    """Number of trial actors that have run there, from Ray's logs."""
    logs = (machine.temporary / "ray" / "session_latest" / "logs").glob("worker-*.out")
    return sum(":actor_name:TrialActor" in log.read_text() for log in logs)
