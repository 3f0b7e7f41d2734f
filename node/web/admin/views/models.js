// Models and prices: what is sold, for how much, and changing it.

import { el, replace } from "/static/dom.js";
import { plural } from "/static/format.js";
import { textInput } from "../form.js";
import { editModel } from "../modelform.js";
import { leaveOut, leftOut } from "../modellists.js";
import { changeNote } from "../settingform.js";
import { amount, badge, problemAlert, state, table } from "../widgets.js";

export default {
  title: "Models & prices",
  async render(body, view) {
    let models = [];
    let upstreams = {};
    const words = textInput({ type: "search", "aria-label": "Find a model", placeholder: "Find a model" });
    const said = el("div", { role: "status" });
    const others = el("div");
    /** Runs a change, tells what became of it, shows what is now. */
    const change = async (run) => {
      try {
        const answer = await run();
        if (!answer) return;
        replace(said, changeNote(answer));
        await load();
      } catch (error) {
        if (!view.signal.aborted) replace(said, problemAlert(error));
      }
    };
    const rows = table("What is sold; prices in sat, of input and output for a million tokens", columns({
      edit: (model) => change(() => editModel(model, view)),
      leave: (model) => change(() => leaveOut(model, upstreams, view)),
      isListed: (model) => model.source === "discovered"
        && model.backends.some(({ upstream }) => upstreams[upstream]?.discover.value),
    }), { empty: "No model." });
    const draw = () => {
      const part = words.value.toLowerCase();
      const found = models.filter((model) => `${model.id} ${model.name}`.toLowerCase().includes(part));
      rows.show(found);
      return found.length;
    };
    const load = async () => {
      const [now, { settings }] = await Promise.all([view.get("/models"), view.get("/settings")]);
      ({ models } = now);
      ({ upstreams } = settings);
      draw();
      replace(others, leftOut(upstreams, view, change));
    };
    words.addEventListener("input", () => view.say(plural(draw(), "model")));
    await load();
    replace(body, el("div", { class: "bar" }, words), said,
      el("div", { class: "panel flush" }, rows.element), others);
  },
};

const SOURCES = {
  settings: ["settings"],
  discovered: ["a list"],
  override: ["changed here", "accent"],
};

const columns = ({ edit, leave, isListed }) => [
  { label: "Model", head: true, cell: (model) => [
    el("span", { class: "break" }, model.name || model.id),
    model.name && model.name !== model.id ? el("div", { class: "mono small muted break" }, model.id) : null,
  ] },
  { label: "State", cell: (model) => [
    model.on_sale ? state("good", "on sale") : state("idle", "not on sale"),
    model.why_not ? el("div", { class: "small muted break" }, model.why_not) : null,
  ] },
  { label: "Input", num: true, cell: (model) => price(model, "input_msat_per_mtok") },
  { label: "Output", num: true, cell: (model) => price(model, "output_msat_per_mtok") },
  { label: "A request", num: true, cell: (model) => price(model, "per_request_msat") },
  { label: "Set by", cell: (model) => [
    badge(...SOURCES[model.source]),
    el("div", { class: "small muted break" }, [...new Set(model.backends.map(({ upstream }) => upstream))].join(", ")),
  ] },
  { label: "", cell: (model) => el("div", { class: "row end" },
    button("Edit", model, edit), isListed(model) ? button("Stop selling", model, leave) : null) },
];

const button = (words, model, run) => el("button", { type: "button", class: "small", onclick: () => run(model) },
  words, el("span", { class: "visually-hidden" }, ` ${model.id}`));

function price(model, name) {
  if (model.free) return "free";
  return amount(model.price?.[name], { exact: true, unit: false });
}
