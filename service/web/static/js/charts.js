/** Charts of numbers per step, drawn as SVG by hand. */

import { s, number } from "./dom.js";

const BOX = { width: 360, height: 168, left: 44, right: 10, top: 12, bottom: 26 };
const COLOURS = 6;
const TICKS = 4;

/**
 * A line for each component over the steps.
 * @param {SVGSVGElement} svg Drawn anew.
 * @param {{lines: (number|null)[][], names: string[], steps: number, reading: number, least: [number, number], digits: number}} data
 *   `lines[i][k]` is component i's value at step k + 1; `reading` is the step of the rule; the axis covers `least`.
 */
export function draw(svg, { lines, names, steps, reading, least, digits, title }) {
  const known = lines.flat().filter((value) => value !== null && Number.isFinite(value));
  const ticks = niceTicks(Math.min(least[0], ...known), Math.max(least[1], ...known));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const x = (step) => BOX.left + ((BOX.width - BOX.left - BOX.right) * (step - 1)) / Math.max(1, steps - 1);
  const y = (value) => BOX.height - BOX.bottom - ((BOX.height - BOX.top - BOX.bottom) * (value - low)) / (high - low);
  svg.setAttribute("viewBox", `0 0 ${BOX.width} ${BOX.height}`);
  svg.setAttribute("aria-label", described(title, lines, names, digits));
  svg.dataset.points = String(lines[0]?.filter((value) => value !== null).length ?? 0);
  const grid = ticks.map((tick) =>
    s(
      "g",
      { class: tick === 0 ? "grid zero" : "grid" },
      s("line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: y(tick), y2: y(tick) }),
      s("text", { x: BOX.left - 6, y: y(tick) + 3.5, "text-anchor": "end" }, number(tick, tickDigits(ticks))),
    ),
  );
  const ends = [
    s("text", { x: BOX.left, y: BOX.height - 8, "text-anchor": "start" }, "step 1"),
    s("text", { x: BOX.width - BOX.right, y: BOX.height - 8, "text-anchor": "end" }, String(steps)),
  ];
  const paths = lines.map((line, i) => s("path", { class: `line c${i % COLOURS} d${Math.floor(i / COLOURS)}`, d: path(line, x, y) }));
  const dots = lines.flatMap((line, i) => {
    const value = line[reading - 1];
    if (value === null || value === undefined) return [];
    return [s("circle", { class: `dot c${i % COLOURS}`, cx: x(reading), cy: y(value), r: 3.5 })];
  });
  const rule = reading ? [s("line", { class: "rule", x1: x(reading), x2: x(reading), y1: BOX.top, y2: BOX.height - BOX.bottom })] : [];
  svg.replaceChildren(...grid, s("g", { class: "ends" }, ...ends), ...rule, ...paths, ...dots);
}

/** The step at a place of the pointer over a chart. */
export function stepAt(svg, clientX, steps) {
  const { left, width } = svg.getBoundingClientRect();
  const place = ((clientX - left) / width) * BOX.width;
  const share = (place - BOX.left) / (BOX.width - BOX.left - BOX.right);
  return Math.min(steps, Math.max(1, Math.round(1 + share * (steps - 1))));
}

/** A path that breaks where a value is not known. */
function path(line, x, y) {
  let pen = "M";
  let d = "";
  line.forEach((value, k) => {
    if (value === null || value === undefined) {
      pen = "M";
      return;
    }
    d += `${pen}${x(k + 1).toFixed(2)} ${y(value).toFixed(2)}`;
    pen = "L";
  });
  return d;
}

function niceTicks(low, high) {
  const span = high - low || 1;
  const rough = span / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const from = Math.floor(low / step + 1e-9) * step;
  const count = Math.ceil((high - from) / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, i) => Number((from + i * step).toPrecision(12)));
}

function tickDigits(ticks) {
  return Math.max(0, ...ticks.map((tick) => (String(tick).split(".")[1] ?? "").length));
}

function described(title, lines, names, digits) {
  const now = names.map((name, i) => `${name} ${number(lines[i]?.findLast((value) => value !== null) ?? null, digits)}`);
  return `${title}. Last: ${now.join(", ")}.`;
}
