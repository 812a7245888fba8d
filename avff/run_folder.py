"""Layout and readers of a run folder, `runs/<name>/`.

config.yaml                 resolved config
metrics.jsonl               one line per logged step: the truth; wandb/ shows the same numbers
ledger.jsonl                substituted samples, skipped updates, spikes
decisions.jsonl             what later processes have to repeat (avff.engine.decisions)
data.json                   the shards that are read (avff.engine.plan_record)
exit.json                   reason, code, step, rank, host: how the last launch ended (avff.engine.run_state)
starts.jsonl                one line per launch, with how the one before it ended
lock                        held while a launch trains here; who does (avff.run_lock)
job.json                    the newest job that a scheduler was given, and where its script and logs are (launch/)
jobs/JOBID_ends.jsonl       how the starts of a plain batch job ended (launch/sbatch.sh)
panels/step-N.png           reconstructions
system/<host>.jsonl         what each node was busy with (avff.engine.system_metrics)
checkpoints/step-N/
    weights.safetensors     consolidated fp32 weights, with a JSON sidecar
    ema.safetensors         their moving average, likewise
    model/, critics/        optimizer state by parameter name, one file per rank
    state.json              step, samples_seen, data_hash, validation, build, ...
    files.json              size and sha256 of every file above
    COMMIT                  sha256 of files.json, written last: without it the checkpoint does not exist
checkpoints/step-N.damaged  failed its check; step-N.rewound: left behind by a rewind. Nothing reads them, delete at will
"""

import dataclasses
import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from avff.config import Config, load_config
from avff.errors import CheckpointError
from avff.files import sha256_of
from avff.sidecar import config_of, read_sidecar, written_by

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SYSTEM = "system"
CHECKPOINTS = "checkpoints"
COMMIT = "COMMIT"
FILES = "files.json"
STATE = "state.json"
WEIGHTS = "weights.safetensors"
EMA = "ema.safetensors"
FOLDER_WEIGHTS = "model.safetensors"
"""Weight file of a model folder (avff.exporting.folder), which holds no `checkpoints/`."""
UNFINISHED = ".tmp"
"""Ends the name of a checkpoint folder that is being written or deleted; the next start removes it."""


@dataclasses.dataclass(frozen=True)
class CheckpointRef:
    """One checkpoint to read weights from.

    Attributes:
        run_dir: run folder; the file's folder for a bare `.safetensors`.
        step: updates done; -1 where a bare file does not say.
        directory: where the weight file lies.
        weights_path: `ema.safetensors` unless there is none or `:raw` was asked for.
        config: of the run.
        state: `state.json`, or the sidecar of a bare file.
    """

    run_dir: Path
    step: int
    directory: Path
    weights_path: Path
    config: Config
    state: dict[str, Any]

    @property
    def is_averaged(self) -> bool:
        """Whether the weights are a run's moving average."""
        return self.state.get("averaged", self.weights_path.name == EMA)

    @property
    def threshold(self) -> float | None:
        """On the fake probability, as validation chose it with these weights: the moving average, if the run keeps one."""
        if self.is_averaged != (self.config.optim.ema_decay > 0):
            return None
        return (self.state.get("validation") or {}).get("threshold")


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    return run_dir / CHECKPOINTS / f"step-{step}"


def committed_steps(run_dir: Path) -> list[int]:
    """Returns the steps of complete checkpoints, oldest first."""
    matches = (re.fullmatch(r"step-(\d+)", path.parent.name) for path in (run_dir / CHECKPOINTS).glob(f"*/{COMMIT}"))
    return sorted(int(match[1]) for match in matches if match)


def uncommitted_folders(run_dir: Path) -> list[Path]:
    """Returns folders that are named like a checkpoint and are none."""
    folders = sorted((run_dir / CHECKPOINTS).glob("step-*"))
    return [path for path in folders if re.fullmatch(r"step-\d+", path.name) and not (path / COMMIT).exists()]


