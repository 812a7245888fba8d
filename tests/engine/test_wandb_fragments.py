"""Starts that were killed, stopped and taken back become one run of wandb, equal to metrics.jsonl, sent once."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from wandb_server import running_server

from avff.engine.wandb_fragments import merge
from avff.engine.wandb_run import run_id
from avff.errors import CheckpointError
from avff.files import sha256_of
from avff.json_lines import read_lines
from avff.strict_yaml import to_dict

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "workers" / "wandb_worker.py"
STARTS = [
    # resume step, what it does, how it ends
    (0, "1 2 panel=2 3 4 panel=4 save=4 5 6 kill", -signal.SIGKILL),
    (4, "5 6 save=6 7 panel=7 8 written rewind=6 7 8 panel=8 save=8 crash", -signal.SIGKILL),
    (8, "9 10 fail", 3),
    (8, "9 10 11 save=11 preempt", 0),
    (11, "12 end", 0),
]
NUM_STEPS = 12


@pytest.fixture(scope="module")
def run_dir(make_config, forks, tmp_path_factory):
    """A run that was started five times."""
    folder = tmp_path_factory.mktemp("experiment")
    config = make_config(name="tiny", runs_dir=str(folder), logging={"wandb": "offline"})
    path = folder / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    printed = folder / "printed.txt"
    for resume_step, plan, code in STARTS:
        words = [path, resume_step, *plan.split()]
        codes = forks.run(WORKER, *words, output=printed, environment=without_login(folder), timeout_seconds=900)
        assert codes == [code], printed.read_text()
    return config.run_dir


@pytest.fixture(scope="module")
def merged(run_dir):
    return merge(run_dir)


def numbers_of(row):
    return {key[0]: json.loads(value) for key, value in row.items.items() if len(key) == 1 and key[0][0] != "_"}


def without_login(home):
    """Variables of a program for which nobody is logged in to wandb."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**inherited, "HOME": str(home), "NETRC": str(home / "netrc"), "OMP_NUM_THREADS": "1"}


def sync(run_dir, *options, **environment):
    command = [sys.executable, "tools/sync_wandb.py", str(run_dir), *options]
    environment = {**without_login(run_dir.parent), **environment}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment)


@pytest.mark.slow
def test_all_starts_are_one_run_of_wandb(merged, run_dir):
    assert merged.id == run_id(run_dir)
    assert {fragment.run.run_id for fragment in merged.fragments} == {merged.id}
    assert {(fragment.run.run_group, fragment.run.job_type) for fragment in merged.fragments} == {
        (run_dir.parent.name, "pretrain")
    }
    config = {item.key: json.loads(item.value_json) for item in merged.fragments[-1].run.config.update}
    assert config["code_revision"] == "c0ffee"
    assert config["model"]["size"] == "tiny"


@pytest.mark.slow
def test_steps_are_contiguous_and_equal_metrics_jsonl(merged, run_dir):
    assert [row.step for row in merged.rows] == list(range(1, NUM_STEPS + 1))
    expected: dict = {}
    for line in read_lines(run_dir / "metrics.jsonl"):
        known = {name: value for name, value in line.items() if name != "kind" and value is not None}
        expected.setdefault(line["step"], {}).update(known)
    for row in merged.rows:
        found = numbers_of(row)
        assert {name: str(value) for name, value in found.items()} == {  # str: NaN equals NaN, floats to the bit
            name: str(value) for name, value in expected[row.step].items()
        }
        assert json.loads(row.items[("_step",)]) == row.step
    runtimes = [json.loads(row.items[("_runtime",)]) for row in merged.rows]
    assert runtimes == sorted(runtimes)


@pytest.mark.slow
def test_fragments_hold_what_was_logged_and_void_steps_are_dropped(merged):
    logged = Counter(step for fragment in merged.fragments for step in fragment.rows)
    assert {1, 2, 3, 4, 5, 9, 10, 11, 12} <= logged.keys()
    assert logged[9] == 2  # before the failure and after it
    # What was logged right before the second start's kill may be gone.
    filled_in = {row.step for row in merged.rows if row.is_filled_in}
    assert filled_in <= {5, 6, 7, 8}
    assert merged.num_dropped == logged.total() - (NUM_STEPS - len(filled_in))
    loss = {row.step: numbers_of(row)["loss"] for row in merged.rows}
    assert loss[6] == 1 / 6
    assert loss[7] == 1 / 7 + 1  # of the branch after the rewind
    assert math.isnan(numbers_of(merged.rows[1])["validation/worst"])


