"""Pipeline steps as jobs, as far as that needs no SLURM: what each asks for, and what it waits for."""

import re
from pathlib import Path

import pytest
from little_stages import make_stages

from avff.errors import ConfigError
from launch.pipeline_steps import Adapt, Evaluate, Progress, State, Train
from launch.resources import Resources
from launch.slurm_pipeline import describe_jobs, resources_of

TO_DO, DONE = Progress(State.TO_DO), Progress(State.DONE)
WANTED = Resources(
    nodes=4, tasks_per_node=8, gpus_per_node=8, cpus_per_task=12, memory_gb=960, minutes=1440, qos="long"
)


@pytest.fixture
def steps(tmp_path):
    stages = make_stages(tmp_path / "shards", tmp_path)
    first, second = stages[0], stages[2]
    return [Train(first), Adapt(first.run_dir, second), Train(second, first.run_dir), Evaluate(second, (Path("test"),))]


def dependencies(text: str) -> dict[str, str]:
    """Returns what each job of a dry run waits for; nothing where it waits for none."""
    found = {}
    for part in text.split("# ---- ")[1:]:
        waits = re.search(r"--dependency='?afterok:([^'\n]*)", part)
        found[part.split("\n")[0]] = waits[1] if waits else ""
    return found


def test_each_job_waits_for_the_one_before(steps, tmp_path):
    text = describe_jobs(steps, [TO_DO] * 4, WANTED, tmp_path / "jobs")
    assert dependencies(text) == {
        "stage1": "",
        "stage1-to-stage3": "<job of stage1>",
        "stage3": "<job of stage1-to-stage3>",
        "stage3-evaluate": "<job of stage3>",
    }
    assert text.count("--kill-on-invalid-dep=yes") == 3
    assert "--shards test --split test" in text and "--num-workers 12" in text
    assert not (tmp_path / "jobs").exists()


def test_what_is_done_is_left_out_and_what_is_queued_is_waited_for(steps, tmp_path):
    progress = [DONE, DONE, Progress(State.ACTIVE, "job 12", "12"), TO_DO]
    assert dependencies(describe_jobs(steps, progress, WANTED, tmp_path / "jobs")) == {"stage3-evaluate": "12"}


def test_a_job_that_was_queued_too_early_is_named(steps, tmp_path):
    progress = [Progress(State.FAILED, "killed"), TO_DO, Progress(State.ACTIVE, "job 12", "12"), TO_DO]
    with pytest.raises(ConfigError, match=r"stage3 is queued already \(job 12\), but stage1-to-stage3 .* scancel 12"):
        describe_jobs(steps, progress, WANTED, tmp_path / "jobs")


def test_a_training_outside_of_slurm_cannot_be_waited_for(steps, tmp_path):
    progress = [Progress(State.ACTIVE, "process 5 on n1 trains it"), TO_DO, TO_DO, TO_DO]
    with pytest.raises(ConfigError, match="stage1: process 5 on n1 trains it, outside of SLURM"):
        describe_jobs(steps, progress, WANTED, tmp_path / "jobs")


def test_small_steps_ask_for_little(steps):
    train, adapt, _, evaluate = (resources_of(step, WANTED) for step in steps)
    assert train == WANTED
    assert (adapt.nodes, adapt.num_tasks, adapt.cpus_per_task, adapt.gpus_per_node, adapt.minutes) == (1, 1, 4, 0, 60)
    assert (evaluate.num_tasks, evaluate.cpus_per_task, evaluate.gpus_per_node, evaluate.minutes) == (1, 12, 1, 1440)
    assert adapt.qos == evaluate.qos == "long"
