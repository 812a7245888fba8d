"""wandb's transaction log is read and written as wandb does it."""

import pytest
import wandb

from avff.engine.wandb_file import BLOCK_BYTES, encode, new_record, read_records
from avff.errors import CheckpointError


def make_records(sizes):
    records = []
    for size in sizes:
        record = new_record()
        record.alert.text = "x" * size
        records.append(record)
    return records


@pytest.mark.parametrize("size", [*range(BLOCK_BYTES - 40, BLOCK_BYTES + 10), 3 * BLOCK_BYTES])
def test_records_of_every_length_come_back(tmp_path, size):
    path = tmp_path / "run-x.wandb"
    records = make_records([size, 5, BLOCK_BYTES // 2, size])
    path.write_bytes(encode(records))
    assert read_records(path) == records


def test_what_wandb_wrote_is_read(tmp_path):
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    run = wandb.init(project="avff", id="abc", dir=tmp_path, mode="offline", settings=settings)
    run.log({"loss": 0.1 + 0.2, "text": "x" * 2 * BLOCK_BYTES}, step=7)
    run.finish()
    wandb.teardown()  # or processes that later tests start would share its service
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-abc.wandb")
    (history,) = (r.history for r in read_records(path) if r.WhichOneof("record_type") == "history")
    items = {item.nested_key[0]: item.value_json for item in history.item}
    assert history.step.num == 7
    assert float(items["loss"]) == 0.1 + 0.2  # to the bit
    assert len(items["text"]) > BLOCK_BYTES


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros"])
def test_a_torn_end_is_left_out_and_said(tmp_path, caplog, damage):
    path = tmp_path / "run-x.wandb"
    records = make_records([100, 200, 300])
    content = bytearray(encode(records))
    if damage == "cut":
        del content[-50:]
    elif damage == "flipped":
        content[-50] ^= 1
    else:
        content[-150:] = bytes(150)
    path.write_bytes(content)
    assert read_records(path) == records[:2]
    assert "torn after" in caplog.text


def test_an_empty_file_holds_nothing_and_another_one_is_refused(tmp_path):
    path = tmp_path / "run-x.wandb"
    path.write_bytes(b"")
    assert read_records(path) == []
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="begins with"):
        read_records(path)