@pytest.mark.slow
def test_pictures_and_checkpoints_come_from_the_newest_fragment_that_has_them(merged, run_dir, tmp_path):
    pictures = {row.step: list(row.media) for row in merged.rows if row.media}
    assert {2, 4} <= pictures.keys() <= {2, 4, 8}  # that of step 7 is void, that of 8 was drawn right before the kill
    directory = merged.write(merged.alerts)
    for paths in pictures.values():
        assert all((directory / "files" / path).is_file() for path in paths)
    artifacts = [record.artifact for fragment in merged.fragments for record in fragment.of_kind("artifact")]
    by_step = {json.loads(artifact.metadata)["step"]: artifact for artifact in artifacts}
    assert {4, 6, 11} <= by_step.keys()
    assert set(by_step[4].aliases) == {"last", "latest", "best", "step-4"}
    contents = {entry.path: entry for entry in by_step[4].manifest.contents}
    weights = run_dir / "checkpoints" / "step-4" / "weights.safetensors"
    assert contents["weights.safetensors"].ref == f"file://{weights.resolve()}"
    assert contents["weights.safetensors"].digest == sha256_of(weights)


@pytest.mark.slow
def test_a_fragment_that_is_lost_is_filled_in_from_metrics_jsonl(merged, run_dir, tmp_path):
    lost = merged.fragments[-1].directory
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    (copy / "wandb" / lost.name / f"run-{merged.id}.wandb").write_bytes(b"")
    row = merge(copy).rows[-1]
    assert row.is_filled_in
    assert numbers_of(row)["loss"] == 1 / NUM_STEPS
    assert json.loads(row.items[("_timestamp",)]) == numbers_of(row)["time_unix"]


@pytest.mark.slow
def test_a_run_is_sent_once_and_again_when_it_went_on(run_dir):
    with running_server() as server:
        done = sync(run_dir, **server.environment())
        assert done.returncode == 0, done.stderr
        (rows,) = server.rows.values()
        assert [row["_step"] for row in rows] == list(range(1, NUM_STEPS + 1))
        assert [row["samples_seen"] for row in rows] == [8 * step for step in range(1, NUM_STEPS + 1)]
        assert server.exit_codes == {run_id(run_dir): 0}
        assert server.runs[run_id(run_dir)]["groupName"] == run_dir.parent.name
        assert [text.split(": ")[-1] for text in server.alerts] == ["loss nan (code 3)"]
        assert any(name.startswith("media/images/reconstruction") for name in server.files)
        last = [a for a in server.artifacts if "last" in [alias["alias"] for alias in a["aliases"]]][-1]
        assert "step-11" in [alias["alias"] for alias in last["aliases"]]

        num_requests = server.num_requests
        again = sync(run_dir, **server.environment())
        assert "up to date" in again.stdout
        assert server.num_requests == num_requests

        line = {**read_lines(run_dir / "metrics.jsonl")[-2], "step": 13, "samples_seen": 104}
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        more = sync(run_dir, **server.environment())
        assert more.returncode == 0, more.stderr
        assert [row["_step"] for row in server.rows[run_id(run_dir)]] == list(range(1, NUM_STEPS + 2))
        assert len(server.alerts) == 1


@pytest.mark.slow
def test_without_a_login_the_merged_run_is_written_and_named(run_dir):
    (run_dir / "wandb" / "uploaded.json").unlink(missing_ok=True)
    done = sync(run_dir)
    assert done.returncode == 1
    assert "no login of wandb here" in done.stdout
    assert list((run_dir / "wandb" / "merged").glob("offline-run-*/run-*.wandb"))
    dry = sync(run_dir, "--dry-run")
    assert dry.returncode == 0
    assert "not sent yet" in dry.stdout


def test_a_run_without_fragments_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"wandb: no run of wandb \(was it trained with"):
        merge(tmp_path)
