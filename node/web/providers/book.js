// The order book of one model: figures, a plot of the prices, and the offers.

import { get } from "/static/api.js";
import { el, keepFocus, replace } from "/static/dom.js";
import { clip, count, duration, percent, plural, satNumber } from "/static/format.js";
import { chart } from "/static/plot.js";
import { carriages, keyOf, median, nameOf, narrowStates, states } from "./values.js";

const LIMIT = 200; // the most the node shows
const SHOWN = 25;
const BEYOND = 1.5; // prices further out than this many times what counts are left out of the plot
const TOKENS = {
  unit: "sat for a million tokens",
  series: [
    ["input_per_mtok", "Input", 1],
    ["output_per_mtok", "Output", 2],
  ],
};
const OTHERS = [
  { unit: "sat for a request", series: [["per_request", "Request", 3]] },
  { unit: "sat for an image", series: [["per_image", "Image", 3]] },
  { unit: "sat for a minute of sound", series: [["per_audio_minute", "Minute", 3]] },
  { unit: "sat for a million characters", series: [["per_mchar", "Characters", 3]] },
];

/**
 * Shows the book of `model` in `place`.
 *
 * @param {function(Object): void} open called with the offer whose node is asked for.
 * @param {AbortSignal} signal
 * @returns {Promise<Object|null>} the book; null when nobody sells the model.
 * @throws {ApiError}
 */
export async function showBook(place, model, open, signal) {
  const path = `/v1/market/${model.split("/").map(encodeURIComponent).join("/")}`;
  let book;
  try {
    book = await get(path, { limit: LIMIT }, { signal });
  } catch (error) {
    if (error.status !== 404) throw error;
    replace(place, el("p", { class: "empty" }, "No other node announces ", el("bdi", {}, clip(model, 100)), "."));
    return null;
  }
  keepFocus(place, () => replace(place, heading(book), figures(book), plot(book), offers(book, open)));
  return book;
}

function heading(book) {
  const said = [plural(book.providers, "offer"), `${count(book.counted)} of nodes that are verified and online`];
  if (book.unpriced) said.push(`${count(book.unpriced)} more without a price in sat`);
  return el(
    "div",
    {},
    el("h3", {}, el("bdi", { class: "mono" }, clip(book.model, 200))),
    el("p", { class: "muted small" }, `${said.join(" · ")}. Prices are ${pricedBy(book).unit}.`),
  );
}

function figures(book) {
  if (book.counted === 0) {
    return el("p", { class: "note warn" }, "Nobody who sells it is verified and online: there is no market price, only what is said.");
  }
  return el(
    "dl",
    { class: "stats" },
    pricedBy(book).series.map(([field, name]) => {
      const { median, min, max, spread_percent: spread } = figuresOf(book, field);
      const range = min === max ? "one price" : `${satNumber(min)} to ${satNumber(max)}`;
      const apart = spread ? `, ${percent(spread / 100)} apart` : "";
      return el(
        "div",
        {},
        el("dt", {}, `${name}, the median`),
        el("dd", {}, satNumber(median), el("small", {}, " sat")),
        el("dd", {}, el("small", {}, range + apart)),
      );
    }),
  );
}

/** What it is paid by: tokens, or, where these cost nothing, the first of the others that does. */
function pricedBy(book) {
  const costs = ({ series }) => book.asks.some((ask) => series.some(([field]) => ask[field] > 0));
  return [TOKENS, ...OTHERS].find(costs) ?? TOKENS;
}

/** The node's own figures; of prices that it has none of, those of the offers shown. */
function figuresOf(book, field) {
  if (book.prices[field]) return book.prices[field];
  const found = book.asks.filter((ask) => ask.counted).map((ask) => ask[field] ?? 0);
  const { low: min, high: max } = ends(found);
  const middle = Math.ceil(median(found));
  return { min, max, median: middle, spread: max - min, spread_percent: middle ? (100 * (max - min)) / middle : null };
}

