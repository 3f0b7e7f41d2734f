// The editor of one model: its name, whether it is sold, its prices as the settings write them.

import { el } from "/static/dom.js";
import { formDialog } from "./dialog.js";
import { check, decimalInput, field, parseWhole, setProblem, textInput, wholeInput } from "./form.js";
import { errorText, problem, requestLine } from "./widgets.js";

const MAIN = [
  ["input_per_mtok", "A million prompt tokens"],
  ["output_per_mtok", "A million generated tokens"],
  ["per_request", "A request"],
];
const OTHERS = [
  ["cached_per_mtok", "A million prompt tokens from the cache"],
  ["cache_write_per_mtok", "A million prompt tokens written to the cache"],
  ["reasoning_per_mtok", "A million reasoning tokens"],
  ["per_image", "An image"],
  ["per_audio_minute", "A minute of audio"],
  ["per_mchar", "A million characters read aloud"],
];

/**
 * Opens the editor and saves what was changed.
 *
 * @returns {Promise<Object|undefined>} the node's answer; undefined when it was called off.
 */
export function editModel(model, view) {
  const was = { enabled: true, ...model.configured };
  const inputs = new Map();
  const name = textInput({ ".value": was.name ?? "", maxlength: "200", autofocus: true });
  inputs.set("name", { holder: field("Name", name, "Shown to people."), read: () => name.value.trim() || null });
  const free = check("Serve it for nothing", Boolean(was.free ?? model.free));
  inputs.set("free", { holder: el("div", { class: "field" }, free.holder, el("span", { class: "problem" })), read: () => free.input.checked });
  const sold = check("Sell it", was.enabled);
  inputs.set("enabled", { holder: el("div", { class: "field" }, sold.holder, el("span", { class: "problem" })), read: () => sold.input.checked });
  const price = ([kind, label]) => {
    const usd = was[`${kind}_usd`] !== undefined && was[`${kind}_usd`] !== null;
    const key = `${kind}_${usd ? "usd" : "msat"}`;
    const now = model.price?.[kind.startsWith("per_") ? `${kind}_msat` : `${kind.replace("_per_mtok", "")}_msat_per_mtok`];
    const input = (usd ? decimalInput : wholeInput)({
      ".value": was[key] ?? "", maxlength: "24", placeholder: usd ? null : now,
    });
    inputs.set(key, {
      holder: field(`${label}, ${usd ? "USD" : "msat"}`, input),
      read: () => {
        const text = input.value.trim();
        if (!text) return null;
        if (usd) return text;
        const value = parseWhole(text);
        if (value === null || value < 0) throw new FieldError(key, "A whole number of msat, such as 150000.");
        return value;
      },
    });
    return inputs.get(key).holder;
  };
  const main = MAIN.map(price);
  const others = OTHERS.map(price);
  const shownOthers = OTHERS.some(([kind]) => was[`${kind}_msat`] || was[`${kind}_usd`]);

  const prices = [...main, ...others].map((holder) => holder.querySelector("input"));
  const settle = () => prices.forEach((input) => (input.disabled = free.input.checked));
  free.input.addEventListener("change", settle);
  settle();

  const told = (error) => {
    const key = error instanceof FieldError ? error.key : fieldOf(error.param, inputs);
    if (key === null) return problem(error);
    const { holder } = inputs.get(key);
    holder.closest("details")?.setAttribute("open", "");
    setProblem(holder, errorText(error));
    return requestLine(error);
  };
  const changes = () => {
    for (const { holder } of inputs.values()) setProblem(holder, "");
    const document = {};
    for (const [key, { holder, read }] of inputs) {
      // what is for nothing has no price left
      const isOff = holder.querySelector("input").disabled;
      const value = isOff ? (Number(was[key]) ? 0 : was[key]) : read();
      if (!same(value, was[key])) document[key] = value;
    }
    return document;
  };
  const path = `/models/${encodeURIComponent(model.id)}`;
  const undo = el("button", { type: "submit", hidden: model.source !== "override" }, "Undo all changes");
  let undoing = false;
  undo.addEventListener("click", () => (undoing = true));
  return formDialog({
    title: `Edit ${model.id}`,
    content: [
      inputs.get("name").holder,
      el("fieldset", { class: "grid" }, el("legend", {}, "Prices"), main),
      el("details", shownOthers ? { open: true } : {}, el("summary", {}, "More prices"), el("div", { class: "grid" }, others)),
      inputs.get("free").holder,
      inputs.get("enabled").holder,
      el("p", { class: "muted small" }, "1 sat is 1,000 msat. What is left empty is as in the configuration file. Requests that run go on at the price they began with."),
    ],
    action: "Save",
    more: [undo],
    told(error) {
      undoing = false;
      return told(error);
    },
    async act() {
      if (undoing) return view.send("PATCH", "/settings", { models: { [model.id]: null } });
      const document = changes();
      if (!Object.keys(document).length) return { applied: [], needs_restart: [] };
      return view.send("PATCH", path, model.source === "discovered" ? { ...entryOf(model), ...document } : document);
    },
  });
}

/** What the settings need to say of a model that only an upstream's list told of so far. */
function entryOf(model) {
  const backends = model.backends.map(({ upstream, upstream_id: id }) => ({ upstream, upstream_id: id }));
  const { context_length, max_output_tokens, endpoints } = model;
  const served = backends.length === 1 ? backends[0] : { backends };
  return { ...served, context_length, max_output_tokens, endpoints };
}

/** What the operator typed cannot be sent. */
class FieldError extends Error {
  constructor(key, message) {
    super(message);
    this.key = key;
  }
}

/** Nothing, an empty text, false and a missing value are the same. */
function same(value, was) {
  const plain = (one) => (one === "" || one === false || one === undefined ? null : one);
  return String(plain(value)) === String(plain(was));
}

/** The field an error is about: "models.demo.name" and "name" are the same one. */
function fieldOf(param, inputs) {
  const last = String(param ?? "").split(".").at(-1);
  return inputs.has(last) ? last : null;
}
