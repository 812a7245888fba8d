"""Finding checkpoints: which are whole, which is best, and what a wrong reference is told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_checkpoints import FILES, add_checkpoint

from avff import __version__, run_folder
from avff.checkpoint_files import list_files
from avff.config import save_config
from avff.errors import CheckpointError, ConfigError
from avff.files import sha256_of
from avff.run_folder import best_step, committed_steps, find_problems, resolve_checkpoint
from avff.strict_yaml import to_dict


@pytest.fixture
def run_dir(tiny_config) -> Path:
    config = tiny_config()
    config.run_dir.mkdir(parents=True)
    save_config(config, config.run_dir / "config.yaml")
    return config.run_dir


def recommit(directory: Path) -> None:
    """Lists a checkpoint's files anew."""
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name not in ("files.json", "COMMIT")]
    (directory / "files.json").write_text(json.dumps(list_files(directory, paths)))
    (directory / "COMMIT").write_text(sha256_of(directory / "files.json"))


def test_best_is_by_validation_in_the_metrics_own_direction(run_dir):
    for step, value in ((2, 0.7), (10, 0.9), (4, 0.8)):
        add_checkpoint(run_dir, step, value)
    add_checkpoint(run_dir, 12, None)
    assert committed_steps(run_dir) == [2, 4, 10, 12]
    assert best_step(run_dir) == 10
    for step in (2, 4, 10):
        state = run_folder.checkpoint_dir(run_dir, step) / "state.json"
        state.write_text(state.read_text().replace("true", "false"))
    assert best_step(run_dir) == 2


def test_references(run_dir):
    for step, value in ((2, 0.9), (10, 0.7)):
        add_checkpoint(run_dir, step, value)
    found = {
        text: resolve_checkpoint(f"{run_dir}{text}") for text in ("", ":best", ":last", ":step-2", ":raw", ":last:raw")
    }
    assert {text: (ref.step, ref.weights_path.name) for text, ref in found.items()} == {
        "": (2, "ema.safetensors"),
        ":best": (2, "ema.safetensors"),
        ":last": (10, "ema.safetensors"),
        ":step-2": (2, "ema.safetensors"),
        ":raw": (2, "weights.safetensors"),
        ":last:raw": (10, "weights.safetensors"),
    }
    assert found[""].config.name == "tiny"
    assert found[""].state["validation"]["value"] == 0.9


def test_without_validation_best_is_the_newest_and_without_average_raw(run_dir):
    add_checkpoint(run_dir, 2, None)
    add_checkpoint(run_dir, 4, None, names=FILES[:2])
    found = resolve_checkpoint(str(run_dir))
    assert (found.step, found.weights_path.name) == (4, "weights.safetensors")


@pytest.mark.parametrize("name", ["ema.safetensors", "ema.json", "state.json"])
def test_weights_that_are_not_what_was_written_are_refused(run_dir, name):
    path = add_checkpoint(run_dir, 2, 0.5) / name
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    if name != "state.json":  # the damage concerns the averaged weights alone
        assert resolve_checkpoint(f"{run_dir}:last:raw").weights_path.name == "weights.safetensors"
    with pytest.raises(CheckpointError, match=rf"{name}: sha256 differs .*; the file is damaged, choose another"):
        resolve_checkpoint(f"{run_dir}:last")
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        resolve_checkpoint(f"{run_dir}:last")


def test_an_uncommitted_checkpoint_does_not_exist(run_dir):
    add_checkpoint(run_dir, 2, None)
    (add_checkpoint(run_dir, 4, 0.9) / "COMMIT").unlink()
    assert committed_steps(run_dir) == [2]
    with pytest.raises(CheckpointError, match="no checkpoint 'step-4'; use best, last or one of step-2"):
        resolve_checkpoint(f"{run_dir}:step-4")


