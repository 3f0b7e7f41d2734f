// Bars over time in SVG, drawn in the pixels there are; read by keyboard bar by bar.

import { el, replace, svg } from "/static/dom.js";
import { compact, satNumber } from "/static/format.js";

const HEIGHT = 180;
const LEFT = 48;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 24;
const LABEL_PX = 84;

const fullHour = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const fullDay = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const hour = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const hourOfDay = new Intl.DateTimeFormat("en-GB", { weekday: "short", hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

let made = 0;

/**
 * @param {Object} options
 * @param {string} options.title
 * @param {Array<{at: number}>} options.points one for each bucket, in order.
 * @param {"hour"|"day"} options.bucket days are those of UTC.
 * @param {string} options.series class that gives the colour.
 * @param {string} options.unit as read out.
 * @param {function(Object): number} options.value
 * @param {AbortSignal} options.signal ends watching the width.
 * @returns {HTMLElement}
 */
export function timePlot({ title, points, bucket, series, unit, value, signal }) {
  const id = `plot-${++made}`;
  const values = points.map(value);
  const most = Math.max(...values, 0);
  const total = values.reduce((sum, one) => sum + one, 0);
  const canvas = el("div", { class: "canvas" });
  const readout = el("p", { class: "readout", "aria-hidden": "true" });
  const date = (point) => (bucket === "hour" ? fullHour : fullDay).format(new Date(1_000 * point.at));
  const told = (i) => `${date(points[i])}: ${plain(values[i])} ${unit}`;
  const best = values.indexOf(most);
  const rest = total ? `In all ${plain(total)} ${unit}; most: ${told(best)}` : "Nothing in this range";
  let chosen = Math.max(points.length - 1, 0);

  const read = (i) => (readout.textContent = i === null ? rest : told(i));

  function draw(width) {
    const wide = Math.max(width - LEFT - RIGHT, 40);
    const high = HEIGHT - TOP - BOTTOM;
    const top = niceTop(most);
    const x = (i) => LEFT + (i * wide) / points.length;
    const y = (amount) => TOP + high - (high * amount) / top;
    const step = wide / points.length;
    const gap = step > 6 ? 2 : step > 3 ? 1 : 0;
    const bars = points.map((point, i) => {
      const up = values[i] > 0 ? Math.max(TOP + high - y(values[i]), 1.5) : 0;
      return svg("g", {
        class: "point", role: "img", "aria-label": told(i), tabindex: i === chosen ? "0" : "-1",
        dataset: { i },
      },
        svg("rect", { class: "hit", x: x(i), y: TOP, width: step, height: high }),
        svg("rect", {
          class: `bar ${series}`, x: x(i) + gap / 2, y: TOP + high - up, width: Math.max(step - gap, 0.5), height: up,
        }));
    });
    const lines = [0, top / 2, top].map((amount) => [
      svg("line", { class: amount ? "grid" : "axis", x1: LEFT, x2: LEFT + wide, y1: y(amount), y2: y(amount) }),
      svg("text", { x: LEFT - 8, y: y(amount) + 4, "text-anchor": "end" }, compact(amount)),
    ]);
    const every = Math.max(1, Math.ceil((LABEL_PX * points.length) / wide));
    const short = bucket === "day" ? day : points.length > 30 ? hourOfDay : hour;
    const ticks = points.map((point, i) => (i % every || x(i) + LABEL_PX / 2 > LEFT + wide + RIGHT ? null
      : svg("text", every === 1 ? { x: x(i) + step / 2, y: HEIGHT - 6, "text-anchor": "middle" } : { x: x(i), y: HEIGHT - 6 }, short.format(new Date(1_000 * point.at)))));
    replace(canvas, svg("svg", {
      width, height: HEIGHT, role: "group", "aria-labelledby": `${id}-title ${id}-desc`,
      viewBox: `0 0 ${width} ${HEIGHT}`,
    },
      svg("title", { id: `${id}-title` }, title),
      svg("desc", { id: `${id}-desc` }, `${rest}. The arrow keys go from bar to bar.`),
      svg("g", { "aria-hidden": "true" }, lines, ticks),
      bars));
  }

  const pointOf = (event) => event.target.closest?.(".point");
  const go = (i) => {
    const all = canvas.querySelectorAll(".point");
    all[chosen]?.setAttribute("tabindex", "-1");
    chosen = Math.min(Math.max(i, 0), points.length - 1);
    all[chosen].setAttribute("tabindex", "0");
    all[chosen].focus();
  };
  canvas.addEventListener("keydown", (event) => {
    const to = {
      ArrowLeft: chosen - 1, ArrowRight: chosen + 1, ArrowUp: best, Home: 0, End: points.length - 1,
    }[event.key];
    if (to === undefined || !pointOf(event)) return;
    event.preventDefault();
    go(to);
  });
  canvas.addEventListener("focusin", (event) => read(Number(pointOf(event)?.dataset.i ?? chosen)));
  canvas.addEventListener("focusout", () => read(null));
  canvas.addEventListener("pointerover", (event) => {
    const point = pointOf(event);
    read(point ? Number(point.dataset.i) : null);
  });
  canvas.addEventListener("pointerleave", () => read(null));

  let drawnAt = 0;
  const watch = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (!width || width === drawnAt) return;
    drawnAt = width;
    const focused = canvas.contains(document.activeElement);
    draw(width);
    if (focused) go(chosen);
  });
  watch.observe(canvas);
  signal.addEventListener("abort", () => watch.disconnect());
  read(null);
  return el("figure", { class: "timeplot" }, el("figcaption", {}, el("strong", {}, title), readout), canvas);
}

/** With three digits after the point where there are few. */
const plain = (n) => satNumber(1_000 * (n < 100 ? n : Math.round(n)));

/** The next round number that holds the highest bar. */
function niceTop(most) {
  if (most <= 0) return 2;
  const size = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 3, 4, 6, 8, 10].map((n) => n * size).find((n) => n >= most);
}
