"""What a run refuses when it opens its shards, before it trains."""

import re
from pathlib import Path

import pytest

from avff.engine.run_data import RunData
from avff.errors import ShardError


def test_validation_directories_that_share_a_key_are_refused(make_sample, write_directory, tiny_config, tmp_path: Path):
    for name, key in (("train", "t"), ("one", "same"), ("two", "same")):
        write_directory(tmp_path / name, [make_sample(key, split="train" if name == "train" else "val")])
    train, one, two = ({"path": str(tmp_path / name)} for name in ("train", "one", "two"))
    assert len(RunData(tiny_config(data={"train": [train], "validation": [one]})).validation) == 1
    with pytest.raises(ShardError, match=re.escape(f"key 'same' is in {tmp_path / 'one'} and in {tmp_path / 'two'}")):
        RunData(tiny_config(data={"train": [train], "validation": [one, two]}))
