"""The page: every number with its interval, what was left out, and nothing from the network."""

import re

import pytest

from avff.evaluation import plots
from avff.evaluation.page import Result, render_page, write_page
from avff.evaluation.rows import Table
from avff.evaluation.summary import summarize


@pytest.fixture
def result(make_rows, make_row):
    def make(detector: str = "avff", skill: float = 2.0, **options) -> Result:
        rows = make_rows(skill=skill, detector=detector)
        rows.append(make_row("no<face>", None, status=["NO_FACE"], category="FVRA", detector=detector))
        summary = summarize(Table(rows=rows, expected=len(rows) + options.pop("missing", 0)), allow_missing=True)
        return Result(summary, rows, {"sha256": "c0ffee", "shards": "made up"}, **options)

    return make


def test_numbers_come_with_interval_and_counts(result, tmp_path):
    one = result()
    write_page(tmp_path / "page.html", [one], title="A & B")
    page = (tmp_path / "page.html").read_text()
    auc = one.summary["overall"]["auc"]
    assert f"{auc['value']:.3f}" in page and f"[{auc['low']:.3f}, {auc['high']:.3f}]" in page
    assert "scored 101 / 101 clips, 1 of them undecided; 25 real and 75 fake from 25 groups of people" in page
    assert "25 + 25 (25)" in page
    for category in ("RVFA", "FVRA", "FVFA"):
        interval = one.summary["categories"][category]["auc"]
        assert f"category {category}" in page and f"[{interval['low']:.3f}, {interval['high']:.3f}]" in page
    assert "<h1>A &amp; B</h1>" in page and "no&lt;face&gt;" in page and "<face>" not in page
    assert "c0ffee" in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert not re.search(r"<script|<link|<img|@import|url\(http", page), "one file that needs no network"


def test_worst_mistakes_are_sorted_by_confidence(result):
    one = result(skill=0.5)
    wrong = sorted(
        (row for row in one.rows if row.decided and row.predicted != row.is_fake),
        key=lambda row: -abs(row.fake_probability - 0.5),
    )
    section = re.search(r"Worst mistakes.*?</table>", render_page([one], title="x"), re.S).group()
    assert re.findall(r"<code>(p\d\d_\w+)</code>", section) == [row.key for row in wrong[:15]]
    assert f"{len(wrong)} clips are on the wrong side" in section


def test_hazards_notes_and_missing_clips_are_shown(result):
    one = result(missing=2)
    one.summary["hazards"].append("Leak: somebody")
    page = render_page([one], title="x")
    assert "2 clips are missing" in page and "Leak: somebody" in page
    assert "1 of 101 clips are undecided (1 of them fake)" in page


@pytest.mark.slow
def test_several_detectors_share_the_curves(result):
    page = render_page([result(), result("coin", skill=0.0)], title="x")
    assert page.count("<svg") == 4
    assert re.search(r"<td>avff \(unit\)</td>.*<td>coin \(unit\)</td>", page, re.S)


@pytest.mark.slow
def test_training_curves_only_where_there_are_any(result):
    records = [{"kind": "train", "step": i, "loss": 1.0 / (i + 1)} for i in range(5)]
    records += [{"kind": "validation", "step": 4, "validation/auc": 0.7, "validation/threshold": None}]
    with_training = render_page([result(training=records)], title="x")
    assert with_training.count("<svg") == 5 and "<h2>Training</h2>" in with_training
    assert "<h2>Training</h2>" not in render_page([result()], title="x")
    assert plots.training_plot([{"kind": "train", "step": 0, "seconds": 1.0}]) is None
