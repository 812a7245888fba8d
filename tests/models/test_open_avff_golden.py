"""Open-AVFF to the letter: outputs of its public code, computed once with formula-made weights (tests/models/data)."""

import pytest
import torch
from open_avff_formula import fill, formula_inputs, read_json, summary_of

from avff.models.detectors.open_avff import OpenAvffClassifier, OpenAvffPretrain, open_avff_losses
from avff.models.detectors.open_avff_files import expected_shapes
from avff.models.detectors.open_avff_parts import OpenAvffSize

CASES = read_json("open_avff_golden.json")["cases"]
SIZES = {"tiny": OpenAvffSize(encoder_depth=1, decoder_width=96, decoder_depth=1), "base": OpenAvffSize()}
STAGES = {"pretrain": OpenAvffPretrain, "finetune": OpenAvffClassifier}
CONTRASTIVE_WEIGHT = 0.05
BASE_PARAMETERS = {
    "pretrain": {
        "audio_encoder": 85_619_712,
        "visual_encoder": 87_412_992,
        "audio_decoder": 7_684_864,
        "visual_decoder": 8_583_168,
        "a2v": 3_748_112,
        "v2a": 3_747_584,
    },
    "finetune": {
        "audio_encoder": 85_619_712,
        "visual_encoder": 87_412_992,
        "a2v": 4_351_008,
        "v2a": 4_349_952,
        "mlp_vision": 1_606_656,
        "mlp_audio": 525_312,
        "mlp_head": 3_149_826,
    },
}


def cases(model):
    return [
        pytest.param(case, id=f"{case['size']}-{case['batch']}", marks=pytest.mark.slow)
        for case in CASES
        if case["model"] == model
    ]


def network(model, size, **options):
    with torch.device("meta"):
        made = STAGES[model](SIZES[size], **options)
    return fill(made)


@pytest.mark.parametrize("case", cases("pretrain"))
@torch.inference_mode()
def test_pretraining_gives_the_published_outputs(case):
    model = network("pretrain", case["size"], attend_over_batch=True)
    mel_BMF, video_BCTHW = formula_inputs(case["batch"])
    output = model(mel_BMF, video_BCTHW, case["video_visible_audio_hidden_slices"])
    losses = open_avff_losses(output, mel_BMF, video_BCTHW, contrastive_weight=CONTRASTIVE_WEIGHT)
    expected = {name: case[name] for name in ("total", "nce", "c_acc", "rec_audio", "rec_video")}
    found = dict(zip(expected, (value.item() for value in losses), strict=True))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    for name, tensor in zip(("audio_tokens", "video_tokens", "audio_recon", "video_recon"), output, strict=True):
        summary = summary_of(tensor)
        assert summary.pop("shape") == case[name]["shape"]
        for kind, value in summary.items():
            scale = 1e-5 * case[name]["std"]  # what is zero by luck has no relative accuracy
            assert value == pytest.approx(case[name][kind], rel=1e-5, abs=scale), f"{name} {kind}"


@pytest.mark.parametrize("case", cases("finetune"))
@torch.inference_mode()
def test_the_classifier_gives_the_published_logits(case):
    logits_B2 = network("finetune", case["size"], attend_over_batch=True)(*formula_inputs(case["batch"]))
    assert (logits_B2 - torch.tensor(case["logits"])).abs().max() < 1e-6


@pytest.mark.slow
@torch.inference_mode()
def test_by_default_a_clip_is_judged_as_if_it_were_alone():
    mel_BMF, video_BCTHW = formula_inputs(2)
    published, ours = network("finetune", "tiny", attend_over_batch=True), OpenAvffClassifier(SIZES["tiny"]).eval()
    ours.load_state_dict(published.state_dict(), assign=True)
    together = ours(mel_BMF, video_BCTHW)
    for clip in range(2):
        alone = published(mel_BMF[clip : clip + 1], video_BCTHW[clip : clip + 1])
        assert (together[clip] - alone[0]).abs().max() < 1e-6
    assert (together - published(mel_BMF, video_BCTHW)).abs().max() > 1e-5  # as published, each sees the other


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_keys_and_shapes_are_those_of_the_published_files(size):
    published = read_json(f"open_avff_keys_{size}.json")
    for model in STAGES:
        ours = {name: list(shape) for name, shape in expected_shapes(model, SIZES[size]).items()}
        assert ours == published[model]


def test_counts_of_keys_and_parameters():
    with torch.device("meta"):
        networks = {model: STAGES[model]() for model in STAGES}
    for model, parts in BASE_PARAMETERS.items():
        children = networks[model].named_children()
        assert {name: sum(p.numel() for p in part.parameters()) for name, part in children} == parts
    assert [len(networks[model].state_dict()) for model in STAGES] == [407, 313]
    assert [sum(parts.values()) for parts in BASE_PARAMETERS.values()] == [196_796_432, 187_015_458]
    learning = sum(p.numel() for p in networks["pretrain"].parameters() if p.requires_grad)
    assert learning == 194_990_096


def test_its_own_adaptation_from_stage_2_to_3_finds_14_new_keys():
    """Drop `decoder`, and `mlp` of A2V and V2A; the rest has to fit stage 3 as it is."""
    stage_2, stage_3 = (expected_shapes(model, OpenAvffSize()) for model in STAGES)
    maps = ("a2v.mlp.", "v2a.mlp.")
    kept = {name: shape for name, shape in stage_2.items() if "decoder" not in name and not name.startswith(maps)}
    assert len(kept) == 299 and kept.items() <= stage_3.items()
    assert len(stage_3.keys() - kept.keys()) == 14
    assert {name.rsplit(".", 1)[0] for name in stage_3.keys() - kept.keys()} == {
        "a2v.mlp.linear",
        "v2a.mlp.linear",
        "mlp_vision",
        "mlp_audio",
        "mlp_head.fc1",
        "mlp_head.fc2",
        "mlp_head.fc3",
    }


def test_slices_that_are_no_half_are_refused():
    model = network("pretrain", "tiny")
    with pytest.raises(AssertionError, match="four different slices of 8"):
        model(*formula_inputs(1), [0, 1, 1, 2])
