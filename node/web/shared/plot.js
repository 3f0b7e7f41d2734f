// Plots in SVG: drawn to the width there is, drawn again when it changes, and beside each the same
// numbers as a table for those who do not see it. Colours come from base.css (series-1 … series-4).

import { el, replace, svg } from "./dom.js";
import { compact } from "./format.js";

const LEFT = 56;
const TOP = 12;
const BOTTOM = 26;
const LOG_FROM = 100; // largest by smallest, above which `log: "auto"` is logarithmic

/**
 * A plot.
 *
 * @typedef {{x: number, y: number, label?: string, hollow?: boolean}} Point label: shown when
 *   pointed at; hollow: drawn as an outline.
 * @typedef {{kind: "line"|"area"|"bars"|"dots", series?: 1|2|3|4, name?: string, points: Point[]}
 *   | {kind: "rule", series?: 1|2|3|4, y: number, name?: string}
 *   | {kind: "bracket", series?: 1|2|3|4, low: number, high: number, middle?: number,
 *      name?: string, label?: string}
 *   | {kind: "joins", pairs: {x: number, low: number, high: number}[]}} Mark
 *   rule: a dashed line across; bracket: a range at the right edge; joins: thin
 *   upright lines. Names make the legend.
 *
 * @param {{title: string, summary?: string, marks: Mark[], height?: number,
 *   x?: {kind?: "number"|"time"|"index", format?: function(number): string,
 *        domain?: [number, number], count?: number},
 *   y?: {format?: function(number): string, domain?: [number, number], log?: boolean|"auto",
 *        unit?: string},
 *   table?: {head: string[], rows: (string|number)[][]}, tableLabel?: string}} what
 *   x.kind "index": places 0 … count - 1 without numbers below them. y.domain: what is beyond is
 *   cut off. table: what the plot shows, in words.
 * @returns {HTMLElement} a figure.
 */
export function chart(what) {
  const canvas = el("div", { class: "canvas" });
  const figure = el(
    "figure",
    { class: "plot" },
    el(
      "figcaption",
      {},
      el("strong", {}, what.title),
      what.summary ? el("span", { class: "muted small" }, what.summary) : null,
    ),
    legend(what.marks),
    canvas,
    what.table ? tableOf(what.table, what.tableLabel ?? what.title) : null,
  );
  let width = 0;
  const observer = new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now === width || now === 0) return;
    width = now;
    replace(canvas, draw(what, width));
  });
  observer.observe(canvas);
  return figure;
}

/** Lines over time or numbers; `series` is a list of {name, points}. */
export function linePlot({ series, ...what }) {
  const marks = series.flatMap(({ name, points }, at) => [
    { kind: "area", series: at + 1, points },
    { kind: "line", series: at + 1, name, points },
  ]);
  return chart({ ...what, marks });
}

/** Bars over time or numbers. */
export function barPlot({ points, name, series = 1, ...what }) {
  return chart({ ...what, marks: [{ kind: "bars", series, name, points }] });
}

/** Dots in a row, each one of many: how something is spread. `values` are {y, label}. */
export function stripPlot({ values, name, series = 1, ...what }) {
  const sorted = [...values].sort((a, b) => a.y - b.y).map((value, x) => ({ ...value, x }));
  const x = { kind: "index", count: sorted.length };
  return chart({ ...what, x, marks: [{ kind: "dots", series, name, points: sorted }] });
}

/** The table beside a plot, folded. */
export function tableOf({ head, rows }, label) {
  const cell = (text, at) => (at === 0 ? el("th", { scope: "row" }, text) : el("td", { class: "num" }, text));
  return el(
    "details",
    {},
    el("summary", {}, "The same as a table"),
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      el(
        "table",
        {},
        el("caption", { class: "visually-hidden" }, label),
        el("thead", {}, el("tr", {}, head.map((text, at) => el("th", { scope: "col", class: at ? "num" : null }, text)))),
        el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))),
      ),
    ),
  );
}

/** Round numbers from low to high, about `wanted` of them. */
export function ticks(low, high, wanted = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, wanted);
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * size).find((n) => n >= rough) ?? 10 * size;
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high * (1 + 1e-9); n += 1) found.push(n * step);
  return found;
}

