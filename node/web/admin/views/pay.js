// Withdraw and pay out: what was earned leaves the node, as a token or over Lightning.

import { el, replace } from "/static/dom.js";
import { payoutForm } from "../payoutform.js";
import { amount, pagedTable, panel, state, stats, time } from "../widgets.js";
import { showAgain, unfinished, withdrawForm } from "../withdrawform.js";

export default {
  title: "Withdraw and pay out",
  async render(body, view) {
    const { settings } = await view.get("/settings");
    const { address, reserve_sat: reserve } = settings.payout;
    const figures = el("div");
    const open = el("div");
    const tokens = el("div");
    const payments = el("div");
    let balances = null;
    const most = () => Math.max(0, Math.floor(balances.books.earned_msat / 1_000) - reserve.value);
    const refresh = async () => {
      const [now, made, paid] = await Promise.all([
        view.get("/balances"),
        pages(view, "withdrawals", WITHDRAWALS(view), "Nothing was withdrawn yet."),
        pages(view, "payouts", PAYOUTS, "Nothing was paid out yet."),
      ]);
      balances = now;
      replace(figures, stats(
        ["Yours", amount(now.books.earned_msat)],
        ["Stays as a reserve", amount(1_000 * reserve.value)],
        ["Can be taken out", amount(1_000 * most())],
        ["Taken out so far", amount(now.books.paid_out_msat)]));
      replace(tokens, made);
      replace(payments, paid);
      replace(open, unfinished(view, refresh));
    };
    await refresh();
    const mints = balances.mints.filter((mint) => mint.accepted && mint.unit === "sat").map(({ url }) => url);
    replace(body, figures, open,
      el("div", { class: "columns" },
        panel("Withdraw as a token", withdrawForm({ mints, most, view, refresh })),
        panel("Pay out over Lightning", payoutForm({ address: address.value, most, view, refresh }))),
      panel("Tokens made", tokens), panel("Payouts", payments));
  },
};

const read = (view, name) => async (cursor) => {
  const answer = await view.get(`/${name}`, { limit: 20, cursor });
  return [answer[name], answer.next_cursor];
};

const pages = (view, name, columns, empty) =>
  pagedTable(name === "payouts" ? "Payouts, newest first" : "Tokens made, newest first", columns,
    read(view, name), { empty, captionHidden: true });

const STATES = { done: ["good", "done"], salvaged: ["good", "done"], intent: ["warn", "under way"], failed: ["bad", "failed"] };

const stateOf = (item) => {
  const [kind, words] = STATES[item.state] ?? ["idle", item.state];
  return [state(kind, words), item.error ? el("div", { class: "small muted break" }, item.error) : null];
};

const WITHDRAWALS = (view) => [
  { label: "Time", head: true, cell: (item) => time(item.created_at) },
  { label: "State", cell: stateOf },
  { label: "Amount", num: true, cell: (item) => amount(item.amount_msat) },
  { label: "Cost", num: true, cell: (item) => amount(item.fee_msat) },
  { label: "Mint", cell: (item) => el("span", { class: "break small" }, item.mint) },
  { label: "", cell: (item) => (item.state === "failed" || !item.idempotency_key ? null : showAgain(item, view)) },
];

const PAYOUTS = [
  { label: "Time", head: true, cell: (item) => time(item.created_at) },
  { label: "State", cell: stateOf },
  { label: "Amount", num: true, cell: (item) => amount(item.amount_msat) },
  { label: "Cost", num: true, cell: (item) => amount(item.fee_msat) },
  { label: "To", cell: (item) => (item.destination ? el("span", { class: "break small" }, item.destination) : null) },
  { label: "Mint", cell: (item) => el("span", { class: "break small" }, item.mint) },
];
