// What an item of /v1/providers says, in the units and words of the page.

import { el } from "/static/dom.js";
import { clip } from "/static/format.js";

const NAME_CHARS = 60;

/** Several nodes may have one key, and a node's identifier is unique below its key. */
export const keyOf = (item) => `${item.pubkey}:${item.id ?? ""}`;

/** msat per million tokens of the API's sat per 1,000 tokens. */
export const perMtok = (satPer1k) => Math.round(satPer1k * 1_000_000);

/** What it is called; apart from what stands beside it, whichever way its letters run. */
export const nameOf = (item) =>
  el("bdi", {}, clip(item.name, NAME_CHARS) || el("span", { class: "muted" }, "without a name"));

const CARRIAGES = { http: "HTTP", tor: "Tor", nostr: "Nostr" };
const STATUSES = { online: ["good", "Online"], offline: ["bad", "Offline"], unknown: ["", "Not asked yet"] };

/** Marks for how it can be reached. */
export const carriages = (item) => el(
  "span",
  { class: "states" },
  (item.transports ?? []).map((name) => el("span", { class: "badge" }, CARRIAGES[name] ?? clip(name, 12))),
);

/** Marks for whether it answers and whether it is who it says. */
export function states(item) {
  const [look, text] = STATUSES[item.status] ?? ["", clip(item.status, 12)];
  return el(
    "span",
    { class: "states" },
    el("span", { class: `badge ${look}` }, text),
    el("span", { class: `badge ${item.verified ? "accent" : ""}` }, item.verified ? "Verified" : "Not verified"),
  );
}

/** The same below the name, where there is no room for a column. */
export const narrowStates = (item) => el("div", { class: "narrow" }, states(item));

/** The middle of some numbers; null of none. */
export function median(numbers) {
  const ordered = [...numbers].sort((a, b) => a - b);
  const half = Math.floor(ordered.length / 2);
  if (ordered.length === 0) return null;
  return (ordered[half] + ordered[ordered.length - 1 - half]) / 2;
}
