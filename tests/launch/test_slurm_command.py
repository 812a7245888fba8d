"""launch/slurm.py as a user types it, where there is no SLURM; with one: tests/cluster."""

import dataclasses
import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from little_runs import make_config

from avff import run_lock
from avff.config import Config, save_config
from avff.errors import ConfigError
from avff.run_folder import checkpoint_dir
from launch import slurm
from launch.resources import Resources
from launch.script import config_path as saved_path
from launch.submit import Command, active_job, describe, record_job, submit, train_command
from launch.task import Task

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "no programs here"))


@pytest.fixture
def config(tmp_path) -> Config:
    return make_config(tmp_path / "shards", tmp_path / "runs")


@pytest.fixture
def config_path(config, tmp_path) -> str:
    save_config(config, tmp_path / "run.yaml")
    return str(tmp_path / "run.yaml")


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = slurm.main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_without_slurm_one_line_says_what_is_missing_and_what_to_use(capsys, config_path):
    code, _, error = run(capsys, config_path)
    assert code == 2
    assert error == (
        "launch/slurm.py: no SLURM here: sbatch, srun, squeue, scontrol not found on the PATH; "
        "without SLURM train with launch/torchrun.sh CONFIG, or launch/pipeline.py --executor local\n"
    )


@pytest.fixture
def programs(tmp_path):
    """Puts a program of a few lines of shell on the PATH: `programs(name, lines)`."""

    def add(name: str, lines: str) -> None:
        path = tmp_path / "no programs here" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{lines}\n")
        path.chmod(0o755)

    return add


def test_programs_of_slurm_without_a_cluster_are_no_slurm(programs, capsys, config_path, config):
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        programs(name, f"echo '{name}: fatal: Could not establish a configuration source' >&2; exit 1")
    record_job(config.run_dir, "1", config.run_dir)
    code, _, error = run(capsys, config_path)
    assert (code, error.count("\n")) == (2, 1)
    assert "no SLURM here: its programs are, but no slurm.conf that names a cluster; without SLURM train with" in error
    code, text, _ = run(capsys, config_path, "--dry-run")
    assert (code, "# no SLURM here: its programs are" in text) == (0, True)


def test_keys_of_setup_lines_are_for_their_owner_alone(programs, config, tmp_path, monkeypatch):
    for name in ("srun", "squeue", "scontrol"):
        programs(name, "exit 0")
    programs("sbatch", "echo Submitted batch job 7")
    setup = "export WANDB_API_KEY=sesame HF_TOKEN='open up' OMP_NUM_THREADS=2"
    monkeypatch.setattr(sys, "argv", ["slurm.py", f"--setup={setup}", "engine.micro_batch_size=1"])
    folder, resources = tmp_path / "jobs", Resources(setup=(setup,))
    [job] = submit([train_command(config, folder)], resources, folder=folder, snapshot=tmp_path)
    [script] = folder.glob("*_submission.sh")
    assert setup in script.read_text()
    assert stat.S_IMODE(script.stat().st_mode) == 0o600
    command = json.loads((config.run_dir / "job.json").read_text())["command"]
    masked = "--setup=export WANDB_API_KEY=*** HF_TOKEN=*** OMP_NUM_THREADS=2"
    assert (job, shlex.split(command)) == ("7", ["slurm.py", masked, "engine.micro_batch_size=1"])


def test_a_controller_that_is_busy_for_a_moment_is_asked_again(programs, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "BEAT_SECONDS", 0.0)
    asked = tmp_path / "asked"
    programs("squeue", f"[ -e {asked} ] && exit 0; : >{asked}; echo 'Socket timed out on send/recv' >&2; exit 1")
    (tmp_path / "7_ends.jsonl").write_text('{"code": 0}\n')
    assert slurm.wait_for("7", tmp_path) == 0
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", -1.0)
    asked.unlink()
    with pytest.raises(ConfigError, match="Socket timed out"):
        slurm.wait_for("7", tmp_path)


def test_it_explains_itself():
    command = [sys.executable, ROOT / "launch/slurm.py", "--help"]
    text = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"}
    ).stdout
    for words in ("--gpus-per-node", "--dry-run", "--sweep optim.learning_rate=1e-4,3e-4", "queued again by itself"):
        assert words in text


