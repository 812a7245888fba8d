"""Result rows: round trips, duplicates, missing and undecided clips."""

import dataclasses

import pytest

from avff.errors import EvaluationError
from avff.evaluation.rows import Table, check_unique, read_rows, write_csv, write_jsonl


@pytest.fixture
def mixed_rows(make_row):
    return [
        make_row("a", 0.1 + 0.2, methods=["wav2lip", "fsgan"], person="id1", category="FVFA"),
        make_row("b", None, status=["NO_FACE", "NO_AUDIO"], track=None, threshold=None, category="RVRA"),
        make_row("c", -1e-17, is_fake=None, video_is_fake=None, audio_is_fake=None, methods=[]),
        dataclasses.replace(make_row("d", 3.0, dataset='odd, "name"'), category=None, split=""),
    ]


@pytest.mark.parametrize(("write", "name"), [(write_jsonl, "rows.jsonl"), (write_csv, "rows.csv")])
def test_rows_survive_writing_and_reading(tmp_path, mixed_rows, write, name):
    write(tmp_path / name, mixed_rows)
    assert read_rows(tmp_path / name) == mixed_rows
    assert [path.name for path in tmp_path.iterdir()] == [name], "no temporary file is left"


def test_a_clip_scored_twice_is_refused_everywhere(tmp_path, make_row):
    twice = [make_row("a", 1.0), make_row("b", 0.0), make_row("a", 2.0)]
    for act in (
        check_unique,
        lambda rows: write_csv(tmp_path / "x.csv", rows),
        lambda rows: Table(rows=rows, expected=3),
    ):
        with pytest.raises(EvaluationError, match=r"1 clips have several rows .* first key 'a' of dataset 'made_up'"):
            act(twice)
    assert not list(tmp_path.iterdir())


def test_two_detectors_may_score_one_clip(make_row):
    check_unique([make_row("a", 1.0), make_row("a", 1.0, detector="other")])


def test_undecided_rows_hold_no_score_and_scored_rows_no_reason(make_row):
    with pytest.raises(EvaluationError, match="only OK clips are scored"):
        make_row("a", 0.0, status=["NO_FACE"])
    with pytest.raises(EvaluationError, match="only OK clips are scored"):
        make_row("a", None)


def test_missing_rows_refuse_metrics_and_name_the_clips(make_row):
    table = Table(rows=[make_row("a", 1.0)], expected=3, missing={"b": "crc32 differs", "c": "torn video"})
    with pytest.raises(
        EvaluationError, match=r"scored 1 / 3 clips.*\n  b: crc32 differs\n  c: torn video\n.*--allow-missing"
    ):
        table.require_complete()


def test_a_table_of_another_form_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("video_name,y_pred\na.mp4,0.5\n")
    with pytest.raises(EvaluationError, match="row 1: fields"):
        read_rows(tmp_path / "x.csv")
    with pytest.raises(EvaluationError, match="no such table"):
        read_rows(tmp_path / "y.csv")
