"""Every command of docs/clusters.md and of the README's part on several nodes is one that its program understands.

At the size of the page they are tried with --dry-run; the tests in tests/cluster run them, smaller, on a real SLURM.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from made_samples import build_directory, build_sample

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/clusters.md")


def commands_of(page: str) -> list[str]:
    """Command lines of all code blocks, continued lines joined, comments left out."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines]


LAUNCHES = sorted({line for page in PAGES for line in commands_of(page) if re.match(r"launch/\w+\.py ", line)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a user's folder holds when he gets to these commands."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "kinetics/train").mkdir(parents=True)
    (folder / "kinetics/train/clip.mp4").touch()
    build_directory(folder / "shards/forgeries", [build_sample("a", split="test")])
    return folder


@pytest.mark.parametrize("line", LAUNCHES)
def test_a_launch_is_understood(folder, line):
    program, *words = shlex.split(line)
    trial = [] if "--status" in words else ["--dry-run"]
    environment = {**os.environ, "PATH": str(folder)}  # without SLURM, which would know neither partition nor nodes
    command = [sys.executable, program, *words, *trial]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not trial or "#SBATCH" in done.stdout


def test_all_launchers_are_shown():
    assert {line.split()[0] for line in LAUNCHES} == {
        f"launch/{name}.py" for name in ("slurm", "pipeline", "make_shards")
    }
