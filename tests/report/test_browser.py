"""The page in a real browser: it draws what it was given, obeys its controls, and says what is under the cursor.

Needs Chromium (`apt-get install chromium`); AVFF_REQUIRE_BROWSER=1 turns the skip into a failure.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made_runs import BATCH, start_line, train_line, validation_line, write_lines, write_run

from avff.report.page import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDE_AND_TALL = "--window-size=1400,5000"
"""All charts are in sight, and so drawn."""
WATCH = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(event.message));
Element.prototype.setPointerCapture = () => {};  // there is no pointer to capture for events that a script makes
</script>"""
ASK = """<script>(function whenDrawn() {
  if (charts.some((chart) => chart.isStale)) return setTimeout(whenDrawn, 100);
  const chartOf = (name) => charts.find((chart) => chart.spec.name === name);
  const count = (name, kind) => chartOf(name).svg.querySelectorAll(kind).length;
  const set = (id, value, event) => { byId(id).value = value; byId(id).dispatchEvent(new Event(event)); };
  const point = (name, kind, x) => {
    const svg = chartOf(name).svg, box = svg.getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent(kind, { clientX: box.left + x, clientY: box.top + 50, bubbles: true }));
  };
  const labels = (name) => [...chartOf(name).svg.querySelectorAll("text")].map((text) => text.textContent);
  let values = null;
  try { values = (() => { %s })(); } catch (error) { problems.push(String(error)); }
  const answer = { values, problems };
  const pre = document.createElement("pre");
  pre.id = "answer";
  pre.textContent = JSON.stringify(answer);
  document.body.append(pre);
})()</script>"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        message = f"none of {', '.join(NAMES)} is installed: the page was not opened"
        pytest.fail(message) if os.environ.get("AVFF_REQUIRE_BROWSER") else pytest.skip(message)
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Two runs: `a` was started twice and met a NaN, `b` is shorter and has a node's load."""
    folder = tmp_path_factory.mktemp("page")
    starts = [start_line(0, 0), start_line(1, 50, {"reason": "stopped by SIGUSR2", "code": 75, "step": 50})]
    a = [
        train_line(step, loss=float("nan") if step == 30 else step / 10, adversarial=-1.0)
        for step in range(10, 101, 10)
    ]
    a += [validation_line(100, **{"validation/auc": 0.5})]
    b = [train_line(step, loss=20 - step / 10) for step in range(10, 61, 10)]
    paths = [write_run(folder / "a", a, starts=starts), write_run(folder / "b", b)]
    write_lines(
        paths[1] / "system" / "n1.jsonl", [{"time_unix": b[0]["time_unix"] + t, "cpu_percent": t} for t in (1, 2)]
    )
    return write_report(paths, folder / "report.html").path


