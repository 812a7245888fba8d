"""docs/weights.md: a row per source, with what its command needs, and commands that their programs understand."""

import ast
import re
import shlex
import sys
from pathlib import Path

import audio_visual_sources as sound
import published_video as picture
import pytest
from published_files import audiomae_weights, marlin_weights

import avff
from avff.cli import main
from avff.config import load_config
from avff.errors import CheckpointError
from avff.models.adapt_files import WeightFile, adapt_file
from avff.models.importers.registry import SOURCES, source_named
from avff.strict_yaml import apply_override

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import adapt_weights
import checkpoint

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/weights.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
ROWS = {cells[0].strip("` "): cells for cells in re.findall(r"^\|" + r"([^|]*)\|" * 6 + "$", PAGE, re.M)}
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines()]
WEIGHTS = {
    "marlin": lambda: marlin_weights(picture.TINY, picture.TINY_DECODER),
    "videomae": lambda: picture.seeded(picture.videomae_layout(picture.TINY, picture.TINY_DECODER), seed=1),
    "mae": lambda: picture.seeded(picture.mae_layout(picture.TINY), seed=1),
    "timm-vit": lambda: picture.seeded(picture.vit_layout(picture.TINY, num_classes=10), seed=1),
    "timm-vit-half": lambda: picture.seeded(picture.vit_layout(picture.TINY, num_classes=10), seed=1),
    "audiomae": lambda: audiomae_weights(picture.TINY),
    "cav_mae": lambda: sound.seeded(sound.cav_mae_layout(96, own=3), seed=1),
    "havic": lambda: sound.seeded(sound.havic_layout(96, 4), seed=1),
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_source_has_its_row(source) -> None:
    _, where, _, _, _, licence = ROWS[source.name]
    assert source.url in where
    assert source.licence in licence
    assert ("not for commercial use" in licence) == source.non_commercial


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_command_needs_what_the_row_says(name, odd_config) -> None:
    """With it the file fits a config of the stated defaults; without it the error names it."""
    needed = re.findall(r"model\.\w+_eps=[\w.-]+", ROWS[name][2])
    file = WeightFile(Path(f"{name}.pt"), WEIGHTS[name](), source_named(name), {})
    values: dict = {"clip": {"num_mel_bins": 128}}
    if needed:
        with pytest.raises(CheckpointError) as caught:
            adapt_file(file, None, odd_config(**values))
        assert all(f"add {override} after" in str(caught.value) for override in needed)
    for override in needed:
        apply_override(values, override)
    assert adapt_file(file, None, odd_config(**values)).tensors


def test_all_sources_are_tried() -> None:
    # Open-AVFF's file has one size of encoder, which tests/models/test_import_open_avff.py converts.
    assert {source.name for source in SOURCES} - WEIGHTS.keys() == {"open-avff"}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_understood(line, capsys) -> None:
    words = shlex.split(line)
    if words[0] == "torchrun":
        assert words[3:6] == ["-m", "avff", "train"] and load_config(ROOT / words[6], words[7:])
    elif words[0] == "avff":
        with pytest.raises(SystemExit) as ended:
            main([*words[1:], "--help"])
        assert ended.value.code == 0
        options = {word for word in words if word.startswith("--")}
        assert options <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    elif words[1] == "tools/checkpoint.py":
        assert checkpoint.parse_arguments(words[2:]).run
    else:
        assert words[:2] == ["python", "tools/adapt_weights.py"]
        arguments = adapt_weights.parse_arguments(words[2:])
        assert arguments.show or load_config(ROOT / arguments.to[0], arguments.to[1:])


def test_the_python_on_the_page_calls_what_there_is() -> None:
    (block,) = (block for language, block in BLOCKS if language == "python")
    called = [node.attr for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Attribute)]
    assert sorted(called) == ["load_model", "predict"] and callable(avff.load_model)
