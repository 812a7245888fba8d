"""launch/torchrun.sh on one node: which ends it starts again after, and its own code; what launch/sbatch.sh says by hand."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from avff.errors import REFUSED_EXIT_CODE

ROOT = Path(__file__).parents[2]
AGAIN = "starting again"


def run_script(*words: str | Path, cwd: Path = ROOT, restarts: int = 2) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PROCESSES": "2", "RESTARTS": str(restarts)}
    return subprocess.run(
        [ROOT / "launch/torchrun.sh", *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), ([], 2), (["configs/demo/stage1.yaml"], 2)])
def test_without_slurm_the_batch_script_says_how_to_submit_it(words, code):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    script = [ROOT / "launch/sbatch.sh", *words]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "sbatch [options of sbatch] launch/sbatch.sh CONFIG" in done.stdout
    assert "SBATCH --" not in done.stdout


@pytest.fixture
def stand_in(tmp_path):
    """Runs a copy of torchrun.sh, whose torchrun is a few lines of shell: `run(lines, **variables)`."""
    for name in ("launch", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    script = shutil.copy(ROOT / "launch/torchrun.sh", tmp_path / "launch")

    def run(lines: str, **variables: str) -> subprocess.CompletedProcess:
        python = tmp_path / ".venv/bin/python"
        python.write_text(f"#!/bin/bash\necho run >>{tmp_path}/runs\nruns=$(wc -l <{tmp_path}/runs)\n{lines}\n")
        python.chmod(0o755)
        environment = {**os.environ, **variables}
        return subprocess.run([script, "config.yaml"], env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ("visible", "processes"), [("0,3", 2), ("5", 1), ("", 1), ("NoDevFiles", 1), ("GPU-8f,MIG-1a,GPU-2", 3)]
)
def test_a_process_per_gpu_that_is_left_to_this_node(stand_in, visible, processes):
    done = stand_in('echo "$@"', CUDA_VISIBLE_DEVICES=visible)
    assert f"--nproc-per-node {processes} " in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


TWO_NODES = {"NODES": "2", "RENDEZVOUS": "node01:29500", "RESTARTS": "0"}


def test_a_torchrun_that_ends_at_once_does_not_wait_for_nodes(stand_in):
    done = stand_in("exit 1", **TWO_NODES)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.slow
def test_waiting_for_a_node_is_no_crash(stand_in):
    done = stand_in("[ $runs -lt 3 ] || exit 0; sleep 6; exit 1", **TWO_NODES)
    assert done.returncode == 0
    assert done.stderr.count("not all nodes are at node01:29500; waiting for them") == 2


@pytest.mark.slow
def test_waiting_for_a_node_ends(stand_in):
    done = stand_in("sleep 6; exit 1", WAIT_MINUTES="0", **TWO_NODES)
    assert done.returncode == 1
    assert done.stderr.count("not all nodes came to node01:29500 within 0 minutes") == 1


@pytest.mark.slow
def test_a_refusal_is_not_tried_again(tmp_path):
    done = run_script("configs/demo/stage1.yaml", "engine.batch=3", f"runs_dir={tmp_path}")
    assert done.returncode == REFUSED_EXIT_CODE, done.stderr
    assert done.stderr.count("unknown key engine.batch") == 1 and AGAIN not in done.stderr


@pytest.mark.slow
def test_crashes_are_tried_again_as_often_as_allowed(tmp_path):
    """The program that is started is one that cannot: Python looks for it in the working directory first."""
    (tmp_path / "avff").mkdir()
    (tmp_path / "avff" / "__init__.py").write_text("")
    (tmp_path / "avff" / "__main__.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    done = run_script("config.yaml", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count(AGAIN) == 2
