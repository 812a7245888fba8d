"""The strict loader: what it accepts, what it refuses and how it says so."""

import re
from pathlib import Path

import pytest

from avff.build_config import BuildConfig
from avff.config import ClipConfig, Config, load_config, save_config
from avff.errors import ConfigError
from avff.strict_yaml import flatten, from_dict, to_dict

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("**/*.yaml") if path.parent.name != "clusters")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_shipped_config_loads_and_says_how_to_run_it(path):
    load_config(path)
    header = path.read_text().split("\nname:")[0]
    for word in ("Command:", "Hardware:", "Duration:", "Result:"):
        assert word in header, f"{path} does not open with its {word}"


def test_yaml_round_trip_is_the_identity(tmp_path):
    config = load_config(
        write(tmp_path, "name: a\nstage: finetune\ndata: {labels: known, column_weights: {RVRA: 2}}\n")
    )
    save_config(config, tmp_path / "b.yaml")
    assert load_config(tmp_path / "b.yaml") == config


def test_overrides_win_and_numbers_in_scientific_notation_are_numbers(tmp_path):
    path = write(tmp_path, "name: a\nstage: pretrain\noptim: {learning_rate: 1e-3, eps: 1e-7}\n")
    config = load_config(path, ["optim.learning_rate=2e-4", "data.train=[{path: x}]", "engine.init_weights="])
    assert (config.optim.learning_rate, config.optim.eps) == (2e-4, 1e-7)
    assert config.data.train[0].path == "x"
    assert config.engine.init_weights == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nstage: pretrain\noptm: {}\n", "unknown key optm; did you mean optim?"),
        (
            "name: a\nstage: pretrain\noptim: {learning_rte: 1}\n",
            "unknown key optim.learning_rte; did you mean optim.learning_rate?",
        ),
        ("name: a\n", "missing key stage"),
        ("name: a\nstage: pretran\n", "'pretran' is not one of 'pretrain', 'finetune' (did you mean pretrain?)"),
        ("name: a\nstage: pretrain\nengine: {compile: 'off'}\n", "engine.compile: expected true or false, found 'off'"),
        ("name: off\nstage: pretrain\n", "name: expected text, found False; put it in quotes"),
        ("name: a\nstage: pretrain\noptim: {num_steps: 1.5}\n", "optim.num_steps: expected a whole number, found 1.5"),
        ("name: a\nstage: pretrain\nengine: {zero_stage: 4}\n", "engine.zero_stage: 4 is not one of 0, 1, 2, 3"),
        ("name: a\nstage: pretrain\noptim: {betas: [0.9]}\n", "optim.betas: expected 2 values, found 1"),
        ("name: a\nstage: pretrain\noptim: 3\n", "optim: expected a section of `key: value` lines, found 3"),
        ("name: a\nstage: pretrain\noptim: {weight_decay: .nan}\n", "optim.weight_decay: expected a number"),
        ("name: a\nstage: pretrain\ndata: {labels: known}\n", "stage 'pretrain' trains on 'real' or 'real_or_unknown'"),
        ("- a\n", "expected `key: value` lines, found list"),
        ("name: [\n", "not valid YAML"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_all_problems_of_a_file_are_reported_together(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "name: a\nstage: x\noptm: {}\noptim: {num_steps: y}\n"))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("override", ["optim.learning_rate", "=3", "name.x=3", "optim.lr=[1"])
def test_bad_overrides_are_refused(tmp_path, override):
    with pytest.raises(ConfigError, match="override"):
        load_config(write(tmp_path, "name: a\nstage: pretrain\n"), [override])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": {"num_frames": 12}}, "multiple of num_slices x tubelet_frames = 16"),
        ({"clip": {"hop_samples": 51}}, "does not divide the clip's 51200 samples"),
        ({"clip": {"hop_samples": 800, "window_samples": 800}}, "the clip has 64 spectrogram frames"),
        ({"clip": {"num_slices": 7}}, "num_slices"),
        ({"clip": {"hop_samples": 500}}, "sound between two windows would be lost"),
        ({"clip": {"frames_per_second": 7.0}}, "not a whole number"),
        ({"clip": {"image_size": 100}}, "does not divide clip.image_size 100"),
        ({"pretrain": {"contrastive_group_size": 48}}, "does not divide engine.global_batch_size 64"),
        ({"pretrain": {"mask_input": True}}, "contrastive_level=clip"),
        ({"data": {"num_runs": 7}}, "divisors are 1, 2, 4, 8, 16, 32, 64"),
        ({"data": {"prefetch_steps": 0}}, "data.prefetch_steps is 0"),
        ({"data": {"prefetch_steps": 65}}, "data.prefetch_steps is 65; it has to be from 1 to 64"),
        ({"data": {"num_workers": -1}}, "data.num_workers is -1"),
        ({"model": {"drop_path": 1.0}}, "model.drop_path is 1.0"),
        ({"logging": {"log_every_steps": 0}}, "logging.log_every_steps is 0"),
        ({"optim": {"layer_decay": 0.0}}, "optim.layer_decay is 0.0; it has to be in (0, 1]"),
        ({"optim": {"layer_decay": 1.1}}, "optim.layer_decay is 1.1"),
        (
            {"finetune": {"encoders": "freeze"}},
            "finetune.encoders is 'freeze', but stage 'pretrain' trains whole encoders",
        ),
        ({"finetune": {"encoders": "lora"}}, "finetune.encoders is 'lora', but stage 'pretrain'"),
    ],
)
def test_impossible_combinations_name_both_numbers(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_dict(Config, {"name": "a", "stage": "pretrain", **change}, "x")


def config_with(**sections):
    return from_dict(Config, {"name": "a", "stage": "pretrain", **sections}, "x")


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ({"trained_blocks": 1}, "finetune.trained_blocks is 1, but finetune.encoders is 'train'"),
        ({"encoders": "lora", "trained_blocks": 1}, "finetune.trained_blocks is 1, but finetune.encoders is 'lora'"),
        ({"encoders": "freeze", "trained_blocks": -1}, "finetune.trained_blocks is -1"),
        ({"encoders": "freeze", "trained_blocks": 13}, "is 13, but encoders of model.size 'base' have 12 blocks"),
        ({"encoders": "lora", "lora_rank": 0}, "finetune.lora_rank is 0; it has to be positive"),
        ({"encoders": "lora", "lora_alpha": -1}, "finetune.lora_alpha is -1"),
        ({"encoders": "frozen"}, "'frozen' is not one of 'train', 'freeze', 'lora' (did you mean freeze?)"),
    ],
)
def test_a_choice_of_what_learns_that_cannot_be_is_refused(finetune, message):
    values = {"name": "a", "stage": "finetune", "data": {"labels": "known"}, "finetune": finetune}
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_dict(Config, values, "x")


