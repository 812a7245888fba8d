"""The classifier as a graph for other runtimes: `torch.export` and ONNX, compared with torch before it is kept."""

import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avff.config import Config
from avff.errors import CheckpointError, ConfigError
from avff.exporting.weights import Checkpoint, require_classifier
from avff.files import sync
from avff.models.build import build_classifier
from avff.models.classifier import Classifier
from avff.models.weights import load_into

INPUTS = ("video_BTCHW", "mel_BMF")
OUTPUTS = ("overall_logit", "video_logit", "audio_logit")
BATCHES = (1, 3)
"""Batch sizes that a graph is compared at."""
MAX_DIFFERENCE = 1e-4
"""Of a logit, between a graph and torch."""
_MAX_BYTES_INSIDE = 1_800_000_000
"""Weights beyond this go into a file of their own beside the ONNX file, which protobuf limits to 2 GB."""

Run = Callable[[Tensor, Tensor], Sequence[Any]]


class Forward(nn.Module):
    """The classifier in evaluation mode as a function of two tensors; the seed, of no effect then, is hidden.

    Args:
        video_BTCHW: float32, ImageNet-normalised frames.
        mel_BMF: float32, normalised log-mel, time first.

    Returns:
        overall, video and audio logit of each clip, (B,) float32.
    """

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model.eval()

    def forward(self, video_BTCHW: Tensor, mel_BMF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        no_seed_B = torch.zeros(video_BTCHW.shape[0], dtype=torch.int64, device=video_BTCHW.device)
        overall_B, video_B, audio_B = self.model(video_BTCHW, mel_BMF, no_seed_B)
        return overall_B, video_B, audio_B


def load_forward(checkpoint: Checkpoint) -> Forward:
    """Returns the checkpoint's classifier; raises CheckpointError for weights that score no clips."""
    require_classifier(checkpoint)
    model = build_classifier(checkpoint.config)
    load_into(model, checkpoint.tensors, str(checkpoint.reference.weights_path))
    return Forward(model)


def require_onnx() -> None:
    """Raises ConfigError, with the line that installs them, unless all packages for ONNX are there."""
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"ONNX needs {error.name}, which is not installed; pip install 'avff[export]'") from error


def export_program(forward: Forward, config: Config) -> torch.export.ExportedProgram:
    """Traces the network for any number of clips."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        return torch.export.export(
            forward, example_inputs(config, 2), dynamic_shapes={name: {0: batch} for name in INPUTS}
        )


def write_torch_export(path: Path, program: torch.export.ExportedProgram, forward: Forward, config: Config) -> float:
    """Writes a `.pt2` file for torch.export.load and checks it; returns the largest difference of a logit.

    Raises:
        CheckpointError: it differs from the network by more than MAX_DIFFERENCE; no file is left.
    """
    with _unfinished(path) as folder:
        torch.export.save(program, folder / path.name)
        graph = torch.export.load(folder / path.name).module()
        return check_equal(path, forward, config, graph)


def write_onnx(path: Path, program: torch.export.ExportedProgram, forward: Forward, config: Config) -> float:
    """Writes an ONNX file and checks it in onnxruntime; returns the largest difference of a logit.

    Raises:
        CheckpointError: it differs from the network by more than MAX_DIFFERENCE; no file is left.
    """
    import onnxruntime

    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in forward.state_dict().values())
    with _unfinished(path) as folder:
        torch.onnx.export(
            program,
            (),
            str(folder / path.name),
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamo=True,
            external_data=num_bytes > _MAX_BYTES_INSIDE,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(str(folder / path.name), providers=["CPUExecutionProvider"])

        def run(*inputs: Tensor) -> Sequence[Any]:
            return session.run(list(OUTPUTS), {n: x.numpy() for n, x in zip(INPUTS, inputs, strict=True)})

        return check_equal(path, forward, config, run)


def check_equal(path: Path, forward: Forward, config: Config, run: Run) -> float:
    """Returns the largest difference of a logit on random inputs of every batch size in BATCHES.

    Raises:
        CheckpointError: it is above MAX_DIFFERENCE.
    """
    differences: list[Tensor] = []
    for batch in BATCHES:
        inputs = example_inputs(config, batch)
        with torch.inference_mode():
            expected, found = forward(*inputs), run(*inputs)
        differences += [(one - torch.as_tensor(other)).abs().max() for one, other in zip(expected, found, strict=True)]
    worst = float(torch.stack(differences).max())  # NaN if one of them is
    if not worst <= MAX_DIFFERENCE:
        raise CheckpointError(
            f"{path}: logits differ from the network's by {worst:.3g}, more than {MAX_DIFFERENCE:g}; no file was written"
        )
    return worst


def example_inputs(config: Config, batch: int) -> tuple[Tensor, Tensor]:
    """Returns normally distributed inputs, the same for the same batch size."""
    clip, generator = config.clip, torch.Generator().manual_seed(batch)
    video_BTCHW = torch.randn(batch, clip.num_frames, 3, clip.image_size, clip.image_size, generator=generator)
    return video_BTCHW, torch.randn(batch, clip.num_mel_frames, clip.num_mel_bins, generator=generator)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Gives a folder to write `path` in; what lies there takes its place unless the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.{os.getpid()}.partial")
    folder.mkdir()
    try:
        yield folder
        # A weight file beside the graph comes first: without it the graph is of no use.
        for part in sorted(folder.iterdir(), key=lambda part: part.name == path.name):
            sync(part)
            part.replace(path.parent / part.name)
        sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
