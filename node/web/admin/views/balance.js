// Balance sheet: where the money is, whose it is, and whether the books add up.

import { el, replace } from "/static/dom.js";
import { count, plural } from "/static/format.js";
import { amount, badge, panel, state, stats, table } from "../widgets.js";

const REFRESH_S = 10;

/** Each sheet: its name, its lines [key, words, sign], and the sum at its end. */
const SHEETS = [
  ["Whose the coins are", [
    ["open_balances_msat", "Balances of clients", 1],
    ["in_transit_msat", "On its way out", 1],
    ["kept_msat", "Found after a restore, kept for claims", 1],
    ["earned_msat", "Yours", 1],
  ], ["coins_msat", "Coins held"]],
  ["How your part came about", [
    ["charged_msat", "Charged for requests", 1],
    ["dust_msat", "Too small to give back", 1],
    ["capital_msat", "Put in by you", 1],
    ["own_fees_msat", "Mints' fees", -1],
    ["lost_msat", "Lost", -1],
    ["kept_msat", "Kept for claims", -1],
    ["paid_out_msat", "Taken out", -1],
  ], ["earned_msat", "Yours"]],
  ["What clients paid in", [
    ["received_msat", "Received", 1],
    ["input_fees_msat", "Mints' fees on clients' tokens", -1],
    ["capital_msat", "Put in by you", -1],
    ["charged_msat", "Charged for requests", -1],
    ["dust_msat", "Too small to give back", -1],
    ["issued_msat", "Given back as tokens or over Lightning", -1],
    ["in_transit_msat", "On its way out", -1],
  ], ["open_balances_msat", "Balances of clients"]],
];

export default {
  title: "Balance sheet",
  async render(body, view) {
    const first = await view.get("/balances");
    const verdict = el("div", { role: "status" });
    const figures = el("div");
    const mints = table("Coins at each mint", MINTS, { empty: "No mint.", captionHidden: true });
    const sheets = SHEETS.map(([name]) => table(name, LINES, { captionHidden: true }));
    let told = null;
    const update = (now) => {
      const problems = now.problems.join("\n");
      if (problems !== told) replace(verdict, verdictOf(now.problems));
      told = problems;
      replace(figures, figuresOf(now.books));
      mints.show(now.mints);
      sheets.forEach((sheet, i) => sheet.show(linesOf(SHEETS[i], now.books)));
    };
    update(first);
    replace(body, verdict, figures, panel("Mints", mints.element),
      el("div", { class: "columns sheets" }, SHEETS.map(([name], i) => panel(name, sheets[i].element))));
    view.every(REFRESH_S, async () => update(await view.get("/balances")));
  },
};

function verdictOf(problems) {
  if (!problems.length) return el("p", { class: "note good" }, state("good", "The books add up."));
  return el("div", { class: "note bad" },
    el("p", {}, state("bad", `The books do not add up: ${plural(problems.length, "problem")}.`)),
    el("ul", {}, problems.map((text) => el("li", {}, text))));
}

function figuresOf(books) {
  return stats(
    ["Coins held", amount(books.coins_msat)],
    ["Owed to clients", amount(books.liabilities_msat)],
    ["Set aside for running requests", amount(books.held_msat)],
    ["Yours", amount(books.earned_msat)]);
}

/** Lines without money are left out, but for the sum. */
function linesOf([, lines, [sumKey, sumWords]], books) {
  const shown = lines.filter(([key]) => books[key])
    .map(([key, words, sign]) => ({ words, msat: sign * books[key] }));
  return [...shown, { words: sumWords, msat: books[sumKey], sum: true }];
}

const LINES = [
  { label: "Line", head: true, cell: (line) => (line.sum ? el("strong", {}, line.words) : line.words) },
  { label: "Amount", num: true, cell: (line) => {
    const shown = amount(line.msat, { aligned: true });
    return line.sum ? el("strong", {}, shown) : shown;
  } },
];

const MINTS = [
  { label: "Mint", head: true, cell: (mint) => el("span", { class: "break" }, mint.url) },
  { label: "State", cell: mintState },
  { label: "Unit", cell: (mint) => badge(mint.unit) },
  { label: "Coins", num: true, cell: (mint) => amount(mint.coins_msat, { exact: true }) },
  { label: "Under way", num: true, cell: (mint) => amount(mint.in_transit_msat, { exact: true }) },
  { label: "Keysets", num: true, cell: (mint) => count(mint.keysets) },
];

function mintState(mint) {
  if (mint.paused) return state("warn", "paused until its coins are checked");
  if (!mint.accepted) return state("idle", "no longer accepted");
  if (mint.circuit) return state("bad", mint.circuit);
  return state("good", "in use");
}
