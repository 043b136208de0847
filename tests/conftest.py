"""What all tests share: one small Ray, one thread, a cache that is thrown away, and the order of their files."""

import logging
import os

import pytest

from fracray.runtime.ray_servers import fewer_servers
from fracray.runtime.ray_session import NOTICES, quiet_ray_data, set_environment

set_environment()  # read when Ray is imported or started, so set before either
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# Ray's workers inherit these, so they are set before it starts; they open no store but the one of the fixture `s3`.
os.environ.update(
    AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true"
)

# Torch's threads wait for one another in busy loops. Where more processes than cores want to run, these take most of
# the time: on two threads an epoch of a tiny network takes 2.4 s instead of 0.4 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# So do those of OpenBLAS, of numpy and scipy: a calibration then takes 200 ms to fit instead of 1.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# pytest-xdist's processes set the size of a terminal that they do not have.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

RAY_CPUS = 2
BUCKET = "radiographs"

# What takes longest comes first, so that files which run side by side end at about the same time. Rehearsals come one
# after the other: they use the machine's ports, addresses and folders for SSH.
REHEARSALS = "tests/rehearsals/"
LONGEST = (
    REHEARSALS,
    "tests/test_tune.py",
    "tests/test_readme.py",
    "tests/test_refit.py",
    "tests/test_interrupts.py",
    "tests/test_evaluate.py",
    "tests/test_refit_kinds.py",
    "tests/test_train.py",
)


def _place(nodeid: str) -> int:
    return next((place for place, name in enumerate(LONGEST) if nodeid.startswith(name)), len(LONGEST))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: _place(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return REHEARSALS if nodeid.startswith(REHEARSALS) else super()._split_scope(nodeid)

    return Files(config, log)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """FRACRAY_CACHE of this test run: nothing is read from or left in the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("FRACRAY_CACHE")
    os.environ["FRACRAY_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["FRACRAY_CACHE"]
    else:
        os.environ["FRACRAY_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The networks here are tiny: threads that wait for one another cost more than they give.
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_local(cache):
    """A local Ray with two CPUs, up until the last test ends; `ray_session.connect` finds it and uses it.

    It has as few servers as that of a command: each costs a second of a core and more.
    """
    import ray

    os.environ.setdefault(NOTICES, "0")  # as `connect` does for a local cluster
    with fewer_servers():
        ray.init(
            address="local",
            num_cpus=RAY_CPUS,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    quiet_ray_data()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3():
    """A real object store on loopback: a function from a path in its bucket to a URI that pyarrow.fs opens."""
    import pyarrow.fs as pafs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = pafs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
    store.create_dir(BUCKET)

    def uri(path: str) -> str:
        return f"s3://{BUCKET}/{path}?endpoint_override=http://{host}:{port}&scheme=http&region=us-east-1"

    yield uri
    server.stop()
