// Accounts: who has how much, and what happened to it. Keys are never shown: the node has no copy.

import { el, replace } from "/static/dom.js";
import { count, plural } from "/static/format.js";
import { choice } from "../form.js";
import { amount, badge, pagedTable, time } from "../widgets.js";

const PAGE = 50;

export default {
  title: "Accounts",
  async render(body, view) {
    const [id] = view.rest;
    if (id === "all") await everything(body, view);
    else if (id) await one(body, view, id);
    else await list(body, view);
  },
};

async function list(body, view) {
  const order = view.query.get("order") === "created" ? "created" : "balance";
  const read = async (cursor) => {
    const answer = await view.get("/accounts", { limit: PAGE, cursor, order });
    return [answer.accounts, answer.next_cursor];
  };
  const rows = await pagedTable(
    order === "balance" ? "Accounts, the largest balance first" : "Accounts, the newest first",
    ACCOUNTS, read, { empty: "No account yet. A client's first token opens one." });
  const orders = choice("Order", [["balance", "Balance"], ["created", "Newest"]], order,
    (chosen) => (location.hash = `#/accounts?order=${chosen}`));
  replace(body,
    el("div", { class: "bar" }, orders, el("a", { href: "#/accounts/all" }, "All transactions")),
    el("div", { class: "panel flush" }, rows));
}

async function one(body, view, id) {
  view.heading.textContent = `Account ${id}`;
  const path = `/accounts/${encodeURIComponent(id)}/transactions`;
  const read = async (cursor) => {
    const answer = await view.get(path, { limit: PAGE, cursor });
    return [answer.transactions, answer.next_cursor];
  };
  const rows = await pagedTable("Transactions, newest first", [
    { label: "Time", cell: (item) => time(item.created_at) },
    { label: "What", head: true, cell: (item) => words(item.kind) },
    { label: "Amount", num: true, cell: (item) => amount(item.amount_msat, { exact: true, sign: true }) },
    { label: "Balance after", num: true, cell: (item) => amount(item.balance_msat, { exact: true }) },
    { label: "State", cell: (item) => badge(words(item.state), item.state === "done" ? "good" : "") },
    { label: "Model", cell: (item) => (item.model ? el("span", { class: "break" }, item.model) : null) },
    { label: "Tokens", num: true, cell: tokens },
    { label: "Request", cell: (item) => code(item.request_id) },
  ], read, { empty: "No transaction." });
  replace(body, el("p", {}, el("a", { href: "#/accounts" }, "← All accounts")),
    el("div", { class: "panel flush" }, rows));
}

async function everything(body, view) {
  view.heading.textContent = "All transactions";
  const read = async (cursor) => {
    const answer = await view.get("/transactions", { limit: PAGE, cursor });
    return [answer.transactions, answer.next_cursor];
  };
  const rows = await pagedTable("Transactions of all accounts, newest first", [
    { label: "Time", cell: (item) => time(item.created_at) },
    { label: "From", head: true, cell: (item) => party(item.from) },
    { label: "To", cell: (item) => party(item.to) },
    { label: "Amount", num: true, cell: (item) => amount(item.amount_msat, { exact: true }) },
    { label: "Model", cell: (item) => (item.model ? el("span", { class: "break" }, item.model) : null) },
    { label: "Reference", cell: (item) => code(item.reference) },
  ], read, { empty: "No transaction." });
  replace(body, el("p", {}, el("a", { href: "#/accounts" }, "← Accounts")),
    el("div", { class: "panel flush" }, rows));
}

function kindOf(item) {
  const parts = [item.kind === "request" ? "one request" : "key"];
  if (item.admin_key) parts.push("with admin key");
  if (item.child_keys) parts.push(plural(item.child_keys, "child key"));
  return parts.join(", ");
}

const words = (text) => String(text ?? "").replaceAll("_", " ");

const code = (text) => (text ? el("code", { class: "break small" }, text) : null);

const tokens = (item) => (item.prompt_tokens === null ? null
  : `${count(item.prompt_tokens)} → ${count(item.completion_tokens)}`);

/** One side of a transfer; an account is a link. */
function party(side) {
  const account = /^account (\d+)$/.exec(side);
  if (account) return el("a", { href: `#/accounts/${account[1]}` }, `Account ${account[1]}`);
  return words(side);
}

const ACCOUNTS = [
  { label: "Account", head: true, cell: (item) => el("a", { href: `#/accounts/${item.id}` }, `Account ${item.id}`) },
  { label: "Kind", cell: kindOf },
  { label: "State", cell: (item) => badge(words(item.state), item.state === "open" ? "good" : "") },
  { label: "Balance", num: true, cell: (item) => amount(item.balance_msat, { exact: true }) },
  { label: "Held", num: true, cell: (item) => amount(item.held_msat, { exact: true }) },
  { label: "Opened", cell: (item) => time(item.created_at) },
  { label: "Last used", cell: (item) => time(item.last_used_at, { relative: true }) },
  { label: "Expires", cell: (item) => (item.expires_at ? time(item.expires_at) : "never") },
  { label: "Mint", cell: (item) => el("span", { class: "break small" }, item.mint) },
];
