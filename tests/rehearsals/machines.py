"""Machines for rehearsals: OpenSSH servers on loopback, each with its own home folder and Ray.

A process belongs to the machine of its HOME. The real home is not used.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from getpass import getuser
from pathlib import Path

import psutil

TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync", "bash")
ROOT = Path(__file__).parent.parent.parent

# `ray stop` ends every Ray process of the account, also those of other tests. This is the same command, but it sees
# only the machine's own processes.
STOP = """
import os, psutil
from ray.scripts.scripts import cli

seen = psutil.process_iter

def of_this_machine(*names):
    for process in seen(*names):
        try:
            if process.environ().get("HOME") == os.environ["HOME"]:
                yield process
        except psutil.Error:
            pass

psutil.process_iter = of_this_machine
cli(["stop"])
"""

PROFILE = """
export PATH="$HOME/bin:$PATH" PYTHONPATH="{root}" RAY_TMPDIR="{temporary}" RAY_USAGE_STATS_ENABLED=0
export RAY_gcs_rpc_server_reconnect_timeout_s=20
ray() {{
    if [ "$1" = stop ]; then python "$HOME/stop_ray.py"; else command ray "$@"; fi
}}
"""

SERVER = """
ListenAddress {address}:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
SetEnv HOME={home}
"""


def missing() -> list[str]:
    """The tools that are needed and not installed here."""
    return [tool for tool in TOOLS if _path(tool) is None]


def _path(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def make_key(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def free_ports(count: int, *addresses: str) -> list[int]:
    """Free ports, the same at all these addresses of loopback."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        try:
            for address in addresses:
                with socket.socket() as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        if port not in found:
            found.append(port)
    return found


def processes_of(home: Path) -> list[psutil.Process]:
    """The processes with this HOME."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HOME") == str(home):
                found.append(process)
    return found


class Machine:
    """A machine that SSH reaches at `address`:`port` with the key `key`, until `close`.

    If root starts it, the machine has its own mount namespace, in which the folders `unseen` are empty.
    """

    def __init__(self, folder: Path, address: str, port: int, key: Path, unseen: Sequence[Path] = ()) -> None:
        self.address, self.port, self._key = address, port, key
        self.home = folder / "home"
        self.temporary = folder / "t"  # short: the paths of Ray's sockets have at most 107 bytes
        for inner in (self.home / "bin", self.temporary):
            inner.mkdir(parents=True)
        (self.home / "stop_ray.py").write_text(STOP)
        # Ray's cluster files have no setting for SSH's port, so all machines have the same one. SSH takes ~ from the
        # account and not from HOME.
        key_of_head = r"${@/#\~\/ray_bootstrap_key.pem/$HOME/ray_bootstrap_key.pem}"
        (self.home / "bin" / "ssh").write_text(f'#!/bin/bash\nexec {_path("ssh")} -p {port} "{key_of_head}"\n')
        (self.home / "bin" / "ssh").chmod(0o755)
        (self.home / ".bashrc").write_text(PROFILE.format(root=ROOT, temporary=self.temporary))
        make_key(folder / "host_key")
        shutil.copy(key.with_suffix(".pub"), folder / "authorized_keys")
        config = folder / "sshd_config"
        config.write_text(SERVER.format(address=address, port=port, folder=folder, home=self.home))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # required by sshd of root
        with open(folder / "sshd.log", "w") as log:
            serve = f"exec {_path('sshd')} -D -e -f {config}"
            if os.geteuid() == 0:
                covered = [f"mount -t tmpfs none {other} && " for other in unseen]
                serve = f"exec unshare --mount bash -c {shlex.quote(''.join([*covered, serve]))}"
            self._server = psutil.Popen(["bash", "-c", serve], stdout=log, stderr=log)
        for _ in range(100):
            with suppress(OSError), socket.create_connection((address, port), timeout=1):
                return
            assert self._server.poll() is None, (folder / "sshd.log").read_text()
            time.sleep(0.1)
        raise AssertionError("sshd does not answer")

    def ssh(self, *options: str) -> list[str]:
        """The SSH command line to this machine."""
        quiet = ["-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        where = ["-o", "IdentitiesOnly=yes", "-i", str(self._key), "-p", str(self.port)]
        return ["ssh", *quiet, *where, *options, f"{getuser()}@{self.address}"]

    def processes(self) -> list[psutil.Process]:
        return processes_of(self.home)

    def close(self) -> None:
        """End the server, its connections, and all processes of the machine."""
        left = self._server.children(recursive=True) + self.processes()
        for process in [self._server, *left]:
            with suppress(psutil.Error):
                process.kill()
        self._server.wait(10)


def environment_of_laptop(home: Path, temporary: Path) -> dict[str, str]:
    """The environment of commands on the laptop with this home."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FRACRAY_"))}
    return {
        **keep,
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "RAY_TMPDIR": str(temporary),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
