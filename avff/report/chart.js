// One figure: curves, bands, marks, and what they say at a place. All follows from its data and `state` (page.js).
"use strict";

const NUM_COLOURS = 7;
const DASHES = ["", "6 3", "2 3", "9 3 2 3"];
const GLYPHS = { start: "▲", rewind: "◀", replan: "■", spike: "◆", skip: "✕" };
const FORMAT_X = { step: formatCount, samples: formatCount, time: formatTime };
const MARGIN = { top: 12, right: 16, bottom: 24 };
const FEW_POINTS = 40, OUTLIERS = 0.02, NEAR_PIXELS = 6, AWAY_PIXELS = 30;

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
      if (event.button !== 0) return;
      this.dragFrom = this.pixel(event);
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointercancel", () => { this.dragFrom = undefined; });
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
    this.select(this.dragFrom ?? here, here);
    showCursor(this, this.scaleX.inverse(here), event.clientX, event.clientY);
  }

  select(from, to) {
    this.selection.setAttribute("x", Math.min(from, to));
    this.selection.setAttribute("width", Math.abs(to - from));
  }

  drop(event) {
    if (this.dragFrom === undefined) return;
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
    const [width, height] = [this.svg.clientWidth, this.svg.clientHeight];
    if (!width) return; // not found by the search
    this.isStale = false;
    this.curves = this.spec.lines.filter((line) => !state.hidden.has(line.run)).map((line) => this.curve(line));
    const rangeX = state.zoom || fullRange;
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

  /** The values in sight; of what lies behind a smoothed curve all but the outermost, which may stick out. */
  rangeY([from, to]) {
    const ends = [];
    for (const { line, xs, ys, isSmooth } of this.curves) {
      const inSight = [...xs.keys()].filter((i) => xs[i] !== null && xs[i] >= from && xs[i] <= to);
      const add = (list, cut) => {
        const values = inSight.map((i) => list[i]).filter((y) => y !== null && (state.y !== "log" || y > 0));
        ends.push(...(extent(values, cut) || []));
      };
      add(ys, state.robust ? OUTLIERS : 0);
      if (isSmooth) add(line.y, 0.05);
      else if (this.hasBand(line) && !state.robust) [line.low, line.high].forEach((list) => add(list, 0));
    }
    const found = extent(ends);
    if (!found) return null;
    const [low, high] = found;
    if (state.y === "log") return low < high ? [low / 1.1, high * 1.1] : [low / 2, high * 2];
    const pad = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
    return [low - pad, high + pad];
  }

  /** The bands of many nodes would hide each other. */
  hasBand(line) {
    return line.low && !this.curves.some((other) => other.line !== line && other.line.run === line.run);
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
    const area = { x: left - 5, y: MARGIN.top - 4, width: Math.max(0, right - left + 10), height: bottom - MARGIN.top + 6 };
    const inside = element("g", { "clip-path": `url(#${clip})` }, ...this.marks(bottom), ...this.paths(scaleY));
    this.selection = element("rect", { class: "selection", y: MARGIN.top, height: bottom - MARGIN.top, width: 0 });
    this.cursor = element("line", { class: "cursor", y1: MARGIN.top, y2: bottom, visibility: "hidden" });
    return [element("clipPath", { id: clip }, element("rect", area)), inside, this.selection, this.cursor];
  }

  paths(scaleY) {
    const found = this.curves.map((curve) => this.pathsOf(curve, scaleY));
    return [...found.flatMap(({ below }) => below), ...found.flatMap(({ above }) => above)];
  }

  /** What one curve looks like; `below` goes behind all curves. */
  pathsOf({ line, xs, ys, isSmooth }, scaleY) {
    const place = (values) => values.map((v) => (v === null || (state.y === "log" && v <= 0) ? null : scaleY(v)));
    const columns = xs.map((x) => (x === null ? null : this.scaleX(x)));
    const pauses = state.x === "time" ? pausesOf(xs) : new Set();
    const style = { stroke: colour(line.run), "stroke-dasharray": dash(line.run) };
    const curve = (kind, values) => element("path", { class: kind, d: linePath(columns, place(values), pauses), style });
    const below = [], above = [curve("curve", ys)];
    if (this.hasBand(line)) {
      const area = bandPath(columns, place(line.low), place(line.high), pauses);
      below.push(element("path", { class: "band", d: area, style: { fill: colour(line.run) } }));
    } else if (isSmooth && !line.host) below.push(curve("curve raw", line.y));
    if (xs.length <= FEW_POINTS) above.push(element("path", { class: "dots", d: dotPath(columns, place(ys)), style: { stroke: colour(line.run) } }));
    for (const i of line.bad || []) {
      if (columns[i] !== null) above.push(element("text", { class: "glyph", x: columns[i], y: MARGIN.top + 5, style: { color: colour(line.run) } }, "✕"));
    }
    return { below, above };
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
