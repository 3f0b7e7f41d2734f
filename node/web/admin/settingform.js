// The editor of one setting: a field that fits its value, and undoing what was changed here.

import { el } from "/static/dom.js";
import { formDialog } from "./dialog.js";
import { check, decimalInput, field, select, setProblem, textInput } from "./form.js";
import { ApiError } from "./net.js";
import { errorText, problem, requestLine } from "./widgets.js";

const NUMBER = /^-?\d+(\.\d+)?$/;
const NUMERIC_NAME = /_(s|bytes|sat|msat|ppm|tokens|length)$|^(port|priority|weight)$/;

/** A value as people read it. */
export function shownValue(value) {
  if (value === null || value === undefined) return "not set";
  if (value === true) return "yes";
  if (value === false) return "no";
  if (Array.isArray(value)) return value.length ? value.map(lineOf).join("\n") : "none";
  if (typeof value === "object") return Object.keys(value).length ? JSON.stringify(value, null, 2) : "none";
  return value === "" ? "empty" : String(value);
}

const lineOf = (item) => (typeof item === "string" ? item : JSON.stringify(item));

/** What became of a change. */
export function changeNote({ applied = [], needs_restart: waiting = [] }) {
  const list = (keys) => keys.map((key) => [el("code", {}, key), " "]);
  return el("div", { class: `note ${waiting.length ? "warn" : "good"}` },
    applied.length ? el("p", {}, "Applies now: ", list(applied)) : null,
    waiting.length ? el("p", {}, "Applies after a restart: ", list(waiting)) : null,
    applied.length || waiting.length ? null : el("p", {}, "Saved. The value in effect stays the same."));
}

/**
 * Opens the editor and saves what was changed.
 *
 * @param {{path: string[], key: string, value: unknown, default: unknown, origin: string}} setting
 * @returns {Promise<Object|undefined>} the node's answer; undefined when it was called off.
 */
export function editSetting(setting, view) {
  const { holder, read } = inputFor(setting);
  const save = (value) => view.send("PATCH", "/settings", nested(setting.path, value));
  const undo = el("button", { type: "submit", hidden: setting.origin !== "override", dataset: { undo: "" } },
    "Undo the change");
  let undoing = false;
  undo.addEventListener("click", () => (undoing = true));
  return formDialog({
    title: setting.path.join("."),
    narrow: true,
    content: [
      el("p", { class: "muted" }, setting.about),
      holder,
      el("p", { class: "small muted" }, "Default: ", el("code", {}, shownValue(setting.default)), ". ",
        setting.live ? "Applies at once." : "Applies after a restart."),
    ],
    action: "Save",
    more: [undo],
    told(error) {
      undoing = false;
      const param = error.param ?? "";
      if (error instanceof ApiError && !param.endsWith(setting.key)) return problem(error);
      setProblem(holder, errorText(error));
      return requestLine(error);
    },
    act: async () => {
      setProblem(holder, "");
      const answer = await save(undoing ? null : read());
      return answer;
    },
  });
}

/** ["http", "port"], 1 → {http: {port: 1}} */
function nested(path, value) {
  return path.reduceRight((inner, name) => ({ [name]: inner }), value);
}

/** A field for the kind of value this is, and reading it back. */
function inputFor(setting) {
  const { key, value, choices } = setting;
  const like = value ?? setting.default;
  if (typeof like === "boolean") {
    const { input, holder } = check(key, Boolean(value));
    input.autofocus = true;
    return {
      holder: el("div", { class: "field" }, holder, el("span", { class: "problem" })),
      read: () => input.checked,
    };
  }
  if (choices) {
    const input = select(choices.map((choice) => [String(choice), String(choice)]), String(value), { autofocus: true });
    return { holder: field(key, input), read: () => choices.find((choice) => String(choice) === input.value) };
  }
  if (Array.isArray(like) && like.every((item) => typeof item !== "object")) {
    const input = area((value ?? []).map(String).join("\n"));
    return {
      holder: field(key, input, "One on each line."),
      read: () => input.value.split("\n").map((line) => line.trim()).filter(Boolean),
    };
  }
  if (like !== null && typeof like === "object") {
    const input = area(JSON.stringify(value, null, 2));
    return { holder: field(key, input, "JSON"), read: () => parsed(input.value) };
  }
  if (like === null && key.endsWith("_only")) {
    const input = select([["", "not set"], ["yes", "yes"], ["no", "no"]], "", { autofocus: true });
    return { holder: field(key, input), read: () => (input.value ? input.value === "yes" : null) };
  }
  const isNumber = typeof like === "number" || (like === null && NUMERIC_NAME.test(key));
  const input = (isNumber ? decimalInput : textInput)({ ".value": value ?? "", autofocus: true, maxlength: "2000" });
  return {
    holder: field(key, input, setting.secret ? "A reference to a secret, never the secret itself: file:…, env:… or cred:…" : ""),
    read: () => (isNumber ? numberOf(input.value) : input.value.trim()),
  };
}

const area = (text) => el("textarea", { class: "mono", rows: "6", spellcheck: "false", autofocus: true, ".value": text });

/** The number somebody typed; what is none goes to the node as it is, which says what it wants. */
function numberOf(text) {
  const plain = text.replace(/[\s,_]/g, "");
  return NUMBER.test(plain) ? Number(plain) : text.trim();
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error("That is not JSON.");
  }
}
