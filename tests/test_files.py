"""What every writer of results, shards and checkpoints relies on."""

import hashlib

import pytest

from avff.files import sha256_of, write_durably


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"old and longer", b"new"):
        write_durably(path, content)
        assert path.read_bytes() == content
        assert sha256_of(path) == hashlib.sha256(content).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_fails_keeps_the_old_content_and_leaves_no_half(tmp_path):
    path = tmp_path / "a.json"
    write_durably(path, b"old")
    with pytest.raises(TypeError):
        write_durably(path, "text is not bytes")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
