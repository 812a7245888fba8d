"""Graphs for other runtimes: any batch size, equal to torch, or no file at all."""

import json
import sys

import numpy as np
import pytest
import torch
from test_exports import MARLIN

from avff.checkpoints import read_checkpoint
from avff.errors import CheckpointError
from avff.exporting import graph
from avff.files import sha256_of
from avff.run_folder import resolve_checkpoint


@pytest.fixture
def forward(make_run):
    checkpoint = read_checkpoint(resolve_checkpoint(str(make_run())))
    return graph.load_forward(checkpoint), checkpoint.config


def check_sidecar(path, run_dir):
    """The sidecar brings all that a caller without avff needs, and where the graph comes from."""
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    (parent,) = about["parents"]
    assert parent["sha256"] == sha256_of(run_dir / "checkpoints/step-8/ema.safetensors")
    assert parent["parents"] == [MARLIN] and "graph of finetune run 'tiny' at step 8" in about["what"]
    assert (about["licences"], about["non_commercial"]) == (["Apache-2.0", "CC-BY-NC-4.0"], True)
    assert about["config"]["stage"] == "finetune" and about["threshold"] == 0.4
    assert [(i["name"], i["shape"]) for i in about["inputs"]] == [
        ("video_BTCHW", ["batch", 8, 3, 32, 32]),
        ("mel_BMF", ["batch", 256, 32]),
    ]
    assert tuple(output["name"] for output in about["outputs"]) == graph.OUTPUTS
    assert about["preprocessing"]["build"]["crop_factor"] == 1.3 and len(about["preprocessing"]["video"]["mean"]) == 3
    assert 0 <= about["compared"]["max_logit_difference"] <= graph.MAX_DIFFERENCE
    assert about["sha256"] == {path.name: sha256_of(path)}


@pytest.mark.slow
def test_graphs_equal_the_network_or_are_not_there(run, make_run, tmp_path):
    """One test, for tracing the network takes most of its time."""
    run_dir, out = make_run(sidecar={"parents": [MARLIN]}), tmp_path / "out"
    code, text, _ = run("onnx", run_dir, "--output", out / "m.onnx", "--torch-export", out / "m.pt2")
    assert code == 0 and text.count("differ from torch's by at most") == 2
    assert text.count("licences: Apache-2.0, CC-BY-NC-4.0, not for commercial use") == 2
    everything = {"m.onnx", "m.onnx.json", "m.pt2", "m.pt2.json"}
    assert {path.name for path in out.iterdir()} == everything
    check_sidecar(out / "m.onnx", run_dir)
    check_sidecar(out / "m.pt2", run_dir)

    import onnxruntime

    checkpoint = read_checkpoint(resolve_checkpoint(str(run_dir)))
    network = graph.load_forward(checkpoint)
    session = onnxruntime.InferenceSession(str(out / "m.onnx"), providers=["CPUExecutionProvider"])
    terms = session.get_modelmeta().custom_metadata_map
    assert terms["licences"] == "Apache-2.0, CC-BY-NC-4.0" and terms["non_commercial"] == "true"
    assert terms["what"].startswith("ONNX graph of finetune run 'tiny'") and "MARLIN" in terms["parents"]
    names = [tensor.name for tensor in (*session.get_inputs(), *session.get_outputs())]
    assert names == [*graph.INPUTS, *graph.OUTPUTS]
    inside = {"avff.json": ""}
    program = torch.export.load(out / "m.pt2", extra_files=inside)
    assert json.loads(inside["avff.json"])["non_commercial"] == "true"
    module = program.module()
    for batch in (1, 2, 5):
        video_BTCHW, mel_BMF = graph.example_inputs(checkpoint.config, batch)
        with torch.no_grad():
            expected = torch.stack(network(video_BTCHW, mel_BMF)).numpy()
            exported = torch.stack(module(video_BTCHW, mel_BMF)).numpy()
        found = session.run(None, {"video_BTCHW": video_BTCHW.numpy(), "mel_BMF": mel_BMF.numpy()})
        assert expected.shape == (3, batch) and np.ptp(expected) > 0.01
        np.testing.assert_allclose(np.stack(found), expected, atol=1e-4)
        np.testing.assert_allclose(exported, expected, atol=1e-5)

    with torch.no_grad():
        network.model.audio_head.fc2.bias += 3e-4
    with pytest.raises(CheckpointError, match=r"other\.pt2: logits differ from the network's by 0\.0003"):
        graph.write_torch_export(out / "other.pt2", program, network, checkpoint)
    assert {path.name for path in out.iterdir()} == everything


def test_a_logit_that_is_no_number_is_no_agreement(forward, tmp_path):
    network, config = forward
    with pytest.raises(CheckpointError, match="differ from the network's by nan"):
        graph.check_equal(tmp_path / "m", network, config, lambda *inputs: [x * torch.nan for x in network(*inputs)])


def test_missing_packages_are_named_with_the_line_that_brings_them(run, make_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, problem = run("onnx", make_run(), "--output", tmp_path / "m.onnx")
    assert code == 2 and "ONNX needs onnxscript, which is not installed; pip install 'avff[export]'" in problem


def test_nothing_to_write_and_no_classifier_are_refused(run, make_run, tmp_path):
    code, _, problem = run("onnx", make_run())
    assert code == 2 and "give --output FILE.onnx, --torch-export FILE.pt2 or both" in problem
    code, _, problem = run("onnx", make_run("pretrain", name="other"), "--torch-export", tmp_path / "m.pt2")
    assert code == 2 and "has no real/fake heads" in problem
