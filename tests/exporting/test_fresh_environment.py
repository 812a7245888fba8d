"""A virtual environment with what `pip install 'avff[predict]'` brings and nothing else: three lines judge a clip."""

import importlib.metadata
import json
import re
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_portable import BOX_BUILD, write_clip

import avff

ROOT = Path(avff.__file__).parents[1]
ALLOWED = ("torch", "numpy", "timm", "einops", "pyyaml", "safetensors", "av")
ABSENT = (
    "deepspeed webdataset wandb decord torchaudio submitit matplotlib sklearn dlib facenet_pytorch onnx pytest psutil"
)
UNUSED = "torchvision PIL timm huggingface_hub"  # timm brings them, and itself is needed by nothing here
THREE_LINES = """\
import avff
model = avff.load_model("detector/")
print(model.predict("clip.mov", box=(20, 10, 60, 50)))
"""
REPORT = f"""
import importlib.util, json, sys
found = model.predict("clip.mov", box=(20, 10, 60, 50))
cropped = model.predict("cropped.mov")
print(json.dumps({{
    "scores": [window.fake_probability for window in found.windows],
    "cropped": [window.fake_probability for window in cropped.windows],
    "there": [name for name in {ABSENT.split()} if importlib.util.find_spec(name)],
    "imported": [name for name in {UNUSED.split()} if name in sys.modules],
    "prefix": sys.prefix,
}}))
"""


def closure(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """Returns distributions and all that pip would install with them here, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        needed = map(Requirement, found[name].requires or [])
        waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def link_into(site_packages: Path, distribution: importlib.metadata.Distribution) -> None:
    for name in {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}:
        link = site_packages / name
        if not link.exists():
            link.symlink_to(Path(str(distribution.locate_file(name))))


@pytest.fixture
def fresh_python(tmp_path: Path) -> Path:
    """The interpreter of the new environment."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site_packages,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    for distribution in closure(ALLOWED).values():
        link_into(site_packages, distribution)
    (site_packages / "avff").symlink_to(ROOT / "avff")
    return tmp_path / "venv/bin/python"


@pytest.mark.slow
def test_three_lines_judge_a_clip_where_nothing_of_training_is_installed(fresh_python, run, make_run, tmp_path):
    assert run("folder", make_run(build=BOX_BUILD), "--output", tmp_path / "detector")[0] == 0
    path, cropped = write_clip(tmp_path / "clip.mov"), write_clip(tmp_path / "cropped.mov", size=(64, 64))
    command = [str(fresh_python), "-I", "-W", "error::UserWarning", "-c", THREE_LINES + REPORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    printed, report = done.stdout.splitlines()
    report = json.loads(report)
    assert report["prefix"] == str(tmp_path / "venv") != sys.prefix
    assert (report["there"], report["imported"]) == ([], [])
    model = avff.load_model(tmp_path / "detector")
    here, here_cropped = model.predict(path, box=(20, 10, 60, 50)), model.predict(cropped)
    assert report["scores"] == pytest.approx([window.fake_probability for window in here.windows], abs=1e-6)
    assert report["cropped"] == pytest.approx([window.fake_probability for window in here_cropped.windows], abs=1e-6)
    assert report["cropped"] and report["cropped"] != report["scores"]
    assert printed == str(here).replace(str(path), "clip.mov")