def test_compiled_blocks_that_zero_3_would_take_apart_are_refused():
    values = {"name": "a", "stage": "finetune", "data": {"labels": "known"}, "finetune": {"encoders": "lora"}}
    with pytest.raises(ConfigError, match=re.escape("set engine.zero_stage=1")):
        from_dict(Config, {**values, "engine": {"compile": True, "zero_stage": 3}}, "x")
    from_dict(Config, {**values, "engine": {"compile": True, "zero_stage": 2}}, "x")


@pytest.mark.parametrize(
    ("micro", "group", "ranks", "expected"),
    [
        (8, 32, 4, 2),
        (8, 32, 8, 1),
        (16, 16, 1, 4),
        (8, 32, 3, "does not divide over 3 ranks"),
        (5, 8, 4, "does not divide the 16 clips"),
        (8, 32, 2, 4),
        (8, 64, 4, 2),
        (1, 64, 1, 64),
        (8, 4, 8, "contrastive_group_size 4 does not divide over 8 ranks"),
    ],
)
def test_accumulation_follows_from_batch_and_ranks_or_says_what_works(micro, group, ranks, expected):
    config = config_with(
        engine={"global_batch_size": 64, "micro_batch_size": micro}, pretrain={"contrastive_group_size": group}
    )
    if isinstance(expected, int):
        assert config.accumulation_steps(ranks) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            config.accumulation_steps(ranks)


@pytest.mark.parametrize(
    ("micro", "group", "ranks", "passes"), [(8, 32, 4, 1), (8, 32, 8, 1), (8, 32, 2, 2), (8, 64, 4, 2), (1, 64, 1, 64)]
)
def test_a_group_that_one_forward_pass_cannot_hold_takes_several(micro, group, ranks, passes):
    engine = {"global_batch_size": 64, "micro_batch_size": micro}
    assert config_with(engine=engine, pretrain={"contrastive_group_size": group}).passes_per_group(ranks) == passes
    nothing = config_with(engine=engine, pretrain={"contrastive_group_size": group, "contrastive_weight": 0})
    assert nothing.passes_per_group(ranks) == 1


def test_a_group_that_forward_passes_cannot_tile_is_refused_with_what_works():
    config = config_with(
        engine={"global_batch_size": 96, "micro_batch_size": 24}, pretrain={"contrastive_group_size": 32}
    )
    message = "neither a divisor nor a multiple of the 48 clips of one forward pass over all ranks (micro batch 24 x 2"
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        config.accumulation_steps(2)
    assert "engine.micro_batch_size among 1, 2, 4, 8, 16, 48" in str(caught.value)


@pytest.mark.parametrize(
    ("fps", "frames", "hop", "mel_frames"), [(5, 16, 50, 1024), (5, 16, 100, 512), (3.125, 16, 160, 512)]
)
def test_time_grids_of_the_specification_are_exact(fps, frames, hop, mel_frames):
    clip = ClipConfig(frames_per_second=fps, num_frames=frames, hop_samples=hop)
    assert clip.num_mel_frames == mel_frames
    assert clip.num_samples == clip.num_mel_frames * hop
    assert clip.duration_seconds * 16000 == clip.num_samples


def test_profile_overrides_apply_one_by_one():
    assert BuildConfig(profile="evidence", crf=20).video.crf == 20
    assert BuildConfig(profile="evidence", crf=20).video.side_pixels == 384
    with pytest.raises(ConfigError, match="profile 'evidnce' is unknown; choose one of pretrain, evidence"):
        BuildConfig(profile="evidnce")
    with pytest.raises(ConfigError, match="side_pixels is 48; it has to be even and at least 64"):
        BuildConfig(side_pixels=48)


def test_every_field_is_read_somewhere():
    """A knob that nothing reads is a lie to its user."""
    definitions = [ROOT / "avff/config.py", ROOT / "avff/build_config.py"]
    sources = "\n".join(p.read_text() for p in (ROOT / "avff").glob("**/*.py") if p not in definitions)
    own = "\n".join(p.read_text() for p in definitions)

    def is_read(name: str) -> bool:
        return bool(re.search(rf"[.\"']{name}\b", sources)) or len(re.findall(rf"self\.\w*\.?{name}\b", own)) > 1

    names = {key.split(".")[-1] for key in flatten(config_with())}
    names |= {key.split(".")[-1] for key in flatten(BuildConfig())}
    assert sorted(name for name in names if not is_read(name)) == []


def test_plain_values_hold_no_tuples_and_return_the_same_config():
    config = config_with(data={"train": [{"path": "x", "weight": 2}]})
    assert to_dict(config)["data"]["train"] == [{"path": "x", "weight": 2.0}]
    assert from_dict(Config, to_dict(config), "x") == config
