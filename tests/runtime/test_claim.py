"""The claim on a run: one command at a time, on a disk, on a disk without locks and in a real object store."""

import errno
import fcntl
import io
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fracray.errors import InputError, RunError
from fracray.runtime import claim
from fracray.runtime.claim import CLAIMS, LOCK, Claim, claimed
from fracray.runtime.storage import Folder

HOLD = """
import sys
from fracray.runtime.claim import claimed
from fracray.runtime.storage import Folder
with claimed(Folder(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["disk", "no locks", "store"])
def run(request, tmp_path, monkeypatch):
    if request.param == "store":
        return Folder(request.getfixturevalue("s3")(f"runs-{uuid.uuid4().hex}")).sub("atlas")
    if request.param == "no locks":

        def flock(file, how):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)
    return Folder(tmp_path / "runs").sub("atlas")


def content(run):
    """The files of a run, with their bytes; not the claims."""
    return {name: run.read(name) for name in run.names() if name != CLAIMS}


def test_a_second_command_is_refused_with_who_has_the_run_and_writes_nothing(run):
    with claimed(run):
        run.write("space.yaml", "first")
        before = content(run)
        words = rf"works in this run \(process {os.getpid()} on .*another --name"
        with pytest.raises(InputError, match=words), claimed(run):
            run.write("space.yaml", "second")
        assert content(run) == before
    with claimed(run):
        pass
    assert set(content(run)) <= {"space.yaml", LOCK}


def test_a_claim_without_trace_leaves_nothing_and_its_removed_lock_is_not_taken(run, monkeypatch):
    run.write("file", "x")
    with claimed(run, trace=False):
        assert run.files() != ["file"]
    assert (run.names() if run.is_local else run.files()) == ["file"]  # a store keeps an empty folder
    if run.is_local:
        monkeypatch.setattr(claim, "_is_at", lambda path, file: False)
        if fcntl.flock.__module__ == "fcntl":
            with pytest.raises(InputError, match="another command works"), claimed(run):
                pass


def test_a_disk_that_fails_while_a_run_is_given_free_fails_no_command_and_frees_the_run(tmp_path, monkeypatch):
    failed = []

    class Disk(io.FileIO):
        def write(self, data):
            self.held = True
            return super().write(data)

        def truncate(self, size=None):
            if getattr(self, "held", False):
                failed.append(size)
                raise OSError(errno.EIO, "Input/output error")
            return super().truncate(size)

    monkeypatch.setattr(claim, "open", lambda path, mode, buffering: Disk(path, mode), raising=False)
    run = Folder(tmp_path).sub("atlas")
    for _ in range(2):
        with claimed(run):
            pass
    assert failed == [0, 0]


def test_of_commands_that_begin_at_the_same_moment_one_gets_the_run(run):
    start, held, end = threading.Barrier(4), [], threading.Event()

    def command(number):
        start.wait()
        try:
            with claimed(run):
                held.append(number)
                end.wait(60)
        except InputError:
            return "refused"
        return "held"

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(command, number) for number in range(4)]
        while sum(one.done() for one in running) < 3:
            time.sleep(0.05)
            assert len(held) <= 1
        end.set()
        assert sorted(one.result() for one in running) == ["held", "refused", "refused", "refused"]
    assert len(held) == 1


def test_the_claim_of_a_killed_command_counts_no_more(run):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run.location], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "mine\n"
        if not _is_without_locks(run):
            with pytest.raises(InputError, match=f"process {other.pid} on"), claimed(run):
                pass
        other.kill()
    with claimed(run):
        pass


def _is_without_locks(run):
    """The other process has locks on this disk, where this one has none."""
    return run.is_local and fcntl.flock.__module__ == __name__


# ---- in a store


@pytest.fixture
def store(s3):
    return Folder(s3(f"runs-{uuid.uuid4().hex}")).sub("atlas")


def elsewhere(store):
    """The claim of a command on another machine."""
    other = replace(Claim.own(), host="gpu7", pid=4711, machine="another boot")
    store.write(f"{CLAIMS}/other.json", other.write())


def test_a_command_on_another_machine_has_the_run_until_its_claim_lapses(store, monkeypatch):
    elsewhere(store)
    words = r"process 4711 on gpu7.*if that process was killed, repeat .* in 2 minutes"
    with pytest.raises(InputError, match=words), claimed(store):
        pass
    assert store.names(CLAIMS) == ["other.json"]
    monkeypatch.setattr(claim, "LAPSE_SECONDS", 1.0)
    time.sleep(2.5)  # the store's clock counts whole seconds
    with claimed(store):
        assert "other.json" not in store.names(CLAIMS)


def test_a_claim_is_renewed(store, monkeypatch):
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(claim, "LAPSE_SECONDS", 2.0)
    monkeypatch.setattr(Claim, "ended", None)  # as another machine sees it
    with claimed(store):
        time.sleep(4)
        with pytest.raises(InputError, match="another command works in this run"), claimed(store):
            pass


def test_a_command_that_stood_still_gives_way(store, monkeypatch):
    # Longer than a busy store takes to remove a file: what is removed while a claim is renewed is written again.
    monkeypatch.setattr(claim, "RENEW_SECONDS", 2.0)
    with pytest.raises(RunError, match="another one has taken the run over"), claimed(store):  # noqa: PT012
        (mine,) = store.names(CLAIMS)
        elsewhere(store)
        for _ in range(600):
            # Again and again: the renewal may have looked for it just before, and write it just after.
            if mine in store.names(CLAIMS):
                store.remove(f"{CLAIMS}/{mine}")
            time.sleep(0.1)
    assert store.names(CLAIMS) == ["other.json"]


def test_a_damaged_claim_lapses_too(store, monkeypatch):
    store.write(f"{CLAIMS}/other.json", "{")
    with pytest.raises(InputError, match="another command works in this run; wait"), claimed(store):
        pass
    monkeypatch.setattr(claim, "LAPSE_SECONDS", 0.5)
    time.sleep(2.5)
    with claimed(store):
        pass


def test_a_process_number_that_is_used_again_is_another_process():
    own = Claim.own()
    assert own.ended is False
    assert replace(own, started=own.started - 60).ended is True
    assert replace(own, pid=2**22 + 1).ended is True
    assert replace(own, machine="another boot").ended is None
    assert Claim.read(own.write().encode()) == own
    assert Claim.read(json.dumps({"pid": 1}).encode()) is None