def read_state(directory: Path) -> dict[str, Any]:
    """Returns `state.json`; raises CheckpointError where that is not what was written."""
    try:
        return json.loads((directory / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / STATE}: cannot be read: {error}") from error


def best_step(run_dir: Path) -> int | None:
    """Returns the step with the best validation among committed checkpoints, None when none was validated."""
    scores: dict[int, float] = {}
    for step in committed_steps(run_dir):
        try:
            validation = read_state(checkpoint_dir(run_dir, step)).get("validation")
        except CheckpointError as error:
            logger.warning("%s; it is not looked at for the best one", error)
            continue
        if validation:
            scores[step] = validation["value"] * (1 if validation["higher_is_better"] else -1)
    return max(scores, key=lambda step: (scores[step], step), default=None)


def find_problems(directory: Path, *, rank: int = 0, world_size: int = 1) -> list[str]:
    """Compares a checkpoint with its `files.json`; returns what is wrong, nothing when it is whole.

    Args:
        rank, world_size: every rank looks at every file's size and reads its share of the contents.
    """
    try:
        listing = read_listing(directory)
    except CheckpointError as error:
        return [str(error)]
    found = (
        file_problem(directory / name, expected, read=index % world_size == rank)
        for index, (name, expected) in enumerate(listing.items())
    )
    return [problem for problem in found if problem]


def read_listing(directory: Path) -> dict[str, Any]:
    """Returns `files.json`: path in the checkpoint -> bytes and sha256.

    Raises:
        CheckpointError: it is missing, or not the one that was committed.
    """
    commit, listing = directory / COMMIT, directory / FILES
    if not commit.is_file() or not listing.is_file():
        raise CheckpointError(f"{directory}: no {COMMIT} or no {FILES}; it was never completed")
    try:
        content, expected = listing.read_bytes(), commit.read_bytes().strip()
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest().encode() != expected:
        raise CheckpointError(f"{listing}: does not match {COMMIT}")
    return json.loads(content)


def file_problem(path: Path, expected: dict[str, Any], *, read: bool = True) -> str | None:
    """Says how a file differs from its entry in `files.json`; only its size is compared unless `read`."""
    try:
        if not path.is_file():
            return f"{path}: missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{path}: {path.stat().st_size} bytes, {expected['bytes']} were written"
        if read and sha256_of(path) != expected["sha256"]:
            return f"{path}: sha256 differs from the one recorded when it was written"
    except OSError as error:
        return f"{path}: cannot be read: {error}"
    return None


def resolve_checkpoint(reference: str) -> CheckpointRef:
    """Finds what `RUN[:best|last|step-N][:raw]`, a model folder or a `.safetensors` path means.

    `RUN` alone is the best by validation, or the newest of a run that was never validated; its weights are
    the moving average unless `:raw` is added or the run keeps none.

    Raises:
        CheckpointError: no such run, checkpoint or file (the message lists what is there), or its weights are not the
            ones that were written.
    """
    if is_model_folder(Path(reference)):
        return _resolve_file(Path(reference) / FOLDER_WEIGHTS)
    if reference.endswith(".safetensors"):
        return _resolve_file(Path(reference))
    run_dir, step = find_checkpoint(reference.removesuffix(":raw"))
    directory = checkpoint_dir(run_dir, step)
    weights = _verified_weights(directory, raw=reference.endswith(":raw"))
    state = read_state(directory)
    with written_by(state):
        config = load_config(run_dir / "config.yaml")
    return CheckpointRef(run_dir, step, directory, weights, config, state)


def is_model_folder(path: Path) -> bool:
    return (path / FOLDER_WEIGHTS).is_file()


def find_checkpoint(reference: str) -> tuple[Path, int]:
    """Returns the run folder and the step that `RUN[:best|last|step-N]` means; nothing is verified.

    Raises:
        CheckpointError: no such run or checkpoint; the message lists what is there.
    """
    run, colon, which = reference.rpartition(":")
    run_dir, which = (Path(run), which) if colon else (Path(reference), "best")
    if is_model_folder(run_dir):
        way_out = f"name it without :{which}" if colon else "name the run folder"
        raise CheckpointError(
            f"{run_dir}: is a model folder, which holds one set of weights and no checkpoints of training; {way_out}"
        )
    if not (run_dir / "config.yaml").is_file():
        raise CheckpointError(
            f"{run_dir}: not a run folder (no config.yaml); give runs/NAME, a model folder or a .safetensors file"
        )
    steps = committed_steps(run_dir)
    if not steps:
        raise CheckpointError(f"{run_dir}: no complete checkpoint in {CHECKPOINTS}/ yet; train first")
    return run_dir, _choose_step(run_dir, which, steps)


def _verified_weights(directory: Path, *, raw: bool) -> Path:
    """Returns the weight file to read, after comparing it, its sidecar and the state with what was committed."""
    listing = read_listing(directory)
    weights = WEIGHTS if raw or EMA not in listing else EMA
    for name in (weights, str(Path(weights).with_suffix(".json")), STATE):
        if name not in listing:
            raise CheckpointError(f"{directory / FILES}: does not list {name}; this is not a checkpoint of avff train")
        if problem := file_problem(directory / name, listing[name]):
            raise CheckpointError(f"{problem}; the file is damaged, choose another checkpoint with RUN:step-N")
    return directory / weights


def _choose_step(run_dir: Path, which: str, steps: list[int]) -> int:
    if which == "last":
        return steps[-1]
    if which == "best":
        best = best_step(run_dir)
        return steps[-1] if best is None else best
    match = re.fullmatch(r"step-(\d+)", which)
    if match and int(match[1]) in steps:
        return int(match[1])
    there = ", ".join(f"step-{step}" for step in steps)
    raise CheckpointError(f"{run_dir}: no checkpoint {which!r}; use best, last or one of {there}")


def _resolve_file(path: Path) -> CheckpointRef:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a weight file is a .safetensors with its .json beside it")
    sidecar = read_sidecar(path)
    if "config" not in sidecar:
        raise CheckpointError(
            f"{path.with_suffix('.json')}: no `config` in it, so the model cannot be built; adapt the file first"
        )
    return CheckpointRef(
        path.parent, int(sidecar.get("step", -1)), path.parent, path, config_of(sidecar, path), sidecar
    )
