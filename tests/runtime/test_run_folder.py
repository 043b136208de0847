"""The run folder: the same contract on a disk and on a real object store, and the messages of a run's beginning."""

import json
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
import yaml

from fracray.config import PHANTOM, Config
from fracray.errors import InputError, OutOfReachError, RunError
from fracray.runtime.console import new_console
from fracray.runtime.locations import data_source, without_secret
from fracray.runtime.run_folder import (
    CLUSTER_FILE,
    as_begun,
    environment,
    find_run,
    how_to_continue,
    open_for_work,
    open_run,
    refit_command,
    say_changed,
    stored_config,
    trial_folder,
    trial_name,
    typed_options,
)
from fracray.runtime.storage import Folder


def started(storage, name, kind, resume):
    """A run as a command starts or resumes it, after the command."""
    run = find_run(storage, name, kind, resume)
    with open_for_work(run, storage, resume):
        return run


BOTH = pytest.mark.parametrize("storage", ["disk", "store"], indirect=True)
ROOT = os.geteuid() == 0


@pytest.fixture
def storage(request, tmp_path):
    """Where runs are kept: a folder that does not exist yet, or a prefix of the object store."""
    if request.param == "disk":
        return str(tmp_path / "runs")
    return request.getfixturevalue("s3")(f"runs-{uuid.uuid4().hex}")


@pytest.fixture
def run(storage):
    return Folder(storage).sub("atlas")


# ---- the contract of a folder


@BOTH
def test_nothing_is_there_before_the_first_write(run):
    assert not run.exists()
    assert not run.exists("config.yaml")
    assert run.names() == run.names("trials") == []
    assert run.name == "atlas"


@BOTH
def test_bytes_text_and_json_come_back(run):
    run.write("bytes", bytes(range(256)) * 5000)
    run.write("trials/t0001/words.txt", "größer als 0")
    run.write_json("tree.json", {"a": [1, 2.5, None]})
    run.write("empty", b"")
    assert run.read("bytes") == bytes(range(256)) * 5000
    assert run.read("trials/t0001/words.txt").decode() == "größer als 0"
    assert run.read_json("tree.json") == {"a": [1, 2.5, None]}
    assert run.read("empty") == b""


@BOTH
def test_names_are_those_directly_inside_and_sorted(run):
    for name in ("b.txt", "a.txt", "trials/t0002/x", "trials/t0001/x"):
        run.write(name, b"1")
    assert run.names() == ["a.txt", "b.txt", "trials"]
    assert run.names("trials") == run.sub("trials").names() == ["t0001", "t0002"]
    assert run.exists()
    assert run.exists("trials")
    assert run.exists("trials/t0001/x")
    assert not run.exists("trials/t0003")


@BOTH
def test_a_write_replaces_the_complete_file(run):
    run.write("file", b"a long first content")
    run.write("file", b"short")
    assert run.read("file") == b"short"
    assert run.names() == ["file"]


@BOTH
def test_a_folder_goes_up_and_comes_down(run, tmp_path):
    local = tmp_path / "made"
    local.mkdir()
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"\0" * 4096)):
        (local / name).write_bytes(content)
    run.upload(local, "trials/t0001/best")
    (local / "config.json").write_bytes(b'{"later": 1}')
    run.upload(local, "trials/t0001/best")
    run.sub("trials/t0001").download("best", tmp_path / "fetched")
    assert {file.name: file.read_bytes() for file in (tmp_path / "fetched").iterdir()} == {
        "config.json": b'{"later": 1}',
        "model.safetensors": b"\0" * 4096,
    }
    assert run.names("trials/t0001") == ["best"]


@BOTH
def test_a_file_goes_up(run, tmp_path):
    (tmp_path / "state").write_bytes(b"abc")
    run.upload(tmp_path / "state", "trials/t0000/state.safetensors")
    assert run.read("trials/t0000/state.safetensors") == b"abc"


@BOTH
def test_libraries_that_open_paths_get_local_ones(run):
    run.write("best/config.json", b"{}")
    run.write("best/weights", b"abc")
    with run.sub("best").local_folder() as local:
        assert local.name == "best"
        assert sorted(file.name for file in local.iterdir()) == ["config.json", "weights"]
    with run.sub("best").local_folder(("config.json", "other")) as local:
        assert (local / "config.json").read_bytes() == b"{}"
        assert run.is_local or [file.name for file in local.iterdir()] == ["config.json"]
    with run.local_copy("best/weights") as path:
        assert (path.name, path.read_bytes()) == ("weights", b"abc")


