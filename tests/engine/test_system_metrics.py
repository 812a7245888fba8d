"""Each node's load is sampled by a thread that training does not notice, and rank 0 reads what all nodes wrote."""

import json
import threading
import time

import pytest

from avff.engine import system_metrics
from avff.engine.system_metrics import NodeTail, SystemMetrics, parse_gpus
from avff.json_lines import read_lines

SAMPLED = {"time_unix", "step", "cpu_percent", "memory_gib", "shared_memory_gib", "run_disk_free_gib"}


@pytest.fixture
def config(tiny_config):
    config = tiny_config(logging={"system_every_seconds": 0.05})
    config.run_dir.mkdir(parents=True)
    return config


def wait_for(path, num_lines):
    deadline = time.monotonic() + 60
    while len(read_lines(path)) < num_lines:
        assert time.monotonic() < deadline, f"{path}: fewer than {num_lines} lines"
        time.sleep(0.02)


def test_a_node_is_sampled_while_it_trains(config, monkeypatch):
    monkeypatch.setattr(system_metrics.socket, "gethostname", lambda: "n1")
    path = config.run_dir / "system" / "n1.jsonl"
    with SystemMetrics(config, lambda: 7):
        wait_for(path, 3)
    lines = read_lines(path)
    assert {line["step"] for line in lines} == {7}
    assert set(lines[0]) >= SAMPLED
    assert 0 < lines[0]["memory_percent"] < 100
    assert all(line["network_sent_mib_per_second"] >= 0 for line in lines)


def test_other_ranks_of_the_node_and_zero_seconds_sample_nothing(config, tiny_config, monkeypatch):
    before = set(threading.enumerate())
    with SystemMetrics(tiny_config(logging={"system_every_seconds": 0}), lambda: 0):
        assert set(threading.enumerate()) <= before
    monkeypatch.setenv("LOCAL_RANK", "1")
    with SystemMetrics(config, lambda: 0):
        assert set(threading.enumerate()) <= before
    monkeypatch.setenv("LOCAL_RANK", "0")
    with SystemMetrics(config, lambda: 0):
        assert {thread.name for thread in set(threading.enumerate()) - before} == {"system metrics"}


def test_a_folder_that_cannot_be_written_ends_the_sampling_and_nothing_else(config, caplog):
    (config.run_dir / "system").write_text("a file where the folder should be")
    with SystemMetrics(config, lambda: 0) as metrics:
        metrics._thread.join(timeout=60)
    assert "this node is not measured any more" in caplog.text


def test_gpus_are_read_from_the_table_of_nvidia_smi():
    table = "0, 97, 71680, 61, 512.34\n1, [N/A], 1024, 35, [Not Supported]\n"
    assert parse_gpus(table) == {
        "gpu0_utilization_percent": 97,
        "gpu0_memory_gib": 70,
        "gpu0_temperature_celsius": 61,
        "gpu0_power_watts": 512.34,
        "gpu1_memory_gib": 1,
        "gpu1_temperature_celsius": 35,
    }


def test_infiniband_counts_words_of_four_bytes_over_all_ports(tmp_path):
    for port, words in (("mlx5_0/ports/1", 100), ("mlx5_1/ports/1", 11)):
        folder = tmp_path / port / "counters"
        folder.mkdir(parents=True)
        (folder / "port_rcv_data").write_text(f"{words}\n")
    assert system_metrics._infiniband_counters(tmp_path) == {"infiniband_received_mib_per_second": 444}


def test_rank_0_reads_the_means_of_what_all_nodes_added(tmp_path):
    folder = tmp_path / "system"
    folder.mkdir()

    def add(host, text):
        with (folder / f"{host}.jsonl").open("a") as file:
            file.write(text)

    def line(**values):
        return json.dumps({"time_unix": 0, "step": 1, **values}) + "\n"

    add("n1", line(cpu_percent=99))  # before this start
    tail = NodeTail(tmp_path)
    add("n1", line(cpu_percent=10) + line(cpu_percent=20, gpu0_power_watts=500))
    add("n2", line(cpu_percent=30) + line(cpu_percent=50)[:10])  # the second is still being written
    assert tail.means() == {
        "system/n1/cpu_percent": 15,
        "system/n1/gpu0_power_watts": 500,
        "system/n2/cpu_percent": 30,
    }
    add("n2", line(cpu_percent=50)[10:])
    assert tail.means() == {"system/n2/cpu_percent": 50}
    assert tail.means() == {}
