"""avff: audio-visual forgery detection, pretrained at scale on real video and finetuned to find fakes."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from avff.exporting.portable import PortableDetector

__version__ = "0.3.0"


def load_model(path: "str | Path", *, device: "str | torch.device" = "cpu") -> "PortableDetector":
    """Opens a finetuned model to judge clips with.

        model = avff.load_model("detector/")
        print(model.predict("face_crop.mp4"))                          # a square about one face
        print(model.predict("clip.mp4", box=(120, 40, 340, 300)))      # pixels; one box, or one per picture
        logits = model(video_BTHWC, waveform_BN)                       # tensors

    Args:
        path: a model folder (`tools/checkpoint.py folder`), a run folder with :best (the default), :last or :step-N, or
            a `.safetensors` file of a classifier.
        device: where it runs, such as `cuda`.

    Raises:
        CheckpointError: no such model, or one without real/fake heads.
    """
    from avff.exporting import portable  # here: `import avff` stays without torch

    return portable.load_model(path, device=device)
