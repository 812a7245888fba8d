"""Every command of docs/clusters.md and of the README's part on several nodes is one that its program understands.

At the size of the page they are tried with --dry-run; the tests in tests/cluster run them, smaller, on a real SLURM.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from made_samples import build_directory, build_sample

from avff.config import load_config, save_config

ROOT = Path(__file__).parents[2]
BEFORE_SHARDS = "before"
PAGES = ("README.md", "docs/clusters.md")


def commands_of(page: str) -> list[str]:
    """Command lines of all code blocks, continued lines joined, comments left out."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines]


TOOLS = sorted(
    {line for page in PAGES[1:] for line in commands_of(page) if re.match(r"(python tools/inspect|avff )", line)}
)
LAUNCHES = sorted({line for page in PAGES for line in commands_of(page) if re.match(r"launch/\w+\.py ", line)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a user's folder holds when he gets to these commands."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "launch", "tools"):
        (folder / name).symlink_to(ROOT / name)
    (folder / BEFORE_SHARDS / "kinetics/train").mkdir(parents=True)
    (folder / BEFORE_SHARDS / "kinetics/train/clip.mp4").touch()
    build_directory(folder / "shards/forgeries", [build_sample("a", split="test")])
    for name, split in (("kinetics_train", "train"), ("kinetics_val", "val")):
        samples = [build_sample(f"{split}{i:02d}", split=split, tracks=[]) for i in range(24)]
        build_directory(folder / "shards" / name, samples, num_shards=4)
    config = load_config(ROOT / "configs/stage1_kinetics.yaml", [f"runs_dir={folder / 'runs'}"])
    config.run_dir.mkdir(parents=True)
    save_config(config, config.run_dir / "config.yaml")
    line = {"kind": "train", "step": 1, "samples_seen": 512, "time_unix": 1.8e9, "loss": 2.0}
    (config.run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder


@pytest.mark.parametrize("line", LAUNCHES)
def test_a_launch_is_understood(folder, line):
    program, *words = shlex.split(line)
    trial = [] if "--status" in words else ["--dry-run"]
    environment = {**os.environ, "PATH": str(folder)}  # without SLURM, which would know neither partition nor nodes
    command = [sys.executable, str(ROOT / program), *words, *trial]
    where = folder / BEFORE_SHARDS if "make_shards" in program else folder
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not trial or "#SBATCH" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("line", TOOLS)
def test_a_tool_is_understood(folder, line):
    program, *words = shlex.split(line)
    words = words if program == "python" else ["-m", "avff", *words]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    # 1: so few shards for so many ranks are no good plan, which the tool is there to say.
    assert done.returncode == 0 or (done.returncode == 1 and "inspect_plan" in line), done.stderr
    assert "Traceback" not in done.stderr


def test_all_launchers_are_shown():
    assert {line.split()[0] for line in LAUNCHES} == {
        f"launch/{name}.py" for name in ("slurm", "pipeline", "make_shards")
    }
