"""Interpreter, packages and sources: good for this avff, and the same on every node."""

import hashlib
import platform
import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import avff
from avff.doctor.check import Check, fail, ok, warn

DISTRIBUTION = "avff"
INSTALL = "pip install -e '.[train]' in the checkout"
NOT_FOR_TRAINING = frozenset({"dlib-bin", "face-recognition-models", "requests", "setuptools"})
"""Packages of the extra `train` that only the building of shards imports."""
SHOWN = ("torch", "deepspeed", "webdataset", "wandb")


def python() -> Check:
    version = platform.python_version()
    return ok(f"{version} on {platform.machine()}", facts={"python": version})


def packages() -> Check:
    """Compares what is installed with what setup.py asks for."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return warn("avff is not installed in this environment, so versions are not known", INSTALL)
    wanted = required(requirements)
    installed = {name: _version(name) for name in wanted}
    if problems := mismatches(wanted, installed):
        return fail("; ".join(problems), INSTALL)
    shown = ", ".join(f"{name} {installed[name]}" for name in SHOWN)
    return ok(f"{shown} and {len(wanted) - len(SHOWN)} more as setup.py asks", facts=installed)


def required(requirements: Iterable[str]) -> dict[str, str]:
    """Returns what training needs: package -> versions, such as `>=2.11,<2.12`.

    Args:
        requirements: as the metadata of avff lists them, with `extra == "train"` behind those of an extra.
    """
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in requirements]
    chosen = [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": "train"})]
    return {one.name: str(one.specifier) for one in chosen if one.name not in NOT_FOR_TRAINING}


def mismatches(wanted: dict[str, str], installed: dict[str, str]) -> list[str]:
    """Returns a few words for each package that is missing (an empty version) or of another version."""
    from packaging.specifiers import SpecifierSet

    missing = [f"{name}{wanted[name]} is missing" for name in wanted if not installed[name]]
    return missing + [
        f"{name} is {installed[name]}, needed is {wanted[name]}"
        for name in wanted
        if installed[name] and not SpecifierSet(wanted[name]).contains(installed[name], prereleases=True)
    ]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def sources() -> Check:
    """Names the code that runs here by the content of its files."""
    folder = Path(avff.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    name = digest.hexdigest()[:12]
    return ok(f"avff {avff.__version__}, {name}, in {folder}", facts={"sources of avff": name})


def compiler() -> Check:
    """Looks for the C compiler that torch.compile starts on every node."""
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found:
        return ok(found)
    return fail("no C compiler, which engine.compile needs", "module load gcc on every node, or engine.compile=false")
