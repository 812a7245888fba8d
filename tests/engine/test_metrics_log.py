"""metrics.jsonl stays readable after a crash and holds no line from after the resume point."""

import json

from avff.engine.metrics_log import MetricsLog
from avff.json_lines import read_lines

LINE = {"kind": "train", "samples_seen": 0, "loss": 0.1 + 0.2}


def test_lines_after_the_resume_point_and_a_torn_one_are_removed(tiny_config):
    config = tiny_config()
    config.run_dir.mkdir(parents=True)
    path = config.run_dir / "metrics.jsonl"
    path.write_text("".join(json.dumps({**LINE, "step": step}) + "\n" for step in (2, 4, 6)) + '{"kind": "tra')
    log = MetricsLog(config, resume_step=4)
    log.write("validation", 5, 40, {"validation/auc": None})
    log.close(0)
    lines = read_lines(path)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert lines[0]["loss"] == 0.1 + 0.2  # to the bit
    assert lines[2] == {"kind": "validation", "step": 5, "samples_seen": 40, "validation/auc": None}