function plot(book) {
  const { series, unit } = pricedBy(book);
  const domain = domainOf(book, series);
  const marks = [];
  if (series.length > 1) {
    marks.push({
      kind: "joins",
      pairs: book.asks.map((ask, x) => ({ x, ...ends(series.map(([field]) => ask[field])) })),
    });
  }
  for (const [field, name, number] of series) {
    const points = book.asks.map((ask, x) => ({
      x,
      y: ask[field],
      hollow: !ask.counted,
      label: `${clip(ask.name, 60)}: ${name.toLowerCase()} ${satNumber(ask[field])} sat${ask.counted ? "" : ", not proven"}`,
    }));
    marks.push({ kind: "dots", series: number, name, points });
  }
  for (const [field, name, number] of series) {
    if (book.counted === 0) continue;
    const found = figuresOf(book, field);
    marks.push({ kind: "rule", series: number, name: `${name}, median ${satNumber(found.median)}`, y: found.median });
    if (found.spread) {
      marks.push({ kind: "bracket", series: number, label: `${name} spread`, low: found.min, high: found.max, middle: found.median });
    }
  }
  const beyond = book.asks.filter((ask) => series.some(([field]) => ask[field] > domain[1] || ask[field] < domain[0])).length;
  const said = [`Each offer at its place in the book, best first; ${unit}.`];
  if (book.counted > 1) said.push("At the right edge: from the least to the most, and the median.");
  if (book.counted < book.providers) said.push("Outlines: not proven, or not online.");
  if (beyond) said.push(`${plural(beyond, "offer")} beyond the scale.`);
  if (book.asks.length < book.providers) said.push(`The best ${count(book.asks.length)}.`);
  const head = ["Node", ...series.map(([, name]) => `${name} (sat)`), "Counts"];
  return chart({
    title: "Prices",
    summary: said.join(" "),
    marks,
    height: 280,
    x: { kind: "index", count: book.asks.length },
    y: { format: (value) => satNumber(value), domain, log: "auto" },
    table: {
      head,
      rows: book.asks.map((ask) => [
        clip(ask.name, 60) || clip(ask.npub, 20),
        ...series.map(([field]) => satNumber(ask[field])),
        ask.counted ? "yes" : "no",
      ]),
    },
    tableLabel: `Prices of ${clip(book.model, 100)}`,
  });
}

/** The scale follows what counts: others may say any price. */
function domainOf(book, series) {
  const counted = book.asks.filter((ask) => ask.counted);
  const trusted = ends((counted.length ? counted : book.asks).flatMap((ask) => series.map(([field]) => ask[field])));
  const all = ends(book.asks.flatMap((ask) => series.map(([field]) => ask[field])));
  const high = Math.min(all.high, Math.max(trusted.high, 1) * BEYOND);
  return [Math.max(all.low, trusted.low / BEYOND), high];
}

const ends = (numbers) => ({ low: Math.min(...numbers), high: Math.max(...numbers) });

function offers(book, open) {
  const { series } = pricedBy(book);
  const body = el("tbody");
  let shown = 0;
  const more = el("button", { type: "button", class: "quiet", onclick: () => add() });
  const add = () => {
    for (const ask of book.asks.slice(shown, shown + SHOWN)) body.append(offer(ask, series, open));
    shown = body.rows.length;
    const left = book.asks.length - shown;
    more.hidden = left === 0;
    more.textContent = `Show ${count(Math.min(left, SHOWN))} more`;
  };
  add();
  const heads = [
    ["Node", ""],
    ["State", "wide"],
    ...series.map(([, name]) => [name, "num"]),
    ...(series === TOKENS.series ? [["Request", "num wide"]] : []),
    ["Context", "num wide"],
    ["Latency", "num wide"],
    ["Carriages", "wide"],
  ];
  return el(
    "div",
    {},
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Offers" },
      el(
        "table",
        { id: "offers" },
        el("caption", {}, "Offers, those that count first, then by price; sat"),
        el("thead", {}, el("tr", {}, heads.map(([text, look]) => el("th", { scope: "col", class: look || null }, text)))),
        body,
      ),
    ),
    more,
  );
}

function offer(ask, series, open) {
  const number = (text, wide = "") => el("td", { class: `num ${wide}` }, text);
  const button = { type: "button", class: "link", dataset: { key: `offer ${keyOf(ask)}` }, onclick: () => open(ask) };
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, el("button", button, nameOf(ask)), narrowStates(ask)),
    el("td", { class: "wide" }, states(ask)),
    series.map(([field]) => number(satNumber(ask[field]))),
    series === TOKENS.series ? number(satNumber(ask.per_request), "wide") : null,
    number(count(ask.context_window), "wide"),
    number(duration(ask.latency_ms === null ? null : ask.latency_ms / 1_000), "wide"),
    el("td", { class: "wide" }, carriages(ask)),
  );
}