def test_wrong_references_are_told_what_is_there(run_dir, tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        resolve_checkpoint(str(run_dir))
    with pytest.raises(CheckpointError, match="not a run folder"):
        resolve_checkpoint(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="no such file"):
        resolve_checkpoint(str(tmp_path / "nothing.safetensors"))


def test_a_bare_weight_file_is_resolved_by_its_sidecar(tiny_config, tmp_path):
    weights = tmp_path / "init.safetensors"
    weights.write_bytes(b"")
    sidecar: dict[str, Any] = {"config": to_dict(tiny_config())}
    weights.with_suffix(".json").write_text(json.dumps(sidecar))
    found = resolve_checkpoint(str(weights))
    assert (found.step, found.weights_path, found.config) == (-1, weights, tiny_config())
    for content, message in (
        ("{}", "no `config` in it"),
        ("{", r"init\.json: not valid JSON: "),
        ("[]", r"init\.json: expected a JSON object, found list"),
    ):
        weights.with_suffix(".json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            resolve_checkpoint(str(weights))


def test_a_model_folder_is_one_checkpoint(tiny_config, tmp_path):
    folder = tmp_path / "detector"
    folder.mkdir()
    save_config(tiny_config(), folder / "config.yaml")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "model.json").write_text(json.dumps({"config": to_dict(tiny_config()), "step": 5}))
    found = resolve_checkpoint(str(folder))
    assert (found.step, found.weights_path, found.run_dir) == (5, folder / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match=r"detector: is a model folder.* no checkpoints.*; name it without :last"):
        resolve_checkpoint(f"{folder}:last")
    with pytest.raises(CheckpointError, match=r"is a model folder.*; name the run folder"):
        run_folder.find_checkpoint(str(folder))


def test_a_config_of_another_version_says_so(run_dir, tiny_config, tmp_path):
    """In a run folder and in a sidecar; a config without a record of who wrote it is a mistake like any other."""
    directory = add_checkpoint(run_dir, 2, None)
    state = directory / "state.json"
    about = {"avff_version": "0.0.7", "code_revision": "0123456789abcdef"}
    state.write_text(json.dumps({**json.loads(state.read_text()), **about}))
    recommit(directory)
    path = run_dir / "config.yaml"
    path.write_text(path.read_text().replace("decoder_size:", "layer_norm_eps:"))
    words = rf"unknown key model\.layer_norm_eps.*\nwritten by another version of avff \(0\.0\.7, revision 0123456789ab\); this one is {__version__}"
    with pytest.raises(ConfigError, match=words):
        resolve_checkpoint(str(run_dir))
    config = to_dict(tiny_config())
    config["model"]["layer_norm_eps"] = 1e-6
    weights = tmp_path / "init.safetensors"
    weights.write_bytes(b"")
    for record, ending in (
        (about, words),
        ({"avff_version": __version__}, rf"written by avff \({__version__}\)"),
        ({}, ""),
    ):
        weights.with_suffix(".json").write_text(json.dumps({"config": config, **record}))
        with pytest.raises(ConfigError, match=r"unknown key model\.layer_norm_eps") as raised:
            resolve_checkpoint(str(weights))
        assert ("written by" in str(raised.value)) == bool(record)
        assert not record or re.search(ending, str(raised.value))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "32 bytes, 33 were written"),
        (lambda path: path.write_bytes(b"W" + path.read_bytes()[1:]), "sha256 differs"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_damage_is_found_and_named(run_dir, damage, message):
    directory = add_checkpoint(run_dir, 2, None)
    assert find_problems(directory) == []
    damage(directory / "model" / "rank-00000.safetensors")
    problems = find_problems(directory)
    assert len(problems) == 1
    assert "rank-00000" in problems[0]
    assert message in problems[0]


def test_a_listing_that_was_changed_afterwards_is_found(run_dir):
    directory = add_checkpoint(run_dir, 2, None)
    listing = directory / "files.json"
    listing.write_text(listing.read_text() + " ")
    assert "does not match COMMIT" in find_problems(directory)[0]


def test_ranks_read_every_file_between_them(run_dir):
    directory = add_checkpoint(run_dir, 2, None)
    for path in directory.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes().upper())
    found = [find_problems(directory, rank=rank, world_size=3) for rank in range(3)]
    assert sum(map(len, found)) == 3
    assert sorted(problem for share in found for problem in share) == sorted(find_problems(directory))
