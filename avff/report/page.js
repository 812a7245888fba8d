// The page: controls, legend, one Chart per figure. What is drawn follows from DATA and `state` alone.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const NUM_COLOURS = 7;
const DASHES = ["", "6 3", "2 3", "9 3 2 3"];
const GLYPHS = { start: "▲", rewind: "◀", replan: "■", spike: "◆", skip: "✕" };
const FORMAT_X = { step: formatCount, samples: formatCount, time: formatTime };
const EXACT_X = {
  step: (x) => "step " + x.toLocaleString("en"),
  samples: (x) => x.toLocaleString("en") + " clips",
  time: (x) => formatTime(x) + " after the first start",
};
const TITLE_X = { step: "step", samples: "clips seen", time: "time since the run's first start" };
const MARGIN = { top: 12, right: 16, bottom: 24 };
const FEW_POINTS = 40, MAX_ROWS = 16, NEAR_PIXELS = 6, AWAY_PIXELS = 30;

const byId = (id) => document.getElementById(id);
const colour = (run) => `var(--run${run % NUM_COLOURS})`;
const dash = (run) => DASHES[Math.floor(run / NUM_COLOURS) % DASHES.length];

function element(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "path", "line", "text", "rect", "g", "clipPath"].includes(tag);
  const made = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") Object.entries(value).forEach(([key, text]) => made.style.setProperty(key, text));
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// ---------------------------------------------------------------------------------------------- state

const state = {
  x: "step", y: "linear", smooth: DATA.smoothing, robust: false, hidden: new Set(), zoom: null, find: "",
  theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
};

/** The address keeps the view, so that a page that was written anew shows the same after a reload. */
function readAddress() {
  const found = new URLSearchParams(location.hash.slice(1));
  if (found.get("x") in FORMAT_X) state.x = found.get("x");
  if (found.get("y") === "log") state.y = "log";
  if (found.has("smooth")) state.smooth = Math.min(0.99, Math.max(0, Number(found.get("smooth")) || 0));
  state.robust = found.has("robust");
  const hidden = found.getAll("hide");
  DATA.runs.forEach((run, i) => { if (hidden.includes(run.label)) state.hidden.add(i); });
  if (["light", "dark"].includes(found.get("theme"))) state.theme = found.get("theme");
}

function writeAddress() {
  const view = new URLSearchParams({ x: state.x, y: state.y, smooth: state.smooth, theme: state.theme });
  if (state.robust) view.set("robust", "1");
  state.hidden.forEach((run) => view.append("hide", DATA.runs[run].label));
  history.replaceState(null, "", "#" + view);
}

function change(values) {
  if ("x" in values) values.zoom = null;
  Object.assign(state, values);
  writeAddress();
  showState();
}

// ---------------------------------------------------------------------------------------------- one chart

class Chart {
  constructor(spec) {
    this.spec = spec;
    this.isOnScreen = false;
    this.svg = element("svg", { role: "img", tabindex: "0", "aria-label": spec.name });
    const enlarge = element("button", { type: "button", title: "larger or smaller", "aria-label": "enlarge " + spec.name }, "⤢");
    const about = element("span", { title: spec.about }, spec.about);
    this.figure = element("figure", { class: "chart" }, element("figcaption", {}, element("b", {}, spec.name), about, enlarge), this.svg);
    this.figure.chart = this;
    enlarge.addEventListener("click", () => { this.figure.classList.toggle("wide"); this.update(); });
    this.listen();
  }

