// The page at /: who this node is, what it sells and for how much.

import { get } from "/static/api.js";
import { byId, copyButton, el, outside, replace } from "/static/dom.js";
import { count, sat, satNumber } from "/static/format.js";

const MSAT_PER_MTOK = 1e9; // of one sat per token

async function show() {
  const [info, models] = await Promise.allSettled([get("/v1/info"), get("/v1/models")]);
  if (info.status === "fulfilled") showNode(info.value);
  else failed(byId("who"), info.reason);
  if (models.status === "fulfilled") showModels(models.value.data ?? []);
  else failed(byId("models"), models.reason);
}

function showNode(info) {
  document.title = `${info.name} · nodestr`;
  byId("name").textContent = info.name;
  if (info.description) byId("about").textContent = info.description;
  const lists = [
    ["Over HTTP", info.http_urls ?? []],
    ["Over Tor", info.onion_url ? [info.onion_url] : []],
    ["Over Nostr, by", info.relays ?? []],
    ["Takes ecash of", info.mints ?? []],
  ];
  replace(
    byId("who"),
    el(
      "dl",
      { class: "facts" },
      el("dt", {}, "Nostr key"),
      el("dd", {}, el("span", { class: "mono break" }, info.npub), " ", copyButton(info.npub, "Copy", "the key")),
      lists
        .filter(([, urls]) => urls.length)
        .map(([name, urls]) => [el("dt", {}, name), el("dd", {}, urls.map((url) => el("div", {}, outside(url))))]),
      el("dt", {}, "Version"),
      el("dd", {}, info.version),
    ),
  );
}

function showModels(models) {
  showExample(models.find((model) => model.sats_pricing) ?? null);
  if (models.length === 0) {
    replace(byId("models"), el("p", { class: "empty" }, "Nothing is for sale at the moment."));
    return;
  }
  const price = (perToken) => el("td", { class: "num" }, satNumber(Math.round(perToken * MSAT_PER_MTOK)));
  const number = (text) => el("td", { class: "num" }, text);
  replace(
    byId("models"),
    el("p", { class: "muted small" }, "Prices in sat: input and output for a million tokens, request for each call."),
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "models-title" },
      el(
        "table",
        {},
        el("caption", { class: "visually-hidden" }, "Models and prices"),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ["Model", "Input", "Output", "Request", "Context"].map((text, at) =>
              el("th", { scope: "col", class: at ? "num" : null }, text),
            ),
          ),
        ),
        el(
          "tbody",
          {},
          models.map((model) =>
            el(
              "tr",
              {},
              el(
                "th",
                { scope: "row" },
                model.name === model.id ? null : el("div", {}, model.name),
                el("span", { class: "mono break" }, model.id),
                others(model.sats_pricing),
              ),
              price(model.sats_pricing.prompt),
              price(model.sats_pricing.completion),
              number(satNumber(1_000 * model.sats_pricing.request)),
              number(count(model.context_length)),
            ),
          ),
        ),
      ),
    ),
  );
}

/** What only some models cost, in words. */
function others({ image, audio_minute: minute, character }) {
  const prices = [
    [image, 1, "an image"],
    [minute, 1, "a minute of sound"],
    [character, 1_000_000, "a million characters"],
  ];
  const said = prices.filter(([price]) => price).map(([price, times, what]) => `${sat(Math.round(1_000 * times * price))} ${what}`);
  return said.length ? el("div", { class: "small muted" }, said.join(" · ")) : null;
}

function showExample(model) {
  const body = { model: model?.id ?? "…", messages: [{ role: "user", content: "Hello" }] };
  byId("example").textContent = [
    `curl ${location.origin}/v1/chat/completions \\`,
    `  -H 'X-Cashu: cashuB…' -H 'Content-Type: application/json' \\`,
    `  -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`,
  ].join("\n");
}

function failed(place, error) {
  replace(place, el("p", { class: "note bad", role: "alert" }, `${error.message}. Try again in a moment.`));
}

show();
