// Dialogs: the browser's own <dialog>, which keeps the focus inside; it returns to where it was.

import { el, replace } from "/static/dom.js";
import { problem } from "./widgets.js";

let made = 0;

/**
 * Opens a dialog.
 *
 * @param {string} title
 * @param {...(Node|string)} content
 * @param {{narrow?: boolean, lasting?: boolean}} [options] lasting: Escape does not close it.
 * @returns {{element: HTMLDialogElement, close: function(): void, closed: Promise<void>}}
 */
export function openDialog(title, content, { narrow = false, lasting = false } = {}) {
  const before = document.activeElement;
  const id = `dialog-${++made}`;
  const heading = el("h2", { id, tabindex: "-1" }, title);
  const dialog = el("dialog", { "aria-labelledby": id, class: narrow ? "narrow" : "" },
    el("div", { class: "inside" }, heading, content));
  const closed = new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
      resolve();
    });
  });
  if (lasting) dialog.addEventListener("cancel", (event) => event.preventDefault());
  document.body.append(dialog);
  dialog.showModal();
  (dialog.querySelector("[autofocus]") ?? heading).focus();
  const leave = () => dialog.close();
  addEventListener("hashchange", leave);
  closed.then(() => removeEventListener("hashchange", leave));
  return { element: dialog, close: leave, closed };
}

/**
 * A dialog with a form: its button runs `act`, tells what went wrong and stays, or closes.
 *
 * @param {Object} options
 * @param {string} options.title
 * @param {Array<Node>} options.content
 * @param {string} options.action what the button says.
 * @param {function(): Promise<unknown>} options.act
 * @param {string} [options.doing] what the button says meanwhile.
 * @param {function(Error): (Node|null)} [options.told] shows an error elsewhere and gives null, or
 *   gives what to show of it.
 * @param {Array<Node>} [options.more] further buttons.
 * @returns {Promise<unknown>} what `act` gave; undefined when it was called off.
 */
export function formDialog({
  title, content, action, act, doing = "Saving …", told = problem, more = [], danger = false,
  narrow = false,
}) {
  const said = el("div", { role: "alert" });
  const button = el("button", { type: "submit", class: danger ? "danger" : "primary" }, action);
  const cancel = el("button", { type: "button" }, "Cancel");
  const form = el("form", { class: "stack", novalidate: true },
    content, said, el("div", { class: "row actions" }, button, more, cancel));
  const dialog = openDialog(title, form, { narrow });
  let answer;
  cancel.addEventListener("click", dialog.close);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    replace(said);
    busy(button, true, doing);
    try {
      answer = await act();
      dialog.close();
    } catch (error) {
      replace(said, told(error));
      form.querySelector("[aria-invalid=true]")?.focus();
    } finally {
      busy(button, false, action);
    }
  });
  return dialog.closed.then(() => answer);
}

/** A question before something is done. Resolves to whether it was agreed to. */
export async function confirm(title, content, action, { danger = false } = {}) {
  const agreed = await formDialog({
    title, content, action, danger, narrow: true, act: async () => true,
  });
  return agreed === true;
}

/** A button at work says so and cannot be pressed again. */
export function busy(button, on, text) {
  button.disabled = on;
  button.classList.toggle("busy", on);
  button.textContent = text;
}
