"""What loading does with checkpoints that are not whole; whole ones are tested by runs (test_runs.py)."""

from avff.engine.checkpoint import find_newest
from avff.run_folder import COMMIT, FILES, checkpoint_dir


def test_a_step_that_is_damaged_a_second_time_is_set_aside_again(tmp_path):
    directory = checkpoint_dir(tmp_path, 5)
    for content in ("first", "second"):
        directory.mkdir(parents=True)
        (directory / FILES).write_text(content)
        (directory / COMMIT).write_text("of another list of files")
        assert find_newest(tmp_path) is None
    assert [path.name for path in directory.parent.iterdir()] == ["step-5.damaged"]
    assert (directory.with_name("step-5.damaged") / FILES).read_text() == "second"


def test_an_uncommitted_step_is_set_aside_so_that_it_can_be_saved(tmp_path, caplog):
    directory = checkpoint_dir(tmp_path, 5)
    directory.mkdir(parents=True)
    (directory / FILES).write_text("half a copy")
    assert find_newest(tmp_path) is None
    assert [path.name for path in directory.parent.iterdir()] == ["step-5.damaged"]
    assert f"step-5 has no {COMMIT}" in caplog.text