def test_a_dry_run_shows_script_and_command_and_writes_nothing(capsys, config_path, config, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    words = ["--nodes=2", "--gpus-per-node=2", "--account=speech", "--setup=module load cuda", "--dry-run"]
    code, text, _ = run(capsys, config_path, *words, "engine.micro_batch_size=1")
    assert code == 0
    lines = text.splitlines()
    for line in ("#SBATCH --nodes=2", "#SBATCH --gpus-per-node=2", "#SBATCH --ntasks-per-node=2", "#SBATCH --requeue",
                 "#SBATCH --account=speech", "#SBATCH --signal=USR2@120", "#SBATCH --time=1440", "module load cuda",
                 f"# run folder {config.run_dir}"):  # fmt: skip
        assert line in lines
    assert next(line for line in lines if line.startswith("srun ")).split()[4:6] == [
        "--kill-on-bad-exit=1",
        "--cpus-per-task=4",
    ]
    assert f"export PYTHONSAFEPATH=1 PYTHONPATH={config.runs_dir}/code/" in text
    assert "-m avff train " in text
    assert sorted(tmp_path.rglob("*")) == before


def test_options_and_configs_are_checked_before_anything_else(capsys, config_path):
    code, _, error = run(capsys, config_path, "--nods=2", "--minutes=soon", "--dry-run")
    assert code == 2
    assert "--nods=2: no such option; did you mean --nodes?" in error
    assert "--minutes: 'soon' is not a whole number" in error
    code, _, error = run(capsys, config_path, "--nodes=3", "--dry-run")
    assert code == 2
    assert "engine.global_batch_size 4 does not divide over 3 ranks" in error
    code, _, error = run(capsys, "optim.num_steps=3", "--dry-run")
    assert (code, error) == (2, "launch/slurm.py: no CONFIG given; the files are in configs/\n")


def test_shards_that_are_not_seen_from_here_are_noted(capsys, config_path, tmp_path):
    assert f"note: {tmp_path / 'shards'} is not there as seen from here" in run(capsys, config_path, "--dry-run")[2]


def test_a_folder_in_which_somebody_trains_is_refused(capsys, config_path, config):
    """The lock is another process's: one's own does not keep oneself out."""
    program = "import pathlib, sys\nfrom avff import run_lock\nwith run_lock.claim(pathlib.Path(sys.argv[1])):\n  print(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-uc", program, config.run_dir], cwd=ROOT, **pipes) as trainer:
        trainer.stdout.readline()
        code, _, error = run(capsys, config_path, "--dry-run")
        assert code == 2
        assert f"{config.run_dir}: process {trainer.pid} on" in error
        trainer.communicate("\n")
    assert run_lock.holder(config.run_dir) is None
    assert run(capsys, config_path, "--dry-run")[0] == 0


def finish_run(config: Config) -> None:
    """Leaves what is looked at of a finished run."""
    save_config(config, made(config.run_dir) / "config.yaml")
    (made(checkpoint_dir(config.run_dir, config.optim.num_steps)) / "COMMIT").touch()


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_a_finished_run_is_not_mistaken_for_one_with_other_settings(capsys, config_path, config):
    """`nothing to do` would read as if the change had been trained."""
    finish_run(config)
    code, _, errors = run(capsys, config_path, "seed=7", "--dry-run")
    assert code == 2
    assert "was started with seed=0, not 7" in errors


def test_what_is_finished_of_a_sweep_is_left_out(capsys, config_path, config):
    finish_run(dataclasses.replace(config, name="run-seed=0", seed=0))
    code, text, _ = run(capsys, config_path, "--sweep=seed=0,1", "--dry-run")
    assert code == 0
    assert f"{config.runs_dir}/run-seed=0: finished at step 12, nothing to do" in text
    assert [line for line in text.splitlines() if line.startswith("# run folder")] == [
        f"# run folder {config.runs_dir}/run-seed=1"
    ]
    code, text, _ = run(capsys, config_path, "--sweep=seed=0", "--dry-run")
    assert (code, "sbatch" in text.lower()) == (0, False)


def test_a_run_that_another_config_cannot_continue_is_refused(capsys, config_path, config):
    finish_run(config)
    code, _, error = run(capsys, config_path, "--dry-run", "optim.num_steps=20", "seed=3")
    assert code == 2
    assert f"{config.run_dir}: was started with seed=0, not 3; use the old value or another `name`" in error
    assert "was started with optim.num_steps=12, not 20" in error


