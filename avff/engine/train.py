"""`avff train`: one stage, from a config to a run folder; continues the run that is there."""

import logging
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import avff
from avff import distributed, run_folder
from avff.config import Config
from avff.engine import agreement, checkpoint, process, run_state
from avff.engine.deepspeed_config import critics_zero_stage
from avff.engine.ledger import Ledger
from avff.engine.loop import Loop
from avff.engine.origin import Origin, continue_from, start_from
from avff.engine.rates import Rates
from avff.engine.run_data import RunData
from avff.engine.signals import PREEMPTED_EXIT_CODE, StopFlag
from avff.engine.trainable import Trainable
from avff.engine.update import Updater
from avff.engine.validation import Validator
from avff.errors import CheckpointError, exit_code
from avff.models.flops import training_gflops
from avff.models.transformer import Block
from avff.models.weights import make_sidecar
from avff.objectives import build_objective
from avff.preprocess import Preprocess

logger = logging.getLogger(__name__)


def train(config: Config) -> int:
    """Trains the config's stage into its run folder, on every rank of the launch.

    Returns:
        0 when the run is finished, 75 when it was told to stop, has saved and wants to be started again.

    Raises:
        ConfigError: config, ranks or an existing run folder do not fit together.
        ShardError, CheckpointError: data or checkpoints are not usable.
        TrainingError: training had to stop; the run folder's exit.json says why, too.
    """
    device = process.start(config)
    try:
        code = run_stage(config, device)
    except BaseException as error:
        process.fail(error)
        raise
    return process.end(code)


def run_stage(config: Config, device: torch.device) -> int:
    """`train` inside a started process group; however it ends after the run folder was opened, exit.json is there."""
    config.accumulation_steps(distributed.world_size())  # refuses a batch that does not divide, before anything is made
    agreement.on_main(lambda: run_state.open_run(config))
    if config.optim.num_steps in agreement.on_main(lambda: run_folder.committed_steps(config.run_dir)):
        logger.info("%s: finished, %d steps are done", config.run_dir, config.optim.num_steps)
        _write_exit(config, "finished", 0, config.optim.num_steps)
        return 0
    announce_two_passes(config)
    loop: Loop | None = None
    try:
        with StopFlag() as stop:
            loop = _prepare(config, device)
            finished = loop.run(stop)
    except BaseException as error:
        reason, step = f"{type(error).__name__}: {error}", loop.step if loop else 0
        run_state.write_exit(config.run_dir, reason=reason, code=exit_code(error), step=step, rank=distributed.rank())
        raise
    code = 0 if finished else PREEMPTED_EXIT_CODE
    reason = "finished" if finished else f"stopped by {stop.reason or 'a signal on another rank'}"
    _write_exit(config, reason, code, loop.step)
    logger.info("%s: %s at step %d", config.run_dir, reason, loop.step)
    return code


def announce_two_passes(config: Config) -> None:
    """Logs that contrastive groups exceed a forward pass, which costs a second one, and what would avoid that."""
    ranks, group = distributed.world_size(), config.group_size
    num_passes = config.passes_per_group(ranks)
    if num_passes > 1:
        logger.info(
            "contrastive groups of %d clips are computed in two passes over %d micro batches (%d clips on each of %d "
            "ranks); engine.micro_batch_size=%d would avoid the second forward pass, if it fits into memory",
            group,
            num_passes,
            config.engine.micro_batch_size,
            ranks,
            group // ranks,
        )


def _write_exit(config: Config, reason: str, code: int, step: int) -> None:
    if distributed.is_main():
        run_state.write_exit(config.run_dir, reason=reason, code=code, step=step)


def _prepare(config: Config, device: torch.device) -> Loop:
    data = agreement.everywhere(lambda: RunData(config))
    objective = build_objective(config)
    newest = checkpoint.find_newest(config.run_dir)
    state = run_folder.read_state(newest) if newest else {}
    _check_plan(config, data, state)
    origin = continue_from(state) if newest else start_from(config, objective.model, data.trained_on)
    if config.engine.compile:
        _compile_blocks(objective.model)
    stage = config.engine.zero_stage
    rate = config.optim.learning_rate
    model = Trainable(
        "model", objective.model, config, zero_stage=stage, learning_rate=rate, new_names=origin.new_names
    )
    critics = None
    if objective.critics is not None:
        critic_stage, critic_rate = critics_zero_stage(config), config.optim.critic_learning_rate
        critics = Trainable("critics", objective.critics, config, zero_stage=critic_stage, learning_rate=critic_rate)
    preprocess = Preprocess(config.clip, config.data.augment)
    updater = Updater(config, objective, model, critics, preprocess, device)
    if newest:
        checkpoint.load(newest, updater.trainables)
    step = state.get("step", 0)
    verb = "continues" if newest else "starts"
    logger.info("%s: %s at step %d of %d", config.run_dir, verb, step, config.optim.num_steps)
    return Loop(
        config,
        updater,
        data,
        Validator(config, preprocess, device),
        Ledger(config, state.get("ledger", {}), resume_step=step),
        Rates(
            device,
            training_gflops(config) * 1e9,
            state.get("productive_seconds", 0.0),
            state.get("first_start_unix", time.time()),
        ),
        origin,
        _sidecar(config, data, origin),
        {name: list(sums) for name, sums in state.get("window", {}).items()},
        step,
    )


def _compile_blocks(model: torch.nn.Module) -> None:
    """Compiles each transformer block for itself: equal shapes share one kernel, and ZeRO's hooks stay outside."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


def _check_plan(config: Config, data: RunData, state: dict[str, Any]) -> None:
    if state and state["plan_hash"] != data.plan.hash:
        raise CheckpointError(
            f"{config.run_dir}: the training data changed since step {state['step']} (plan {state['plan_hash'][:12]} then, "
            f"{data.plan.hash[:12]} now): a shard directory was rebuilt, or shards were added or removed; restore them, or "
            "start a new run with another `name`"
        )


def _sidecar(config: Config, data: RunData, origin: Origin) -> dict[str, Any]:
    """What every checkpoint of the run says about itself."""
    return make_sidecar(
        f"{config.stage} run {config.name!r}",
        config,
        parents=origin.parents,
        build=data.build,
        trained_on=origin.trained_on,
        avff_version=avff.__version__,
        code_revision=_code_revision(),
    )


def _code_revision() -> str | None:
    """Returns the commit of the checkout, None for an installed package."""
    command = ["git", "-C", str(Path(avff.__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
