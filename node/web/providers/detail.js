// One node in a dialog: who it says it is, where it is, what it sells, what others say of it.

import { get } from "/static/api.js";
import { copyButton, el, outside, replace } from "/static/dom.js";
import { ago, clip, count, dateTime, duration, percent, plural, sat, satNumber, shortKey } from "/static/format.js";
import { carriages, nameOf, perMtok, states } from "./values.js";

const MODELS_SHOWN = 50;
const SOURCES = {
  pages: "its signed model pages",
  endpoint: "its own /v1/models",
  announcement: "its announcement",
};

/** Shows what is known of `item` (of a list or a book) at once, and the rest when it has come. */
export async function showDetail(dialog, item) {
  const inside = dialog.firstElementChild;
  replace(inside, head(dialog, item), el("p", { class: "muted", role: "status" }, "Loading…"));
  if (!dialog.open) dialog.showModal();
  try {
    const found = await get(`/v1/providers/${encodeURIComponent(item.npub)}`);
    // of several nodes with one key the answer is about the best one
    replace(inside, head(dialog, found), ...(found.id === item.id ? whole(found) : another(item)));
  } catch (error) {
    replace(inside, head(dialog, item), el("p", { class: "note bad", role: "alert" }, error.message));
  }
}

function head(dialog, item) {
  return [
    el("button", { type: "button", class: "close small", onclick: () => dialog.close() }, "Close"),
    el("h2", { id: "detail-title" }, nameOf(item)),
    el("p", { class: "row" }, states(item), carriages(item)),
    item.description ? el("p", { class: "break" }, clip(item.description, 2_000)) : null,
  ];
}

function another(item) {
  const note = "Several nodes have this key; what is known of this one stands in the list.";
  return [el("p", { class: "note" }, note), facts(item)];
}

function whole(found) {
  return [facts(found), models(found), reviews(found.reviews ?? {})];
}

function facts(item) {
  const latency = item.usual_latency_ms ?? item.latency_ms;
  const rows = [
    ["Nostr key", [el("span", { class: "mono break" }, item.npub), " ", copyButton(item.npub, "Copy", "the key")]],
    ["State", item.reason ? clip(item.reason, 300) : null],
    ["Latency", typeof latency === "number" ? `${duration(latency / 1_000)}, usually` : null],
    ["Uptime", typeof item.uptime === "number" ? `${percent(item.uptime)} of the last seven days` : null],
    ["Trust", trust(item)],
    ["Last seen", item.last_seen ? `${ago(item.last_seen)} (${dateTime(item.last_seen)})` : null],
    ["Announced", item.created_at ? dateTime(item.created_at) : null],
    ["Version", item.version ? clip(item.version, 60) : null],
    ["URLs, proven", urls(item.verified_urls)],
    ["URLs, not proven", urls(item.unverified_urls)],
    ["Mints", urls(item.mint_urls)],
    ["Relays", urls(item.relays)],
  ];
  return el(
    "dl",
    { class: "facts" },
    rows.filter(([, said]) => said !== null && said !== undefined).map(([name, said]) => [el("dt", {}, name), el("dd", {}, said)]),
  );
}

const STEPS = ["the operator of this node", "followed by the operator", "followed by those he follows", "three steps from the operator"];

/** How near its key, and who vouches for it, are to the operator of the node that shows this. */
function trust({ trust_distance: own, vouched_distance: vouched }) {
  const said = [
    typeof own === "number" ? `its key is ${STEPS[own] ?? `${own} steps away`}` : null,
    typeof vouched === "number" ? `a key that vouches for it is ${STEPS[vouched] ?? `${vouched} steps away`}` : null,
  ].filter(Boolean);
  return said.length ? said.join("; ") : null;
}

const urls = (list) => (list?.length ? list.map((url) => el("div", {}, outside(url))) : null);

function models(found) {
  const list = found.models ?? [];
  if (list.length === 0) return el("p", { class: "muted" }, "It names no models.");
  const body = el("tbody");
  const more = el("button", { type: "button", class: "quiet", onclick: () => add(list.length) });
  const add = (upTo) => {
    for (const model of list.slice(body.rows.length, upTo)) body.append(row(model));
    more.hidden = body.rows.length >= list.length;
  };
  more.textContent = `Show all ${count(list.length)}`;
  add(MODELS_SHOWN);
  return el(
    "section",
    { "aria-labelledby": "detail-models" },
    el("h3", { id: "detail-models" }, plural(list.length, "model")),
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "detail-models" },
      el(
        "table",
        {},
        el("caption", {}, `From ${SOURCES[found.models_source] ?? "what is known"}; sat for a million tokens, and for each request`),
        el(
          "thead",
          {},
          el("tr", {}, ["Model", "Input", "Output", "Request", "Context"].map((text, at) =>
            el("th", { scope: "col", class: at ? "num" : null }, text))),
        ),
        body,
      ),
    ),
    more,
  );
}

/** What only some models cost, in words. */
function others(pricing) {
  const per = {
    input_cache_read: ["a million prompt tokens from the cache", 1_000_000],
    input_cache_write: ["a million prompt tokens written to the cache", 1_000_000],
    internal_reasoning: ["a million reasoning tokens", 1_000_000],
    image: ["an image", 1_000],
    audio_minute: ["a minute of sound", 1_000],
    character: ["a million characters", 1_000_000],
  };
  const said = Object.entries(per)
    .filter(([name]) => pricing?.[name])
    .map(([name, [what, msat]]) => `${sat(Math.round(pricing[name] * msat))} ${what}`);
  return said.length ? el("div", { class: "small muted" }, said.join(" · ")) : null;
}

function row(model) {
  const { pricing } = model;
  const number = (text) => el("td", { class: "num" }, text);
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, el("bdi", { class: "mono break" }, clip(model.id, 200)), others(pricing)),
    pricing
      ? [number(satNumber(perMtok(pricing.prompt))), number(satNumber(perMtok(pricing.completion))), number(satNumber(1_000 * pricing.request))]
      : el("td", { class: "muted", colspan: 3 }, "no price in sat"),
    number(count(model.context_window)),
  );
}

const VERDICTS = { lgtm: ["good", "approves"], avoid: ["bad", "warns"] };

function reviews(said) {
  const { newest = [], ...counts } = said;
  const sums = Object.entries(counts).filter(([, n]) => typeof n === "number" && n > 0);
  return el(
    "section",
    { "aria-labelledby": "detail-reviews" },
    el("h3", { id: "detail-reviews" }, "What others say"),
    sums.length ? el("p", {}, sums.map(([name, n]) => `${name.replaceAll("_", " ")}: ${count(n)}`).join(" · ")) : null,
    newest.length ? el("p", { class: "muted small" }, "Anyone can make keys: whom to believe is yours to say.") : el("p", { class: "muted" }, "Nothing yet."),
    newest.map((review) => {
      const [look, text] = VERDICTS[review.label] ?? ["", review.label ? clip(review.label, 30) : "recommends"];
      return el(
        "div",
        { class: "review" },
        el("p", { class: "small muted" },
          el("span", { class: `badge ${look}` }, text), " ",
          el("span", { class: "mono", title: review.reviewer_npub }, shortKey(review.reviewer_npub)), ` · ${ago(review.created_at)}`),
        review.text ? el("p", {}, clip(review.text, 1_000)) : null,
      );
    }),
  );
}
