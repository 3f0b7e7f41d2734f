// Overview: is all well, what came in, does the money cover what is owed.

import { copyButton, el, replace, svg } from "/static/dom.js";
import { count, plural, sat } from "/static/format.js";
import { amount, facts, panel, state, stats, time } from "../widgets.js";

const REFRESH_S = 5;

export default {
  title: "Overview",
  async render(body, view) {
    const first = await view.get("/overview");
    const verdict = el("div");
    const figures = el("div");
    const money = el("div");
    const checks = el("div");
    const since = el("span");
    const models = el("span");
    const nodes = el("span");
    replace(body,
      verdict,
      figures,
      el("div", { class: "columns" },
        panel("Money", money, el("p", {}, el("a", { href: "#/balance" }, "Balance sheet"))),
        panel("Health", checks)),
      panel("This node", facts(
        ["Public key", el("span", { class: "row" },
          el("code", { class: "break" }, first.npub),
          copyButton(first.npub, "Copy", "the public key"))],
        ["Version", first.version],
        ["Running since", since],
        ["Models on sale", el("a", { href: "#/models" }, models)],
        ["Nodes found", el("a", { href: "/providers" }, nodes)])));
    let told = null;
    const update = (now) => {
      replace(verdict, summary(now));
      replace(figures, figuresOf(now));
      replace(money, balanceOf(now));
      replace(checks, checkList(now));
      replace(since, time(now.started_at));
      models.textContent = count(now.models);
      nodes.textContent = count(now.providers);
      if (told !== null && told !== now.ready) view.say(now.ready ? "The node is ready" : "The node is not ready");
      told = now.ready;
    };
    update(first);
    view.every(REFRESH_S, async () => update(await view.get("/overview")));
  },
};

function summary(now) {
  if (now.draining) {
    return el("p", { class: "note warn" }, "The node is being stopped: it takes no new requests and finishes ",
      plural(now.active_requests, "request"), ".");
  }
  if (now.ready) return null;
  const wrong = Object.values(now.checks).filter((text) => !isOk(text)).length;
  return el("p", { class: "note bad" },
    `The node is not ready: ${plural(wrong, "check")} failed. Clients are asked to come back later.`);
}

function figuresOf(now) {
  return stats(
    ["Earned today", amount(now.earned_today_msat)],
    ["Yours to take out", amount(now.earned_msat)],
    ["Requests today", count(now.requests_today)],
    ["Running now", count(now.active_requests)]);
}

function balanceOf(now) {
  const short = now.net_msat < 0;
  return [
    scale(now),
    facts(
      [[swatch("coins"), "Coins held"], amount(now.coins_msat)],
      [[swatch("owed"), "Owed to clients"], amount(now.liabilities_msat)],
      [short ? "Missing" : "Left over", el("strong", {}, amount(Math.abs(now.net_msat)))]),
    short
      ? el("p", {}, state("bad", "The coins do not cover what clients are owed"))
      : el("p", {}, state("good", "The coins cover what clients are owed")),
  ];
}

const swatch = (name) => el("span", { class: `key ${name}`, "aria-hidden": "true" });

/** What is held and what is owed as two bars on one scale. */
function scale(now) {
  const most = Math.max(now.coins_msat, now.liabilities_msat, 1);
  const wide = (msat) => (100 * Math.max(msat, 0)) / most;
  const about = `Coins ${sat(now.coins_msat)}, owed to clients ${sat(now.liabilities_msat)}`;
  return svg("svg", {
    class: "scale", viewBox: "0 0 100 12", preserveAspectRatio: "none", role: "img", "aria-label": about,
  },
    svg("rect", { class: "track", x: 0, y: 0, width: 100, height: 5 }),
    svg("rect", { class: "coins", x: 0, y: 0, width: wide(now.coins_msat), height: 5 }),
    svg("rect", { class: "track", x: 0, y: 7, width: 100, height: 5 }),
    svg("rect", { class: "owed", x: 0, y: 7, width: wide(now.liabilities_msat), height: 5 }));
}

const isOk = (text) => text === "ok";

/** A check that fails while the node is ready is one to look after, and no more. */
function checkList({ checks, ready }) {
  const wrong = ready ? "warn" : "bad";
  return el("ul", { class: "checks" }, Object.entries(checks).map(([name, text]) =>
    el("li", {},
      state(isOk(text) ? "good" : wrong, name.replaceAll("_", " ")),
      el("span", { class: "muted small break" }, text))));
}
