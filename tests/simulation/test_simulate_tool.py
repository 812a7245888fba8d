"""tools/simulate.py as a user types it."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from index_files import write_indexed_directory

from avff.simulation.cluster import Cluster, load_cluster

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import simulate as tool  # noqa: E402

STAGE1, H200 = str(ROOT / "configs/stage1_kinetics.yaml"), str(ROOT / "configs/clusters/h200.yaml")


@pytest.fixture
def run(capsys, tmp_path):
    def run(*words: str) -> tuple[int, str, str]:
        code = tool.main([*words, "--folder", str(tmp_path / "out")])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_tables_json_and_picture_agree(run, tmp_path):
    code, text, _ = run(
        STAGE1, "--cluster", H200, "--gpus", "1", "8", "1000", "--assume", "mfu=0.5", "--samples", "50000"
    )
    assert code == 0
    assert "given mfu=0.5" in text
    assert "assumed clips_per_second_per_core=100.0" in text
    assert "50000 made-up samples: 50000 samples per epoch in 25 shards, 512 samples a step" in text
    assert "samples are read at 512 places of an epoch at once" in text
    report = json.loads((tmp_path / "out/stage1_kinetics-h200.json").read_text())
    rows = {row["gpus"]: row for row in report["rows"]}
    assert [rows[8]["batch"], rows[8]["changed"], rows[1000]["changed"]] == [512, [], ["batch", "group"]]
    assert rows[1000]["nodes"] == 125
    assert rows[1000]["group"] == 1000
    assert f"{rows[1000]['clips_per_second']:.0f}" in text
    assert (tmp_path / "out/stage1_kinetics-h200.png").read_bytes().startswith(b"\x89PNG")


def test_what_differs_from_the_config_is_marked_where_it_stands(run):
    _, text, _ = run(STAGE1, "--cluster", H200, "--gpus", "1", "8", "128", "--scaling", "weak")
    speed = [line.split() for line in text.splitlines() if line.split()[:1] in (["1"], ["8"], ["128"])][:3]
    assert [[row[2], row[3], row[5]] for row in speed] == [
        ["64*", "64", "64"],
        ["512", "64", "64"],
        ["8192*", "64", "128*"],
    ]
    assert "* not the config's own (batch 512, micro 64, group 64): weak scaling keeps the micro batch" in text
    assert "check the learning rate" in text
    _, text, _ = run(STAGE1, "--cluster", H200, "--gpus", "8", "64", "--scaling", "strong")
    assert next(line.split()[2:6] for line in text.splitlines() if line.startswith("  64 ")) == ["512", "8*", "1", "64"]
    assert "* not the config's own (batch 512, micro 64, group 64): strong scaling keeps the batch" in text
    assert "learning rate" not in text


def test_a_run_that_ends_before_its_warm_up_is_marked(run):
    _, text, _ = run(STAGE1, "--cluster", H200, "--gpus", "64", "1000")
    assert "! fewer steps than optim.warmup_steps 1175 (94 on 1000 GPUs), which a config refuses" in text
    assert "94! " in text
    _, text, _ = run(STAGE1, "--cluster", H200, "--gpus", "64")
    assert "warmup_steps" not in text


def test_much_exposed_communication_is_named_beside_what_decides(run, tmp_path):
    path = tmp_path / "slow.yaml"
    path.write_text(Path(H200).read_text().replace("inter_node_gb_per_second: 400", "inter_node_gb_per_second: 40"))
    _, text, _ = run(STAGE1, "--cluster", str(path), "--gpus", "8", "64")
    limits = [line.rstrip().rpartition("  ")[2] for line in text.splitlines() if "  compute" in line]
    assert limits == ["compute", "compute, 26 % communication"]


def test_what_does_not_divide_is_said_below_the_tables(run):
    code, text, _ = run(STAGE1, "--cluster", H200, "--gpus", "8", "1000", "--scaling", "strong", "--svg")
    assert code == 0
    assert "1000 GPUs: engine.global_batch_size 512 does not divide over 1000 ranks" in text
    assert ".svg" in text


def test_bytes_per_sample_come_from_shards_that_are_there(run, tmp_path):
    write_indexed_directory(tmp_path / "shards", [600, 424])
    source = f"data.train=[{{path: {tmp_path / 'shards'}}}]"
    _, text, _ = run(STAGE1, source, "--cluster", H200, "--gpus", "8")
    assert "given megabytes_per_clip=0.004096" in text
    assert "1024 samples per epoch in 2 shards" in text


def test_measured_files_replace_assumptions(run, tmp_path):
    machine = {"gpu": "NVIDIA H200", "processor": "Xeon"}
    loader = [
        {"loader": "usual", "clips_per_second_per_core": 7.0},
        {"loader": "avff", "clips_per_second_per_core": 99.0},
    ]
    step = [
        {"step": "avff", "stage": stage, "size": size, "precision": "bf16", "mfu": mfu}
        for stage, size, mfu in ((1, "base", 0.3), (1, "base", 0.45), (3, "base", 0.6), (1, "small", 0.7))
    ]
    step.append(step[0] | {"result": "out of memory", "mfu": None})
    save = [{"ranks": 2, "overlap": 1, "megabytes": 4000.0, "blocked_seconds": 0.5, "total_seconds": 4.0}]
    files = []
    for name, rows in {"step": step, "loader": loader, "checkpoint": save}.items():
        files.append(str(tmp_path / f"{name}.json"))
        Path(files[-1]).write_text(json.dumps({"machine": machine, "rows": rows}))
    _, text, _ = run(STAGE1, "--cluster", H200, "--gpus", "8", "--measured", *files)
    for value in ("mfu=0.4635", "clips_per_second_per_core=99", "save_gb_per_second=0.5", "copy_gb_per_second=4"):
        assert f"measured {value} (" in text


def test_speed_of_another_network_is_refused_and_a_cpus_follows_from_its_clips(run, tmp_path):
    row = {"step": "avff", "stage": 1, "size": "tiny", "precision": "fp32", "mfu": None, "clips_per_second": 20.0}
    report = {"machine": {"gpu": None, "processor": "Xeon"}, "ranks": 1, "threads": 1, "rows": [row]}
    (tmp_path / "step.json").write_text(json.dumps(report))
    words = (
        "--cluster",
        str(ROOT / "configs/clusters/laptop_cpu.yaml"),
        "--gpus",
        "1",
        "--measured",
        str(tmp_path / "step.json"),
    )
    code, _, error = run(STAGE1, *words)
    assert code == 2
    assert (
        "no row of {'step': 'avff', 'stage': 1, 'size': 'base', 'precision': 'bf16', 'checkpointing': 'none'}; there are"
        in error
    )
    config = [str(ROOT / "configs/demo/stage1.yaml"), "engine.precision=fp32", "model.size=tiny"]
    code, _, _ = run(*config, *words, "--assume", "clips_per_second_per_core=1e9", "--samples", "1000")
    assert code == 0
    report = json.loads(next((tmp_path / "out").glob("*-laptop_cpu.json")).read_text())
    # The process was measured on one core and has both here; the optimizer takes a little.
    assert report["rows"][0]["clips_per_second"] == pytest.approx(40, rel=0.05)


def test_speed_of_another_kind_of_machine_is_refused(run, tmp_path):
    (tmp_path / "step.json").write_text(
        json.dumps({"machine": {"gpu": None, "processor": "Xeon"}, "rows": [{"mfu": 0.3}]})
    )
    code, _, error = run(STAGE1, "--cluster", H200, "--measured", str(tmp_path / "step.json"))
    assert code == 2
    assert "step.json: mfu was measured on Xeon, but cluster 'h200' is of device 'gpu'" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus_per_nod: 8", "unknown key gpus_per_nod; did you mean gpus_per_node?"),
        ("peak_tflops: fast", "peak_tflops: expected a number, found 'fast'"),
        ("device: tpu", "device: 'tpu' is not one of 'gpu', 'cpu'"),
    ],
)
def test_a_wrong_cluster_file_is_named_with_key_and_way_out(run, tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    key = text.partition(":")[0]
    lines = [line for line in Path(H200).read_text().splitlines() if not line.startswith(f"{key}:")]
    path.write_text("\n".join([*lines, text]))
    code, _, error = run(STAGE1, "--cluster", str(path))
    assert code == 2
    assert f"{path}: {message}" in error


def test_impossible_numbers_of_a_cluster_are_listed_together(run, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        Path(H200).read_text().replace("memory_gb: 141", "memory_gb: 0").replace("efficiency: 0.8", "efficiency: 8")
    )
    _, _, error = run(STAGE1, "--cluster", str(path))
    assert "memory_gb is 0.0; it has to be positive; link_efficiency is 8.0; it is a share, at most 1" in error


def test_a_cluster_file_in_the_place_of_a_config_and_an_empty_one_are_one_line(run, tmp_path):
    assert run(H200)[2] == f"error: {H200}: this is a cluster file; give it with --cluster, after a CONFIG\n"
    (tmp_path / "empty.yaml").write_text("")
    _, _, error = run(STAGE1, "--cluster", str(tmp_path / "empty.yaml"))
    assert error.count("\n") == 1
    assert "empty.yaml: expected `key: value` lines, found nothing; copy a file of configs/clusters" in error


def test_a_machine_without_gpus_has_processes_and_one_node_of_them(run):
    laptop = str(ROOT / "configs/clusters/laptop_cpu.yaml")
    _, text, _ = run(str(ROOT / "configs/demo/stage1.yaml"), "--cluster", laptop)
    assert "GPU" not in text
    counts = [
        line.split()[0] for line in text.partition("checkpoints and")[2].splitlines() if line[:9].strip().isdigit()
    ]
    assert counts == ["1", "2", "4", "8"]


def test_wrong_words_are_explained(run, tmp_path):
    assert "unknown key mfuu; did you mean mfu?" in run(STAGE1, "--cluster", H200, "--assume", "mfuu=0.5")[2]
    assert (
        "mfu is 40.0; it is a share, at most 1 (0.4, not 40)" in run(STAGE1, "--cluster", H200, "--assume", "mfu=40")[2]
    )
    assert "no such cluster file; ready ones are" in run(STAGE1, "--cluster", "configs/clusters/none.yaml")[2]
    assert "no such file; tools/bench.py step" in run(STAGE1, "--cluster", H200, "--measured", "nothing.json")[2]
    assert "no CONFIG given" in run("--cluster", H200)[2]
    (tmp_path / "seek.json").write_text(json.dumps({"machine": {}, "rows": [{"step": 1, "ratio": 1.0}]}))
    assert "its columns are step, ratio" in run(STAGE1, "--cluster", H200, "--measured", str(tmp_path / "seek.json"))[2]


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    said = capsys.readouterr().out
    columns = ("passes", "exposed ms", "wait ms", "has ", "masters", "other ", "goodput %", "hours to failure", "cost:")
    for word in (*columns, "examples:", "how to read it:", "--measured", "mfu=0.4", "weak", "strong", "--check"):
        assert word in said


@pytest.mark.parametrize("path", sorted((ROOT / "configs/clusters").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_key_of_a_ready_cluster_is_explained_beside_it_and_optional_ones_are_shown(tmp_path, path):
    keys = {item.name for item in dataclasses.fields(Cluster)} - {"name", "source", "device"}
    lines = {line.removeprefix("# ").partition(":")[0]: line for line in path.read_text().splitlines()}
    assert all("  # " in lines[key] for key in keys)
    optional = [key for key in keys if lines[key].startswith("# ")]
    assert set(optional) == {"price_per_gpu_hour", "failures_per_node_hour"}
    (tmp_path / "mine.yaml").write_text(
        path.read_text().replace("\n# price_", "\nprice_").replace("\n# fail", "\nfail")
    )
    mine = load_cluster(tmp_path / "mine.yaml")
    assert mine.price_per_gpu_hour > 0
    assert mine.failures_per_node_hour > 0
