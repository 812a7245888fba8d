"""`lab`: little shards and the runs that nothing happened to, shared by all cells of the matrix."""

import pytest
from harness import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("faults"))
