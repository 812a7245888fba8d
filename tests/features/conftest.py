"""Weight files of tiny networks with random weights, and extractions of stored clips with them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from avff.config import Config
from avff.features.extract import Extraction, extract
from avff.models.build import build_model
from avff.models.weights import make_sidecar, save_weights


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks run slower on several threads, the more so beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def write_weights(tiny_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Path]:
    """Writes a weight file: `write_weights(stage="pretrain", name="weights", drop=(), new=(), **config sections)`.

    `drop` are beginnings of names that the file leaves out; `new` is what its sidecar says was left out.
    """

    def write(
        stage: str = "pretrain", name: str = "weights", drop: tuple[str, ...] = (), new: Any = (), **sections: Any
    ) -> Path:
        config = tiny_config(stage, **sections)
        path = tmp_path / f"{name}.safetensors"
        tensors = {k: t for k, t in build_model(config).state_dict().items() if not k.startswith(drop)}
        save_weights(path, tensors, make_sidecar("random weights", config, trained_on=[], new=new))
        return path

    return write


@pytest.fixture
def run_extraction(write_weights: Callable[..., Path], tmp_path: Path) -> Callable[..., Extraction]:
    """Extracts on one CPU thread: `run_extraction(shards, name="out", weights=None, **options)`."""

    def run(*shards: Path, name: str = "out", weights: Path | None = None, **options: Any) -> Extraction:
        chosen = {"device": "cpu", "num_workers": 0, "progress": False, **options}
        return extract(str(weights or write_weights()), list(shards), tmp_path / name, **chosen)

    return run
