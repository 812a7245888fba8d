"""Package metadata. `make demo` and `make test` install this with the exact versions of constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "avff/__init__.py").read_text()).group(1)

MODELS = ["torch>=2.11,<2.12", "timm>=1.0.20", "einops>=0.8", "pyyaml>=6", "safetensors>=0.5", "numpy>=1.26"]
MEDIA = ["torchvision>=0.26,<0.27", "torchaudio>=2.11,<2.12", "av>=15", "decord>=0.6", "pillow>=10"]
# Identity embeddings; MTCNN comes from facenet-pytorch, which pins an old torch and so has to be
# installed on its own: `pip install --no-deps facenet-pytorch==2.6.0` (the Makefile does).
FACES = ["dlib-bin>=19.24", "face-recognition-models==0.3.0", "requests", "tqdm", "setuptools<81"]
TRAIN = ["webdataset>=1.0,<2", "deepspeed>=0.19,<0.20", "wandb>=0.31,<0.32", "ninja", "psutil"]
REPORTS = ["matplotlib>=3.8", "scikit-learn>=1.4", "tqdm>=4.66"]
DEV = ["pytest>=8", "hypothesis>=6", "ruff>=0.6", "mypy>=1.11", "types-PyYAML"]
# Another decoder of stored video (data.decoder); needs FFmpeg with shared libraries (Debian: `apt install ffmpeg`).
TORCHCODEC = ["torchcodec>=0.11,<0.12"]
LAUNCH = ["submitit>=1.5"]
# What avff.load_model needs to read video files; tensors need nothing more than MODELS.
PREDICT = ["av>=15"]
EXPORT = ["onnx>=1.18,<2", "onnxscript>=0.5", "onnxruntime>=1.22"]

setup(
    name="avff",
    version=VERSION,
    description="Distributed self-supervised pretraining for audio-visual forgery detection (AVFF, CVPR 2024)",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["avff", "avff.*"]),
    package_data={"avff.report": ["*.css", "*.html", "*.js"]},
    install_requires=MODELS,
    extras_require={
        "train": MEDIA + FACES + TRAIN + REPORTS,
        "launch": LAUNCH,
        "predict": PREDICT,
        "export": EXPORT,
        "torchcodec": TORCHCODEC,
        "dev": DEV + EXPORT + TORCHCODEC,
    },
    entry_points={"console_scripts": ["avff=avff.cli:run"]},
)
