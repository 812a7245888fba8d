"""Graphs for other runtimes: any batch size, equal to torch, or no file at all."""

import sys

import numpy as np
import pytest
import torch

from avff.errors import CheckpointError
from avff.exporting import graph
from avff.exporting.weights import find_model, read_checkpoint


@pytest.fixture
def forward(make_run):
    checkpoint = read_checkpoint(find_model(str(make_run())))
    return graph.load_forward(checkpoint), checkpoint.config


@pytest.mark.slow
def test_graphs_equal_the_network_or_are_not_there(run, make_run, tmp_path):
    """One test, for tracing the network takes most of its time."""
    run_dir, out = make_run(), tmp_path / "out"
    code, text, _ = run("onnx", run_dir, "--output", out / "m.onnx", "--torch-export", out / "m.pt2")
    assert code == 0 and text.count("differ from torch's by at most") == 2
    assert {path.name for path in out.iterdir()} == {"m.onnx", "m.pt2"}

    import onnxruntime

    checkpoint = read_checkpoint(find_model(str(run_dir)))
    network = graph.load_forward(checkpoint)
    session = onnxruntime.InferenceSession(str(out / "m.onnx"), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in (*session.get_inputs(), *session.get_outputs())]
    assert names == [*graph.INPUTS, *graph.OUTPUTS]
    program = torch.export.load(out / "m.pt2")
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
        graph.write_torch_export(out / "other.pt2", program, network, checkpoint.config)
    assert {path.name for path in out.iterdir()} == {"m.onnx", "m.pt2"}


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
