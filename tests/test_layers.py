"""Imports go downwards only: the table of rooms in README.md, kept true."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOUNS = {
    "errors",
    "schema",
    "batch",
    "config",
    "build_config",
    "strict_yaml",
    "sidecar",
    "seeding",
    "files",
    "json_lines",
    "windows",
}
# room: the rooms of avff that it may import (besides itself)
ROOMS = {
    "errors": set(),
    "strict_yaml": {"errors"},
    "config": {"errors", "strict_yaml"},
    "build_config": {"errors"},
    "schema": {"errors"},
    "batch": set(),
    "windows": {"config"},
    "seeding": set(),
    "files": set(),
    "json_lines": {"errors"},
    "sidecar": {"errors", "config", "strict_yaml"},
    "progress": set(),
    "distributed": {"errors"},
    "launched": set(),
    "run_folder": {"errors", "config", "files", "sidecar"},
    "run_lock": {"errors"},
    "media": (NOUNS - {"batch"}) | {"progress"},
    "data": NOUNS,
    "building": NOUNS | {"progress", "media", "data"},
    "preprocess": {"errors", "config", "batch", "seeding"},
    "models": NOUNS - {"batch", "schema"},
    "checkpoints": {"errors", "config", "strict_yaml", "run_folder", "models"},
    "checkpoint_files": {"errors", "files", "run_folder", "models"},
    "objectives": NOUNS | {"distributed", "models"},
    "evaluation": NOUNS | {"distributed"},
    "inference": NOUNS
    | {"progress", "run_folder", "media", "data", "building", "preprocess", "models", "checkpoints", "evaluation"},
    "features": NOUNS
    | {"progress", "run_folder", "data", "building", "preprocess", "models", "evaluation", "inference"},
    "exporting": (NOUNS - {"schema", "json_lines", "seeding"})
    | {"run_folder", "media", "preprocess", "models", "checkpoints", "evaluation"},
    "report": {"errors", "config", "strict_yaml", "files", "json_lines", "run_folder", "run_lock"},
    "engine": NOUNS
    | {
        "launched",
        "run_folder",
        "run_lock",
        "checkpoint_files",
        "distributed",
        "data",
        "preprocess",
        "models",
        "objectives",
        "evaluation",
        "inference",
    },
    "doctor": NOUNS | {"distributed", "data", "models"},
    "bench": None,  # None: everything below the command line
    "simulation": None,
    "demo": None,
    "commands": None,
    "cli": None,
    "__main__": {"cli"},
    "": {"exporting"},  # avff/__init__.py: load_model
}
COMMAND_LINE = ("cli", "commands", "demo", "__main__")
# external package: the only places that may import it
OWNERS = {"deepspeed": ("avff/engine",), "wandb": ("avff/engine",), "submitit": ("launch",)}


def imports_of(path: Path) -> set[str]:
    """Absolute module names that a file imports anywhere, functions included; names of `from x import y` as x.y."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted(root.glob("avff/**/*.py")):
        relative = path.relative_to(root)
        room = room_of(".".join(relative.with_suffix("").parts).removesuffix(".__init__"))
        allowed = ROOMS[room]
        for module in sorted(imports_of(path)):
            target = room_of(module)
            if not module.startswith("avff") or target in (room, ""):  # "": avff/__init__.py, the version
                continue
            if target in COMMAND_LINE and room not in COMMAND_LINE:
                found.append(f"{relative} imports {module}: nobody imports the command line")
            elif allowed is not None and target not in allowed:
                found.append(f"{relative} imports {module}: room {room!r} may import {sorted(allowed)}")
    for path in sorted([*root.glob("avff/**/*.py"), *root.glob("tools/*.py"), *root.glob("launch/*.py")]):
        relative = path.relative_to(root)
        for module in imports_of(path):
            owners = OWNERS.get(module.split(".")[0])
            if owners and not str(relative).startswith(owners):
                found.append(f"{relative} imports {module}: only {owners} may")
    return found


def test_rooms_import_downwards_only():
    assert violations(ROOT) == []


def test_every_room_is_in_the_table():
    rooms = {p.stem for p in ROOT.glob("avff/*.py")} | {p.parent.name for p in ROOT.glob("avff/*/__init__.py")}
    assert rooms - {"__init__"} == {room for room in ROOMS if room}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("avff/models/a.py", "from avff.data import plan"),
        ("avff/data/a.py", "import avff.models.layers"),
        ("avff/engine/a.py", "from avff.cli import main"),
        ("avff/inference/a.py", "def f():\n    import deepspeed"),
        ("tools/a.py", "import wandb"),
    ],
)
def test_a_wrong_import_is_found_and_named(tmp_path, path, source):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert [line for line in violations(tmp_path) if line.startswith(path)]


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("avff.models", "deepspeed webdataset wandb submitit torchvision torchaudio av decord sklearn matplotlib"),
        ("avff.cli", "torch deepspeed wandb av decord matplotlib"),
        ("avff.exporting", "deepspeed webdataset wandb decord torchvision torchaudio PIL sklearn matplotlib onnx"),
    ],
)
def test_importing_stays_light(module, banned):
    """Checked in a fresh interpreter, since this one has imported everything. All files of a room are imported."""
    package = ROOT / module.replace(".", "/")
    modules = [module] + [f"{module}.{p.stem}" for p in package.glob("*.py") if p.stem != "__init__"]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(banned.split()) & set(loaded) == set()
