// Numbers to pixels: smoothing, ticks, paths. Knows nothing of the page.
"use strict";

/** Exponential moving average without the pull towards 0 at its start; gaps stay gaps. */
function smoothed(values, weight) {
  if (!weight) return values;
  let sum = 0, norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = sum * weight + value * (1 - weight);
    norm = norm * weight + (1 - weight);
    return sum / norm;
  });
}

/** Returns [least, greatest] of values, null for none; `cut` leaves out that share at either end. */
function extent(values, cut = 0) {
  if (cut && values.length > 20) {
    const sorted = Float64Array.from(values).sort();
    const skip = Math.floor(sorted.length * cut);
    return [sorted[skip], sorted[sorted.length - 1 - skip]];
  }
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

/** A scale is a function from numbers to pixels with `inverse` and `ticks`. */
function makeScale([low, high], [start, stop], { log = false, step = niceStep } = {}) {
  const bend = log ? Math.log10 : (x) => x;
  const unbend = log ? (x) => 10 ** x : (x) => x;
  const [a, b] = [bend(low), bend(high)];
  const scale = (x) => start + ((bend(x) - a) / (b - a || 1)) * (stop - start);
  scale.inverse = (pixel) => unbend(a + ((pixel - start) / (stop - start)) * (b - a));
  scale.ticks = (count) => (log ? logTicks(low, high, count) : linearTicks(low, high, step((high - low) / count)));
  return scale;
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
}

const PAUSE = 10; // times the usual distance
const TIME_STEPS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

function timeStep(rough) {
  return TIME_STEPS.find((step) => step >= rough) || 86400 * niceStep(rough / 86400);
}

function linearTicks(low, high, step) {
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high, count) {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const factors = to - from > count / 2 ? [1] : to - from > 1 ? [1, 3] : [1, 2, 3, 5, 7];
  const every = Math.max(1, Math.ceil((to - from) / count));
  const ticks = [];
  for (let power = from; power <= to; power += every) {
    for (const factor of factors) ticks.push(factor * 10 ** power);
  }
  const shown = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return shown.length > 1 ? shown : linearTicks(low, high, niceStep((high - low) / count));
}

function formatNumber(value, digits = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(Math.min(digits - 1, 3)).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(digits)));
}

function formatCount(value) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= 10 * size || (Math.abs(value) >= size && value % (size / 10) === 0)) return Number((value / size).toPrecision(4)) + unit;
  }
  return String(Math.round(value));
}

/** Seconds in the two largest units that say something. */
function formatTime(seconds) {
  const parts = [];
  let rest = Math.round(seconds);
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
    if (rest >= size) parts.push(Math.floor(rest / size) + " " + unit);
    rest %= size;
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}

/** Indices before which a curve rests far longer than between its other points: nobody measured there. */
function pausesOf(xs) {
  const lengths = xs.map((x, i) => (i ? x - xs[i - 1] : 0));
  const usual = Float64Array.from(lengths).sort()[lengths.length >> 1];
  return new Set([...lengths.keys()].filter((i) => usual > 0 && lengths[i] > PAUSE * usual));
}

/** SVG path through points; null and pauses lift the pen, and a point alone between two gaps is a dot. */
function linePath(xs, ys, pauses) {
  let path = "", isDown = false;
  for (let i = 0; i < xs.length; i++) {
    if (xs[i] === null || ys[i] === null) { isDown = false; continue; }
    const here = xs[i].toFixed(1) + " " + ys[i].toFixed(1);
    path += isDown && !pauses.has(i) ? "L" + here : "M" + here + "h0";
    isDown = true;
  }
  return path;
}

/** SVG path whose round ends are dots. */
function dotPath(xs, ys) {
  const known = [...xs.keys()].filter((i) => xs[i] !== null && ys[i] !== null);
  return known.map((i) => `M${xs[i].toFixed(1)} ${ys[i].toFixed(1)}h0`).join("");
}

/** SVG path around the area between two curves, in pieces where the pen is lifted. */
function bandPath(xs, lows, highs, pauses) {
  const pieces = [[]];
  for (let i = 0; i < xs.length; i++) {
    const isKnown = xs[i] !== null && lows[i] !== null && highs[i] !== null;
    if (!isKnown || pauses.has(i)) pieces.push([]);
    if (isKnown) pieces.at(-1).push(i);
  }
  const corner = (i, ys) => xs[i].toFixed(1) + " " + ys[i].toFixed(1);
  const around = (piece) => [...piece.map((i) => corner(i, highs)), ...piece.reverse().map((i) => corner(i, lows))];
  return pieces.filter((piece) => piece.length > 1).map((piece) => "M" + around(piece).join("L") + "Z").join("");
}

/** Index of the point that is nearest to x and has a value; -1 for none. */
function nearest(xs, ys, x) {
  let best = -1;
  for (let i = 0; i < xs.length; i++) {
    if (xs[i] === null || ys[i] === null) continue;
    if (best < 0 || Math.abs(xs[i] - x) < Math.abs(xs[best] - x)) best = i;
  }
  return best;
}
