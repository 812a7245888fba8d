import shutil

import pytest

import avff
from avff.doctor import software
from avff.doctor.check import Status

REQUIREMENTS = [
    "torch<2.12,>=2.11",
    "einops>=0.8",
    'deepspeed<0.20,>=0.19; extra == "train"',
    'dlib-bin>=19.24; extra == "train"',
    'pytest>=8; extra == "dev"',
]


def test_training_needs_the_base_and_the_extra_without_what_builds_shards():
    assert set(software.required(REQUIREMENTS)) == {"torch", "einops", "deepspeed"}


@pytest.mark.parametrize(
    ("installed", "problems"),
    [
        ({"torch": "2.11.0+cu130", "einops": "0.8.2"}, []),
        ({"torch": "2.12.0", "einops": "0.8.2"}, ["torch is 2.12.0, needed is <2.12,>=2.11"]),
        ({"torch": "2.11.0", "einops": ""}, ["einops>=0.8 is missing"]),
    ],
)
def test_versions_are_compared_with_what_setup_asks(installed, problems):
    assert software.mismatches({"torch": "<2.12,>=2.11", "einops": ">=0.8"}, installed) == problems


def test_this_environment_is_as_setup_asks():
    answer = software.packages()
    assert answer.status is Status.OK, answer.value
    assert answer.facts["torch"].startswith("2.11")


def test_sources_are_named_by_their_content(tmp_path, monkeypatch):
    copy = tmp_path / "avff"
    (copy / "room").mkdir(parents=True)
    for name in ("__init__.py", "room/a.py"):
        (copy / name).write_text("x = 1\n")
    monkeypatch.setattr(avff, "__file__", str(copy / "__init__.py"))
    before = software.sources().facts
    shutil.copytree(copy, tmp_path / "moved" / "avff")
    monkeypatch.setattr(avff, "__file__", str(tmp_path / "moved/avff/__init__.py"))
    assert software.sources().facts == before
    (tmp_path / "moved/avff/room/a.py").write_text("x = 2\n")
    assert software.sources().facts != before


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert software.compiler().status is Status.FAIL
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    assert software.compiler().value == str(tmp_path / "gcc")