@BOTH
def test_a_folder_may_travel_to_another_process(run):
    run.write("file", b"abc")
    assert pickle.loads(pickle.dumps(run.sub("x"))).location == run.sub("x").location
    assert pickle.loads(pickle.dumps(run)).read("file") == b"abc"


@BOTH
def test_names_with_spaces_and_umlauts_are_names(storage):
    odd = Folder(storage).sub("Köln 50% #1")
    odd.write("file", b"abc")
    assert Folder(storage).names() == ["Köln 50% #1"]
    assert Folder(odd.location).read("file") == b"abc"
    assert odd.name == "Köln 50% #1"


@BOTH
def test_what_is_not_there_or_damaged_is_named(run):
    run.write("tree.json", b'{"a": ')
    with pytest.raises(InputError, match=r"atlas.*: config\.yaml does not exist"):
        run.read("config.yaml")
    for read in (run.read_json, run.read_json_if_there):
        with pytest.raises(InputError, match=r"atlas.*/tree\.json: damaged JSON"):
            read("tree.json")
    assert run.read_if_there("config.yaml") is run.read_json_if_there("config.yaml") is None
    assert run.read_if_there("tree.json") == b'{"a": '


# ---- a disk


def test_a_home_directory_is_expanded_and_a_path_made_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Folder("~/runs").location == Folder("runs").location == str(tmp_path / "runs")


def test_no_part_of_a_write_that_fails_is_left(tmp_path):
    folder = Folder(tmp_path)
    (tmp_path / "file").mkdir()  # a write to this name cannot succeed
    with pytest.raises(RunError, match=r"cannot write file"):
        folder.write("file", b"abc")
    assert folder.names() == ["file"]


WRITER = """
import sys
from fracray.runtime.storage import Folder
folder = Folder(sys.argv[1])
for step in range(10**9):
    folder.write("file", bytes([step % 256]) * 2_000_000)
    print(step, flush=True)
"""


