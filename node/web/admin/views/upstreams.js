// Upstreams: the model servers and how they are.

import { el, replace } from "/static/dom.js";
import { count, plural } from "/static/format.js";
import { amount, badge, state, table } from "../widgets.js";

const REFRESH_S = 5;

export default {
  title: "Upstreams",
  async render(body, view) {
    const rows = table("Model servers", COLUMNS, { empty: "No upstream.", captionHidden: true });
    const update = async () => rows.show((await view.get("/upstreams")).upstreams);
    await update();
    replace(body,
      el("p", { class: "lead" }, "The servers that answer your clients' requests. One that fails again and again is ",
        "left alone for a while and then tried with one request."),
      el("div", { class: "panel flush" }, rows.element));
    view.every(REFRESH_S, update);
  },
};

const STATES = {
  closed: ["good", "in use"],
  open: ["bad", "left alone"],
  "half-open": ["warn", "being tried"],
};

function stateOf(item) {
  const [kind, text] = STATES[item.state] ?? ["idle", item.state];
  const notes = [item.trouble, item.paused_models ? `${plural(item.paused_models, "model")} paused` : null];
  return [
    state(kind === "good" && item.trouble ? "warn" : kind, text),
    notes.filter(Boolean).map((note) => el("div", { class: "small muted break" }, note)),
  ];
}

const COLUMNS = [
  { label: "Name", head: true, cell: (item) => [
    item.name, " ", badge(item.dialect),
    item.base_url ? el("div", { class: "small muted break" }, item.base_url) : null,
  ] },
  { label: "State", cell: stateOf },
  { label: "Running", num: true, cell: (item) =>
    `${count(item.in_use)}${item.max_concurrency ? ` of ${count(item.max_concurrency)}` : ""}` },
  { label: "Waiting", num: true, cell: (item) => count(item.waiting) },
  { label: "Answered", num: true, cell: (item) => count(item.answered) },
  { label: "Failed", num: true, cell: (item) => count(item.failed) },
  { label: "Models", num: true, cell: (item) => count(item.models) },
  { label: "Prepaid", num: true, cell: (item) => amount(item.balance_msat) },
  { label: "Last error", cell: (item) => (item.last_error ? el("span", { class: "break small" }, item.last_error) : null) },
];
