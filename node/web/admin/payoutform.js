// Paying earnings to the operator's Lightning address.

import { el, replace } from "/static/dom.js";
import { busy, confirm } from "./dialog.js";
import { field, parseWhole, setProblem, wholeInput } from "./form.js";
import { amount, errorText, facts, problem } from "./widgets.js";
import { wrongAmount } from "./withdrawform.js";

const LONG_MS = 120_000;
const NOT_KNOWN = new Set(["pending", "internal_error", ""]);

/**
 * @param {{address: string, most: function(): number, view: Object, refresh: function(): Promise}} parts
 *   most: sat that can be taken out now.
 */
export function payoutForm({ address, most, view, refresh }) {
  const settings = el("a", { href: "#/settings/payout" }, "the settings");
  if (!address) {
    return el("p", { class: "muted" }, "Set ", el("code", {}, "payout.address"), " to your Lightning address in ", settings, " first.");
  }
  const sats = wholeInput({ maxlength: "20" });
  const holder = field("Amount in sat", sats, "Empty: all that can be taken out.");
  const said = el("div", { role: "status" });
  const button = el("button", { type: "submit", class: "primary" }, "Pay out …");
  const form = el("form", { class: "stack", novalidate: true },
    el("p", { class: "muted" }, "To ", el("strong", { class: "break" }, address), ", from ", settings, "."),
    holder, said, el("div", { class: "row" }, button));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    replace(said);
    const all = sats.value.trim() === "";
    const value = all ? null : parseWhole(sats.value);
    const wrong = all ? "" : wrongAmount(value, most());
    setProblem(holder, wrong);
    if (wrong) {
      sats.focus();
      return;
    }
    const agreed = await confirm("Pay out?", [
      facts(["Amount", el("strong", {}, all ? "all that can be taken out" : amount(1_000 * value))], ["To", address]),
      el("p", {}, "A Lightning payment cannot be taken back."),
    ], "Pay out");
    if (!agreed) return;
    busy(button, true, "Paying …");
    replace(said, el("p", { class: "muted small" }, "The mint pays over Lightning; this may take a minute."),
      el("progress", { "aria-label": "Paying" }));
    try {
      const document = all ? {} : { amount_sat: value };
      const answer = await view.send("POST", "/payout", document, { deadlineMs: LONG_MS });
      replace(said, outcome(answer));
      sats.value = "";
      await refresh();
    } catch (error) {
      if (view.signal.aborted) return;
      if (error.param === "amount_sat") setProblem(holder, errorText(error));
      replace(said, problem(error), NOT_KNOWN.has(error.code)
        ? el("p", {}, "It may have been begun: look below among the payouts before you pay again.") : null);
      await refresh().catch(() => {});
    } finally {
      busy(button, false, "Pay out …");
    }
  });
  return form;
}

const WORDS = { done: "Paid", salvaged: "Paid", pending: "The payment is under way", failed: "The payment failed" };

function outcome(answer) {
  const good = answer.state === "done" || answer.state === "salvaged";
  return el("div", { class: `note ${good ? "good" : "warn"}` },
    el("p", {}, WORDS[answer.state] ?? answer.state, ": ", amount(1_000 * answer.amount_sat),
      typeof answer.fee_sat === "number" ? [", it cost ", amount(1_000 * answer.fee_sat)] : null, "."));
}
