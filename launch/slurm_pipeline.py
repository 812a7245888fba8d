"""The steps of a pipeline as SLURM jobs, each waiting for the one before to succeed."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from avff.errors import ConfigError
from launch.pipeline_steps import Evaluate, Progress, State, Step, Train, save_step_config
from launch.resources import Resources, as_single_task
from launch.script import config_path
from launch.snapshot import snapshot_folder, take_snapshot
from launch.submit import Command, describe, record_job, submit, train_command

ADAPT_CPUS, ADAPT_MINUTES = 4, 60
"""At most: adapting weights takes a minute, and a short job finds a gap in the queue."""


def submit_steps(
    steps: Sequence[Step], progress: Sequence[Progress], wanted: Resources, folder: Path
) -> dict[str, str]:
    """Submits what is neither done nor queued; returns step -> job id.

    Where SLURM refuses one in the middle, those before it stay, and the same call again adds the rest.

    Args:
        wanted: of a training; adapting and evaluating take one task of it.
        folder: for configs, scripts and logs.

    Raises:
        ConfigError: something outside of SLURM trains a stage, or a step is queued before one that is not done.
    """
    code, jobs = take_snapshot(_runs_dir(steps)), {}

    def send(step: Step, after: Sequence[str]) -> str:
        save_step_config(step, folder)
        resources = resources_of(step, wanted)
        command = _command(step, folder, code, resources)
        [jobs[step.name]] = submit([command], resources, folder=folder, snapshot=code, after=after)
        if not isinstance(step, Train):
            record_job(step.folder, jobs[step.name], folder)
        return jobs[step.name]

    _walk(steps, progress, send)
    return jobs


def describe_jobs(steps: Sequence[Step], progress: Sequence[Progress], wanted: Resources, folder: Path) -> str:
    """Returns the scripts that `submit_steps` would hand to sbatch; raises what it would."""
    code, texts = snapshot_folder(_runs_dir(steps)), []

    def write_down(step: Step, after: Sequence[str]) -> str:
        resources = resources_of(step, wanted)
        command = _command(step, folder, code, resources)
        script = describe([command], resources, folder=folder, snapshot=code, after=after)
        texts.append(f"# ---- {step.name}\n{script}")
        return f"<job of {step.name}>"

    _walk(steps, progress, write_down)
    return "\n".join(texts)


def resources_of(step: Step, wanted: Resources) -> Resources:
    """Returns a step's share of what is asked for: adapting takes some cores, evaluating one task and its GPU."""
    if isinstance(step, Train):
        return wanted
    if isinstance(step, Evaluate):
        one = as_single_task(wanted, wanted.cpus_per_task)
        return dataclasses.replace(one, gpus_per_node=min(1, wanted.gpus_per_node))
    one = as_single_task(wanted, min(ADAPT_CPUS, wanted.cpus_per_task))
    minutes = min(ADAPT_MINUTES, wanted.minutes)
    return dataclasses.replace(one, minutes=minutes, signal_seconds=min(30, wanted.signal_seconds))


def _walk(steps: Sequence[Step], progress: Sequence[Progress], act: Callable[[Step, Sequence[str]], str]) -> None:
    """Calls `act(step, jobs to wait for)`, which returns a job, for what is neither done nor queued."""
    _refuse_out_of_order(steps, progress)
    after: tuple[str, ...] = ()
    for step, one in zip(steps, progress, strict=True):
        if one.state is State.ACTIVE:
            after = (one.job,)
        elif one.state is not State.DONE:
            after = (act(step, after),)


def _refuse_out_of_order(steps: Sequence[Step], progress: Sequence[Progress]) -> None:
    missing = ""
    for step, one in zip(steps, progress, strict=True):
        if one.state is State.ACTIVE and not one.job:
            raise ConfigError(f"{step.name}: {one.detail}, outside of SLURM; stop it, or let it finish")
        if one.state is State.ACTIVE and missing:
            raise ConfigError(
                f"{step.name} is queued already (job {one.job}), but {missing} before it has to run first; SLURM "
                f"cancels it within a minute if that failed just now, otherwise: scancel {one.job}"
            )
        if one.state in (State.FAILED, State.TO_DO):
            missing = step.name


def _command(step: Step, folder: Path, code: Path, resources: Resources) -> Command:
    if isinstance(step, Train):
        return train_command(step.config, folder)
    words = step.words(code, config_path(step.config, folder))
    if isinstance(step, Evaluate):
        words += ["--num-workers", str(resources.cpus_per_task)]
    return Command(tuple(words), None, step.name)


def _runs_dir(steps: Sequence[Step]) -> Path:
    return Path(steps[0].config.runs_dir)
