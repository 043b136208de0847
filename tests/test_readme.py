"""Every command, search space and piece of Python that README.md and docs/ show is run, in the order of the pages.

One folder is the user's: it has a small FracAtlas.zip, a hospital's folder and so on, under the names that the pages
use, so each command runs as written. All share this process and one Ray; pytest shows what they print on failure.
A command that cannot run here is in NOT_RUN with the reason, and its arguments are checked.
"""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from drawn_fracatlas import Atlas, jpeg, picture

import fracray.cluster.__main__
import fracray.data.__main__
import fracray.evaluate
import fracray.export
import fracray.fetch
import fracray.log
import fracray.predict
import fracray.refit
import fracray.report
import fracray.serve
import fracray.train
import fracray.tune
from fracray.config import Config, parse_assignments
from fracray.errors import run_verb
from fracray.search.space_file import load_space

pytestmark = pytest.mark.pages

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "data",
            "search",
            "splits",
            "evaluate",
            "robustness",
            "run-folder",
            "report",
            "predict",
            "dashboards",
            "export",
            "serve",
        )
    ),
)
VERBS = {
    "cluster": fracray.cluster.__main__,
    "data": fracray.data.__main__,
    "evaluate": fracray.evaluate,
    "export": fracray.export,
    "fetch": fracray.fetch,
    "log": fracray.log,
    "refit": fracray.refit,
    "predict": fracray.predict,
    "report": fracray.report,
    "serve": fracray.serve,
    "train": fracray.train,
    "tune": fracray.tune,
}
SERVES = "serves until it is stopped; tests/serving/test_serve.py does it"
NETWORK, CLUSTER, BUCKET = "needs the network", "needs a cluster that is up", "needs a bucket and a cluster that is up"
SERVER = "a server that runs on; tests/tracking/test_log.py starts it"
SERVICE = "needs a cluster that is up; tests/rehearsals/test_service.py does it"
FRACRAY = "python -m fracray."
NOT_RUN = {
    "./dev demo": "makes an environment with the network; its search is the one of README's third block",
    "./dev test": "runs this test",
    "python -m fracray.data download --to FracAtlas.zip": NETWORK,
    "ray up cluster/local.yaml": "starts machines; tests/rehearsals/test_local.py does it",
    "ray down cluster/local.yaml": "stops machines; tests/rehearsals/test_local.py does it",
    "python -m fracray.cluster submit cluster/local.yaml -- tune --space search_spaces/reg.yaml --name atlas": CLUSTER,
    "python -m fracray.cluster attach cluster/local.yaml atlas": CLUSTER,
    "python -m fracray.fetch atlas --cluster cluster/local.yaml --top 3 --to checkpoints": CLUSTER,
    "python -m fracray.tune --space search_spaces/reg.yaml --address auto --gpus-per-trial 0.25": CLUSTER,
    "python -m fracray.tune --space search_spaces/reg.yaml --address auto --workers-per-trial 4 --cpus-per-trial 2": (
        CLUSTER
    ),
    "python -m fracray.train --data s3://bucket/FracAtlas --storage s3://bucket/runs --workers 1-4 --address auto": (
        BUCKET
    ),
    "python -m fracray.tune --space search_spaces/fracatlas.yaml --data FracAtlas.zip --time-budget 3600 --name hour": (
        "trains a large network for an hour"
    ),
    "python -m fracray.tune --space search_spaces/backbone.yaml --data FracAtlas.zip --time-budget 3600 --name lite": (
        "trains a large network for minutes"
    ),
    "mlflow server --backend-store-uri sqlite:///mlflow.db": SERVER,
    "tensorboard --logdir tb": "a server that runs on; tests/tracking/test_log.py reads the same files",
    "optuna-dashboard runs/atlas/optuna.journal": SERVER,
    "python -m fracray.serve runs/atlas": SERVES,
    "python -m fracray.serve runs/atlas --host 0.0.0.0 --token-file token --queue 256": SERVES,
    "curl -F files=@hand.dcm -F files=@foot.jpg 'http://127.0.0.1:8000/predict?heatmap=1'": SERVES,
    "curl -F files=@hand.dcm -o hand-sr.dcm 'http://127.0.0.1:8000/predict?format=dicom-sr'": SERVES,
    "python -m fracray.serve runs/atlas --ray --replicas 1 2": "as above; tests/serving/test_serve_ray.py does it",
    "python -m fracray.serve runs/atlas --ray --address auto --replicas 2 8 --gpus-per-replica 0.5": CLUSTER,
    "serve deploy cluster/serve.yaml --address http://127.0.0.1:8265": SERVICE,
    "serve status --address http://127.0.0.1:8265": SERVICE,
    "serve shutdown --address http://127.0.0.1:8265": SERVICE,
}
TEMPLATE = "the page says so: the file is a template, whose placeholders are listed"
REFUSED = {
    "python -m fracray.cluster check cluster/gpu.yaml --space search_spaces/reg.yaml --gpus-per-trial 0.25": TEMPLATE,
    "python -m fracray.cluster check cluster/serve.yaml --nodes cluster/gpu.yaml": TEMPLATE,
}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(page: str) -> list[str]:
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


