"""Rehearsal: runs in a real S3 server on loopback, behind a proxy that breaks requests by a plan."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
from faulty_proxy import CUT, HANG, INTERNAL, LATE, LOST, RESET, SLOW_DOWN, Fault, faulty_proxy
from heads import read_until, space
from optuna.trial import TrialState

from fracray.errors import InputError, RunError
from fracray.fetch import main as fetch
from fracray.runtime.storage import Folder
from fracray.search.space_file import load_space
from fracray.search.study import local_journal, open_study
from fracray.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parent.parent.parent
TEMPORARY = [INTERNAL, SLOW_DOWN, RESET, LOST, CUT, LATE]
PERMANENT = [INTERNAL, SLOW_DOWN, RESET, LOST, CUT, HANG]
BOUND_SECONDS = 60
LARGE = bytes(range(256)) * 5000  # 1.28 MB, larger than what pyarrow reads at once


def proxy_of(s3):
    found = re.search(r"endpoint_override=http://([\d.]+):(\d+)", s3("x"))
    return faulty_proxy(found[1], int(found[2]))


@pytest.fixture
def proxy(s3):
    with proxy_of(s3) as proxy:
        yield proxy


@pytest.fixture
def folder(proxy):
    return Folder(proxy.uri(f"radiographs/{uuid.uuid4().hex}"))


def strike(proxy, kind, times, pattern=""):
    """Plan a fault of the next requests that match; only a response with a body can be cut."""
    proxy.plan = [Fault(kind, times, pattern or ("^GET" if kind == CUT else ""))]


VERBS = {
    "read": (lambda folder: folder.read("trials/t0001/large"), LARGE),
    "write": (lambda folder: folder.write("trials/t0003/new", LARGE), None),
    "names": (lambda folder: folder.names("trials/t0001"), ["large", "small"]),
    "exists": (lambda folder: (folder.exists("trials/t0001/small"), folder.exists("trials/t0002")), (True, False)),
}


@pytest.fixture
def filled(folder):
    folder.write("trials/t0001/large", LARGE)
    folder.write("trials/t0001/small", b"abc")
    return folder


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", TEMPORARY)
def test_a_temporary_fault_is_not_noticed(proxy, filled, kind, times):
    for name, (verb, expected) in VERBS.items():
        if name == "write" and kind == CUT:
            continue  # the only response to a write whose body matters is in the next test
        strike(proxy, kind, times)
        assert verb(filled) == expected, name
        # A late response is not retried, and some operations need a single request.
        assert proxy.plan[0].struck == times or kind == LATE, name
        proxy.plan = []
        if name == "write":
            assert filled.read("trials/t0003/new") == LARGE


@pytest.mark.parametrize("kind", [INTERNAL, RESET, LOST, CUT])
@pytest.mark.parametrize(
    "step", ["^POST .*uploads", "^PUT .*partNumber", "^POST .*uploadId"], ids=["begin", "part", "end"]
)
def test_a_write_survives_a_fault_in_each_of_its_steps(proxy, folder, step, kind):
    for data in (LARGE, b"abc", b""):
        strike(proxy, kind, 1, step)
        folder.write("file", data)
        assert folder.read("file") == data


def test_a_permanent_fault_is_one_error_that_names_the_place(proxy, filled, s3):
    """All kinds of faults and all operations at the same time, because each waits for all its retries."""
    path = filled.location.partition("?")[0].removeprefix("s3://")
    started = time.monotonic()

    def outcome(case):
        kind, name, folder = case
        with pytest.raises((RunError, InputError)) as error:
            VERBS[name][0](folder)
        return kind, name, folder.location, str(error.value), time.monotonic() - started

    with ExitStack() as stack:
        cases = []
        for kind in PERMANENT:
            broken = stack.enter_context(proxy_of(s3))
            strike(broken, kind, None)
            names = [name for name in VERBS if not (name == "write" and kind == CUT)]
            cases += [(kind, name, Folder(broken.uri(path))) for name in names]
        with ThreadPoolExecutor(len(cases)) as pool:
            for kind, name, location, error, seconds in pool.map(outcome, cases):
                print(f"{kind} {name}: {seconds:.1f} s: {error}")
                assert error.startswith(location), (kind, name)
                assert "\n" not in error, (kind, name)
                assert seconds < BOUND_SECONDS, (kind, name)


def test_a_process_with_many_failed_requests_still_retries(proxy, filled):
    """Unlike AWS' standard retry strategy, which has a budget of failures per process."""
    proxy.plan = [Fault(RESET, None)]
    with ThreadPoolExecutor(20) as pool:
        failed = [pool.submit(filled.exists, "trials/t0001/small") for _ in range(20)]
        assert all(isinstance(one.exception(), InputError) for one in failed)
    proxy.plan = [Fault(INTERNAL, 4)]
    assert filled.exists("trials/t0001/small")


def test_a_file_replaced_while_it_is_read_is_read_as_one_of_both(proxy, folder):
    """Between two requests of a slow reader the file is replaced, by a longer one and by a shorter one."""
    one, two = b"1" * 1_500_000, b"2" * 2_000_000
    for old, new in ((one, two), (two, one)):
        folder.write("file", old)
        strike(proxy, LATE, 1, "^GET")
        with ThreadPoolExecutor() as pool:
            read = pool.submit(folder.read, "file")
            time.sleep(0.3)
            folder.write("file", new)
            assert read.result() in (old, new)


# ---------------------------------------------------------------- a search on it

SPORADIC = [(INTERNAL, 0.02), (SLOW_DOWN, 0.03), (RESET, 0.02), (LOST, 0.02), (LATE, 0.01)]


def test_a_killed_search_resumes_on_a_store_with_faults(proxy, tmp_path, capsys):
    """One request in ten has a fault; the driver is killed and resumed; fetched files match their hashes."""
    (tmp_path / "space.yaml").write_text(space(4, 6, keep_seconds=0))
    proxy.plan = [Fault(kind, None, share=share) for kind, share in SPORADIC]
    proxy.plan.append(Fault(CUT, None, "^GET", share=0.03))
    storage = proxy.uri(f"radiographs/{uuid.uuid4().hex}")
    started = time.monotonic()
    process = tune(tmp_path, "--space", "space.yaml", "--storage", storage, "--name", "atlas", "--concurrent", "1")
    output = read_until(process, "[2/4]")
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=60)
    killed = time.monotonic()
    assert "[4/4]" not in output + rest
    process = tune(tmp_path, "--storage", storage, "--name", "atlas", "--resume", "--concurrent", "1")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "Traceback" not in out
    ended = time.monotonic()
    run = Folder(storage).sub("atlas")
    fetch([run.location, "--top", "4", "--to", str(tmp_path / "home")])
    print(f"{sum(proxy.seen.values())} requests ({dict(proxy.seen)}), struck: {dict(proxy.struck)}")
    print(f"killed after {killed - started:.0f} s, resumed and finished in {ended - killed:.0f} s")
    assert sum(proxy.struck.values()) > 20
    proxy.plan = []
    with local_journal(run) as journal:
        study = open_study(journal, load_space(tmp_path / "space.yaml"))
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    with run.local_copy("trials.parquet") as path:
        table = pd.read_parquet(path)
    assert table.groupby("trial")["epoch"].apply(list).tolist() == [list(range(1, 7))] * 4
    for trial in sorted((tmp_path / "home").iterdir()):
        load_checkpoint(trial)
    assert len(list((tmp_path / "home").iterdir())) == 4


def tune(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "fracray.tune", *words]
    return subprocess.Popen(
        line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
