"""A copy of the code for a job: what is edited after a job was submitted does not change the job."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from avff import __version__
from avff.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
CONTENT = ("avff", "launch", "tools", "configs", "setup.py", "pyproject.toml")
REVISION = "REVISION"


def take_snapshot(runs_dir: Path) -> Path:
    """Copies the code that would be committed into `runs_dir/code/<hash of its content>`, unless it is there.

    Returns:
        The absolute folder; `REVISION` in it is the commit, with `-dirty` appended where files differ from it.

    Raises:
        ConfigError: this is a checkout, and git cannot read it.
    """
    folder = snapshot_folder(runs_dir)
    if folder == ROOT or folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    for name in _files():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, partial / name)
    (partial / REVISION).write_text(_revision() + "\n")
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(partial)  # somebody else was faster with the same
    return folder


def snapshot_folder(runs_dir: Path) -> Path:
    """Returns where `take_snapshot` puts the copy; code that is a copy already is its own."""
    if (ROOT / REVISION).is_file():
        return ROOT
    digest = hashlib.sha256(_revision().encode())
    for name in _files():
        digest.update(f"\0{name}\0".encode())
        digest.update((ROOT / name).read_bytes())
    return runs_dir.resolve() / "code" / digest.hexdigest()[:16]


def _files() -> list[str]:
    """Returns the paths of what git tracks or would add; of everything where this is no checkout."""
    if _is_checkout():
        listed = _git("ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *CONTENT).split("\0")
        return sorted({name for name in listed if (ROOT / name).is_file()})
    found = [path for name in CONTENT for path in [ROOT / name, *(ROOT / name).rglob("*")]]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.is_file() and path.suffix != ".pyc")


def _revision() -> str:
    if not _is_checkout():
        return f"avff {__version__}, no git checkout"
    changed = _git("status", "--porcelain", "--", *CONTENT)
    return _git("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")


def _is_checkout() -> bool:
    return (ROOT / ".git").exists() and shutil.which("git") is not None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{ROOT}: git {arguments[0]} failed, so the code cannot be copied: {done.stderr.strip()}")
    return done.stdout
