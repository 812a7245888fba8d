"""Every command and tool answers --help and refuses nonsense with one line; what the README types exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    ["-m", "avff", name, "--help"]
    for name in ("demo", "describe", "doctor", "train", "report", "evaluate", "predict", "extract", "probe")
]
LAUNCHERS = [path for path in sorted((ROOT / "launch").glob("*.py")) if path.read_text().startswith("#!")]
TOOLS = [[str(path), "--help"] for path in [*sorted((ROOT / "tools").glob("*.py")), *LAUNCHERS]]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize("arguments", [["-m", "avff", "--help"], *COMMANDS, *TOOLS], ids=lambda a: a[-2].split("/")[-1])
def test_help_says_what_it_is_for(arguments):
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert len(done.stdout.splitlines()) > 8, "help that teaches nothing"


def test_launch_script_explains_itself_and_refuses_no_config():
    script = ROOT / "launch/torchrun.sh"
    helped = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "launch/torchrun.sh CONFIG" in helped
    assert "RENDEZVOUS" in helped
    assert subprocess.run([script], capture_output=True, check=False).returncode == 2
    missing = subprocess.run(
        [script, "configs/stage1_kinetics.yaml"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NODES": "2"},
    )
    assert missing.returncode != 0
    assert "set RENDEZVOUS=host:port" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "configs/nowhere.yaml"], "configs/nowhere.yaml: no such config file"),
        (["train", "configs/demo/stage1.yaml", "optim.learning_rat=1"], "did you mean optim.learning_rate?"),
        (["describe", "configs/demo/stage1.yaml", "model.size=huge"], "'huge' is not one of"),
        (["evaluate", "--checkpoint", "runs/nowhere", "--shards", "x"], "runs/nowhere"),
        (["report", "runs/nowhere"], "runs/nowhere: no such folder"),
        (["report", "runs/x", "--smooth", "1"], "1 is not in [0, 1)"),
        (["extract", "--checkpoint", "x.pt", "--shards", "x", "--output", "x"], "x.pt: not a run folder"),
        (["probe", "--train", "nowhere"], "nowhere: holds no finished extraction"),
        (["predict", "nowhere.mp4", "--checkpoint", "runs/nowhere"], "nowhere.mp4: no such file or folder"),
    ],
)
def test_a_mistake_gets_one_message_and_code_2(arguments, message):
    done = run("-m", "avff", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(p.name for p in (ROOT / "configs").glob("*.yaml")))
def test_paper_size_configs_describe_their_cost(config):
    done = run("-m", "avff", "describe", f"configs/{config}")
    assert done.returncode == 0, done.stderr
    gflop = float(re.search(r"forward and backward: ([\d,.]+) GFLOP", done.stdout).group(1).replace(",", ""))
    expected = 1465 if "finetune" in config else 1567  # GFLOP per clip and step, worked out by hand
    assert gflop == pytest.approx(expected, rel=0.01)
    assert "1568 video" in done.stdout
    assert "512 audio" in done.stdout


def test_every_file_that_the_readme_names_exists():
    named = set(re.findall(r"(?:tools|configs|launch|avff|tests)/[\w/]+\.(?:py|yaml|sh)", README))
    assert len(named) > 10
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
    assert set(re.findall(r"^\t?make ([\w-]+)", README, re.M)) | {"test", "test-quick", "lint"} <= set(
        re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    )


def test_after_a_training_the_process_ends_with_its_code_whatever_threads_are_left():
    """The interpreter's own end aborts now and then, with code -6; here it does so always."""
    code = (
        "import atexit, os, sys; import avff.engine.process; from avff import cli;"
        "atexit.register(os.abort); sys.argv = ['avff', 'train', 'nowhere.yaml']; cli.run()"
    )
    done = run("-c", code)
    assert done.returncode == 2 and "nowhere.yaml: no such config file" in done.stderr