def test_the_doctor_sees_the_config_and_the_job(capsys, config_path):
    code, text, _ = run(capsys, config_path, "--doctor", "--dry-run", "--signal-seconds=90", "seed=3")
    assert code == 0
    assert f"-P -m avff doctor {config_path} seed=3 engine.grace_seconds=90" in text


def test_a_job_that_was_submitted_earlier_is_none_without_slurm(config):
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "job.json").write_text(json.dumps({"job_id": "1"}))
    assert active_job(config.run_dir) is None


# ------------------------------------------------------------------------------------------- the script


def script(*commands: Command, **asked) -> list[str]:
    resources = Resources(**asked)
    return describe(commands, resources, folder=Path("/jobs"), snapshot=Path("/code"), after=["7", "8_1"]).splitlines()


def test_jobs_wait_for_others_and_go_with_them():
    lines = script(Command(("-c", "pass"), None, "adapt"))
    assert "#SBATCH --dependency=afterok:7:8_1" in lines
    assert "#SBATCH --kill-on-invalid-dep=yes" in lines
    assert "#SBATCH --job-name=adapt" in lines
    assert f"{sys.executable} -m launch.requeue $? $JOB /jobs ''" in lines


def test_several_commands_are_an_array_and_each_end_knows_its_run(config):
    lines = script(*(Command((), Path(f"runs/{name}"), name) for name in ("a", "b c")))
    assert "#SBATCH --array=0-1%2" in lines
    assert "#SBATCH --job-name=a+1" in lines
    at = lines.index("code=$? runs=(runs/a 'runs/b c')")
    assert lines[at + 1].endswith('-m launch.requeue $code $JOB /jobs "${runs[$SLURM_ARRAY_TASK_ID]}"')


def test_a_container_stands_between_srun_and_python():
    [line] = [
        line
        for line in script(Command((), None, "a"), container="apptainer exec x.sif", python="python3")
        if line.startswith("srun")
    ]
    assert " --cpus-per-task=1 apptainer exec x.sif python3 -u -m submitit.core._submit /jobs" in line


def test_further_options_go_to_sbatch():
    lines = script(Command((), None, "a"), sbatch=("--reservation=x y", "--hold"))
    assert {"#SBATCH --reservation='x y'", "#SBATCH --hold"} <= set(lines)


# ------------------------------------------------------------------------------------------- one task


def test_a_training_is_told_what_slurm_leaves_it(config, tmp_path):
    command = train_command(config, tmp_path / "jobs")
    assert command.argv == ("-m", "avff", "train", str(saved_path(config, tmp_path / "jobs")))
    task = Task(command.argv, is_training=True, signal_seconds=90)
    assert task.limits("10000", now=4000.0) == ["engine.grace_seconds=90", "engine.time_limit_minutes=99.50"]
    assert task.limits("", now=4000.0) == ["engine.grace_seconds=90"]


def test_runs_of_one_name_have_configs_of_their_own(config, tmp_path):
    """In an array or a pipeline they share the job's folder."""
    other = dataclasses.replace(config, runs_dir=str(tmp_path / "elsewhere"))
    assert train_command(config, tmp_path).argv != train_command(other, tmp_path).argv


def test_a_smaller_limit_of_the_config_stays():
    task = Task((), is_training=True, time_limit_minutes=10.0)
    assert "engine.time_limit_minutes=10.00" in task.limits("10000", now=4000.0)
    assert "engine.time_limit_minutes=10.00" in task.limits("", now=4000.0)
    assert "engine.time_limit_minutes=9.50" in task.limits("4600", now=4000.0)


def test_a_job_at_its_limit_is_not_without_limit():
    """0 would mean none."""
    assert "engine.time_limit_minutes=0.10" in Task((), is_training=True).limits("4000", now=4000.0)


def test_other_commands_run_as_they_are():
    assert Task(("-m", "x")).limits("10000", now=4000.0) == []


def test_the_process_becomes_the_command():
    program = "from launch.task import Task; Task(('-c', 'import os, sys; print(os.getpid(), sys.flags.safe_path)'))()"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0].split() == [str(process.pid), "True"]


def test_what_slurm_refuses_is_a_config_error():
    with pytest.raises(ConfigError, match="no SLURM here"):
        slurm.require_slurm()
