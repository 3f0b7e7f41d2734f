// Fields of forms with their labels, hints and problems tied together for screen readers.

import { el } from "/static/dom.js";

let made = 0;

/**
 * A labelled field. What is wrong with it is told by `setProblem(field, text)`.
 *
 * @param {string} label
 * @param {HTMLElement} input
 * @param {string|Node} [hint]
 */
export function field(label, input, hint = "") {
  const id = `f${++made}`;
  input.id = id;
  const problem = el("span", { class: "problem", id: `${id}-problem` });
  const about = hint ? el("span", { class: "hint", id: `${id}-hint` }, hint) : null;
  input.setAttribute("aria-describedby", hint ? `${id}-hint ${id}-problem` : `${id}-problem`);
  return el("div", { class: "field" }, el("label", { for: id }, label), input, about, problem);
}

/** Says what is wrong with a field; nothing with an empty text. */
export function setProblem(holder, text) {
  const input = holder.querySelector("input, select, textarea");
  holder.querySelector(".problem").textContent = text;
  if (text) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

export function passwordInput() {
  return el("input", {
    type: "password", name: "password", autocomplete: "current-password", required: true,
    maxlength: "1024",
  });
}

export function textInput(attributes = {}) {
  return el("input", { type: "text", autocomplete: "off", spellcheck: "false", ...attributes });
}

/** Whole numbers are typed as text: a wheel over a number field changes amounts unseen. */
export function wholeInput(attributes = {}) {
  return textInput({ inputmode: "numeric", ...attributes });
}

export function decimalInput(attributes = {}) {
  return textInput({ inputmode: "decimal", ...attributes });
}

/**
 * The integer somebody typed, with or without separators.
 *
 * @returns {number|null} null when it is none.
 */
export function parseWhole(text) {
  const plain = text.replace(/[\s,_'’]/g, "");
  if (!/^-?\d{1,15}$/.test(plain)) return null;
  return Number(plain);
}

/** A `<select>` of [value, label] pairs. */
export function select(options, chosen, attributes = {}) {
  return el("select", attributes, options.map(([value, label]) =>
    el("option", { value, selected: value === chosen }, label)));
}

/** A labelled check box. */
export function check(label, checked) {
  const input = el("input", { type: "checkbox", ".checked": checked });
  return { input, holder: el("label", { class: "check" }, input, el("span", {}, label)) };
}

/** A choice of a few, as a row of radio buttons. `onchange` is given the value. */
export function choice(legend, options, chosen, onchange) {
  const name = `c${++made}`;
  return el("fieldset", { class: "choice" }, el("legend", {}, legend), options.map(([value, label]) =>
    el("label", {},
      el("input", {
        type: "radio", name, value, ".checked": value === chosen, onchange: () => onchange(value),
      }),
      el("span", {}, label))));
}
