"""data.json: the shards that a run reads, so that a restart can say what changed, and accept it only on purpose."""

import hashlib
import json
from typing import Any

from avff import distributed
from avff.config import Config
from avff.data.plan_change import describe_change
from avff.data.signature import signature_hash
from avff.engine.decisions import Decisions
from avff.errors import CheckpointError
from avff.files import write_durably

Signatures = dict[str, dict[str, Any]]
"""Of `train` and `validation`, see avff.data.signature."""
FILE = "data.json"
MIN_CHARACTERS = 8
_MAX_LINES = 20


def check_data(config: Config, signatures: Signatures, state: dict[str, Any], decisions: Decisions) -> None:
    """Compares what is read with what the run read so far, and records it; rank 0 writes.

    Args:
        signatures: equal on every rank.
        state: of the checkpoint that the run continues from; empty at a start, when anything goes.

    Raises:
        CheckpointError: shards changed and `data.accept_plan` does not name the new ones; every change is listed.
    """
    if state and "data_hash" not in state:
        raise CheckpointError(
            f"{config.run_dir}: the checkpoint of step {state.get('step')} was written by an older avff, which did not "
            "record its data; start a new run from its weights (tools/adapt_weights.py)"
        )
    path, found = config.run_dir / FILE, data_hash(signatures)
    expected = (decisions.data_hashes or [state.get("data_hash", found)])[-1]
    if found != expected:
        accepted = config.data.accept_plan
        if len(accepted) < MIN_CHARACTERS or not found.startswith(accepted):
            raise CheckpointError(_refusal(config, state.get("step", 0), json.loads(path.read_text()), signatures))
        decisions.replanned(from_step=state.get("step", 0), data_hash=found)
    if distributed.is_main():
        write_durably(path, (json.dumps(signatures) + "\n").encode())


def data_hash(signatures: Signatures) -> str:
    """Returns the SHA-256 over the training plan and the validation shards."""
    parts = {name: signature_hash(signature) for name, signature in signatures.items()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _refusal(config: Config, step: int, old: Signatures, new: Signatures) -> str:
    lines = [f"{part}: {line}" for part in new for line in describe_change(old[part], new[part])]
    if len(lines) > _MAX_LINES:
        lines = [*lines[:_MAX_LINES], f"and {len(lines) - _MAX_LINES} more changes"]
    return (
        f"{config.run_dir}: the data changed since the run was started, which it would continue at step {step}:\n"
        + "".join(f"  {line}\n" for line in lines)
        + "Put the shards back as they were to continue exactly, or go on with these, in a new order from step "
        f"{step} on, with data.accept_plan={data_hash(new)[:12]}"
    )
