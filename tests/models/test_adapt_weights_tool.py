"""tools/adapt_weights.py from the command line."""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import published_video as picture
import pytest
import torch
from published_files import marlin_weights, save_audiomae, save_marlin

from avff.config import save_config
from avff.engine.origin import start_from
from avff.files import sha256_of
from avff.models import build_model
from avff.models.weights import load_initial_weights, make_sidecar, save_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import adapt_weights

TINY = picture.TINY


@pytest.fixture
def run(capsys):
    """Calls the tool: `code, stdout, stderr = run(arguments)`."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = adapt_weights.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    video, audio = folder / "marlin_vit_base_ytf.encoder.pt", folder / "audiomae_pretrained.pth"
    return {"video": save_marlin(video, TINY), "audio": save_audiomae(audio, TINY)}


@pytest.fixture
def configs(tmp_path: Path, odd_config):
    """Paths of two configs that MARLIN's and AudioMAE's encoders fit, of stages 2 and 3."""
    paths = {}
    for name, stage in (("stage2", "pretrain"), ("stage3", "finetune")):
        config = odd_config(stage, name=name, clip={"num_mel_bins": 128}, model={"video_layer_norm_eps": 1e-5})
        paths[name] = tmp_path / f"{name}.yaml"
        save_config(config, paths[name])
    return paths


def sidecar_of(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())


def test_stage_2_to_3_on_the_command_line(tmp_path: Path, odd_config, run) -> None:
    source, target = odd_config(name="stage2"), odd_config("finetune", name="stage3")
    weights, config, output = tmp_path / "in.safetensors", tmp_path / "stage3.yaml", tmp_path / "out.safetensors"
    trained_on = [{"path": "shards/faces", "fingerprint": "0" * 64}]
    about = make_sidecar("stage 2", source, build={"mode": "frame"}, trained_on=trained_on)
    save_weights(weights, build_model(source).state_dict(), about)
    save_config(target, config)

    code, ledger, _ = run("--from", weights, "--to", config, "--output", output, "--dry-run")
    assert code == 0 and "dropped        62" in ledger and not output.exists()
    code, _, problem = run("--from", weights, "--to", config, "--output", output)
    assert code == 0, problem
    sidecar = sidecar_of(output)
    assert sidecar["parents"][0]["sha256"] == sha256_of(weights) and sidecar["build"] == {"mode": "frame"}
    assert sidecar["trained_on"] == trained_on
    assert len(sidecar["ledger"]["mapped"]) == 143 and list(sidecar["ledger"]["new"]) == sidecar["new"]
    assert load_initial_weights(build_model(target), output, target) == sorted(sidecar["new"])

    code, _, problem = run(
        "--from", tmp_path / "none.safetensors", "--to", config, "--output", tmp_path / "b.safetensors"
    )
    assert code == 2 and "no such file" in problem
    assert not (tmp_path / "b.safetensors").exists()


def test_a_non_commercial_parent_is_named_in_every_descendant(tmp_path: Path, odd_config, published, configs, run):
    """Import, training, adaptation to the next stage."""
    start, trained, last = (tmp_path / f"{name}.safetensors" for name in ("start", "trained", "last"))
    pair = ["--from", f"video={published['video']}", "--from", f"audio={published['audio']}"]
    code, said, problem = run(*pair, "--to", configs["stage2"], "--output", start)
    assert code == 0, problem
    assert f"licence: {published['video'].name} (MARLIN" in said and "is CC-BY-NC-4.0, not for commercial use" in said
    about = sidecar_of(start)
    assert [parent["file"] for parent in about["parents"]] == [path.name for path in published.values()]
    assert [parent["sha256"] for parent in about["parents"]] == [sha256_of(path) for path in published.values()]
    assert about["non_commercial"] and about["licences"] == ["Apache-2.0", "CC-BY-NC-4.0"]
    assert all(parent["url"].startswith("https://") for parent in about["parents"])
    assert [record["fingerprint"] for record in about["trained_on"]] == [None, None], "not known, which is said"

    config = odd_config(
        name="stage2",
        clip={"num_mel_bins": 128},
        model={"video_layer_norm_eps": 1e-5},
        engine={"init_weights": str(start)},
    )
    model = build_model(config)
    origin = start_from(config, model, own_records=[])
    assert sorted(origin.new_names) == sorted(about["new"])
    training = make_sidecar("stage2 at step 1", config, parents=origin.parents, trained_on=origin.trained_on)
    save_weights(trained, model.state_dict(), training)

    code, said, problem = run("--from", trained, "--to", configs["stage3"], "--output", last, "--quiet")
    assert code == 0, problem
    assert said.startswith("licence: trained.safetensors (stage2 at step 1) is CC-BY-NC-4.0, not for commercial use")
    about = sidecar_of(last)
    assert about["non_commercial"] and about["licences"] == ["Apache-2.0", "CC-BY-NC-4.0"]
    grandparents = about["parents"][0]["parents"][0]["parents"]
    assert [parent["licences"] for parent in grandparents] == [["CC-BY-NC-4.0"], ["CC-BY-NC-4.0"]]
    _, shown, _ = run("--show", last)
    assert "Apache-2.0, CC-BY-NC-4.0, not for commercial use" in shown and published["audio"].name in shown


def test_problems_of_all_files_are_told_at_once(tmp_path: Path, published, configs, run) -> None:
    """And the overrides that they name make it work."""
    output = tmp_path / "out.safetensors"
    wrong = ["model.size=small", "model.video_layer_norm_eps=1e-6", "model.audio_layer_norm_eps=1e-5"]
    pair = ["--from", f"video={published['video']}", "--from", f"audio={published['audio']}"]
    code, _, problem = run(*pair, "--to", configs["stage2"], *wrong, "--output", output)
    assert code == 2 and not output.exists()
    for told in (
        f"{published['video']}: its video encoder is 96 wide and 4 blocks deep, model.size=small is 384 x 12; add "
        "model.size=tiny",
        "add model.video_layer_norm_eps=1e-5",
        f"{published['audio']}: its audio encoder is 96 wide",
        "add model.audio_layer_norm_eps=1e-6",
    ):
        assert told in problem
    mended = ["model.size=tiny", "model.video_layer_norm_eps=1e-5", "model.audio_layer_norm_eps=1e-6"]
    code, _, problem = run(*pair, "--to", configs["stage2"], *wrong, *mended, "--output", output)
    assert code == 0, problem

    code, _, problem = run(
        "--from",
        published["video"],
        "--from",
        "nowhere.pt",
        "--from",
        "runs/none:last",
        "--to",
        configs["stage2"],
        "--dry-run",
    )
    assert code == 2 and "nowhere.pt: no such file" in problem and "runs/none: not a run folder" in problem


def test_what_a_pickle_must_not_do_is_named_and_not_done(tmp_path: Path, configs, run) -> None:
    weights = tmp_path / "trap.pth"
    torch.save({"model": marlin_weights(TINY), "hook": print}, weights)
    code, said, problem = run("--from", weights, "--to", configs["stage2"], "--output", tmp_path / "out.safetensors")
    assert code == 2 and not said
    assert "trap.pth: is a pickle that asks for more than tensors" in problem and "print" in problem
    assert "weights_only=False" in problem, "how to convert it elsewhere"


def test_a_file_of_no_known_source_is_refused_and_shown(tmp_path: Path, configs, published, run) -> None:
    weights = tmp_path / "odd.pt"
    torch.save(OrderedDict({"layers.0.weight": torch.ones(3, 4), "layers.1.weight": torch.ones(3, 4).half()}), weights)
    code, _, problem = run("--from", weights, "--to", configs["stage2"], "--dry-run")
    assert code == 2 and "its keys are of no known source" in problem and "marlin" in problem
    code, shown, _ = run("--show", weights, "--all")
    assert code == 0 and "not recognised" in shown
    assert "layers.0-1     2       24  float16, float32  weight [3, 4]" in shown
    assert "layers.1.weight [3, 4] float16" in shown
    code, _, problem = run("--from", weights, "--format", "marlinn", "--to", configs["stage2"], "--dry-run")
    assert code == 2 and "format 'marlinn' is unknown; choose one of" in problem
    code, _, problem = run(*("--from", weights, "--format", "auto", "marlin", "--to", configs["stage2"], "--dry-run"))
    assert code == 2 and "--format names 2 files, --from fewer published ones: marlin left over" in problem


def test_a_published_file_is_shown_part_by_part(published, run) -> None:
    code, shown, _ = run("--show", published["audio"])
    assert code == 0
    assert "source      audiomae: AudioMAE" in shown and "licence     CC-BY-NC-4.0, not for commercial use" in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert rows["blocks.0-3"][1] == str(4 * 12) and rows["decoder_blocks.0-15"][1] == str(16 * 17)
    assert "attn.qkv.weight [288, 96]" in shown and "pos_embed [1, 513, 96]" in shown


def test_weights_of_ours_without_their_sidecar_are_told_from_published_ones(tmp_path: Path, odd_config, configs, run):
    weights = tmp_path / "lost.safetensors"
    save_weights(weights, build_model(odd_config()).state_dict(), {})
    weights.with_suffix(".json").unlink()
    code, _, problem = run("--from", weights, "--to", configs["stage2"], "--dry-run")
    assert code == 2 and "lost.safetensors: holds keys of avff, but lost.json, which says for which config" in problem


def test_nonsense_on_the_command_line_is_refused(configs, published, capsys) -> None:
    for arguments in (
        [],
        ["--from", published["video"]],
        ["--from", published["video"], "--to", configs["stage2"]],
        ["--show", published["video"], "--from", published["video"]],
    ):
        with pytest.raises(SystemExit) as caught:
            adapt_weights.main([str(argument) for argument in arguments])
        assert caught.value.code == 2 and "--to" in capsys.readouterr().err


def test_an_output_of_another_kind_is_refused_before_any_work(configs, capsys) -> None:
    with pytest.raises(SystemExit):
        adapt_weights.main(["--from", "nowhere.pt", "--to", str(configs["stage2"]), "--output", "x.pt"])
    problem = capsys.readouterr().err
    assert "--output x.pt: a weight file's name ends in .safetensors" in problem and "nowhere" not in problem


def test_an_exported_encoder_comes_back(tmp_path: Path, odd_config, run) -> None:
    """As tools/checkpoint.py export --what encoders --modality audio writes it: its sidecar lists what is not there."""
    source, weights, config = odd_config(), tmp_path / "audio.safetensors", tmp_path / "stage3.yaml"
    state = build_model(source).state_dict()
    kept = {name: tensor for name, tensor in state.items() if name.startswith("audio_encoder.")}
    save_weights(weights, kept, make_sidecar("audio encoder", source, new=[name for name in state if name not in kept]))
    save_config(odd_config("finetune"), config)
    for prefix in ("", "audio="):
        code, said, problem = run("--from", f"{prefix}{weights}", "--to", config, "--dry-run")
        assert code == 0, problem
        assert f"mapped        {len(kept):3d}  audio_encoder {len(kept)}\nnew" in said
    assert "the source file does not hold it" in said
    code, _, problem = run("--from", f"video={weights}", "--to", config, "--dry-run")
    assert code == 2 and "audio.safetensors: holds no video encoder" in problem
