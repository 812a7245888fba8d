"""Data and a config for real training that is over in seconds: two ranks, 12 steps, a checkpoint every other step."""

from pathlib import Path

from made_samples import build_directory, build_sample

from avff.config import Config
from avff.data.samples import Sample
from avff.strict_yaml import from_dict

NUM_STEPS, SAVE_EVERY, BATCH = 12, 2, 4
NUM_TRAIN_CLIPS, NUM_SHARDS = 40, 4


def make_samples() -> list[Sample]:
    train = [build_sample(f"train{i:02d}") for i in range(NUM_TRAIN_CLIPS)]
    return train + [build_sample(f"val{i:02d}", split="val") for i in range(4)]


def build_shards(path: Path) -> Path:
    build_directory(path, make_samples(), num_shards=NUM_SHARDS)
    return path


def make_config(shards: Path, runs_dir: Path) -> Config:
    """Returns the config of a run `run`; `save_config` makes a file of it."""
    source = [{"path": str(shards)}]
    values = {
        "name": "run",
        "stage": "pretrain",
        "runs_dir": str(runs_dir),
        "clip": {"num_frames": 8, "image_size": 32, "hop_samples": 100, "num_mel_bins": 32, "num_slices": 4},
        "model": {"size": "tiny", "critic_width": 32},
        "pretrain": {"contrastive_group_size": BATCH},
        "data": {"train": source, "validation": source, "num_workers": 1, "prefetch_steps": 1, "decoder": "decord"},
        "optim": {"num_steps": NUM_STEPS, "warmup_steps": 2, "learning_rate": 1e-3, "ema_decay": 0.9},
        "engine": {
            "global_batch_size": BATCH,
            "micro_batch_size": 2,
            "precision": "fp32",
            "num_threads": 1,
            "checkpoint_every_steps": SAVE_EVERY,
            "validate_every_steps": 6,
        },
        "faults": {"max_substituted_fraction": 0.5},
        "logging": {"progress": False, "wandb": "disabled", "log_every_steps": 1, "panel_every_steps": 0},
    }
    return from_dict(Config, values, where="tests/little_runs.py")