def test_a_reader_never_sees_half_of_a_file_nor_does_a_killed_writer_leave_one(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        folder = Folder(tmp_path)
        for _ in range(50):
            seen = folder.read("file")
            assert seen == seen[:1] * 2_000_000
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    seen = folder.read("file")
    assert seen == seen[:1] * 2_000_000


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file: cannot be opened: .*; name a folder"):
        Folder(tmp_path / "file").names()
    with pytest.raises(InputError, match=r"^--storage .*file.*choose a folder or URI that you may write to"):
        started(str(tmp_path / "file"), "atlas", "tune", resume=False)


@pytest.mark.skipif(ROOT, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"^--storage .*you may write to"):
        started(str(tmp_path), "atlas", "tune", resume=False)


# ---- a URI


@pytest.mark.parametrize("uri", ["nosuch://x/y", "s3:///key", "s3://bucket/key?nonsense=1"])
def test_a_uri_that_names_no_place_is_refused(uri):
    with pytest.raises(InputError, match="not a folder or URI that can be opened") as error:
        Folder(uri)
    assert str(error.value).startswith(uri)


def test_a_store_that_does_not_answer_is_named():
    run = Folder("s3://bucket/run?endpoint_override=http://127.0.0.1:1&scheme=http&region=us-east-1")
    with pytest.raises(OutOfReachError, match=r"cannot be opened: .*check its address, its credentials"):
        run.exists("config.yaml")


def test_a_bucket_that_is_not_there_is_named(s3):
    storage = s3("runs").replace("s3://radiographs/", "s3://nowhere/")
    with pytest.raises(InputError, match=r"^--storage s3://nowhere/.*bucket 'nowhere'.*does not exist"):
        started(storage, "atlas", "tune", resume=False)


def test_an_object_whose_name_leads_out_of_the_folder_is_refused(s3, tmp_path):
    run = Folder(s3("outside"))
    run.write("config.json", "{}")
    at = parse_qs(urlsplit(run.location).query)["endpoint_override"][0]
    for name in ("outside/../up", "outside//etc/up"):
        boto3.client("s3", endpoint_url=at).put_object(Bucket=urlsplit(run.location).hostname, Key=name, Body=b"bad")
        with pytest.raises(InputError, match=r"up: this name leads out of the folder; rename it"):
            run.download("", tmp_path / name / "copy")
        boto3.client("s3", endpoint_url=at).delete_object(Bucket=urlsplit(run.location).hostname, Key=name)


INTERRUPTED = """
import signal, sys
from fracray.runtime.storage import Folder
folder = Folder(sys.argv[1])
old, new = b"old" * 1000, b"new" * 1000
signal.signal(signal.SIGALRM, signal.default_int_handler)
interrupted = 0
for step in range(30):
    folder.write("file", old)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003 + step * 0.0002)
        folder.write("file", new)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
    assert folder.read("file") in (old, new), "half a write"
print(interrupted)
"""


def test_an_interrupted_write_to_a_store_replaces_the_file_by_the_new_one_or_not_at_all(s3):
    """In a process of its own: a stream that is closed by its destructor would keep the server's thread waiting."""
    words = [sys.executable, "-c", INTERRUPTED, s3("interrupted")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


# ---- runs


@BOTH
def test_a_run_begins_once_and_continues_by_resume(storage):
    run = started(storage, "atlas", "tune", resume=False)
    about = run.read_json("environment.json")
    assert about["packages"].keys() >= {"fracray", "ray", "torch", "optuna"}
    assert about["cpus"] == os.cpu_count()
    again = started(storage, "atlas", "tune", resume=False)  # only its environment is there so far
    again.write("config.yaml", Config().to_yaml())
    with pytest.raises(InputError, match=r"atlas.*: this run exists already; continue it with --resume"):
        started(storage, "atlas", "tune", resume=False)
    resumed = started(storage, "atlas", "tune", resume=True)
    assert resumed.location == run.location == open_run(run.location).location


def test_a_run_continues_with_the_command_that_began_it(tmp_path, monkeypatch):
    run = started(str(tmp_path), "atlas", "tune", resume=False)
    run.write("config.yaml", Config().to_yaml())
    said = f"--name atlas --storage {tmp_path} --resume"
    assert how_to_continue("tune", str(tmp_path), run) == f"continue with: python -m fracray.tune {said}"
    monkeypatch.setenv(CLUSTER_FILE, "my cluster.yaml")
    sent = "python -m fracray.cluster submit 'my cluster.yaml' -- tune"
    assert how_to_continue("tune", str(tmp_path), run) == f"continue with: {sent} {said}"
    again = how_to_continue("tune", str(tmp_path), run, workers="2-4", gpus_per_worker=0.0, epochs=None, address="auto")
    assert again == f"continue with: {sent} {said} --workers 2-4 --gpus-per-worker 0"  # `submit` gives the address
    monkeypatch.delenv(CLUSTER_FILE)
    assert typed_options(address="auto", cpus_per_worker=2.5) == " --address auto --cpus-per-worker 2.5"
    monkeypatch.setenv(CLUSTER_FILE, "my cluster.yaml")
    refit = "python -m fracray.cluster submit 'my cluster.yaml' -- refit"
    assert refit_command(run) == f"{refit} {tmp_path}/atlas"


@BOTH
def test_the_folder_around_a_run_is_its_storage(storage, run):
    assert run.around == Folder(storage)


def test_a_run_named_by_its_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "atlas/run.lock").mkdir(parents=True)
    refused = pytest.raises(InputError, match=rf"^{tmp_path}/atlas: .*; the command writes into this run: make it")
    with refused, open_for_work(Folder(tmp_path / "atlas"), None, resume=True):
        pass


@BOTH
def test_a_resume_that_names_no_run_lists_those_that_are_there(storage):
    with pytest.raises(InputError, match=r"name the run with --name; runs in .*: none"):
        started(storage, None, "tune", resume=True)
    for name in ("one", "two"):
        Folder(storage).sub(name).write("config.yaml", Config().to_yaml())
    with pytest.raises(InputError, match=r"--resume: name the run with --name; runs in .*: one, two"):
        started(storage, None, "tune", resume=True)
    with pytest.raises(InputError, match=r"--resume: there is no run three in .*; runs there: one, two"):
        started(storage, "three", "tune", resume=True)


@pytest.mark.parametrize("name", ["a/b", "", ".", "..", "/abs"])
def test_a_name_is_no_path(tmp_path, name):
    with pytest.raises(InputError, match="a plain name without '/'; the folder around it is --storage"):
        started(str(tmp_path), name, "tune", resume=False)


def test_a_run_without_a_name_is_named_by_kind_and_time(tmp_path):
    assert started(str(tmp_path), None, "train", resume=False).name.startswith("train-20")


@BOTH
def test_a_folder_that_is_no_run_is_refused(storage):
    with pytest.raises(InputError, match="not a run folder"):
        open_run(storage)


def test_the_config_of_a_run_comes_back_and_a_damaged_one_is_named(tmp_path):
    config = Config().with_leaves({"model.dropout": 0.35, "search.metric": ["val_auroc", "val_f1"]})
    run = Folder(tmp_path)
    run.write("config.yaml", config.to_yaml())
    assert stored_config(run) == config
    for text in ("model: {dropout: 7}\n", "model: [\n", "- a\n"):
        run.write("config.yaml", text)
        with pytest.raises(InputError, match=r"config\.yaml"):
            stored_config(run)


def test_trials_have_folders_by_their_number(tmp_path):
    assert trial_name(7) == "t0007"
    assert trial_folder(Folder(tmp_path), 7).location == str(tmp_path / "trials" / "t0007")


def test_data_is_named_so_that_it_is_found_from_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"FracAtlas: no such file or folder; name a FracAtlas folder"):
        data_source("FracAtlas")
    (tmp_path / "FracAtlas").mkdir()
    assert data_source("FracAtlas") == str(tmp_path / "FracAtlas")
    assert data_source(PHANTOM) == PHANTOM
    assert data_source("s3://bucket/atlas") == "s3://bucket/atlas"
    assert Path(data_source("~")).is_absolute()


