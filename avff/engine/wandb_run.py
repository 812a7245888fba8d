"""A run in wandb: the numbers of metrics.jsonl, panels, checkpoints by reference, an alert when it fails; rank 0 only.

wandb's step is the training step, so that a step that a requeued job does again is the same row and not a second one.
Nothing that goes wrong here reaches training, and nothing holds it for longer than the seconds below: metrics.jsonl is
the truth, and tools/sync_wandb.py fills in from it.
"""

import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import avff
from avff import distributed, run_folder
from avff.config import Config
from avff.engine.starts import KILLED, STARTS
from avff.engine.wandb_service import can_log_in, failures, stop, within
from avff.errors import INTERRUPTED_EXIT_CODE, PREEMPTED_EXIT_CODE
from avff.json_lines import read_lines
from avff.strict_yaml import to_dict

logger = logging.getLogger(__name__)

INIT_SECONDS = 60.0
"""wandb's own limit for the server's answer."""
START_SECONDS = INIT_SECONDS + 30.0
"""For all of wandb's start; there are two of them where the first has to be given up."""
CALL_SECONDS = 60.0
"""A call only hands over to wandb's service, mostly in less than a millisecond; one that takes this long is the last."""
FINISH_SECONDS = 60.0
FAILURE_SECONDS = 10.0
"""A process that failed waits less: its launcher may be killing ranks already."""
FLUSH_SECONDS = 2.0
"""Records that a killed job loses; with wandb's own value it would be those of 15 s."""
MAX_ARTIFACT_NAME = 100
"""Of the run's name in it; wandb takes 128 characters."""

MAX_TITLE = 63


def run_id(run_dir: Path) -> str:
    """Returns the same id for every start of a run: it follows from the folder's path."""
    return hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]


class WandbRun:
    """What one start adds to a run in wandb; without wandb, or once its service is gone, every method does nothing.

    Args:
        code_revision: commit that trains, for wandb's config.
    """

    def __init__(self, config: Config, code_revision: str | None):
        self._config = config
        self._open_step: int | None = None  # of the row that wandb holds back, as more may belong to it
        self._run = None if config.logging.wandb == "disabled" else _start(config, code_revision)
        if _was_killed(config.run_dir):
            self._alert(f"{config.name} goes on", f"The start before was not heard of again ({KILLED}).", "WARN")

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Adds values to the row of a step; rows come in the order of steps."""
        self._attempt(lambda run: run.log(values, step=step))
        self._open_step = step

    def log_image(self, step: int, name: str, path: Path, values: dict[str, Any]) -> None:
        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path)), **values}, step=step)

        self._attempt(log)
        self._open_step = step

    def log_checkpoint(self, step: int) -> None:
        """Names a committed checkpoint as an artifact: where its files lie and their sha256; no byte is copied."""

        def log(run: Any) -> None:
            best = run_folder.best_step(self._config.run_dir) == step
            aliases = ["last", f"step-{step}", *(["best"] if best else [])]
            run.log_artifact(_artifact(self._config, step), aliases=aliases)

        self._attempt(log)

    def end_row(self) -> None:
        """Lets wandb write the row of the newest step, so that a kill from here on does not take it."""
        if self._open_step is not None:
            self._attempt(lambda run: run.log({}, step=self._open_step, commit=True))
            self._open_step = None

    def finish(self, code: int) -> None:
        """Ends this start's part; a run that wants to be started again is shown as preempted."""
        if code == PREEMPTED_EXIT_CODE:
            self._attempt(lambda run: run.mark_preempting())
        self._attempt(lambda run: run.finish(exit_code=code), FINISH_SECONDS)
        if self._config.logging.wandb != "disabled":
            stop()

    def _alert(self, title: str, text: str, level: str) -> None:
        self._attempt(lambda run: run.alert(title=title[:MAX_TITLE], text=text, level=level))

    def _attempt(self, action: Callable[[Any], None], seconds: float | None = None) -> None:
        """Does something with wandb's run; what goes wrong is logged.

        Args:
            seconds: that it may take; CALL_SECONDS where None.
        """
        if self._run is None:
            return
        try:
            within(seconds or CALL_SECONDS, partial(action, self._run))
        except (ConnectionError, TimeoutError) as error:
            logger.warning("wandb's service has ended (%s); tools/sync_wandb.py adds what it misses", error)
            self._run = None
        except failures() as error:
            logger.warning("wandb: %s: %s", type(error).__name__, error)


