"""avff: audio-visual forgery detection, pretrained at scale on real video and finetuned to find fakes."""

__version__ = "0.1.0"
