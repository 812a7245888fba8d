"""Summaries: which clips enter which number, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from avff.errors import EvaluationError
from avff.evaluation.compare import auc_difference, mean_auc
from avff.evaluation.hazards import find_hazards, find_leaks
from avff.evaluation.rows import Table
from avff.evaluation.summary import measure, summarize


def sklearn_auc(rows) -> float:
    return roc_auc_score([row.is_fake for row in rows], [row.fake_logit for row in rows])


def test_categories_are_measured_against_all_reals(make_rows):
    rows = make_rows()
    summary = summarize(Table(rows=rows, expected=len(rows)))
    assert summary["overall"]["auc"]["value"] == pytest.approx(sklearn_auc(rows))
    for category in ("RVFA", "FVRA", "FVFA"):
        found = summary["categories"][category]
        assert (found["num_real"], found["num_fake"], found["num_groups"]) == (25, 25, 25)
        expected = sklearn_auc([row for row in rows if row.category in ("RVRA", category)])
        assert found["auc"]["value"] == pytest.approx(expected)
        assert found["auc"]["low"] < expected < found["auc"]["high"]
    assert summary["methods"].keys() == {"blend"}
    assert summary["methods"]["blend"]["num_clips"] == 75


def test_a_detector_without_heads_says_so(make_rows):
    rows = [dataclasses.replace(row, video_fake_logit=None) for row in make_rows()]
    heads = summarize(Table(rows=rows, expected=len(rows)))["heads"]
    assert heads["video"]["auc"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "the detector has no such head",
    }
    assert heads["audio"]["auc"]["value"] is not None


def test_heads_are_measured_against_their_own_labels(make_rows):
    rows = make_rows()
    summary = summarize(Table(rows=rows, expected=len(rows)))
    expected = roc_auc_score([row.video_is_fake for row in rows], [row.video_fake_logit for row in rows])
    assert summary["heads"]["video"]["auc"]["value"] == pytest.approx(expected)
    assert summary["heads"]["audio"]["num_fake"] == 50


def test_undecided_clips_are_listed_and_enter_no_metric(make_rows, make_row):
    rows = make_rows()
    undecided = make_row("nobody", None, status=["NO_FACE"], category="FVRA")
    summary = summarize(Table(rows=[*rows, undecided], expected=101))
    assert summary["overall"] == summarize(Table(rows=rows, expected=100))["overall"]
    assert (summary["scored"], summary["expected"], summary["num_decided"]) == (101, 101, 100)
    assert summary["undecided"]["by_status"] == {"NO_FACE": 1}
    assert summary["undecided"]["clips"] == [{"key": "nobody", "status": ["NO_FACE"], "is_fake": 1}]


def test_missing_clips_stop_the_summary_unless_allowed(make_rows):
    table = Table(rows=make_rows(), expected=101, missing={"x": "gone"})
    with pytest.raises(EvaluationError, match="scored 100 / 101"):
        summarize(table)
    allowed = summarize(table, allow_missing=True)
    assert (allowed["scored"], allowed["expected"], allowed["missing"]) == (100, 101, {"x": "gone"})


def test_one_class_and_no_clips_give_reasons_in_valid_json(make_row):
    reals = [make_row(f"r{i}", 0.1 * i, person=f"p{i}") for i in range(4)]
    summary = summarize(Table(rows=reals, expected=4))
    assert summary["overall"]["auc"] == {"value": None, "low": None, "high": None, "reason": "all 4 clips are real"}
    assert measure([])["auc"]["reason"] == "no clips"
    json.dumps([summary, measure([])], allow_nan=False)


def test_no_threshold_gives_no_balanced_accuracy(make_row):
    rows = [make_row(f"r{i}", 0.1 * i, category=c, threshold=None) for i, c in enumerate(["RVRA", "FVFA"])]
    assert "no threshold" in measure(rows)["balanced_accuracy"]["reason"]


def test_segments_of_an_unnamed_video_stay_together(make_row):
    rows = [make_row(f"r{i}", 0.0, source_key=f"video{i // 5}") for i in range(20)]
    assert measure(rows)["num_groups"] == 4


def test_difference_of_two_detectors_is_paired_by_key(make_rows):
    strong, weak = make_rows(skill=3.0), make_rows(skill=0.5, detector="weak")
    found = auc_difference(strong, weak[::-1])
    assert found["value"] == pytest.approx(sklearn_auc(strong) - sklearn_auc(weak))
    assert 0 < found["low"] < found["value"] < found["high"]
    with pytest.raises(EvaluationError, match="1 clips were decided by only one of them, first 'p00_RVRA'"):
        auc_difference(strong, weak[1:])


def test_mean_over_seeds(make_rows):
    seeds = [make_rows(skill=0.7, seed=s) for s in range(3)]
    found = mean_auc(seeds)
    assert found["per_seed"] == pytest.approx([sklearn_auc(rows) for rows in seeds])
    assert found["value"] == pytest.approx(np.mean(found["per_seed"]))
    assert found["low"] < found["value"] < found["high"]


def test_hazards_name_silence_imbalance_and_missing_people(make_rows, make_row):
    rows = make_rows()
    assert find_hazards(rows) == []
    silent = [
        make_row(
            f"s{i}", 0.0, category="FVFA" if i % 2 else "RVRA", person=f"p{i}", leading_silence_seconds=0.1 * (i % 2)
        )
        for i in range(60)
    ]
    assert any("AUC 1.00 (fakes start with more of it)" in h for h in find_hazards(silent))
    lopsided = [make_row(f"s{i}", 0.0, category="FVFA" if i else "RVRA") for i in range(12)]
    text = " ".join(find_hazards(lopsided))
    assert "12 of 12 clips name no person" in text and "1 real and 11 fake" in text


def test_leaks_are_found_through_any_shared_id(make_rows):
    rows = make_rows(num_people=2)
    assert find_leaks(rows, {"someone": "train.tar"}) == []
    (leak,) = find_leaks(rows, {"person01": "shards/train"})
    assert "4 of 8 clips" in leak and "'person01' (shards/train)" in leak
