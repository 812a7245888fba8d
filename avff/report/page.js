// The page: what is shown (`state`), the controls that change it, the cursor over all charts.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const EXACT_X = {
  step: (x) => "step " + x.toLocaleString("en"),
  samples: (x) => x.toLocaleString("en") + " clips",
  time: (x) => formatTime(x) + " after the first start",
};
const MAX_ROWS = 16;

const byId = (id) => document.getElementById(id);

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
  const isLong = rows.length > MAX_ROWS; // then the highest and the lowest: the odd one out is among them
  const shown = isLong ? [...rows.slice(0, MAX_ROWS / 2), ...rows.slice(-MAX_ROWS / 2)] : rows;
  const body = shown.map((row) => readOutRow(chart, row, place));
  const more = isLong ? [element("p", {}, `and ${rows.length - MAX_ROWS} between them`)] : [];
  const head = rows.length ? [element("b", {}, EXACT_X[state.x](place))] : [];
  readOut.replaceChildren(...head, element("table", {}, ...body), ...more, ...events);
  const [width, height] = [readOut.offsetWidth, readOut.offsetHeight];
  readOut.style.left = Math.max(4, pageX + 16 + width > innerWidth ? pageX - 16 - width : pageX + 16) + "px";
  readOut.style.top = Math.max(4, Math.min(pageY + 14, innerHeight - height - 6)) + "px";
}

function readOutRow(chart, row, place) {
  const swatch = element("i", { class: "swatch", style: { "--colour": colour(row.line.run) } });
  const name = DATA.runs[row.line.run].label + (row.line.host ? ` on ${row.line.host}` : "");
  const notes = [];
  if (row.raw !== null) notes.push(`measured ${formatNumber(row.raw, 5)}`);
  if (row.low !== undefined && row.low !== null && row.low !== row.high) notes.push(`${formatNumber(row.low)} to ${formatNumber(row.high)}`);
  if (Math.abs(chart.scaleX(row.x) - chart.scaleX(place)) > 2) notes.push("at " + EXACT_X[state.x](row.x));
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

/** Least and greatest x of all runs that are shown; null for none. Every chart has the same axis. */
function rangeOfShown() {
  const lines = charts.flatMap((chart) => chart.spec.lines).filter((line) => !state.hidden.has(line.run));
  const axes = [...new Set(lines.map((line) => line.axes))];
  const found = extent(axes.flatMap((number) => DATA.axes[number][state.x].filter((x) => x !== null)));
  return found && (found[0] < found[1] ? found : [found[0] - 1, found[1] + 1]);
}

/** Makes controls, legend and charts show `state`. */
function showState() {
  fullRange = rangeOfShown();
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

let fullRange = null;
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