def test_json_is_readable_by_people(tmp_path):
    Folder(tmp_path).write_json("tree.json", {"a": 1})
    text = (tmp_path / "tree.json").read_text()
    assert text.count("\n") >= 2
    assert json.loads(text) == {"a": 1}


def test_a_uri_with_a_secret_is_refused_without_showing_it():
    for opened in (Folder, data_source):
        with pytest.raises(InputError, match=r"^s3://\.\.\.@bucket: leave the secret out") as refused:
            opened("s3://KEY:HUSH@bucket/atlas")
        assert "HUSH" not in str(refused.value)


@pytest.mark.parametrize(
    "option", ["client_secret", "account_key", "sas_token", "sig", "X-Amz-Signature", "password", "sse_customer_key"]
)
def test_an_option_of_a_uri_that_is_a_secret_is_refused_without_showing_it(option):
    with pytest.raises(InputError, match=rf"^abfss://\.\.\.@a\.net: leave the secret {option} out") as refused:
        Folder(f"abfss://box@a.net/atlas?tenant_id=t&{option}=HUSH&client_id=c")
    assert "HUSH" not in str(refused.value)
    said = f"GET https://me:HUSH@a.net/b?x=1&{option}=HUSH&y=2 failed"
    assert without_secret(said) == f"GET https://...@a.net/b?x=1&{option}=...&y=2 failed"


def test_options_that_are_no_secret_are_taken():
    uri = "s3://bucket/key?endpoint_override=http://127.0.0.1:1&scheme=http&region=x&allow_bucket_creation=true"
    assert Folder(uri).location == without_secret(uri) == uri


def test_a_run_of_another_augmentation_says_so_when_it_is_resumed(tmp_path, capsys):
    run = Folder(tmp_path / "run")
    run.write_json("environment.json", environment())
    say_changed(new_console(), run)
    assert capsys.readouterr().out == ""
    for changed, now in (("augmentation", 2), ("arithmetic", 3)):
        old = {name: value for name, value in environment().items() if name != changed}
        run.write_json("environment.json", old)
        say_changed(new_console(), run)
        said = capsys.readouterr().out
        assert said.startswith(f"note: this run began with another version of the {changed} (1, now {now})")
        assert said.count("note:") == 1


def test_a_setting_that_is_younger_than_a_run_is_as_it_was_when_the_run_began(tmp_path):
    """A version without data.split.guard had no guard, so a command that asks for one asks for another run."""
    run = Folder(tmp_path / "old")
    tree = Config().model_dump(mode="json")
    del tree["data"]["split"]["guard"]
    run.write("config.yaml", yaml.safe_dump(tree).encode())
    assert stored_config(run).data.split.guard == 0
    asked = Config().with_leaves({"data.split.guard": 7, "train.epochs": 3})
    began = environment()
    del began["split"]
    for old in ({}, {"environment.json": began}):
        for name, tree in old.items():
            run.write_json(name, tree)
        assert as_begun(run, Config()) == stored_config(run)
        assert as_begun(run, asked) == asked
        run.write("config.yaml", stored_config(run).to_yaml().encode())  # as a resumed run does
    run.write_json("environment.json", environment())
    assert as_begun(run, Config()) == Config()


def test_what_auto_became_when_a_run_began_is_kept(tmp_path):
    run = Folder(tmp_path / "run")
    names = {"search.sampler.name": "gp", "search.scheduler.name": "none"}
    run.write("config.yaml", Config().with_leaves(names).to_yaml().encode())
    run.write_json("environment.json", environment())
    assert as_begun(run, Config()) == stored_config(run)
    other = Config().with_leaves({"search.sampler.name": "tpe"})
    assert as_begun(run, other).search.sampler.name == "tpe"  # which is another search, and refused as such
    assert as_begun(run, other).search.scheduler.name == "none"
