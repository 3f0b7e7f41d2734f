// Operations: business with mints that has no known end yet.

import { el, replace } from "/static/dom.js";
import { count } from "/static/format.js";
import { amount, badge, state, table, time } from "../widgets.js";

const REFRESH_S = 10;
const PATIENCE_S = 300;

export default {
  title: "Operations",
  async render(body, view) {
    const rows = table("Operations without a known outcome, the oldest first", COLUMNS, {
      empty: "Nothing is stuck: every operation at a mint has ended.",
    });
    const more = el("p", { class: "muted" });
    const update = async () => {
      const { operations, count: all } = await view.get("/operations", { limit: 200 });
      rows.show(operations);
      more.textContent = all > operations.length ? `${count(operations.length)} of ${count(all)} are shown.` : "";
    };
    await update();
    replace(body,
      el("p", { class: "lead" }, "What was begun at a mint and is not answered yet. The node asks again by itself until ",
        "it knows; nothing is lost meanwhile."),
      el("div", { class: "panel flush" }, rows.element), more);
    view.every(REFRESH_S, update);
  },
};

const old = (item) => Date.now() / 1_000 - item.created_at > PATIENCE_S;

const COLUMNS = [
  { label: "Operation", head: true, cell: (item) => [
    item.kind.replaceAll("_", " "), el("div", { class: "mono small muted break" }, item.id),
  ] },
  { label: "State", cell: (item) => (old(item) ? state("warn", "stuck") : badge("under way")) },
  { label: "Amount", num: true, cell: (item) => amount(item.amount_msat, { exact: true }) },
  { label: "Begun", cell: (item) => time(item.created_at, { relative: true }) },
  { label: "Tries", num: true, cell: (item) => count(item.attempts) },
  { label: "Whose", cell: (item) => (item.account_id
    ? el("a", { href: `#/accounts/${item.account_id}` }, `Account ${item.account_id}`) : "the node's own") },
  { label: "Mint", cell: (item) => el("span", { class: "break small" }, item.mint) },
  { label: "Last error", cell: (item) => (item.error ? el("span", { class: "break small" }, item.error) : null) },
  { label: "What will happen", cell: (item) => el("span", { class: "break small" }, item.outlook) },
];
