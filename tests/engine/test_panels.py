"""A panel hides what the model did not see, and shows what it filled in."""

import numpy as np
import torch
from PIL import Image

from avff.engine.panels import draw_panel
from avff.objectives import Reconstruction

RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def plain(colour: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(colour).view(1, 1, 3, 1, 1).expand(1, 8, 3, 16, 16)


def count(image: np.ndarray, colour: tuple[float, ...]) -> int:
    return int((np.abs(image - np.array(colour) * 255).max(axis=-1) < 3).sum())


def test_hidden_frames_are_grey_and_filled_from_the_prediction(tmp_path):
    visible_BT = torch.arange(8)[None] < 4
    shown = visible_BT[:, :, None, None, None]
    mel_BMF = torch.rand(1, 64, 16)
    reconstruction = Reconstruction(
        video_BTCHW=plain(RED),
        video_filled_BTCHW=torch.where(shown, plain(RED), plain(BLUE)),
        video_visible_BT=visible_BT,
        mel_BMF=mel_BMF,
        mel_filled_BMF=mel_BMF,
        mel_visible_BM=torch.arange(64)[None] >= 32,
    )
    draw_panel(reconstruction, ("clip",), tmp_path / "panels" / "step-1.png", title="run, step 1")
    image = np.asarray(Image.open(tmp_path / "panels" / "step-1.png").convert("RGB")).astype(float)
    # 8 frames as they are, 4 seen, 4 filled in from the prediction.
    red, blue = count(image, RED), count(image, BLUE)
    assert red > 10_000
    assert abs(red / blue - (8 + 4 + 4) / 4) < 0.1
