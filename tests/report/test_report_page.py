"""The page holds everything it needs, and nothing in it can break out of its place."""

import base64
import json
import math
import re
from html.parser import HTMLParser

import pytest
from made_runs import start_line, train_line, validation_line, write_run

from avff.errors import ConfigError
from avff.report.page import POLICY, write_report


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text of scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def written(tmp_path, *paths) -> str:
    return write_report(paths, tmp_path / "out" / "report.html").path.read_text()


def data_of(page: str) -> dict:
    """The curves of a page; JSON as browsers read it, without NaN."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is no JSON")

    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(text, parse_constant=refuse)


def line_of(page: str, name: str) -> dict:
    charts = [chart for group in data_of(page)["groups"] for chart in group["charts"]]
    [line] = next(chart for chart in charts if chart["name"] == name)["lines"]
    return line


def test_the_page_asks_no_network_for_anything(tmp_path):
    run = write_run(tmp_path / "a", [train_line(1)])
    (run / "panels").mkdir()
    (run / "panels" / "step-1.png").write_bytes(b"picture")
    page = written(tmp_path, run)
    tags = Tags(page).tags
    addresses = [
        value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href", "srcset")
    ]
    assert len(addresses) == 1
    assert addresses[0].startswith("data:image/png;base64,")
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}) in tags
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|\bimport\b", page)


def test_only_the_newest_panel_is_in_the_page(tmp_path):
    run = write_run(tmp_path / "a", [train_line(1)])
    (run / "panels").mkdir()
    for step in (9, 10):
        (run / "panels" / f"step-{step}.png").write_bytes(f"picture {step}".encode())
    page = written(tmp_path, run)
    assert base64.b64encode(b"picture 10").decode() in page
    assert base64.b64encode(b"picture 9").decode() not in page
    assert "a, step 10" in page


def test_names_cannot_become_markup(tmp_path):
    nasty = "<b>&amp;$title"
    run = write_run(tmp_path / nasty, [train_line(1, **{"</script><i>": 1.0})], starts=[start_line(0, 0)] * 2)
    page = written(tmp_path, run)
    assert "<i>" not in page.replace('<i class="swatch"', "")
    assert f"<h1>{nasty}</h1>" not in page
    assert "<h1>&lt;b&gt;&amp;amp;$title</h1>" in page
    assert data_of(page)["runs"][0]["label"] == nasty
    assert line_of(page, "</script><i>")["y"] == [1]


def test_numbers_arrive_in_the_page(tmp_path):
    metrics = [
        train_line(1, loss=1 / 3),
        train_line(2, loss=math.nan),
        train_line(3, loss=None),
        train_line(4, loss=-1e9),
    ]
    page = written(tmp_path, write_run(tmp_path / "a", metrics))
    line = line_of(page, "loss")
    assert line["y"] == [0.333333, None, None, -1e9]
    assert line["bad"] == [1]
    assert "low" not in line
    assert data_of(page)["axes"][line["axes"]] == {
        "step": [1, 2, 3, 4],
        "samples": [64, 128, 192, 256],
        "time": [0, 1, 2, 3],
    }


def test_a_long_run_makes_a_short_page(tmp_path):
    metrics = [train_line(step, loss=99.0 if step == 7777 else 1.0) for step in range(20_000)]
    page = written(tmp_path, write_run(tmp_path / "a", metrics))
    line = line_of(page, "loss")
    assert len(line["y"]) == 1500
    assert max(line["high"]) == 99
    assert len(page) < 200_000


def test_a_run_that_was_only_validated_has_a_page(tmp_path):
    page = written(tmp_path, write_run(tmp_path / "a", [validation_line(15, **{"validation/auc": 0.5})]))
    line = line_of(page, "validation/auc")
    assert data_of(page)["axes"][line["axes"]] == {"step": [15], "samples": [960], "time": [None]}


def test_marks_stand_on_every_axis(tmp_path):
    starts = [start_line(0, 0), start_line(1, 20, {"reason": "stopped", "code": 75, "step": 20})]
    decisions = [{"kind": "rewound", "from_step": 30, "spike_step": 35, "loss": 9.0}]
    metrics = [train_line(10), train_line(20), train_line(40)]
    page = written(tmp_path, write_run(tmp_path / "a", metrics, starts=starts, decisions=decisions))
    start, rewind = data_of(page)["runs"][0]["marks"]
    assert (start["step"], start["samples"], start["time"]) == (20, 1280, 1000)
    assert (rewind["step"], rewind["samples"], rewind["time"]) == (30, 1920, pytest.approx(60))


def test_a_run_left_out_is_said(tmp_path):
    page = written(tmp_path, write_run(tmp_path / "a", [train_line(1)]), write_run(tmp_path / "b", []))
    assert f"{tmp_path / 'b'}: no line in metrics.jsonl yet" in page


def test_a_folder_is_no_page(tmp_path):
    run = write_run(tmp_path / "a", [train_line(1)])
    with pytest.raises(ConfigError, match=r"name the page in it: .*report\.html"):
        write_report([run], tmp_path)
