"""From configs to the steps of a pipeline, and how far each has come: stage -> adapt -> stage -> ... -> evaluate."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from avff.config import Config
from avff.data.shards import MANIFEST_NAME
from avff.errors import ConfigError
from launch.pipeline_steps import Adapt, Evaluate, Progress, State, Step, Train

JobLookup = Callable[[Path], str | None]
"""Returns the job that SLURM still has for a folder with a job.json."""


def plan_steps(configs: Sequence[Config], evaluate: Sequence[Path] = (), split: str = "test") -> list[Step]:
    """Returns the steps in order.

    Raises:
        ConfigError: the stages do not make a chain; every problem is listed.
    """
    if problems := _chain_problems(configs, evaluate):
        raise ConfigError("these configs make no pipeline:\n" + "\n".join(f"  {problem}" for problem in problems))
    steps: list[Step] = [Train(configs[0])]
    for source, target in pairwise(configs):
        steps += [Adapt(source.run_dir, target), Train(target, source.run_dir)]
    if evaluate:
        steps.append(Evaluate(configs[-1], tuple(evaluate), split))
    return steps


def new_folder(configs: Sequence[Config]) -> Path:
    """Returns a folder of this call for configs, scripts and logs."""
    return Path(configs[0].runs_dir) / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-pipeline-{configs[0].name}"


def _chain_problems(configs: Sequence[Config], evaluate: Sequence[Path]) -> list[str]:
    problems = [
        f"{config.name}: engine.init_weights is empty; name the .safetensors file that {before.name} is adapted to"
        for before, config in pairwise(configs)
        if not config.engine.init_weights
    ]
    problems += _shared("run folder", "each needs a `name` of its own", [(c.name, str(c.run_dir)) for c in configs])
    starts = [(config.name, config.engine.init_weights) for config in configs if config.engine.init_weights]
    problems += _shared("engine.init_weights", "each needs a file of its own", starts)
    if evaluate and configs[-1].stage != "finetune":
        problems.append(
            f"{configs[-1].name}: is of stage {configs[-1].stage!r}, which scores nothing; leave --evaluate out or end "
            "with a config of stage 'finetune'"
        )
    problems += [
        f"--evaluate {path}: no {MANIFEST_NAME} there; give a finished shard directory"
        for path in evaluate
        if not (path / MANIFEST_NAME).is_file()
    ]
    return problems


def _shared(what: str, fix: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    users: dict[str, list[str]] = {}
    for name, value in pairs:
        users.setdefault(value, []).append(name)
    return [
        f"{' and '.join(names)}: share the {what} {value}; {fix}" for value, names in users.items() if len(names) > 1
    ]


def missing_shards(configs: Sequence[Config]) -> list[str]:
    """Names the shard directories that a stage will read and that are not there yet; somebody may still build them."""
    pairs = [(c.name, source.path) for c in configs for source in (*c.data.train, *c.data.validation)]
    return [
        f"{name} reads {path}, which has no {MANIFEST_NAME} yet"
        for name, path in dict.fromkeys(pairs)
        if not (Path(path) / MANIFEST_NAME).is_file()
    ]


def assess(steps: Sequence[Step], active_job: JobLookup) -> list[Progress]:
    """Returns how far each step has come.

    Args:
        active_job: asks SLURM; `lambda folder: None` where there is none.
    """
    found: list[Progress] = []
    for step in steps:
        if any(one.state is State.BLOCKED for one in found):
            found.append(Progress(State.TO_DO))
            continue
        progress = step.look(is_ready=all(one.state is State.DONE for one in found))
        if progress.state not in (State.DONE, State.BLOCKED) and (job := active_job(step.folder)):
            progress = Progress(State.ACTIVE, f"job {job}", job)
        found.append(progress)
    return found
