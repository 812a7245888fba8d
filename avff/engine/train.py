"""`avff train`: one stage, from a config to a run folder; continues the run that is there."""

import gc
import logging
import subprocess
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

import avff
from avff import distributed, run_folder
from avff.config import Config
from avff.engine import agreement, checkpoint, process, run_state
from avff.engine.decisions import Decisions
from avff.engine.decoder import settle_decoder
from avff.engine.loop import Loop, RunFacts
from avff.engine.origin import Origin, continue_from, start_from
from avff.engine.plan_record import check_data
from avff.engine.run_data import RunData
from avff.engine.signals import StopFlag
from avff.engine.system_metrics import SystemMetrics
from avff.engine.update import build_updater
from avff.engine.validation import Validator
from avff.engine.wandb_run import report_failure
from avff.engine.watchdog import Watchdog
from avff.errors import (
    INTERRUPTED_EXIT_CODE,
    LOST_RANK_EXIT_CODE,
    PREEMPTED_EXIT_CODE,
    CheckpointError,
    describe,
    exit_code,
)
from avff.models.weights import make_sidecar
from avff.objectives import build_objective
from avff.run_lock import claim

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
    return process.end(run_stage(config, device))


def run_stage(config: Config, device: torch.device) -> int:
    """`train` inside a started process group; however it ends after the run folder was opened, exit.json is there."""
    opened = False

    def open_run() -> Config:
        held.enter_context(claim(config.run_dir))
        return run_state.open_run(config)

    # The flag outermost: a launcher sends TERM to the ranks that are left, and they have to say why they end.
    with (
        ExitStack() as held,
        StopFlag(time_limit_seconds=60 * config.engine.time_limit_minutes) as stop,
        Watchdog(config.faults.hang_seconds, partial(_note_end, config, LOST_RANK_EXIT_CODE)) as watchdog,
    ):
        try:
            config.accumulation_steps(distributed.world_size())  # refuses what does not divide before anything is made
            config = agreement.on_main(open_run)
            opened = True
            with SystemMetrics(config, lambda: watchdog.step):
                return _run_opened(config, device, watchdog, stop)
        except BaseException as error:
            words = watchdog.last_words(error)
            if opened:
                reason, code = describe(words.error), exit_code(words.error)
                step, rank = watchdog.step, distributed.rank()
                run_state.write_exit(config.run_dir, reason=reason, code=code, step=step, rank=rank)
                report_failure(config, reason=reason, code=code, step=step)
            process.fail(words.error, speaks=words.speaks, alone=words.alone)
            if words.error is not error:
                raise words.error from error
            raise


def _run_opened(config: Config, device: torch.device, watchdog: Watchdog, stop: StopFlag) -> int:
    watchdog.mark("starting", 0)
    decisions = Decisions(config.run_dir, samples_per_step=config.samples_per_step)
    _set_aside_superseded(config.run_dir, decisions)
    newest = checkpoint.find_newest(config.run_dir)
    if newest == run_folder.checkpoint_dir(config.run_dir, config.optim.num_steps):
        return _end(config, "finished", 0, config.optim.num_steps)
    announce_two_passes(config)
    config = settle_decoder(config)
    watchdog.mark("starting", 0)
    loop = _prepare(config, device, watchdog, decisions, newest)
    stop.reserve = loop.stop_seconds
    stop.on_stuck = lambda words: _note_end(config, INTERRUPTED_EXIT_CODE, words, loop.step)
    if loop.run(stop):
        code = _end(config, "finished", 0, loop.step)
    else:
        rank, reason = next((rank, text) for rank, text in enumerate(distributed.gather_objects(stop.reason)) if text)
        code = _end(config, f"stopped by {reason} on rank {rank}", PREEMPTED_EXIT_CODE, loop.step)
    if loop.log:
        loop.log.close(code)  # last, as wandb may have much to send
    return code


def _end(config: Config, reason: str, code: int, step: int) -> int:
    if distributed.is_main():
        run_state.write_exit(config.run_dir, reason=reason, code=code, step=step)
    logger.info("%s: %s at step %d", config.run_dir, reason, step)
    return code


def _note_end(config: Config, code: int, sentence: str, step: int) -> None:
    """What a thread writes that is about to end the process."""
    run_state.write_exit(config.run_dir, reason=sentence, code=code, step=step, rank=distributed.rank())
    report_failure(config, reason=sentence, code=code, step=step)


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


def _prepare(
    config: Config, device: torch.device, watchdog: Watchdog, decisions: Decisions, newest: Path | None
) -> Loop:
    """Opens data, network and the newest checkpoint; each part is a sign of progress."""
    run_dir = config.run_dir
    watchdog.mark("starting", 0)
    data = agreement.everywhere(lambda: _open_data(config))
    watchdog.mark("starting", 0)
    state = run_folder.read_state(newest) if newest else {}
    agreement.everywhere(lambda: check_data(config, data.signatures, state, decisions))
    watchdog.mark("starting", 0)
    objective = build_objective(config)
    origin = continue_from(state) if newest else start_from(config, objective.model, data.trained_on)
    updater = build_updater(config, objective, device, new_names=origin.new_names, mark=watchdog.mark)
    watchdog.mark("starting", 0)
    if newest:
        checkpoint.load(newest, updater.trainables)
    verb, step = ("continues" if newest else "starts"), state.get("step", 0)
    logger.info("%s: %s at step %d of %d", run_dir, verb, step, config.optim.num_steps)
    watchdog.mark("starting", step)
    facts = RunFacts(origin, _sidecar(config, data, origin))
    return Loop(config, updater, data, Validator(config, updater.preprocess, device), decisions, watchdog, facts, state)


def _open_data(config: Config) -> RunData:
    """Keeps the garbage collector off the index rows, a million and more objects that live as long as the process."""
    gc.disable()
    try:
        return RunData(config)
    finally:
        gc.freeze()
        gc.enable()


def _set_aside_superseded(run_dir: Path, decisions: Decisions) -> None:
    """Ends a rewind that was decided by a process that died before it had gone back; a collective."""

    if not decisions.rewinds:
        return

    def superseded() -> bool:
        # The newest comes first: a checkpoint made after the last rewind means that it was carried out.
        for step in reversed(run_folder.committed_steps(run_dir)):
            try:
                state = run_folder.read_state(run_folder.checkpoint_dir(run_dir, step))
            except CheckpointError:
                continue  # damaged, which find_newest says and mends
            return decisions.is_superseded(step, state["num_rewinds"])
        return False

    if agreement.on_main(superseded):
        checkpoint.set_aside(run_dir, newer_than=decisions.rewinds[-1]["from_step"], suffix=checkpoint.REWOUND)


def _sidecar(config: Config, data: RunData, origin: Origin) -> dict[str, Any]:
    """What every checkpoint of the run says about itself."""
    return make_sidecar(
        f"{config.stage} run {config.name!r}",
        config,
        parents=origin.parents,
        build=data.build,
        trained_on=origin.trained_on,
        code_revision=_code_revision(),
    )


def _code_revision() -> str | None:
    """Returns the commit of the checkout, None for an installed package; a launcher's copy of the code names its own."""
    root = Path(avff.__file__).parents[1]
    if (root / "REVISION").is_file():
        return (root / "REVISION").read_text().strip()
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
