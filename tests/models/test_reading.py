"""Published files that cannot be read say what they are, and how to get one that can."""

import re
import shlex
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from avff.errors import CheckpointError
from avff.models.importers.reading import CONTAINERS, read_published, read_with_notes
from avff.models.weight_table import describe_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html><html>sign in</html>", "is a web page, not a checkpoint; download it again"),
        (b"\n  <html>", "is a web page"),
        (POINTER, "is a pointer of git-lfs, not the file; fetch the file with git lfs pull"),
    ],
    ids=["page", "page after blanks", "pointer"],
)
def test_what_a_download_brought_instead_is_named(tmp_path: Path, suffix, content, told) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: {told}")):
        read_published(path)


def test_what_is_no_checkpoint_at_all_is_not_called_dangerous(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint of torch; it begins with b'he'"):
        read_published(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a whole torch checkpoint"):
        read_published(path)


TABLE = {"layer.weight": torch.ones(2, 3)}
NETWORK = torch.nn.Sequential(OrderedDict(layer=torch.nn.Linear(3, 2, bias=False)))
TRAPS = {"bare": TABLE, **{key: {key: TABLE} for key in CONTAINERS}, "network": NETWORK, "below": {"model": NETWORK}}


@pytest.mark.parametrize("kind", TRAPS)
def test_the_command_that_is_printed_makes_a_plain_file(tmp_path: Path, monkeypatch, kind) -> None:
    path, content = tmp_path / "a trap.pth", TRAPS[kind]
    torch.save({**content, "hook": print} if isinstance(content, dict) else content, path)
    with pytest.raises(CheckpointError, match="asks for more than tensors") as caught:
        read_published(path)
    command = shlex.split(str(caught.value).splitlines()[1])
    assert command[:2] == ["python", "-c"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["-c", *command[3:]])
    exec(command[2], {})
    assert list(read_published(tmp_path / "plain.pt")) == ["layer.weight"]


def test_weights_beside_those_taken_are_named(tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    content = {"model": TABLE, "model_ema": {"layer.weight": torch.zeros(2, 3)}, "optimizer": {"state": {}}, "epoch": 3}
    torch.save(content, path)
    tensors, notes = read_with_notes(path)
    assert torch.equal(tensors["layer.weight"], TABLE["layer.weight"])
    assert notes == ["model_ema (1 tensors) beside model is not taken"]
    assert "note        model_ema (1 tensors) beside model is not taken" in describe_file(path)


def test_two_tables_of_weights_are_refused_with_how_to_choose(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "two.pth"
    torch.save({"model": {"a": torch.ones(1)}, "state_dict": TABLE}, path)
    with pytest.raises(CheckpointError, match="holds weights under model and under state_dict") as caught:
        read_published(path)
    command = shlex.split(str(caught.value).splitlines()[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["-c", *command[3:-1], "state_dict"])
    exec(command[2], {})
    assert list(read_published(tmp_path / "plain.pt")) == ["layer.weight"]