def report_failure(config: Config, *, reason: str, code: int, step: int) -> None:
    """Sends an alert with the reason and ends wandb's run as failed; does nothing in a process that has none.

    For the end of a process, from whatever thread ends it.
    """
    wandb = sys.modules.get("wandb")
    run = wandb.run if wandb else None
    if run is None:
        return

    def tell() -> None:
        if code != INTERRUPTED_EXIT_CODE:
            title = f"{config.name} failed at step {step}"
            run.alert(title=title[:MAX_TITLE], text=f"{config.run_dir}: {reason} (code {code})", level="ERROR")
        run.finish(exit_code=code)

    try:
        within(FAILURE_SECONDS, tell)
    except failures() as error:
        logger.warning("wandb was not told of the failure: %s", error)
    stop()


def _start(config: Config, code_revision: str | None) -> Any:
    """Opens wandb's run; offline where login, network or service do not permit more, None at worst."""
    os.environ.setdefault("WANDB_SILENT", "true")
    wanted = config.logging.wandb
    for mode in (wanted, "offline") if wanted != "offline" else ("offline",):
        try:
            return within(START_SECONDS, partial(_init, config, code_revision, _mode(mode)))
        except failures() as error:
            logger.warning("wandb did not start (%s): %s", mode, error)
            stop()
        if mode != "offline":
            logger.warning("wandb goes on offline; logging.wandb=offline saves this wait at the next start")
    logger.warning("training goes on without wandb; metrics.jsonl holds everything")
    return None


def _mode(wanted: str) -> str:
    """Decides `auto`; raises wandb.Error where there is a login and its server does not answer."""
    if wanted != "auto":
        return wanted
    return "online" if can_log_in() else "offline"


def _init(config: Config, code_revision: str | None, mode: Any) -> Any:
    import wandb

    run = wandb.init(
        project=config.logging.wandb_project,
        group=config.logging.wandb_group or Path(config.runs_dir).resolve().name,
        job_type=config.stage,
        name=config.name,
        id=run_id(config.run_dir),
        resume="allow",
        allow_val_change=True,  # a continued run may have moved to other hardware
        dir=str(config.run_dir.resolve()),
        config={
            **to_dict(config),
            "avff_version": avff.__version__,
            "code_revision": code_revision,
            "world_size": distributed.world_size(),
        },
        mode=mode,
        settings=wandb.Settings(
            init_timeout=INIT_SECONDS,
            # avff.engine.system_metrics measures all nodes; wandb would measure only this one.
            x_disable_stats=True,
            x_transaction_log_flush_interval=FLUSH_SECONDS,
            console="off",
        ),
    )
    run.define_metric("samples_seen")
    run.define_metric("step")
    run.define_metric("*", step_metric="samples_seen")
    return run


def _artifact(config: Config, step: int) -> Any:
    """Raises CheckpointError where the checkpoint is not, or no longer, whole."""
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
    from wandb.sdk.lib.paths import LogicalPath

    directory = run_folder.checkpoint_dir(config.run_dir, step).resolve()
    state = run_folder.read_state(directory)
    about = {name: state.get(name) for name in ("step", "samples_seen", "validation", "code_revision")}
    name = re.sub(r"[^\w.-]", "_", f"{config.name[:MAX_ARTIFACT_NAME]}-{run_id(config.run_dir)[:8]}")
    artifact = wandb.Artifact(name, type="checkpoint", metadata={**about, "directory": str(directory)})
    for file, entry in run_folder.read_listing(directory).items():
        # Not add_reference, which would read every byte for an MD5.
        reference = ArtifactManifestEntry(
            path=LogicalPath(file), ref=f"file://{directory / file}", digest=entry["sha256"], size=entry["bytes"]
        )
        artifact.manifest.add_entry(reference)
    return artifact


def _was_killed(run_dir: Path) -> bool:
    """Whether the start before this one ended without a word, as in a killed job or a lost node."""
    starts = read_lines(run_dir / STARTS)
    end = starts[-1]["last_end"] if starts else None
    return end is not None and end["reason"] == KILLED
