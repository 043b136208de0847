"""fracray's own cluster files, filled in; and no token of Ray."""

import shutil
from importlib import metadata

import pytest
from checking import FILES


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    """The Ray of other tests uses no token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """fracray's own cluster files with every YOUR- filled in, and a file in place of the wheel."""
    shutil.copytree(FILES, tmp_path / "cluster")
    for path in (tmp_path / "cluster").glob("*.yaml"):
        path.write_text(path.read_text().replace("YOUR-", "my-"))
    (tmp_path / "my-KEY").touch()
    (local := tmp_path / "cluster/local.yaml").write_text(local.read_text().replace("~/.ssh", str(tmp_path)))
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / f"fracray-{metadata.version('fracray')}-py3-none-any.whl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cluster"
