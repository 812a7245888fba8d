"""Which checkpoints are found, kept, pruned and set aside; real ones are loaded in test_zero.py and test_saver.py."""

import pytest
from made_checkpoints import add_checkpoint

from avff.engine.checkpoint import find_newest, prune, set_aside
from avff.run_folder import COMMIT, FILES, checkpoint_dir, committed_steps


def names(run_dir) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_set_aside(tmp_path, caplog):
    for step in (1, 2, 3):
        add_checkpoint(tmp_path, step)
    (checkpoint_dir(tmp_path, 3) / "model" / "rank-00000.safetensors").write_bytes(b"torn")
    flipped = checkpoint_dir(tmp_path, 2) / "ema.safetensors"
    flipped.write_bytes(flipped.read_bytes().swapcase())
    assert find_newest(tmp_path) == checkpoint_dir(tmp_path, 1)
    assert names(tmp_path) == ["step-1", "step-2.damaged", "step-3.damaged"]
    assert "rank-00000.safetensors: 4 bytes" in caplog.text
    assert "ema.safetensors: sha256 differs" in caplog.text


def test_a_step_that_is_damaged_a_second_time_is_set_aside_again(tmp_path):
    directory = checkpoint_dir(tmp_path, 5)
    for content in ("first", "second"):
        directory.mkdir(parents=True)
        (directory / FILES).write_text(content)
        (directory / COMMIT).write_text("of another list of files")
        assert find_newest(tmp_path) is None
    assert names(tmp_path) == ["step-5.damaged"]
    assert (directory.with_name("step-5.damaged") / FILES).read_text() == "second"


def test_an_uncommitted_step_is_set_aside_so_that_it_can_be_saved(tmp_path, caplog):
    directory = checkpoint_dir(tmp_path, 5)
    directory.mkdir(parents=True)
    (directory / FILES).write_text("half a copy")
    assert find_newest(tmp_path) is None
    assert names(tmp_path) == ["step-5.damaged"]
    assert f"step-5 has no {COMMIT}" in caplog.text


def test_what_a_killed_save_or_pruning_left_is_removed(tmp_path):
    add_checkpoint(tmp_path, 4)
    add_checkpoint(tmp_path, 2).rename(checkpoint_dir(tmp_path, 2).with_name("step-2.tmp"))
    assert find_newest(tmp_path) == checkpoint_dir(tmp_path, 4)
    assert names(tmp_path) == ["step-4"]


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [(1, 0, [4, 9]), (2, 0, [4, 8, 9]), (1, 3, [3, 4, 6, 9]), (2, 5, [4, 5, 8, 9]), (20, 0, list(range(1, 10)))],
)
def test_the_last_the_best_and_every_nth_are_kept(tmp_path, keep, keep_every, left):
    for step in range(1, 10):
        add_checkpoint(tmp_path, step, 0.9 if step == 4 else 0.5)
    prune(tmp_path, keep=keep, keep_every=keep_every)
    assert committed_steps(tmp_path) == left
    assert names(tmp_path) == [f"step-{step}" for step in left]


def test_an_unreadable_checkpoint_is_set_aside_and_pruning_goes_on(tmp_path, caplog):
    for step in (1, 2, 3, 4):
        add_checkpoint(tmp_path, step, 0.9 if step == 2 else 0.5)
    (checkpoint_dir(tmp_path, 1) / "state.json").write_text("{")
    prune(tmp_path, keep=1, keep_every=0)
    assert names(tmp_path) == ["step-1.damaged", "step-2", "step-4"]
    assert "step-1/state.json: cannot be read" in caplog.text


def test_later_checkpoints_are_set_aside_and_can_be_saved_anew(tmp_path):
    for _ in range(2):  # the second time replaces what was set aside the first time
        for step in (2, 4, 6):
            if step not in committed_steps(tmp_path):
                add_checkpoint(tmp_path, step)
        assert set_aside(tmp_path, newer_than=2, suffix=".rewound") == [4, 6]
        assert names(tmp_path) == ["step-2", "step-4.rewound", "step-6.rewound"]
        assert find_newest(tmp_path) == checkpoint_dir(tmp_path, 2)
    assert set_aside(tmp_path, newer_than=2, suffix=".rewound") == []