def run(command: str) -> int:
    """What a shell would do with a command of fracray, in this process."""
    assert command.startswith(FRACRAY), f"neither run nor in NOT_RUN: {command}"
    verb, *words = shlex.split(command.removeprefix(FRACRAY))
    print(f"$ {command}")
    return run_verb(VERBS[verb].main, words)


# ---------------------------------------------------------------- the user's folder


def draw_fracatlas(folder: Path, count: int, seed: int) -> Path:
    """A folder in FracAtlas' layout of `count` small pictures, with tags and boxes and groups enough for any split."""
    random = np.random.default_rng(seed)
    atlas = Atlas(folder)
    for place in range(count):
        label = int(random.random() < 0.4)
        region = ("hand", "leg", "hip")[place % 3]
        tags = {"leg": 0, region: 1, "frontal": int(place % 4 > 0), "lateral": int(place % 4 == 0)}
        size = {"width": 1200, "height": 1000} if place % 5 == 0 else {"width": 160, "height": 200}
        pixels = (picture(1000 * seed + place, **size) * random.uniform(0.6, 1.0)).astype(np.uint8)
        name = atlas.add(17 * place + 1, label, jpeg(pixels), **tags, fracture_count=label)
        if label:
            side = float(random.uniform(10, 60))
            atlas.box(name, (20.0, 20.0, side, side), **size)
    return atlas.write()


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory):
    """What the pages take for granted: the repository's files, FracAtlas.zip, and folders of other radiographs."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("search_spaces", "cluster", "examples"):
        (folder / name).symlink_to(ROOT / name)
    draw_fracatlas(folder / "drawn" / "FracAtlas", 120, seed=1)
    shutil.make_archive(str(folder / "FracAtlas"), "zip", folder / "drawn")
    shutil.rmtree(folder / "drawn")
    draw_fracatlas(folder / "other-hospital", 24, seed=2)
    (folder / "hospital").mkdir()
    rows, findings = ["image,label,patient_id"], ["image,finding,patient_id"]
    for place in range(60):
        (folder / "hospital" / f"x{place:03d}.jpg").write_bytes(jpeg(picture(3000 + place)))
        fractured = place // 2 % 3 == 0
        rows.append(f"x{place:03d}.jpg,{'yes' if fractured else 'no'},p{place // 2}")
        findings.append(f"x{place:03d}.jpg,{'fracture' if fractured else 'normal'},p{place // 2}")
    (folder / "hospital" / "table.csv").write_text("\n".join(rows) + "\n")
    (folder / "labels.csv").write_text("\n".join(findings) + "\n")
    for name, first in (("sound", 5000), ("broken", 6000)):
        (folder / "pictures" / name).mkdir(parents=True)
        for place in range(6):
            (folder / "pictures" / name / f"{place}.jpg").write_bytes(jpeg(picture(first + place)))
    return folder


@pytest.fixture(scope="module")
def shell(user_folder, ray_local):
    """Runs the commands and the Python of a page in the user's folder; README first, on whose runs the others build."""
    done = set()

    def run_page(page: str) -> None:
        if page in done:
            return
        done.add(page)  # also one that fails: the pages that follow need not repeat it
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(user_folder)
            for command in commands(page):
                if command not in NOT_RUN:
                    assert run(command) == (2 if command in REFUSED else 0), command
            for code in blocks(page, "python"):
                exec(compile(code, page, "exec"), {})

    return run_page


# ---------------------------------------------------------------- the tests


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page, shell):
    shell("README.md")
    shell(page)


def test_every_page_with_a_command_is_run():
    pages = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))]
    assert {page for page in pages if commands(page) or blocks(page, "python")} == set(PAGES)


def test_the_readme_shows_every_verb():
    shown = {
        command.removeprefix(FRACRAY).split()[0] for page in PAGES for command in commands(page) if FRACRAY in command
    }
    assert shown == set(VERBS)


def test_what_is_not_run_is_shown_somewhere():
    shown = {command for page in PAGES for command in commands(page)}
    assert NOT_RUN.keys() | REFUSED.keys() <= shown


@pytest.mark.parametrize("command", [command for command in NOT_RUN if command.startswith(FRACRAY)])
def test_the_arguments_of_what_is_not_run_are_understood(command):
    check_arguments(command.removeprefix(FRACRAY))


def check_arguments(command: str) -> None:
    verb, *words = shlex.split(command)
    if "--" in words:  # what is sent to a cluster is a command itself
        check_arguments(shlex.join(words[words.index("--") + 1 :]))
        words = words[: words.index("--")]
    args = VERBS[verb].parser().parse_args(words)
    Config().with_leaves(parse_assignments(getattr(args, "set", [])))
    if getattr(args, "space", None):
        load_space(ROOT / args.space)


def test_the_verbs_of_dev_that_are_shown_exist():
    script = (ROOT / "dev").read_text()
    for command in NOT_RUN:
        if command.startswith("./dev "):
            assert f"    {command.split()[1]})\n" in script


@pytest.mark.parametrize(
    ("page", "place"), [(page, place) for page in PAGES for place in range(len(blocks(page, "yaml")))]
)
def test_a_search_space_that_is_shown_loads(page, place, tmp_path):
    (tmp_path / "shown.yaml").write_text(blocks(page, "yaml")[place])
    assert load_space(tmp_path / "shown.yaml").dimensions