  listen() {
    this.svg.addEventListener("pointerdown", (event) => {
      this.dragFrom = this.pixel(event);
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointermove", (event) => this.move(event));
    this.svg.addEventListener("pointerup", (event) => this.drop(event));
    this.svg.addEventListener("pointerleave", hideCursor);
    this.svg.addEventListener("dblclick", () => change({ zoom: null }));
    this.svg.addEventListener("keydown", (event) => this.walk(event));
    this.svg.addEventListener("blur", hideCursor);
  }

  pixel(event) {
    return event.clientX - this.svg.getBoundingClientRect().left;
  }

  move(event) {
    if (!this.scaleX) return;
    const here = this.pixel(event);
    if (this.dragFrom !== undefined && Math.abs(here - this.dragFrom) > NEAR_PIXELS) this.select(this.dragFrom, here);
    showCursor(this, this.scaleX.inverse(here), event.clientX, event.clientY);
  }

  select(from, to) {
    this.selection.setAttribute("x", Math.min(from, to));
    this.selection.setAttribute("width", Math.abs(to - from));
  }

  drop(event) {
    const ends = [this.dragFrom, this.pixel(event)].sort((a, b) => a - b);
    this.dragFrom = undefined;
    if (this.scaleX && ends[1] - ends[0] > NEAR_PIXELS) change({ zoom: ends.map(this.scaleX.inverse) });
  }

  /** Arrow keys move the cursor from point to point of the first curve. */
  walk(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const curve = this.curves && this.curves[0];
    if (!by || !curve) return;
    event.preventDefault();
    const last = curve.xs.length - 1;
    this.point = Math.min(last, Math.max(0, (this.point ?? (by > 0 ? -1 : last + 1)) + by));
    const box = this.svg.getBoundingClientRect();
    const x = curve.xs[this.point];
    showCursor(this, x, box.left + this.scaleX(x), box.top + box.height / 2);
  }

  /** Draws if somebody can see it; else when it is scrolled to. */
  update() {
    this.isStale = true;
    if (this.isOnScreen) this.draw();
  }

  draw() {
    this.isStale = false;
    const [width, height] = [this.svg.clientWidth, this.svg.clientHeight];
    this.curves = this.spec.lines.filter((line) => !state.hidden.has(line.run)).map((line) => this.curve(line));
    const rangeX = state.zoom || fullRange();
    const rangeY = rangeX && this.rangeY(rangeX);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.scaleX = null;
    if (!rangeY) {
      const why = this.curves.length ? (state.y === "log" ? "no value above 0 here" : "no value here") : "no run is shown";
      this.svg.replaceChildren(element("text", { class: "empty", x: width / 2, y: height / 2 }, why));
      return;
    }
    const scaleY = makeScale(rangeY, [height - MARGIN.bottom, MARGIN.top], { log: state.y === "log" });
    const labels = scaleY.ticks(Math.max(3, height / 36)).map((tick) => [tick, formatNumber(tick)]);
    const left = 12 + 6.4 * Math.max(...labels.map(([, label]) => label.length));
    const options = state.x === "time" ? { step: timeStep } : {};
    this.scaleX = makeScale(rangeX, [left, width - MARGIN.right], options);
    this.svg.replaceChildren(...this.frame(labels, scaleY, left, width, height), ...this.shapes(scaleY, left, width, height));
  }

  curve(line) {
    const weight = this.spec.is_noisy ? state.smooth : 0;
    if (!line.cache || line.cache.weight !== weight) line.cache = { weight, ys: smoothed(line.y, weight) };
    return { line, xs: DATA.axes[line.axes][state.x], ys: line.cache.ys, isSmooth: weight > 0 };
  }

  /** The values in sight; raw ones and bands stick out where a smoothed curve or `ignore outliers` asks for closeness. */
  rangeY([from, to]) {
    const values = [];
    for (const { line, xs, ys, isSmooth } of this.curves) {
      const shown = isSmooth || state.robust || !line.low ? [ys] : [ys, line.low, line.high];
      for (let i = 0; i < xs.length; i++) {
        if (xs[i] === null || xs[i] < from || xs[i] > to) continue;
        for (const list of shown) if (list[i] !== null && (state.y !== "log" || list[i] > 0)) values.push(list[i]);
      }
    }
    const found = extent(values, state.robust ? 0.02 : 0);
    if (!found) return null;
    const [low, high] = found;
    if (state.y === "log") return low < high ? [low / 1.1, high * 1.1] : [low / 2, high * 2];
    const pad = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
    return [low - pad, high + pad];
  }

  frame(labels, scaleY, left, width, height) {
    const bottom = height - MARGIN.bottom, right = width - MARGIN.right;
    const made = [];
    for (const [tick, label] of labels) {
      const y = scaleY(tick);
      made.push(element("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
      made.push(element("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, label));
    }
    for (const tick of this.scaleX.ticks(Math.max(2, (right - left) / 60))) {
      const x = this.scaleX(tick);
      made.push(element("line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
      made.push(element("text", { x, y: height - 7, "text-anchor": "middle" }, FORMAT_X[state.x](tick)));
    }
    made.push(element("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    return made;
  }

  shapes(scaleY, left, width, height) {
    const bottom = height - MARGIN.bottom, right = width - MARGIN.right;
    const clip = "clip-" + this.spec.id;
    const area = { x: left, y: MARGIN.top - 4, width: Math.max(0, right - left), height: bottom - MARGIN.top + 6 };
    const inside = element("g", { "clip-path": `url(#${clip})` }, ...this.marks(bottom), ...this.paths(scaleY));
    this.selection = element("rect", { class: "selection", y: MARGIN.top, height: bottom - MARGIN.top, width: 0 });
    this.cursor = element("line", { class: "cursor", y1: MARGIN.top, y2: bottom, visibility: "hidden" });
    return [element("clipPath", { id: clip }, element("rect", area)), inside, this.selection, this.cursor];
  }

  paths(scaleY) {
    const place = (values) => values.map((v) => (v === null || (state.y === "log" && v <= 0) ? null : scaleY(v)));
    const below = [], above = [];
    for (const { line, xs, ys, isSmooth } of this.curves) {
      const columns = xs.map((x) => (x === null ? null : this.scaleX(x)));
      const style = { stroke: colour(line.run), fill: colour(line.run) };
      if (line.low) below.push(element("path", { class: "band", d: bandPath(columns, place(line.low), place(line.high)), style }));
      const drawn = { stroke: colour(line.run), "stroke-dasharray": dash(line.run) };
      if (isSmooth) below.push(element("path", { class: "curve raw", d: linePath(columns, place(line.y)), style: drawn }));
      above.push(element("path", { class: "curve", d: linePath(columns, place(ys)), style: drawn }));
      if (xs.length <= FEW_POINTS) above.push(element("path", { class: "dots", d: dotPath(columns, place(ys)), style: { stroke: colour(line.run) } }));
      for (const i of line.bad || []) {
        if (columns[i] !== null) above.push(element("text", { class: "glyph", x: columns[i], y: MARGIN.top + 5, style: { color: colour(line.run) } }, "✕"));
      }
    }
    return [...below, ...above];
  }

  marks(bottom) {
    const made = [];
    const runs = new Set(this.curves.map(({ line }) => line.run));
    for (const run of runs) {
      for (const mark of DATA.runs[run].marks) {
        if (mark[state.x] === null) continue;
        const x = this.scaleX(mark[state.x]);
        made.push(element("line", { class: "mark", x1: x, x2: x, y1: MARGIN.top, y2: bottom, style: { stroke: colour(run) } }));
        made.push(element("text", { class: "glyph", x, y: bottom, style: { color: colour(run) } }, GLYPHS[mark.kind]));
      }
    }
    return made;
  }

  /** Rows of the read-out at x, and the place of the nearest point. */
  readAt(x) {
    const rows = [];
    for (const { line, xs, ys, isSmooth } of this.curves) {
      const i = nearest(xs, ys, x);
      if (i < 0 || Math.abs(this.scaleX(xs[i]) - this.scaleX(x)) > AWAY_PIXELS) continue;
      rows.push({ line, x: xs[i], y: ys[i], raw: isSmooth ? line.y[i] : null, low: line.low?.[i], high: line.high?.[i] });
    }
    const place = rows.map((row) => row.x).sort((a, b) => Math.abs(a - x) - Math.abs(b - x))[0];
    return { rows: rows.sort((a, b) => b.y - a.y), place };
  }

  /** What happened near x, in words. */
  eventsAt(x) {
    const isNear = (other) => other !== null && Math.abs(this.scaleX(other) - this.scaleX(x)) <= NEAR_PIXELS;
    const found = [];
    for (const { line, xs } of this.curves) {
      if (xs.length <= FEW_POINTS) above.push(element("path", { class: "dots", d: dotPath(columns, place(ys)), style: { stroke: colour(line.run) } }));
      for (const i of line.bad || []) if (isNear(xs[i])) found.push(`✕ ${DATA.runs[line.run].label}: not finite`);
    }
    for (const run of new Set(this.curves.map(({ line }) => line.run))) {
      for (const mark of DATA.runs[run].marks) {
        if (isNear(mark[state.x])) found.push(`${GLYPHS[mark.kind]} ${DATA.runs[run].label}: ${mark.text}`);
      }
    }
    return [...new Set(found)];
  }
}

/** Least and greatest x of all runs that are shown: every chart has the same axis. */
function fullRange() {
  const ends = [];
  for (const chart of charts) {
    for (const line of chart.spec.lines) {
      if (!state.hidden.has(line.run)) ends.push(...DATA.axes[line.axes][state.x].filter((x) => x !== null));
    }
  }
  const found = extent(ends);
  return found && (found[0] < found[1] ? found : [found[0] - 1, found[1] + 1]);
}

// ---------------------------------------------------------------------------------------------- cursor, read-out

const readOut = document.body.appendChild(element("div", { id: "read-out", role: "status", hidden: "" }));

function showCursor(chart, x, pageX, pageY) {
  for (const other of charts) {
    if (!other.isOnScreen || !other.scaleX) continue;
    const column = other.scaleX(x);
    other.cursor.setAttribute("x1", column);
    other.cursor.setAttribute("x2", column);
    other.cursor.setAttribute("visibility", "visible");
  }
  const { rows, place } = chart.readAt(x);
  const events = chart.eventsAt(x).slice(0, 4).map((text) => element("p", {}, text));
  readOut.hidden = !rows.length && !events.length;
  const body = rows.slice(0, MAX_ROWS).map((row) => readOutRow(row, place));
  const more = rows.length > MAX_ROWS ? [element("p", {}, `and ${rows.length - MAX_ROWS} more`)] : [];
  const head = rows.length ? [element("b", {}, EXACT_X[state.x](place))] : [];
  readOut.replaceChildren(...head, element("table", {}, ...body), ...more, ...events);
  const [width, height] = [readOut.offsetWidth, readOut.offsetHeight];
  readOut.style.left = Math.max(4, pageX + 16 + width > innerWidth ? pageX - 16 - width : pageX + 16) + "px";
  readOut.style.top = Math.max(4, Math.min(pageY + 14, innerHeight - height - 6)) + "px";
}

function readOutRow(row, place) {
  const swatch = element("i", { class: "swatch", style: { "--colour": colour(row.line.run) } });
  const name = DATA.runs[row.line.run].label + (row.line.host ? ` on ${row.line.host}` : "");
  const notes = [];
  if (row.raw !== null) notes.push(`measured ${formatNumber(row.raw, 5)}`);
  if (row.low !== undefined && row.low !== null && row.low !== row.high) notes.push(`${formatNumber(row.low)} to ${formatNumber(row.high)}`);
  if (row.x !== place) notes.push("at " + EXACT_X[state.x](row.x));
  const cells = [element("td", {}, swatch, name), element("td", {}, element("b", {}, formatNumber(row.y, 5))), element("td", {}, notes.join(", "))];
  return element("tr", {}, ...cells);
}

function hideCursor() {
  readOut.hidden = true;
  for (const chart of charts) chart.cursor?.setAttribute("visibility", "hidden");
}

// ---------------------------------------------------------------------------------------------- the page

function addGroup(group) {
  const grid = element("div", { class: "charts" });
  const note = group.note ? [element("p", { class: "sub" }, group.note)] : [];
  byId("charts").append(element("section", {}, element("h2", {}, group.title), ...note, grid));
  return group.charts.map((spec) => {
    const chart = new Chart(spec);
    grid.append(chart.figure);
    return chart;
  });
}

function addToLegend(run, index) {
  const line = element("svg", {}, element("line", { x1: 1, x2: 21, y1: 5, y2: 5, "stroke-width": 3, "stroke-dasharray": dash(index), style: { stroke: colour(index) } }));
  const button = element("button", { type: "button", title: "click: show or hide; double-click: this one alone" }, line, run.label);
  button.addEventListener("click", () => {
    const hidden = new Set(state.hidden);
    if (!hidden.delete(index)) hidden.add(index);
    change({ hidden });
  });
  button.addEventListener("dblclick", () => change({ hidden: new Set([...DATA.runs.keys()].filter((other) => other !== index)) }));
  byId("legend").append(button);
}

/** Makes controls, legend and charts show `state`. */
function showState() {
  document.documentElement.dataset.theme = state.theme;
  byId("x").value = state.x;
  byId("y").value = state.y;
  byId("smooth").value = state.smooth;
  byId("smooth-value").value = Number(state.smooth).toFixed(2);
  byId("robust").checked = state.robust;
  byId("unzoom").hidden = !state.zoom;
  [...byId("legend").children].forEach((button, i) => button.setAttribute("aria-pressed", String(!state.hidden.has(i))));
  for (const chart of charts) {
    chart.figure.hidden = !chart.spec.name.toLowerCase().includes(state.find.toLowerCase());
    chart.update();
  }
  for (const section of byId("charts").children) {
    const figures = [...section.querySelectorAll("figure")];
    section.hidden = figures.length > 0 && figures.every((figure) => figure.hidden);
  }
}

const charts = DATA.groups.flatMap(addGroup);
charts.forEach((chart, i) => { chart.spec.id = i; });
DATA.runs.forEach(addToLegend);
document.querySelectorAll(".swatch[data-run]").forEach((swatch) => swatch.style.setProperty("--colour", colour(swatch.dataset.run)));
byId("x").addEventListener("change", (event) => change({ x: event.target.value }));
byId("y").addEventListener("change", (event) => change({ y: event.target.value }));
byId("smooth").addEventListener("input", (event) => change({ smooth: Number(event.target.value) }));
byId("robust").addEventListener("change", (event) => change({ robust: event.target.checked }));
byId("find").addEventListener("input", (event) => change({ find: event.target.value }));
byId("unzoom").addEventListener("click", () => change({ zoom: null }));
byId("theme").addEventListener("click", () => change({ theme: state.theme === "dark" ? "light" : "dark" }));

const onScreen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.chart.isOnScreen = isIntersecting;
    if (isIntersecting && target.chart.isStale) target.chart.draw();
  }
}, { rootMargin: "200px" });
const onResize = new ResizeObserver((entries) => entries.forEach(({ target }) => target.chart.update()));
readAddress();
showState();
for (const chart of charts) {
  onScreen.observe(chart.figure);
  onResize.observe(chart.figure);
}
addEventListener("beforeprint", () => charts.forEach((chart) => chart.draw()));
