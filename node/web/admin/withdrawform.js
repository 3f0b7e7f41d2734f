// Withdrawing earnings as a token. The key of a withdrawal is made before it is first asked for and
// kept until the operator has the token, so that asking again never pays twice.

import { copyButton, el, replace } from "/static/dom.js";
import { count } from "/static/format.js";
import { busy, confirm, openDialog } from "./dialog.js";
import { field, parseWhole, select, setProblem, wholeInput } from "./form.js";
import { ApiError } from "./net.js";
import { amount, errorText, facts, problem, time } from "./widgets.js";
import { forget, pending, remember } from "./withdrawal.js";

const LONG_MS = 120_000;
/** With these the node said no before anything moved; all else leaves the outcome open. */
const REFUSALS = new Set(["payment_refused", "not_configured", "invalid_value", "invalid_json",
  "insufficient_balance", "mint_liquidity", "mint_full", "idempotency_conflict"]);

const isRefusal = (error) => error instanceof ApiError && REFUSALS.has(error.code);

/** A withdrawal that was asked for and whose token nobody has yet; null without one. */
export function unfinished(view, refresh) {
  const kept = pending();
  if (!kept) return null;
  const said = el("div", { role: "alert" });
  const go = el("button", { type: "button", class: "primary" }, "Finish it");
  const drop = el("button", { type: "button" }, "Leave it");
  go.addEventListener("click", () => run({ wanted: kept, button: go, label: "Finish it", said, view, refresh }));
  drop.addEventListener("click", () => {
    forget();
    refresh().catch((error) => replace(said, problem(error)));
  });
  return el("div", { class: "note warn" },
    el("p", {}, "A withdrawal of ", amount(1_000 * kept.amount_sat), " (", time(kept.made_at), ") was asked for, ",
      "and you do not have its token yet. Finish it: you get that token, and nothing is paid twice. If you leave it, ",
      "a token that was made stays below among the tokens."),
    said, el("div", { class: "row" }, go, drop));
}

/** A button that shows the token of a withdrawal once more. */
export function showAgain(item, view) {
  const said = el("div", { role: "alert" });
  const button = el("button", { type: "button", class: "small" }, "Show the token");
  const wanted = {
    amount_sat: item.amount_msat / 1_000, mint: item.mint, idempotency_key: item.idempotency_key,
  };
  button.addEventListener("click", async () => {
    await run({ wanted, button, label: "Show the token", said, view, kept: false });
  });
  return el("div", {}, button, said);
}

/**
 * The form.
 *
 * @param {{mints: string[], most: function(): number, view: Object, refresh: function(): Promise}} parts
 *   most: sat that can be taken out now.
 */
export function withdrawForm({ mints, most, view, refresh }) {
  const sats = wholeInput({ required: true, maxlength: "20" });
  const holder = field("Amount in sat", sats, "The mint may take a small fee on top.");
  const mint = select([["", "Any that can"], ...mints.map((url) => [url, url])], "");
  const said = el("div", { role: "alert" });
  const button = el("button", { type: "submit", class: "primary" }, "Withdraw …");
  const form = el("form", { class: "stack", novalidate: true },
    el("p", { class: "muted" }, "A Cashu token of what you earned, to paste into your wallet."),
    holder, mints.length > 1 ? field("Mint", mint) : null, said, el("div", { class: "row" }, button));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    replace(said);
    const value = parseWhole(sats.value);
    setProblem(holder, wrongAmount(value, most()));
    if (wrongAmount(value, most())) {
      sats.focus();
      return;
    }
    if (pending()) {
      replace(said, el("p", { class: "note warn" }, "Finish or leave the withdrawal above first."));
      return;
    }
    const agreed = await confirm("Withdraw?", [
      facts(["Amount", el("strong", {}, amount(1_000 * value))], mint.value ? ["Mint", mint.value] : null),
      el("p", {}, "The token is money: whoever has it can spend it."),
    ], `Withdraw ${count(value)} sat`);
    if (!agreed) return;
    const wanted = remember(value, mint.value);
    const done = await run({ wanted, button, label: "Withdraw …", said, view, refresh, holder });
    if (done) sats.value = "";
  });
  return form;
}

/** What is wrong with an amount; empty when nothing is. */
export function wrongAmount(value, most) {
  if (!(value > 0)) return "Enter a whole number of sat, such as 1000.";
  return value > most ? `That is more than can be taken out (${count(most)} sat).` : "";
}

/**
 * Asks for the token under its key and shows it.
 *
 * @returns {Promise<boolean>} whether there was one.
 */
async function run({ wanted, button, label, said, view, refresh = async () => {}, holder = null, kept = true }) {
  busy(button, true, "Making the token …");
  replace(said, el("p", { class: "muted small" }, "The mint signs the coins; this may take a while."),
    el("progress", { "aria-label": "Making the token" }));
  const document = { amount_sat: wanted.amount_sat, idempotency_key: wanted.idempotency_key };
  if (wanted.mint) document.mint = wanted.mint;
  try {
    const answer = await view.send("POST", "/withdraw", document, { deadlineMs: LONG_MS });
    replace(said);
    busy(button, false, label);
    view.say("The token is ready");
    await showToken(answer);
    if (kept) forget();
    if (!view.signal.aborted) await refresh();
    return true;
  } catch (error) {
    const refused = isRefusal(error);
    if (refused && kept) forget();
    if (!view.signal.aborted) {
      if (holder && !refused) await refresh().catch(() => {});
      if (refused && error.param === "amount_sat" && holder) setProblem(holder, errorText(error));
      replace(said, problem(error), refused ? null : el("p", {}, "Whether the token was made is not known yet. ",
        "Ask again: you get the same one, and nothing is paid twice."));
    }
    return false;
  } finally {
    busy(button, false, label);
  }
}

async function showToken({ token, amount_sat: sat, mint }) {
  const done = el("button", { type: "button", class: "primary" }, "I have kept it");
  const text = el("textarea", {
    class: "mono", readonly: true, rows: "6", "aria-label": "The token", ".value": token,
    onfocus: (event) => event.target.select(),
  });
  const dialog = openDialog("Your token", [
    el("p", {}, el("strong", {}, amount(1_000 * sat)), " of ", el("span", { class: "break" }, mint)),
    el("p", {}, "Copy it into your wallet now. Whoever has it can spend it."),
    text,
    el("div", { class: "row actions" }, copyButton(token, "Copy", "the token"), done),
  ], { lasting: true });
  done.addEventListener("click", dialog.close);
  await dialog.closed;
}
