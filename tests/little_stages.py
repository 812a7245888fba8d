"""Configs of three stages that start from each other, over in seconds: real training for tests of pipelines."""

import dataclasses
from pathlib import Path

from little_runs import make_config

from avff.config import Config, DataConfig, ShardSource


def make_stages(shards: Path, folder: Path, *, num_steps: int = 2) -> list[Config]:
    """Returns two pretrainings and a finetuning on the same shards, with runs and weights in a folder."""
    plain = make_config(shards, folder / "runs")
    optim = dataclasses.replace(plain.optim, num_steps=num_steps, warmup_steps=1)
    source = (ShardSource(path=str(shards)),)
    stages = []
    for name, kind, start in (("stage1", "pretrain", ""), ("stage2", "pretrain", "b"), ("stage3", "finetune", "c")):
        engine = dataclasses.replace(plain.engine, init_weights=start and str(folder / f"{start}.safetensors"))
        data = DataConfig(train=source, num_workers=0, labels="real" if kind == "pretrain" else "known")
        parts = {"name": name, "stage": kind, "optim": optim, "engine": engine, "data": data}
        stages.append(dataclasses.replace(plain, **parts))
    return stages


def reading(config: Config, shards: Path) -> Config:
    """Returns the same config on other shards."""
    data = dataclasses.replace(config.data, train=(ShardSource(path=str(shards)),))
    return dataclasses.replace(config, data=data)
