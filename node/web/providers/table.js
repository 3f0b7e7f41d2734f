// The table of nodes: one page of those that are loaded.

import { el } from "/static/dom.js";
import { count, duration, percent, shortKey } from "/static/format.js";
import { carriages, keyOf, nameOf, narrowStates, states } from "./values.js";

const COLUMNS = [
  { sort: "name", text: "Node" },
  { sort: "status", text: "State", look: "wide" },
  { sort: "latency", text: "Latency", look: "num wide" },
  { sort: "uptime", text: "Uptime", look: "num wide" },
  { sort: "models", text: "Models", look: "num" },
  { text: "Carriages", look: "wide" },
  { text: "Mints", look: "num wide" },
];

/**
 * @param {Object[]} items those of this page.
 * @param {{sort: string, reversed: boolean}} store what they are sorted by.
 * @param {{sort: function(string): void, open: function(Object): void}} act
 * @param {Set<string>} fresh keys of those that have just changed.
 */
export function table(items, store, act, fresh) {
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "nodes-title" },
    el(
      "table",
      { id: "providers" },
      el("caption", { class: "visually-hidden" }, "Nodes; the buttons in the head sort them"),
      el("thead", {}, el("tr", {}, COLUMNS.map((column) => head(column, store, act.sort)))),
      el("tbody", {}, items.map((item) => row(item, act.open, fresh.has(keyOf(item))))),
    ),
  );
}

function head({ sort, text, look }, store, chosen) {
  const sorted = sort !== undefined && sort === store.sort;
  return el(
    "th",
    { scope: "col", class: look, "aria-sort": sorted ? (ascends(store) ? "ascending" : "descending") : null },
    sort ? el("button", { type: "button", class: "sort", dataset: { key: `sort ${sort}` }, onclick: () => chosen(sort) }, text) : text,
  );
}

/** Uptime and models begin with the most. */
const ascends = ({ sort, reversed }) => (sort === "uptime" || sort === "models") === reversed;

function row(item, open, changed) {
  const number = (text, look = "") => el("td", { class: `num ${look}` }, text);
  return el(
    "tr",
    { dataset: { npub: item.npub }, class: changed ? "changed" : null },
    el(
      "th",
      { scope: "row" },
      el("button", { type: "button", class: "link", dataset: { key: keyOf(item) }, onclick: () => open(item) }, nameOf(item)),
      el("div", { class: "mono small muted", title: item.npub }, shortKey(item.npub)),
      narrowStates(item),
    ),
    el("td", { class: "wide" }, states(item)),
    number(duration(typeof item.latency_ms === "number" ? item.latency_ms / 1_000 : null), "wide"),
    number(percent(item.uptime), "wide"),
    number(count(item.models?.length ?? 0)),
    el("td", { class: "wide" }, carriages(item)),
    number(count(item.mint_urls?.length ?? 0), "wide"),
  );
}
