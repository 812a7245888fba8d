"""Pages name tests and files that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def promised_tests(page: str) -> list[tuple[str, str]]:
    """(file, test) of every `tests/file.py::test` on a page; `::test` alone continues the file before it."""
    found, file = [], ""
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", page):
        file = path or file
        if path or name:
            found.append((file, name))
    return found


@pytest.mark.parametrize(("file", "test"), promised_tests((ROOT / "docs/guarantees.md").read_text()))
def test_every_promise_names_a_test_that_exists(file, test):
    path = ROOT / file
    assert path.is_file(), f"docs/guarantees.md names {file}"
    assert not test or f"def {test}(" in path.read_text(), f"docs/guarantees.md names {file}::{test}"