function legend(marks) {
  const named = marks.filter((mark) => mark.name);
  if (named.length < 2) return null;
  const sign = (mark) => {
    const look = `series-${mark.series ?? 1}`;
    const shape = {
      dots: () => svg("circle", { class: look, cx: 6, cy: 6, r: 4.5 }),
      rule: () => svg("line", { class: `rule ${look}`, x1: 0, y1: 6, x2: 12, y2: 6 }),
      bracket: () => svg("path", { class: `bracket ${look}`, d: "M3 1H9M6 1V11M3 11H9" }),
    }[mark.kind];
    const drawn = shape ? shape() : svg("rect", { class: look, x: 1, y: 1, width: 10, height: 10, rx: 2 });
    return svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, drawn);
  };
  return el("ul", { class: "legend" }, named.map((mark) => el("li", {}, sign(mark), mark.name)));
}

function draw(what, width) {
  const { marks, title, summary = "", height = 240, x = {}, y = {} } = what;
  const brackets = marks.filter((mark) => mark.kind === "bracket");
  const right = 10 + 18 * brackets.length;
  const inner = { left: LEFT, right: Math.max(LEFT + 40, width - right), top: TOP, bottom: height - BOTTOM };
  const points = marks.flatMap((mark) => mark.points ?? []);
  const across = xScale(x, points, marks, inner);
  const up = yScale(y, marks, points, inner);
  const plot = svg("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": [title, summary].filter(Boolean).join(". "),
  });
  const format = y.format ?? compact;
  for (const tick of up.ticks) {
    const at = up.at(tick);
    plot.append(
      svg("line", { class: "grid", x1: inner.left, x2: inner.right, y1: at, y2: at }),
      svg("text", { x: inner.left - 8, y: at + 4, "text-anchor": "end" }, format(tick)),
    );
  }
  for (const [at, text] of across.labels) {
    plot.append(svg("text", { x: at, y: height - 6, "text-anchor": "middle" }, text));
  }
  const base = inner.bottom;
  plot.append(svg("line", { class: "axis", x1: inner.left, x2: inner.right, y1: base, y2: base }));
  let edge = inner.right + 14;
  for (const mark of marks) {
    const look = `series-${mark.series ?? 1}`;
    if (mark.kind === "bracket") {
      plot.append(bracket(mark, look, edge, up, format));
      edge += 18;
    } else {
      plot.append(...DRAWN[mark.kind](mark, look, across, up, inner));
    }
  }
  return plot;
}

const inside = (point, up) => point.y >= up.domain[0] && point.y <= up.domain[1];
const tip = (text) => (text ? svg("title", {}, text) : null);

const DRAWN = {
  line: (mark, look, across, up) => [
    svg("polyline", { class: `line ${look}`, points: path(mark.points, across, up) }),
    ...(mark.points.length <= 60 ? DRAWN.dots({ ...mark, r: 2.5 }, look, across, up) : []),
  ],
  area: (mark, look, across, up, inner) => {
    if (mark.points.length < 2) return [];
    const [first, last] = [mark.points[0], mark.points.at(-1)];
    const ends = `${across.at(last.x)},${inner.bottom} ${across.at(first.x)},${inner.bottom}`;
    return [svg("polygon", { class: `area ${look}`, points: `${path(mark.points, across, up)} ${ends}` })];
  },
  bars: (mark, look, across, up, inner) => {
    const wide = Math.max(1, Math.min(48, across.gap * 0.78));
    return mark.points.map((point) => {
      const top = Math.min(up.at(clamp(point.y, up.domain)), inner.bottom);
      const bar = { x: across.at(point.x) - wide / 2, y: top, width: wide, height: inner.bottom - top };
      return svg("rect", { class: `bar ${look}`, rx: Math.min(2, wide / 4), ...bar }, tip(point.label));
    });
  },
  dots: (mark, look, across, up) => {
    const r = mark.r ?? (mark.points.length > 400 ? 2 : mark.points.length > 80 ? 3 : 4.5);
    return mark.points
      .filter((point) => inside(point, up))
      .map((point) =>
        svg(
          "circle",
          {
            class: `dot ${look}${point.hollow ? " hollow" : ""}`,
            cx: round(across.at(point.x)),
            cy: round(up.at(point.y)),
            r,
            dataset: { y: point.y },
          },
          tip(point.label),
        ),
      );
  },
  rule: (mark, look, across, up, inner) => {
    if (!inside(mark, up)) return [];
    const at = up.at(mark.y);
    const line = { x1: inner.left, x2: inner.right, y1: at, y2: at, dataset: { y: mark.y } };
    return [svg("line", { class: `rule ${look}`, ...line }, tip(mark.name))];
  },
  joins: (mark, _look, across, up) =>
    mark.pairs
      .filter(({ low, high }) => low >= up.domain[0] && high <= up.domain[1])
      .map(({ x, low, high }) => {
        const at = across.at(x);
        return svg("line", { class: "join", x1: at, x2: at, y1: up.at(low), y2: up.at(high) });
      }),
};

