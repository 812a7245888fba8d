"""metrics.jsonl stays readable after a crash and holds no line from after the resume point."""

import json

from avff.engine.append_log import read_lines
from avff.engine.metrics_log import MetricsLog

LINE = {"kind": "train", "samples_seen": 0, "loss": 0.1 + 0.2}


def test_lines_after_the_resume_point_and_a_torn_one_are_removed(tiny_config):
    config = tiny_config()
    config.run_dir.mkdir(parents=True)
    path = config.run_dir / "metrics.jsonl"
    path.write_text("".join(json.dumps({**LINE, "step": step}) + "\n" for step in (2, 4, 6)) + '{"kind": "tra')
    log = MetricsLog(config, resume_step=4)
    log.write("validation", 5, 40, {"validation/auc": None})
    log.close()
    lines = read_lines(path)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert lines[0]["loss"] == 0.1 + 0.2  # to the bit
    assert lines[2] == {"kind": "validation", "step": 5, "samples_seen": 40, "validation/auc": None}


def test_wandb_gets_the_same_numbers_offline(tiny_config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_config(logging={"wandb": "offline"})
    config.run_dir.mkdir(parents=True)
    log = MetricsLog(config, resume_step=0)
    log.write("train", 1, 8, {"loss": 2.0, "mfu": None})
    assert log._wandb.summary["loss"] == 2.0
    first_id = log._wandb.id
    log.close()
    assert list((config.run_dir / "wandb").glob("offline-run-*"))
    again = MetricsLog(config, resume_step=1)
    assert again._wandb.id == first_id  # a requeued job continues its curve
    again.close()
