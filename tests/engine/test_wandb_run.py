"""What goes wrong in wandb stays there: metrics.jsonl is complete, and the run ends as it would have."""

import json
import os
import socket
from pathlib import Path

import pytest

from avff.engine.wandb_fragments import merge, read_fragments
from avff.json_lines import read_lines
from avff.strict_yaml import to_dict

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parent / "workers" / "wandb_worker.py"
CLOSED_PORT = "http://127.0.0.1:9"
API_KEY = "0" * 40


@pytest.fixture
def log(tiny_config, tmp_path, forks):
    """Logs steps in a process of its own: `log(plan, logging={...}, VARIABLE=...)` returns what it printed."""

    def run(plan, *, logging, name="tiny", code=0, **environment):
        path, printed = tmp_path / "config.json", tmp_path / f"{name}.txt"
        path.write_text(json.dumps(to_dict(tiny_config(name=name, logging=logging))))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment = {**inherited, "HOME": str(tmp_path), **environment}
        plan = [path, 0, *plan.split()]
        codes = forks.run(WORKER, *plan, output=printed, environment=environment, timeout_seconds=300)
        assert codes == [code], printed.read_text()
        return printed.read_text()

    return run


def steps_of(run_dir):
    return [line["step"] for line in read_lines(run_dir / "metrics.jsonl") if line["kind"] == "train"]


def test_a_service_that_dies_is_logged_and_the_run_goes_on(log, tiny_config):
    run_dir = tiny_config().run_dir
    printed = log("1 lose 2 panel=2 save=2 3 end", logging={"wandb": "offline"})
    assert "wandb's service has ended" in printed
    assert steps_of(run_dir) == [1, 2, 3]


def test_a_login_without_a_network_goes_on_offline(log, tiny_config):
    run_dir = tiny_config().run_dir
    printed = log("1 2 end", logging={"wandb": "auto"}, WANDB_API_KEY=API_KEY, WANDB_BASE_URL=CLOSED_PORT)
    assert "wandb goes on offline" in printed
    assert_all_is_in_a_file(run_dir)


@pytest.fixture
def silent_server():
    """Takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_costs_seconds(log, tiny_config, silent_server):
    run_dir = tiny_config().run_dir
    printed = log("1 2 end", logging={"wandb": "auto"}, WANDB_API_KEY=API_KEY, WANDB_BASE_URL=silent_server)
    assert "wandb goes on offline" in printed
    assert_all_is_in_a_file(run_dir)


def assert_all_is_in_a_file(run_dir):
    assert steps_of(run_dir) == [1, 2]
    (fragment,) = read_fragments(run_dir)
    assert not fragment.was_sent
    assert list(fragment.rows) == [1, 2]


@pytest.mark.parametrize(("end", "code"), [("end", 0), ("fail", 3)])
def test_a_service_that_stalls_holds_the_end_for_seconds(log, tiny_config, end, code):
    run_dir = tiny_config().run_dir
    printed = log(f"1 2 stall 3 {end}", logging={"wandb": "offline"}, code=code)
    assert "wandb took longer than 3 s" in printed
    assert steps_of(run_dir) == [1, 2, 3]


def test_a_rewind_with_a_stalled_service_goes_on_in_a_new_one(log, tiny_config):
    run_dir = tiny_config().run_dir
    printed = log("1 2 stall rewind=1 2 3 end", logging={"wandb": "offline"})
    assert "wandb took longer than 3 s" in printed and "without wandb" not in printed
    assert list(read_fragments(run_dir)[-1].rows) == [2, 3]


def test_what_wandb_does_not_allow_is_logged_and_the_run_goes_on(log, tiny_config):
    """A sweep's names grow beyond what an artifact's may have; a variable of wandb's may be mistyped."""
    run_dir = tiny_config(name="n" * 120).run_dir
    printed = log("1 save=1 2 end", name="n" * 120, logging={"wandb": "offline"})
    assert "128" not in printed
    assert steps_of(run_dir) == [1, 2]
    printed = log("1 2 end", name="mistyped", logging={"wandb": "offline"}, WANDB_MODE="foo")
    assert "training goes on without wandb" in printed
    assert steps_of(tiny_config(name="mistyped").run_dir) == [1, 2]


def test_a_folder_that_takes_no_files_of_wandb_trains_without_it(log, tiny_config):
    run_dir = tiny_config().run_dir
    run_dir.mkdir(parents=True)
    (run_dir / "wandb").write_text("a file where wandb's folder should be")
    printed = log("1 2 panel=2 end", logging={"wandb": "offline"})
    assert "training goes on without wandb" in printed
    assert steps_of(run_dir) == [1, 2]


def test_disabled_leaves_nothing_of_wandb(log, tiny_config):
    log("1 panel=1 save=1 end", logging={"wandb": "disabled"})
    assert not (tiny_config().run_dir / "wandb").exists()


def test_the_load_of_all_nodes_joins_the_rows(log, tiny_config):
    run_dir = tiny_config().run_dir
    log("nodes 1 end", logging={"wandb": "offline", "wandb_group": "ablation"})
    (fragment,) = read_fragments(run_dir)
    assert fragment.run.run_group == "ablation"
    items = merge(run_dir).rows[0].items
    assert items[("system/n1/cpu_percent",)] == "25"
    assert items[("system/n2/gpu0_power_watts",)] == "500"


def test_a_start_after_a_kill_says_so(log, tiny_config):
    run_dir = tiny_config().run_dir
    run_dir.mkdir(parents=True)
    end = {"reason": "no exit.json: killed, or its machine failed", "code": None, "step": None}
    (run_dir / "starts.jsonl").write_text(json.dumps({"time_unix": 0, "host": "n1", "step": 0, "last_end": end}) + "\n")
    log("1 end", logging={"wandb": "offline"})
    (alert,) = merge(run_dir).alerts
    assert (alert.alert.title, alert.alert.level) == ("tiny goes on", "WARN")
