"""From what a user names with `--checkpoint` to a detector: a run of ours, or a published file."""

from pathlib import Path

from avff.config import Config
from avff.errors import CheckpointError
from avff.inference.avff_detector import load_avff_detector
from avff.inference.detector import Detector, choose_device
from avff.inference.open_avff_detector import make_open_avff_detector
from avff.inference.open_avff_view import FITS, FrameFit
from avff.models.detectors.open_avff_files import open_avff_stage
from avff.models.importers.reading import read_published
from avff.models.importers.registry import recognise

PUBLISHED_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")


def load_detector(checkpoint: str, *, config: Config | None = None, device: str = "auto") -> Detector:
    """Loads what scores clips.

    Args:
        checkpoint: `RUN[:best|last|step-N][:raw]`; a model folder; a `.safetensors` file with its sidecar; or a published file, of which
            Open-AVFF's stage 3 is one that judges: `stage3.pth[:crop|:resize]` (see `FrameFit`).
        config: an experiment that a checkpoint of ours has to fit; its model and clip sections are compared.
        device: `auto` (a GPU if there is one), `cpu` or `cuda`.

    Raises:
        CheckpointError: no such checkpoint, of another stage or model, or weights that do not fit it.
        ConfigError: `cuda` was asked for and is not there.
    """
    chosen = choose_device(device)
    path, fit = _split_fit(checkpoint)
    if not _is_published(path):
        return load_avff_detector(checkpoint, chosen, config)
    if config is not None:
        raise CheckpointError(
            f"{path}: is a published file, and CONFIG says what a run of ours has to fit; leave CONFIG out"
        )
    tensors = read_published(path)
    stage = open_avff_stage({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if stage == "finetune":
        return make_open_avff_detector(tensors, path, fit, chosen)
    if path.suffix == ".safetensors":
        return load_avff_detector(checkpoint, chosen, config)  # which says that the sidecar is missing
    what = "Open-AVFF's stage 1 or 2" if stage else recognise(tensors, path).title
    raise CheckpointError(
        f"{path}: holds {what}, which has no real/fake head; of published files, Open-AVFF's stage 3 alone judges. To "
        f"finetune from this one: tools/adapt_weights.py --from {path} --to configs/stage3_finetune.yaml --output "
        "start.safetensors, then avff train with engine.init_weights=start.safetensors"
    )


def _split_fit(checkpoint: str) -> tuple[Path, FrameFit]:
    """Returns the file and how its frames are made square; `crop` where nothing is said."""
    path, colon, fit = checkpoint.rpartition(":")
    for known in FITS:
        if colon and fit == known:
            return Path(path), known
    return Path(checkpoint), "crop"


def _is_published(path: Path) -> bool:
    """Whether a file is not one of ours: they are .safetensors with a sidecar."""
    bare = path.suffix == ".safetensors" and path.is_file() and not path.with_suffix(".json").is_file()
    return bare or (path.suffix in PUBLISHED_SUFFIXES and not path.is_dir())
