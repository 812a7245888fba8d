"""launch/torchrun.sh on one node: which ends it starts again after, and its own code; what launch/sbatch.sh says by hand."""

import os
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