function bracket(mark, look, edge, up, format) {
  const [low, high] = [mark.low, mark.high].map((value) => up.at(clamp(value, up.domain)));
  const middle = mark.middle === undefined ? null : up.at(clamp(mark.middle, up.domain));
  const tick = middle === null ? "" : `M${edge - 6} ${middle}H${edge + 6}`;
  const d = `M${edge - 4} ${low}H${edge + 4}M${edge} ${low}V${high}M${edge - 4} ${high}H${edge + 4}${tick}`;
  return svg("path", { class: `bracket ${look}`, d }, tip(`${mark.label ?? mark.name ?? ""} ${format(mark.low)} to ${format(mark.high)}`));
}

const path = (points, across, up) =>
  points.map(({ x, y }) => `${round(across.at(x))},${round(up.at(clamp(y, up.domain)))}`).join(" ");

function xScale(x, points, marks, inner) {
  const wide = inner.right - inner.left;
  if (x.kind === "index") {
    const count = Math.max(1, x.count ?? points.length);
    const gap = wide / count;
    return { at: (n) => inner.left + (n + 0.5) * gap, gap, labels: [] };
  }
  const places = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  let [low, high] = x.domain ?? [places[0] ?? 0, places.at(-1) ?? 1];
  let step = high - low || 1;
  for (let n = 1; n < places.length; n += 1) step = Math.min(step, places[n] - places[n - 1]);
  if (marks.some((mark) => mark.kind === "bars")) [low, high] = [low - step / 2, high + step / 2];
  if (!(high > low)) [low, high] = [low - 0.5, low + 0.5];
  const at = (n) => inner.left + ((n - low) / (high - low)) * wide;
  const format = x.format ?? (x.kind === "time" ? timeFormat(high - low) : compact);
  const wanted = Math.max(2, Math.floor(wide / 110));
  const marked = x.kind === "time" ? timeTicks(low, high, wanted) : ticks(low, high, wanted);
  return { at, gap: (step / (high - low)) * wide, labels: marked.map((n) => [at(n), format(n)]) };
}

const HOUR = 3_600;
const DAY = 86_400;

function timeTicks(low, high, wanted) {
  const steps = [60, 300, 900, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 30 * DAY, 90 * DAY, 365 * DAY];
  const step = steps.find((n) => (high - low) / n <= wanted) ?? steps.at(-1);
  const shift = 60 * new Date(low * 1_000).getTimezoneOffset(); // days begin at the reader's midnight
  const found = [];
  for (let n = Math.ceil((low - shift) / step); n * step + shift <= high; n += 1) found.push(n * step + shift);
  return found;
}

function timeFormat(span) {
  const options = span > 2 * DAY ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit" };
  const format = new Intl.DateTimeFormat("en-GB", options);
  return (n) => format.format(new Date(n * 1_000));
}

function yScale(y, marks, points, inner) {
  const values = [
    ...points.map((point) => point.y),
    ...marks.flatMap((mark) => (mark.kind === "rule" ? [mark.y] : mark.kind === "bracket" ? [mark.low, mark.high] : [])),
  ].filter(Number.isFinite);
  const tall = inner.bottom - inner.top;
  const [least, most] = y.domain ?? [Math.min(...values, Infinity), Math.max(...values, -Infinity)];
  const positive = least > 0 && most >= least;
  if (positive && (y.log === true || (y.log === "auto" && most / least > LOG_FROM))) {
    const [low, high] = [Math.log10(least) - 0.08, Math.log10(most) + 0.08];
    const at = (value) => inner.bottom - ((Math.log10(value) - low) / (high - low)) * tall;
    return { at, domain: [10 ** low, 10 ** high], ticks: decades(low, high) };
  }
  const high = most > 0 && Number.isFinite(most) ? most : 1;
  const low = Number.isFinite(least) && least < 0 ? least : 0;
  const marked = ticks(low, high, 4);
  const top = Math.max(high, marked.at(-1)) + (high - low) * 0.04;
  const at = (value) => inner.bottom - ((value - low) / (top - low)) * tall;
  return { at, domain: [low, top], ticks: marked };
}

function decades(low, high) {
  const every = Math.max(1, Math.ceil((high - low) / 6));
  const found = [];
  for (let n = Math.ceil(low); n <= high; n += every) found.push(10 ** n);
  return found.length ? found : [10 ** ((low + high) / 2)];
}

const clamp = (value, [low, high]) => Math.min(Math.max(value, low), high);
const round = (n) => Math.round(n * 10) / 10;
