"""The copy of the code that a job runs."""

import subprocess
from pathlib import Path

import pytest

from avff.errors import ConfigError
from launch import snapshot

FILES = {"avff/a.py": "1", "avff/page.css": "2", "launch/b.sh": "3", "setup.py": "4", "README.md": "not for jobs"}


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", root, *identity, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "checkout"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / ".gitignore").write_text("*.pyc\n")
    git(tmp_path, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=a")
    monkeypatch.setattr(snapshot, "ROOT", root)
    return root


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_it_holds_what_a_job_needs_and_the_commit(checkout, tmp_path):
    (checkout / "avff/a.pyc").write_text("ignored by git")
    copy = snapshot.take_snapshot(tmp_path / "runs")
    needed = {name: text for name, text in FILES.items() if name != "README.md"}
    assert content(copy) == {**needed, "REVISION": git(checkout, "rev-parse", "HEAD")}
    assert copy.parent == tmp_path / "runs/code"
    assert [path.name for path in copy.parent.iterdir()] == [copy.name], "something half done was left"


def test_the_same_code_is_copied_once_and_other_code_elsewhere(checkout, tmp_path):
    copy = snapshot.take_snapshot(tmp_path)
    (copy / "avff/a.py").write_text("mark")
    assert snapshot.take_snapshot(tmp_path) == copy
    assert (copy / "avff/a.py").read_text() == "mark", "it was copied again"
    (checkout / "avff/new.py").write_text("not committed yet")
    other = snapshot.take_snapshot(tmp_path)
    assert other != copy
    assert (other / "avff/new.py").read_text() == "not committed yet"
    assert (other / "REVISION").read_text().strip() == git(checkout, "rev-parse", "HEAD").strip() + "-dirty"


def test_a_deleted_file_is_not_missed(checkout, tmp_path):
    (checkout / "avff/a.py").unlink()
    assert "avff/a.py" not in content(snapshot.take_snapshot(tmp_path))


def test_a_copy_is_its_own_snapshot(checkout, tmp_path, monkeypatch):
    copy = snapshot.take_snapshot(tmp_path)
    monkeypatch.setattr(snapshot, "ROOT", copy)
    assert snapshot.take_snapshot(tmp_path / "elsewhere") == copy


def test_without_git_everything_but_caches_is_copied(checkout, tmp_path):
    subprocess.run(["rm", "-r", checkout / ".git"], check=True)
    (checkout / "avff/a.pyc").write_text("cache")
    assert set(content(snapshot.take_snapshot(tmp_path))) == {*FILES, "REVISION"} - {"README.md"}


def test_a_checkout_that_git_cannot_read_is_named(checkout, tmp_path):
    (checkout / ".git/HEAD").write_text("nonsense")
    with pytest.raises(ConfigError, match=f"{checkout}: git .* failed"):
        snapshot.take_snapshot(tmp_path)
