"""Stage 1 on real video: what make_shards built of it trains under torchrun with two processes."""

import math
import subprocess
import sys

import pytest

from avff.config import save_config
from avff.json_lines import read_lines

pytestmark = [pytest.mark.real_clips, pytest.mark.slow]
NUM_STEPS = 20


def test_stage_1_trains_on_real_clips_with_two_processes(real_face_shards, tiny_config, tmp_path):
    config = tiny_config(
        data={"train": [{"path": str(real_face_shards.path)}], "labels": "real_or_unknown"},
        optim={"num_steps": NUM_STEPS, "ema_decay": 0.9},
        engine={"global_batch_size": 8, "micro_batch_size": 2},
        logging={"progress": True},
    )
    usable = [row for row in real_face_shards.rows if row.status == ("OK",) and row.is_fake != 1]
    assert 0 < len(usable) < config.engine.global_batch_size, "this run repeats clips within a batch"
    save_config(config, tmp_path / "stage1.yaml")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "avff", "train", str(tmp_path / "stage1.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    # Off a terminal: one line per logged step by one rank, no bar.
    assert done.stderr.count(f"step {NUM_STEPS} of {NUM_STEPS}: loss ") == 1
    assert "\r" not in done.stderr

    lines = read_lines(config.run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, NUM_STEPS + 1))
    for line in lines:
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float)), line
        assert (line["skipped_updates"], line["substituted_samples"]) == (0, 0)
