"""launch/pipeline.py: what makes a chain, what counts as done, and the same chain on one machine."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from little_stages import make_stages, reading

from avff import run_folder
from avff.checkpoint_files import commit, list_files
from avff.config import Config, save_config
from avff.data.shards import MANIFEST_NAME
from avff.engine.run_state import write_exit
from avff.errors import ConfigError
from avff.models.weights import make_sidecar, parent_of, save_weights
from launch import pipeline
from launch.local_pipeline import run_here
from launch.pipeline_steps import Adapt, Evaluate, Progress, State, Step, Train
from launch.plan_pipeline import assess, missing_shards, plan_steps
from launch.submit import log_path, record_job

ROOT = Path(__file__).parents[2]
NOTHING_QUEUED = {}.get
"""Of SLURM: no folder has a job."""


@pytest.fixture
def chain(tmp_path) -> list[Config]:
    """Configs of three stages that start from each other."""
    return make_stages(tmp_path / "shards", tmp_path, num_steps=8)


@pytest.fixture
def shards(tmp_path) -> Path:
    """What looks like a shard directory from outside."""
    path = tmp_path / "shards"
    path.mkdir()
    (path / MANIFEST_NAME).write_text("{}")
    return path


def save_step(config: Config, step: int, *, value: float = 1.0) -> None:
    """Leaves what a training leaves that has saved so far: one number stands for all weights."""
    start = Path(config.engine.init_weights)
    about = make_sidecar("made", config, parents=[parent_of(start)] if start.is_file() else [])
    directory = run_folder.checkpoint_dir(config.run_dir, step)
    unfinished = directory.with_name(directory.name + run_folder.UNFINISHED)
    save_weights(unfinished / run_folder.WEIGHTS, {"w": torch.tensor([value])}, about)
    (unfinished / run_folder.STATE).write_text(json.dumps({"step": step}))
    commit(unfinished, directory, list_files(unfinished, list(unfinished.iterdir())))
    save_config(config, config.run_dir / "config.yaml")


def finish(config: Config, *, value: float = 1.0) -> None:
    save_step(config, config.optim.num_steps, value=value)
    write_exit(config.run_dir, reason="finished", code=0, step=config.optim.num_steps)


def last_weights(config: Config) -> Path:
    return run_folder.checkpoint_dir(config.run_dir, config.optim.num_steps) / run_folder.WEIGHTS


def adapt(source: Config, target: Config) -> None:
    about = make_sidecar("made", target, parents=[parent_of(last_weights(source))])
    save_weights(Path(target.engine.init_weights), {"w": torch.zeros(1)}, about)


def evaluate(config: Config, shards: Path) -> None:
    folder = config.run_dir / "evaluation" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = parent_of(last_weights(config))["sha256"]
    summary = {"checkpoint_sha256": [sha256], "provenance": {f"shards {shards}": "5 samples"}}
    (folder / "summary.json").write_text(json.dumps(summary))


def finish_all(chain: Sequence[Config], shards: Path) -> None:
    for before, config in zip([None, *chain], chain, strict=False):
        if before:
            adapt(before, config)
        finish(config)
    evaluate(chain[-1], shards)


def states(steps: Sequence[Step]) -> list[str]:
    return [str(one.state) for one in assess(steps, NOTHING_QUEUED)]


# ------------------------------------------------------------------------------------------- the chain


def test_stages_alternate_with_the_adaptation_of_their_weights(chain, shards):
    steps = plan_steps(chain, [shards])
    names = ["stage1", "stage1-to-stage2", "stage2", "stage2-to-stage3", "stage3", "stage3-evaluate"]
    assert [step.name for step in steps] == names
    assert [str(step.output) for step in steps[1::2]][:2] == [config.engine.init_weights for config in chain[1:]]
    words = steps[1].words(Path("/code"), Path("jobs/stage2.yaml"))
    assert words[:3] == ["/code/tools/adapt_weights.py", "--from", str(chain[0].run_dir)]
    assert words[3:] == ["--to", "jobs/stage2.yaml", "--output", chain[1].engine.init_weights]
    assert [step.name for step in plan_steps(chain[:1])] == ["stage1"]


def test_every_break_of_the_chain_is_named_at_once(chain, tmp_path):
    same_name = dataclasses.replace(chain[1], name="stage1")
    no_start = dataclasses.replace(chain[1], name="other", engine=chain[0].engine)
    with pytest.raises(ConfigError) as caught:
        plan_steps([chain[0], same_name, no_start, chain[1]], [tmp_path / "nowhere"])
    message = str(caught.value)
    assert "other: engine.init_weights is empty; name the .safetensors file that stage1 is adapted to" in message
    assert f"stage1 and stage1: share the run folder {chain[0].run_dir}" in message
    assert f"stage1 and stage2: share the engine.init_weights {chain[1].engine.init_weights}" in message
    assert "stage2: is of stage 'pretrain', which scores nothing" in message
    assert f"--evaluate {tmp_path / 'nowhere'}: no {MANIFEST_NAME} there" in message


def test_shards_that_a_later_stage_will_miss_are_named(chain, shards):
    expected = [f"stage2 reads shards/later, which has no {MANIFEST_NAME} yet"]
    assert missing_shards([chain[0], reading(chain[1], Path("shards/later"))]) == expected


# ------------------------------------------------------------------------------------------- what is done


def test_a_step_is_done_once_it_has_made_its_part(chain, shards):
    steps = plan_steps(chain, [shards])
    assert states(steps) == ["to do"] * 6
    finish(chain[0])
    assert states(steps) == ["done"] + ["to do"] * 5
    adapt(*chain[:2])
    assert states(steps) == ["done"] * 2 + ["to do"] * 4
    finish(chain[1])
    assert states(steps) == ["done"] * 3 + ["to do"] * 3
    adapt(*chain[1:])
    finish(chain[2])
    assert states(steps) == ["done"] * 5 + ["to do"]
    evaluate(chain[2], shards)
    assert states(steps) == ["done"] * 6


def test_weights_that_a_run_has_started_from_may_be_deleted(chain, shards):
    finish_all(chain, shards)
    Path(chain[1].engine.init_weights).unlink()
    assert states(plan_steps(chain, [shards])) == ["done"] * 6


def test_an_unfinished_stage_says_how_far_it_came_and_why_it_ended(chain):
    save_step(chain[0], 4)
    progress = Train(chain[0]).look(is_ready=True)
    assert progress == Progress(State.FAILED, "saved step 4 of 8; killed without a last word")
    write_exit(chain[0].run_dir, reason="stopped by SIGTERM on rank 1", code=75, step=4)
    assert Train(chain[0]).look(is_ready=True).detail == "saved step 4 of 8; stopped by SIGTERM on rank 1"


def test_a_finished_stage_of_fewer_steps_is_another_run(chain):
    finish(chain[0])
    longer = dataclasses.replace(chain[0], optim=dataclasses.replace(chain[0].optim, num_steps=99))
    progress = Train(longer).look(is_ready=True)
    assert progress.state is State.BLOCKED
    assert "was started with another config (optim.num_steps: 8 there, 99 now)" in progress.detail


def test_weights_for_another_network_are_made_again(chain):
    finish(chain[0])
    adapt(*chain[:2])
    other = dataclasses.replace(chain[1], clip=dataclasses.replace(chain[1].clip, num_frames=16))
    assert Adapt(chain[0].run_dir, chain[1]).look(is_ready=True).state is State.DONE
    assert Adapt(chain[0].run_dir, other).look(is_ready=True).state is State.TO_DO


def test_weights_of_an_earlier_training_are_made_again(chain):
    finish(chain[0], value=1.0)
    adapt(*chain[:2])
    retrain(chain[0])
    progress = assess(plan_steps(chain), NOTHING_QUEUED)
    assert progress[1] == Progress(State.TO_DO, "what is there was made from or for something else")


def test_a_stage_that_started_from_other_weights_blocks_the_pipeline(chain, shards):
    finish_all(chain, shards)
    retrain(chain[0])
    steps = plan_steps(chain, [shards])
    assert states(steps) == ["done", "done", "blocked", "to do", "to do", "to do"]
    with pytest.raises(ConfigError, match=r"runs/stage2 was started from other weights \(\w{12}, stage1 has \w{12}\)"):
        pipeline.refuse_blocked(steps, assess(steps, NOTHING_QUEUED))


def test_a_stage_whose_source_is_gone_blocks_the_pipeline(chain):
    finish(chain[0])
    adapt(*chain[:2])
    save_step(chain[1], 4)
    shutil.rmtree(chain[0].run_dir)
    progress = assess(plan_steps(chain), NOTHING_QUEUED)
    assert [one.state for one in progress[:3]] == [State.TO_DO, State.TO_DO, State.BLOCKED]
    assert progress[2].detail.startswith("is at step 4 already, but stage1 before it is not finished")


def test_a_first_stage_needs_the_weights_that_it_names(chain):
    progress = Train(chain[1]).look(is_ready=True)
    assert progress == Progress(State.BLOCKED, f"engine.init_weights {chain[1].engine.init_weights}: no such file")


def test_an_evaluation_of_other_weights_or_shards_is_made_again(chain, shards):
    finish(chain[2])
    evaluate(chain[2], shards)
    assert Evaluate(chain[2], (shards,)).look(is_ready=True).state is State.DONE
    assert Evaluate(chain[2], (shards, Path("more"))).look(is_ready=True).state is State.TO_DO
    retrain(chain[2])
    assert Evaluate(chain[2], (shards,)).look(is_ready=True).state is State.TO_DO


def retrain(config: Config) -> None:
    """Leaves a run of the same config with other weights."""
    shutil.rmtree(run_folder.checkpoint_dir(config.run_dir, config.optim.num_steps))
    finish(config, value=2.0)


def test_jobs_are_asked_for_where_something_is_to_do(chain, shards):
    finish(chain[0])
    steps = plan_steps(chain, [shards])
    jobs = {step.folder: f"{number}" for number, step in enumerate(steps)}
    progress = assess(steps, jobs.get)
    assert progress[0].state is State.DONE
    assert progress[1:] == [Progress(State.ACTIVE, f"job {number}", f"{number}") for number in range(1, 6)]


@pytest.mark.slow
def test_a_training_elsewhere_is_seen_by_its_lock(chain):
    """In another process: a lock says nothing to the one that holds it."""
    code = (
        "import pathlib, sys; from avff.run_lock import claim\n"
        f"with claim(pathlib.Path({str(chain[0].run_dir)!r})): print(flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes) as process:
        process.stdout.readline()
        progress = assess(plan_steps(chain), NOTHING_QUEUED)
        process.stdin.close()
    assert progress[0].state is State.ACTIVE
    assert f"process {process.pid} on" in progress[0].detail


# ------------------------------------------------------------------------------------------- on this machine


@dataclasses.dataclass(frozen=True)
class Script:
    """A step that is a line of Python and makes a file."""

    name: str
    config: Config
    output: Path
    code: str = "pass"

    @property
    def folder(self) -> Path:
        return self.output

    def words(self, code: Path, config_path: Path) -> list[str]:
        lines = f"import os, signal, sys, time; {self.code}; open({str(self.output)!r}, 'a').write('made')"
        return ["-c", lines]

    def look(self, *, is_ready: bool) -> Progress:
        return Progress(State.DONE if self.output.exists() else State.TO_DO)


def scripts(config: Config, folder: Path, *codes: str) -> list[Script]:
    return [Script(name, config, folder / name, code) for name, code in zip("abc", codes, strict=True)]


def run_scripts(steps: Sequence[Script]) -> int:
    return run_here(steps, assess(steps, NOTHING_QUEUED), steps[0].output.parent / "jobs", processes=None)


def test_a_step_that_fails_ends_the_run_and_names_what_needed_it(chain, tmp_path, capfd):
    steps = scripts(chain[0], tmp_path, "pass", "sys.exit(7)", "pass")
    assert run_scripts(steps) == 7
    assert "== b ended with code 7: see above; not started: c" in capfd.readouterr().err
    assert [step.output.exists() for step in steps] == [True, False, False]


def test_the_same_line_again_goes_on_and_repeats_nothing(chain, tmp_path, capfd):
    run_scripts(scripts(chain[0], tmp_path, "pass", "sys.exit(7)", "pass"))
    capfd.readouterr()
    assert run_scripts(scripts(chain[0], tmp_path, "pass", "pass", "pass")) == 0
    assert [(tmp_path / name).read_text() for name in "abc"] == ["made"] * 3
    assert "== a" not in capfd.readouterr().err


@pytest.mark.parametrize(("handler", "code"), [("signal.SIG_DFL", 128 + 15), ("lambda *_: sys.exit(75)", 75)])
def test_a_signal_reaches_the_step_and_no_other_is_started(chain, tmp_path, handler, code):
    steps = scripts(
        chain[0],
        tmp_path,
        f"signal.signal(signal.SIGTERM, {handler}); os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)",
        "pass",
        "pass",
    )
    before = signal.getsignal(signal.SIGTERM)
    assert run_scripts(steps) == code
    assert not any(step.output.exists() for step in steps)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_step_that_ends_well_in_spite_of_a_signal_is_the_last(chain, tmp_path):
    ignoring = "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(os.getppid(), signal.SIGTERM)"
    steps = scripts(chain[0], tmp_path, ignoring, "pass", "pass")
    assert run_scripts(steps) == 128 + 15
    assert [step.output.exists() for step in steps] == [True, False, False]


def test_nothing_is_started_beside_a_job_of_the_same_pipeline(chain, tmp_path):
    steps = scripts(chain[0], tmp_path, "pass", "pass", "pass")
    progress = [Progress(State.TO_DO), Progress(State.ACTIVE, "job 12", "12"), Progress(State.TO_DO)]
    with pytest.raises(ConfigError, match=r"b \(job 12\): wait for it, or stop it; nothing was started here"):
        run_here(steps, progress, tmp_path / "jobs", processes=None)
    assert not steps[0].output.exists()


# ------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def files(chain, tmp_path) -> list[str]:
    """The chain as YAML files."""
    return [write(config, tmp_path) for config in chain]


def write(config: Config, folder: Path) -> str:
    path = folder / f"{config.name}.yaml"
    save_config(config, path)
    return str(path)


def test_status_is_a_table_and_changes_nothing(files, chain, shards, capsys):
    finish(chain[0])
    before = sorted(chain[0].run_dir.parent.rglob("*"))
    assert pipeline.main([*files, "--status", "--evaluate", str(shards)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "stage1", "stage1-to-stage2", "stage2", "stage2-to-stage3", "stage3", "stage3-evaluate"]  # fmt: skip
    assert lines[1].endswith("done: step 8 of 8")
    assert lines[2].endswith("to do")
    assert sorted(chain[0].run_dir.parent.rglob("*")) == before


def test_the_log_of_what_is_not_done_is_named(files, chain, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")  # no squeue to ask
    for config, job in zip(chain[:2], ("11", "12"), strict=True):
        record_job(config.run_dir, job, tmp_path)
        log_path(tmp_path, job).touch()
    finish(chain[0])
    assert pipeline.main([*files, "--status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"log of stage2: {tmp_path / '12_0_log.out'}"


def test_a_local_dry_run_prints_what_one_would_type(files, chain, shards, capsys):
    finish(chain[0])
    words = [
        "--executor",
        "local",
        "--dry-run",
        "--tasks-per-node",
        "2",
        "--evaluate",
        str(shards),
        "data.num_workers=2",
    ]
    assert pipeline.main([*files, *words]) == 0
    commands = capsys.readouterr().out.splitlines()[7:]
    assert len(commands) == 5
    assert "tools/adapt_weights.py --from" in commands[0]
    assert commands[1].startswith("PROCESSES=2 ") and "launch/torchrun.sh" in commands[1]
    assert commands[4].endswith(f"--split test --output {chain[2].run_dir / 'evaluation' / 'test'}")


def test_everything_wrong_with_the_configs_is_said_at_once(files, tmp_path, capsys):
    assert (
        pipeline.main([files[0], str(tmp_path / "no.yaml"), files[2], "--executor", "local", "--tasks-per-node", "3"])
        == 2
    )
    message = capsys.readouterr().err
    assert f"{files[0]}: engine.global_batch_size 4 does not divide over 3 ranks" in message
    assert "no.yaml: no such config file" in message
    assert f"{files[2]}: engine.global_batch_size 4 does not divide over 3 ranks" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.learning_rat=1"], "did you mean optim.learning_rate?"),
        (["name=one"], "one and one and one: share the run folder"),
        (["--executor", "local", "--nodes", "2"], "--nodes 2: --executor local is this machine alone"),
        (["--minuts", "5"], "did you mean --minutes?"),
    ],
)
def test_a_mistake_gets_one_message_and_code_2(files, words, message, capsys):
    assert pipeline.main([*files, *words]) == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- real training


@pytest.fixture
def trainable(shard_directory, tmp_path) -> list[str]:
    """YAML files of the chain; the shards of stage 2 are not there yet."""
    stages = make_stages(shard_directory.path, tmp_path)
    stages[1] = reading(stages[1], tmp_path / "later")
    return [write(config, tmp_path) for config in stages]


@pytest.mark.slow
def test_three_stages_here_with_a_failure_on_the_way(trainable, shard_directory, tmp_path):
    def run(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "launch/pipeline.py", *trainable, "--evaluate", str(shard_directory.path), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RESTARTS": "0"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    failed = run("--executor", "local", "--tasks-per-node", "1")
    assert failed.returncode != 0
    assert f"note: stage2 reads {tmp_path / 'later'}, which has no manifest.json yet" in failed.stderr
    assert "not started: stage2-to-stage3, stage3, stage3-evaluate" in failed.stderr, failed.stderr
    assert {path.name for path in (tmp_path / "runs").iterdir()} >= {"stage1", "stage2"}
    assert not (tmp_path / "runs/stage3").exists()

    shutil.copytree(shard_directory.path, tmp_path / "later")
    finished = run("--executor", "local", "--tasks-per-node", "1")
    assert finished.returncode == 0, finished.stderr
    started = [line for line in finished.stderr.splitlines() if line.startswith("== ")]
    assert started == ["== stage2", "== stage2-to-stage3", "== stage3", "== stage3-evaluate"]
    summary = json.loads((tmp_path / "runs/stage3/evaluation/test/summary.json").read_text())
    assert summary["scored"] == 5

    again = run("--executor", "local", "--tasks-per-node", "1")
    assert again.returncode == 0
    assert "== " not in again.stderr
    assert [line.split()[2].rstrip(":") for line in again.stdout.splitlines()[1:]] == ["done"] * 6
