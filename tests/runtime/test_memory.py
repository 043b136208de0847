"""How much memory a process may use, and that an object shared with many processes is stored once."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from fracray.runtime.ray_session import Shared, connect
from fracray.runtime.resources import memory_limit, smallest_memory

MEBI = 2**20


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/\n", {"memory.max": f"{300 * MEBI}\n"}, 300 * MEBI),
        ("0::/a/b\n", {"a/memory.max": f"{200 * MEBI}\n", "a/b/memory.max": "max\n"}, 200 * MEBI),
        ("0::/unseen/here\n", {"memory.max": f"{100 * MEBI}\n"}, 100 * MEBI),
        ("5:cpu:/a\n4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": f"{MEBI}\n"}, MEBI),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("no control groups", {}, None),
    ],
)
def test_the_limit_of_a_container_counts(tmp_path, groups, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "self").write_text(groups if "::" in groups or ":memory:" in groups else "")
    assert memory_limit(tmp_path / "self", tmp_path) == limit or (
        limit is None and memory_limit(tmp_path / "self", tmp_path) == psutil.virtual_memory().total
    )


def test_a_real_control_group_limits_a_process():
    group = Path("/sys/fs/cgroup/memory/fracray-test")
    second = Path("/sys/fs/cgroup/fracray-test")
    for folder, name in ((group, "memory.limit_in_bytes"), (second, "memory.max")):
        try:
            folder.mkdir()
            (folder / name).write_text(str(1500 * MEBI))
        except OSError:
            continue
        try:
            code = (
                f"import os; open({str(folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
                "from fracray.runtime.resources import memory_limit; print(memory_limit())"
            )
            seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            assert int(seen.stdout) == 1500 * MEBI
        finally:
            folder.rmdir()
        return
    pytest.skip("this user may not make control groups")


def test_a_shared_object_is_stored_once():
    import ray

    with connect(None):
        assert smallest_memory() == memory_limit()

        @ray.remote(num_cpus=0)
        class Place:
            def __init__(self, shared):
                self.shared = shared

            def hand_on(self):
                return ray.get(second.remote(self.shared))

        @ray.remote(num_cpus=0)
        def second(shared):
            return int(shared.get()[-1]), os.getpid()

        before = ray.available_resources()["object_store_memory"]
        shared = Shared(np.full(40 * MEBI, 7, dtype=np.uint8))
        places = [Place.remote(shared) for _ in range(3)]
        assert [value for value, _ in ray.get([place.hand_on.remote() for place in places])] == [7, 7, 7]
        for _ in range(200):  # Ray counts now and then
            if before - ray.available_resources()["object_store_memory"] >= 40 * MEBI:
                break
            time.sleep(0.1)
        time.sleep(2)
        stored = before - ray.available_resources()["object_store_memory"]
        assert 40 * MEBI <= stored < 60 * MEBI


FAULTS = """
import resource, sys
import numpy as np
from fracray.runtime.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for turn in range(11):
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(size * 2**20, dtype=np.uint8) for size in (3, 48, 3, 3, 3)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_is_used_again():
    """By default the system clears new pages for every block, as Torch asks for at every layer."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("default", "kept")
    }
    assert faults["default"] > 10_000  # ten times 60 MiB, in pages of 4 KiB
    assert faults["kept"] < faults["default"] / 20
