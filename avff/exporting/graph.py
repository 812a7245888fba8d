"""The classifier as a graph for other runtimes: `torch.export` and ONNX, compared with torch before it is kept.

Beside `detector.onnx` lies `detector.onnx.json`: what it is, its licences and parents, its inputs and outputs, and how
much it differed. The graph itself carries its terms as well, for the two may be parted.
"""

import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avff.checkpoints import Checkpoint, load_classifier
from avff.config import Config
from avff.errors import CheckpointError, ConfigError
from avff.exporting.inputs import preprocessing
from avff.exporting.weights import describe_export
from avff.files import sha256_of, sync
from avff.models.classifier import Classifier

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
    return Forward(load_classifier(checkpoint))


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


class Written(NamedTuple):
    """A graph on the disk.

    Attributes:
        sidecar: what was written beside it.
        difference: the largest of a logit from torch's.
    """

    sidecar: dict[str, Any]
    difference: float


def sidecar_path(path: Path) -> Path:
    """Returns where a graph's sidecar lies; the whole name stays, since `detector.json` is `detector.safetensors`'s."""
    return path.with_name(f"{path.name}.json")


def write_torch_export(
    path: Path, program: torch.export.ExportedProgram, forward: Forward, checkpoint: Checkpoint
) -> Written:
    """Writes a `.pt2` file for torch.export.load, checks it, and describes it in a sidecar.

    Raises:
        CheckpointError: it differs from the network by more than MAX_DIFFERENCE; no file is left.
    """
    about = describe_graph("torch.export", checkpoint)
    with _unfinished(path) as folder:
        torch.export.save(program, folder / path.name, extra_files={"avff.json": json.dumps(_terms(about))})
        graph = torch.export.load(folder / path.name).module()
        difference = check_equal(path, forward, checkpoint.config, graph)
        return _finish(folder / path.name, about, difference, f"torch {torch.__version__}")


def write_onnx(path: Path, program: torch.export.ExportedProgram, forward: Forward, checkpoint: Checkpoint) -> Written:
    """Writes an ONNX file, checks it in onnxruntime, and describes it in a sidecar and in its `metadata_props`.

    Raises:
        CheckpointError: it differs from the network by more than MAX_DIFFERENCE; no file is left.
    """
    import onnxruntime

    about = describe_graph("ONNX", checkpoint)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in forward.state_dict().values())
    with _unfinished(path) as folder:
        graph = torch.onnx.export(program, (), input_names=INPUTS, output_names=OUTPUTS, dynamo=True, verbose=False)
        assert graph is not None, "dynamo=True gives a program"
        graph.model.metadata_props.update(_terms(about))
        graph.save(str(folder / path.name), external_data=num_bytes > _MAX_BYTES_INSIDE)
        session = onnxruntime.InferenceSession(str(folder / path.name), providers=["CPUExecutionProvider"])

        def run(*inputs: Tensor) -> Sequence[Any]:
            return session.run(list(OUTPUTS), {n: x.numpy() for n, x in zip(INPUTS, inputs, strict=True)})

        difference = check_equal(path, forward, checkpoint.config, run)
        return _finish(folder / path.name, about, difference, f"onnxruntime {onnxruntime.__version__}")


def describe_graph(form: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what a graph's sidecar says before the graph is there: that of weights, and how to call it."""
    clip = checkpoint.config.clip
    shapes = ((clip.num_frames, 3, clip.image_size, clip.image_size), (clip.num_mel_frames, clip.num_mel_bins))
    return {
        **describe_export(f"{form} graph of {checkpoint.what}", [checkpoint], checkpoint.tensors),
        "inputs": [
            {"name": name, "dtype": "float32", "shape": ["batch", *shape]}
            for name, shape in zip(INPUTS, shapes, strict=True)
        ],
        "outputs": [
            {"name": name, "dtype": "float32", "shape": ["batch"], "is": "log-odds of fake"} for name in OUTPUTS
        ],
        "preprocessing": preprocessing(checkpoint.config, checkpoint.build),
        "threshold": checkpoint.reference.threshold,
    }


def _terms(about: dict[str, Any]) -> dict[str, str]:
    """Returns what a graph says by itself, as text."""
    return {
        "what": about["what"],
        "licences": ", ".join(about["licences"]),
        "non_commercial": json.dumps(about["non_commercial"]),
        "parents": json.dumps(about["parents"]),
    }


def _finish(graph: Path, about: dict[str, Any], difference: float, runtime: str) -> Written:
    """Adds to the sidecar what is known of the finished graph, and writes it."""
    compared = {
        "runtime": runtime,
        "with": f"the network in torch {torch.__version__} on a CPU, in float32",
        "inputs": f"random ones, {' and '.join(map(str, BATCHES))} at a time",
        "max_logit_difference": difference,
    }
    sha256 = {part.name: sha256_of(part) for part in sorted(graph.parent.iterdir())}
    sidecar = {**about, "compared": compared, "sha256": sha256}
    sidecar_path(graph).write_text(json.dumps(sidecar, indent=2) + "\n")
    return Written(sidecar, difference)


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
        # What lies beside the graph comes first: without its weights it is of no use, without its terms nobody's.
        for part in sorted(folder.iterdir(), key=lambda part: part.name == path.name):
            sync(part)
            part.replace(path.parent / part.name)
        sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