def ask(browser: str, page: Path, script: str, address: str = "") -> Any:
    """Opens a page, runs a script in it, returns what the script returns; no error may have happened."""
    opened = page.with_name("opened.html")
    content = page.read_text().replace("<body>", "<body>" + WATCH).replace("</body>", ASK % script + "</body>")
    opened.write_text(content)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={page.parent / 'profile'}",
        WIDE_AND_TALL,
    ]
    command = [browser, *options, "--virtual-time-budget=60000", "--dump-dom", f"file://{opened}{address}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    answer = json.loads(html.unescape(found[1]))
    assert answer["problems"] == []
    return answer["values"]


def test_every_chart_is_drawn_and_a_point_stands_where_its_value_is(browser, page):
    values = ask(
        browser,
        page,
        """
        const chart = chartOf("loss");
        const path = chart.svg.querySelectorAll("path.curve")[0].getAttribute("d");
        const ys = [...chart.svg.querySelectorAll("text[text-anchor=end]")].map((t) => [Number(t.textContent), Number(t.getAttribute("y")) - 4]);
        return {
          drawn: charts.map((c) => [c.spec.name, c.svg.querySelectorAll("path.curve").length]),
          path, ys, rangeY: chart.rangeY([10, 100]), firstX: chart.scaleX(10), lastX: chart.scaleX(100),
          glyphs: [...chart.svg.querySelectorAll(".glyph")].map((g) => g.textContent),
        };
        """,
    )
    assert dict(values["drawn"]) == {"loss": 2, "adversarial": 1, "validation/auc": 1, "system/cpu_percent": 1}
    assert values["rangeY"] == pytest.approx([1 - 0.06 * 18, 19 + 0.06 * 18]), "the values of both runs and some air"
    # Loss rises linearly from 1 to 10, without a value at step 30: two strokes.
    strokes = [re.findall(r"([\d.]+) ([\d.]+)", stroke) for stroke in values["path"].split("M")[1:]]
    assert [len(stroke) for stroke in strokes] == [2, 7]
    points = [(float(x), float(y)) for stroke in strokes for x, y in stroke]
    assert points[0][0] == pytest.approx(values["firstX"], abs=0.1)
    assert points[-1][0] == pytest.approx(values["lastX"], abs=0.1)
    (low, low_y), (high, high_y) = values["ys"][0], values["ys"][-1]
    loss = [low + (y - low_y) / (high_y - low_y) * (high - low) for _, y in points]
    assert loss == pytest.approx([1, 2, 4, 5, 6, 7, 8, 9, 10], abs=0.02)
    assert sorted(values["glyphs"]) == ["▲", "✕"]


def test_the_cursor_reads_out_values_and_what_happened(browser, page):
    values = ask(
        browser,
        page,
        """
        const chart = chartOf("loss"), read = () => byId("read-out").innerText;
        const at = (step) => { point("loss", "pointermove", chart.scaleX(step)); return read(); };
        const found = { fifty: at(50), thirty: at(31), ninety: at(90) };
        found.others = charts.filter((c) => c.cursor.getAttribute("visibility") === "visible").length;
        point("loss", "pointerleave", 0);
        found.left = byId("read-out").hidden;
        chart.svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
        found.first = read();
        return found;
        """,
    )
    assert re.split(r"\s*[\n\t]\s*", values["fifty"].strip())[:5] == ["step 50", "b", "15", "a", "5"]
    assert "▲ a: start 2 on n1, at step 50; before it: stopped by SIGUSR2 (code 75, step 50)" in values["fifty"]
    assert "✕ a: not finite" in values["thirty"]
    assert "b" not in values["ninety"].split(), "run b ended at step 60"
    assert values["others"] == 4
    assert values["left"] is True
    assert values["first"].startswith("step 10")


def test_axes_scales_runs_and_search_follow_the_controls(browser, page):
    values = ask(
        browser,
        page,
        f"""
        const found = {{}};
        set("x", "samples", "change");
        found.samples = chartOf("loss").scaleX(100 * {BATCH}) - chartOf("loss").scaleX(10 * {BATCH});
        set("x", "time", "change");
        found.time = labels("loss");
        set("y", "log", "change");
        found.log = labels("adversarial");
        set("y", "linear", "change");
        byId("legend").children[0].click();
        found.without = [count("loss", "path.curve"), labels("adversarial"), byId("legend").children[0].getAttribute("aria-pressed")];
        byId("legend").children[0].dispatchEvent(new Event("dblclick"));
        found.alone = [...state.hidden];
        set("find", "AUC", "input");
        found.searched = charts.filter((c) => !c.figure.hidden).map((c) => c.spec.name);
        found.headings = [...document.querySelectorAll("#charts section")].filter((s) => !s.hidden).length;
        byId("theme").click();
        found.theme = [getComputedStyle(document.body).backgroundColor, location.hash];
        return found;
        """,
    )
    assert values["samples"] > 200
    assert any(label.endswith((" s", " min")) for label in values["time"])
    assert values["log"] == ["no value above 0 here"]
    assert values["without"] == [1, ["no run is shown"], "false"]
    assert values["alone"] == [1]
    assert values["searched"] == ["validation/auc"]
    assert values["headings"] == 1
    assert values["theme"] == ["rgb(19, 21, 23)", "#x=time&y=linear&smooth=0&theme=dark&hide=b"]


def test_dragging_zooms_every_chart_and_a_double_click_shows_all(browser, page):
    values = ask(
        browser,
        page,
        """
        const chart = chartOf("loss");
        const [from, to] = [chart.scaleX(20), chart.scaleX(40)];
        point("loss", "pointerdown", to);
        point("loss", "pointermove", from);
        const shaded = Number(chart.selection.getAttribute("width"));
        point("loss", "pointerup", from);
        const zoomed = [state.zoom, chartOf("adversarial").scaleX.inverse(60) > 19, byId("unzoom").hidden];
        chart.svg.dispatchEvent(new MouseEvent("dblclick"));
        const all = state.zoom;
        change({ zoom: [20, 40] });
        set("x", "time", "change");
        return { shaded, width: to - from, zoomed, all, onOtherAxis: state.zoom };
        """,
    )
    assert values["shaded"] == pytest.approx(values["width"])
    assert values["zoomed"] == [pytest.approx([20, 40]), True, False]
    assert values["all"] is None
    assert values["onOtherAxis"] is None, "steps are no seconds"


def test_smoothing_is_an_average_without_pull_and_leaves_validation_alone(browser, page):
    values = ask(
        browser,
        page,
        """
        const before = smoothed([4, null, 4, 8], 0.5);
        set("smooth", "0.9", "input");
        return { before, loss: count("loss", "path.raw"), auc: count("validation/auc", "path.raw"), said: byId("smooth-value").value };
        """,
    )
    assert values["before"] == [4, None, 4, pytest.approx((1 * 4 + 2 * 4 + 4 * 8) / (1 + 2 + 4))]
    assert (values["loss"], values["auc"], values["said"]) == (2, 0, "0.90")


def test_a_reload_keeps_the_view(browser, page):
    view = "[state.x, state.y, state.smooth, [...state.hidden], state.robust, state.theme]"
    values = ask(browser, page, f"return {view};", "#x=samples&y=log&smooth=0.5&hide=b&robust=1&theme=dark")
    assert values == ["samples", "log", 0.5, [1], True, "dark"]
    assert ask(browser, page, f"return {view};", "#x=nonsense&smooth=7&hide=c") == [
        "step",
        "linear",
        0.99,
        [],
        False,
        "light",
    ]


NUMBERS = {
    "makeScale([0, 10], [0, 100]).ticks(5)": [0, 2, 4, 6, 8, 10],
    "makeScale([1, 10000], [0, 100], {log: true}).ticks(5)": [1, 10, 100, 1000, 10000],
    "makeScale([0, 7200], [0, 100], {step: timeStep}).ticks(4)": [0, 1800, 3600, 5400, 7200],
    "[0, 0.00012, 123456, 0.5, -2.25].map((x) => formatNumber(x))": ["0", "1.2e-4", "1.235e5", "0.5", "-2.25"],
    "[950, 1000, 12345, 2500000].map(formatCount)": ["950", "1k", "12.35k", "2.5M"],
    "[0, 59, 3660, 90000].map(formatTime)": ["0 s", "59 s", "1 h 1 min", "1 d 1 h"],
    "[...pausesOf([0, 1, 2, 50, 51])]": [3],
    "linePath([0, 1, 2, 3], [1, 1, null, 1], new Set([1]))": "M0.0 1.0h0M1.0 1.0h0M3.0 1.0h0",
    "bandPath([0, 1, 2], [0, 0, null], [2, 3, null], new Set())": "M0.0 2.0L1.0 3.0L1.0 0.0L0.0 0.0Z",
    "bandPath([0, 1, 2, 3], [0, 0, 0, 0], [1, 1, 1, 1], new Set([2]))": "M0.0 1.0L1.0 1.0L1.0 0.0L0.0 0.0ZM2.0 1.0L3.0 1.0L3.0 0.0L2.0 0.0Z",
    "[nearest([0, 5, 9], [1, null, 1], 5), nearest([1], [null], 0)]": [2, -1],
    "extent([...Array(100).keys()], 0.05)": [5, 94],
}


def test_numbers_become_ticks_labels_and_paths(browser, page):
    answers = ", ".join(f"{json.dumps(expression)}: {expression}" for expression in NUMBERS)
    assert ask(browser, page, f"return {{ {answers} }};") == NUMBERS
